"""Results as DICOM objects: read back by highdicom voxel by voxel, and held against dciodvfy, dsrdump and, where the
images are real, dicom-validator; test_validator.py has the others.
"""

from __future__ import annotations

import datetime
import shutil
import subprocess
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import highdicom
import numpy as np
import pydicom
import pytest
from matplotlib.colors import to_rgb
from orthokernels.edge import viewing
from orthokernels.edge.config import Results
from orthokernels.edge.evaluate import PipelineEvaluator
from orthokernels.edge.forms import FORMS
from orthokernels.edge.objects import NOTICE, page, write_abstention, write_objects
from orthokernels.edge.objects.canvas import BANNER
from orthokernels.edge.objects.codes import ABSENT, INDETERMINATE, PRESENT, UNKNOWN
from orthokernels.edge.objects.sources import OF_PATIENT, read_sources
from orthokernels.edge.runner import Request
from pydicom import config
from pydicom.encaps import encapsulate
from pydicom.multival import MultiValue
from pydicom.uid import JPEG2000, ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEGLSNearLossless

from orthokernels import pipeline, tasks
from orthokernels.data.dicom import read_frames
from orthokernels.data.phantom import make_study, write_dicom
from orthokernels.errors import InputError
from orthokernels.montage import AMBER
from tests.data.series import noise, write_series
from tests.edge.results import DIGESTS, comments_of, phantom_labels, true_run
from tests.edge.standard import faults
from tests.test_tasks import check_digit_holds

DATED = {"StudyDate": "20260102", "StudyTime": "030405", "Laterality": "R", "BodyPartExamined": "KNEE"}


def random_labels(volume):
    """Every structure all over the volume: no symmetry that a flip could hide behind."""
    return np.random.default_rng(volume.shape).integers(0, 12, volume.shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """A phantom study as DICOM, and a run over it that found its true labels."""
    study = make_study(3, matrix=64)
    folder = tmp_path_factory.mktemp("phantom") / "study"
    write_dicom(study, folder)
    return true_run(folder, phantom_labels(study)), sorted(folder.rglob("*.dcm"))


@pytest.fixture(scope="module")
def objects(phantom, tmp_path_factory):
    run, sources = phantom
    folder = tmp_path_factory.mktemp("objects")
    return {path.stem: path for path in write_objects(run, sources, folder, **DIGESTS)}


@pytest.fixture(scope="module")
def abstained(phantom, tmp_path_factory):
    reasons = ["the study shows an ankle, not a knee", "the sagittal series has 12 slices; 16 are needed"]
    folder = tmp_path_factory.mktemp("abstained")
    return write_abstention(phantom[1], folder, reasons, joint="knee", side="R", **DIGESTS)


def labels_in_place(file: Path, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """The SEG's labels, each put where its own geometry says, on a grid whose affine (to RAS mm) is given."""
    volume = highdicom.seg.segread(file).get_volume(combine_segments=True)
    inside = np.argwhere(volume.array > 0)
    lps = volume.map_indices_to_reference(inside)
    indices = (lps * [-1, -1, 1] - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    # Decimal strings of 16 characters and a linear affine over rounded positions: far below a hundredth of a voxel.
    np.testing.assert_allclose(indices, indices.round(), atol=0.01)
    found = np.zeros(shape, np.uint8)
    found[tuple(indices.round().astype(int).T)] = volume.array[tuple(inside.T)]
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("step", [4.0, -4.0])
@pytest.mark.parametrize("plane", tasks.PLANES)
def test_oblique_and_reversed_series_get_every_label_back_in_its_place(tmp_path, plane, step, form):
    files = write_series(
        tmp_path / "in", noise(1), plane=plane, tilt=(12, -9, 15), spacing=(0.5, 0.7, step), reverse_names=step < 0,
        series="1.2.3.4", **DATED,
    )  # fmt: skip
    run = true_run(tmp_path / "in", random_labels)
    made = write_objects(run, files, tmp_path / "out", forms=[form], **DIGESTS)
    labels, affine = run.label_maps[plane]
    np.testing.assert_array_equal(labels_in_place(made[0], labels.shape, affine), labels)


def test_segmentation_gives_the_phantom_s_labels_back(phantom, objects):
    run, _ = phantom
    for plane, (labels, affine) in run.label_maps.items():
        found = labels_in_place(objects[f"segmentation_{plane}"], labels.shape, affine)
        np.testing.assert_array_equal(found, labels)


def test_what_the_pipeline_gives_is_what_the_archive_gets(phantom, tmp_path):
    _, sources = phantom
    run = pipeline.run(sources, weights="demo", engine="native")
    made = write_objects(run, sources, tmp_path, **DIGESTS)
    assert [path.stem for path in made[:4]] == [*(f"segmentation_{plane}" for plane in tasks.PLANES), "findings"]
    for path, (labels, affine) in zip(made, run.label_maps.values(), strict=False):
        np.testing.assert_array_equal(labels_in_place(path, labels.shape, affine), labels)
    assert pydicom.dcmread(made[3]).CompletionFlag == "COMPLETE"


def test_left_stays_left(phantom, objects):
    """In a right knee the medial meniscus lies to the patient's left: towards +x in DICOM's frame."""
    for plane in tasks.PLANES:
        volume = highdicom.seg.segread(objects[f"segmentation_{plane}"]).get_volume(combine_segments=True)
        x = {n: volume.map_indices_to_reference(np.argwhere(volume.array == n))[:, 0].mean() for n in (8, 9)}
        assert x[8] > x[9] + 20  # mm


def test_segments_frames_refer_to_the_images_they_lie_on(phantom, objects):
    run, _ = phantom
    for plane in tasks.PLANES:
        seg = pydicom.dcmread(objects[f"segmentation_{plane}"])
        images = [pydicom.dcmread(path, stop_before_pixels=True) for path, _ in run.frames[plane]]
        assert seg.FrameOfReferenceUID == images[0].FrameOfReferenceUID
        series = seg.ReferencedSeriesSequence[0]
        assert series.SeriesInstanceUID == images[0].SeriesInstanceUID
        referred = [item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence]
        assert referred == [image.SOPInstanceUID for image in images]
        places = {image.SOPInstanceUID: image.ImagePositionPatient for image in images}
        for group in seg.PerFrameFunctionalGroupsSequence:
            source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            place = group.PlanePositionSequence[0].ImagePositionPatient
            assert place == pytest.approx(places[source], abs=1e-6)


def test_segments_say_structure_side_algorithm_and_colour(objects):
    seg = highdicom.seg.segread(objects["segmentation_sagittal"])
    assert seg.segment_numbers == list(range(1, 12))
    for structure in tasks.STRUCTURES:
        segment = seg.get_segment_description(structure.index)
        assert segment.segment_label == structure.name
        assert segment.segmented_property_type.value == structure.code.value
        assert [r.value for r in segment.anatomic_regions] == ([structure.region.value] if structure.region else [])
        assert segment.algorithm_identification.name == "orthokernels"
        assert DIGESTS["model_digest"] in segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
        side = segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
        assert side.CodeMeaning == "Right"
        assert segment.RecommendedDisplayCIELabValue


def test_plane_without_a_label_has_no_segmentation_and_says_zero(tmp_path):
    files = write_series(tmp_path / "in", noise(2), **DATED)
    run = true_run(tmp_path / "in", lambda volume: np.zeros(volume.shape, np.uint8))
    made = write_objects(run, files, tmp_path / "out", **DIGESTS)
    assert [path.name for path in made] == ["findings.dcm", "picture_sagittal.dcm", "page.dcm"]
    groups = measurement_groups(made[0])
    assert [group.get_measurements()[0].value for group in groups if "sagittal" in group.tracking_identifier] == 11 * [
        0
    ]


def measurement_groups(file: Path):
    return highdicom.sr.srread(file).content.get_image_measurement_groups()


def test_report_gives_each_structure_s_volume_with_its_segment(phantom, objects):
    run, _ = phantom
    groups = highdicom.sr.srread(objects["findings"]).content.get_volumetric_roi_measurement_groups()
    expected = {
        (plane.plane, structure.index): structure.ml for plane in run.result.planes for structure in plane.structures
    }
    found = {}
    uids = {pydicom.dcmread(objects[f"segmentation_{p}"]).SOPInstanceUID: p for p in tasks.PLANES}
    for group in groups:
        segment = group.referenced_segment[0]
        measured = group.get_measurements()[0]
        assert (measured.name.value, measured.unit.value) == ("118565006", "ml")
        side = group.finding_sites[0].ContentSequence[0].ConceptCodeSequence[0]
        assert side.CodeMeaning == "Right"
        plane = uids[segment.referenced_sop_instance_uid]
        found[plane, segment.referenced_segment_numbers[0]] = measured.value
    assert found == pytest.approx(expected, abs=1e-4)


def test_volume_of_a_structure_at_the_edge_of_what_was_labelled_is_told_as_the_least(phantom, tmp_path):
    run, sources = phantom
    planes = []
    for own in run.result.planes:
        cut = tuple(one.model_copy(update={"cut_off": one.key == "tibia"}) for one in own.structures)
        planes.append(own.model_copy(update={"structures": cut}))
    result = run.result.model_copy(update={"planes": tuple(planes)})
    written = write_objects(replace(run, result=result), sources, tmp_path, **DIGESTS)
    (report,) = (pydicom.dcmread(path) for path in written if path.name == "findings.dcm")
    told = [comment for comment in comments_of(report) if "the least that there is" in comment]
    assert [one.split(":")[0] for one in told] == [own.plane for own in planes]
    assert all(one.endswith(": Tibia") for one in told)
    drawn = {row.texts[0]: row.texts[1:] for row in page._volumes(result) if row.texts}
    assert all(volume.startswith("\N{GREATER-THAN OR EQUAL TO} ") for volume in drawn["Tibia"])
    assert not any(volume.startswith("\N{GREATER-THAN OR EQUAL TO}") for volume in drawn["Femur"])


def test_report_answers_each_finding_with_its_probability(phantom, objects):
    run, _ = phantom
    groups = [g for g in measurement_groups(objects["findings"]) if g.get_qualitative_evaluations()]
    wanted = [PRESENT, ABSENT, PRESENT, ABSENT, PRESENT, ABSENT, PRESENT, UNKNOWN]  # the last has no probability
    for group, finding, label, answer in zip(groups, run.result.findings, tasks.LABELS["knee"], wanted, strict=True):
        evaluation = group.get_qualitative_evaluations()[-1]  # the algorithm's family is a code too
        assert evaluation.value == answer
        assert evaluation.name.value == (label.code.value if label.code else label.key)
        assert group.finding_sites[0].value.value == label.site.value
        probability = [measured.value for measured in group.get_measurements()]
        assert probability == ([] if finding.probability is None else [finding.probability])


@pytest.mark.parametrize(("within", "indeterminate"), [(0.0, 0), (0.03, 3)])
def test_findings_near_their_threshold_are_indeterminate_as_the_configuration_says(
    phantom, tmp_path, within, indeterminate
):
    """The worker's own way from a run to objects and the page; the run itself is given. 0.52, 0.48 and 0.5 lie near."""
    run, sources = phantom
    worker = PipelineEvaluator.__new__(PipelineEvaluator)
    worker._results, worker._bundle = Results(indeterminate_within=within), SimpleNamespace(digest="a" * 64)
    worker._forms = ("binary",)
    worker._infer = lambda request, tell: (run, [])
    with ThreadPoolExecutor(1) as worker._beside:
        worker.evaluate(Request(tuple(sources), tmp_path), lambda what, done, total: None, lambda: None)
    groups = [g for g in measurement_groups(tmp_path / "findings.dcm") if g.get_qualitative_evaluations()]
    answers = [group.get_qualitative_evaluations()[-1].value for group in groups]
    assert answers.count(INDETERMINATE) == indeterminate
    kept = viewing.read_result(tmp_path / viewing.FOLDER)
    said = {"present": PRESENT, "absent": ABSENT, "indeterminate": INDETERMINATE, "not evaluated": UNKNOWN}
    assert [said[finding.status] for finding in kept.findings] == answers  # the page says the same


def test_images_of_two_patients_get_no_result_and_an_abstention_that_names_neither(phantom, tmp_path):
    run, sources = phantom
    other = pydicom.dcmread(sources[0])
    other.PatientID = "SOMEONE-ELSE"
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    other.save_as(tmp_path / "other.dcm")
    files = [*sources, tmp_path / "other.dcm"]
    with pytest.raises(InputError, match="more than one patient"):
        write_objects(run, files, tmp_path / "out", **DIGESTS)
    for path in write_abstention(files, tmp_path / "out", ["two patients"], joint="knee", **DIGESTS):
        made = pydicom.dcmread(path)
        assert not any(made.get(keyword) for keyword in OF_PATIENT)
        assert made.StudyInstanceUID == other.StudyInstanceUID
        assert errors_of_validators(path) == []


def test_report_is_preliminary_unverified_partial_and_not_for_diagnosis(objects):
    report = highdicom.sr.srread(objects["findings"])
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    assert (report.CompletionFlag, report.CompletionFlagDescription) == ("PARTIAL", "not every finding was scored")
    texts = comments_of(report)
    assert texts[0] == NOTICE
    assert "Joint effusion: no head scores it" in texts
    parameters = report.to_json()
    assert all(digest in parameters for digest in DIGESTS.values())


def test_report_on_everything_is_complete(phantom, tmp_path):
    run, sources = phantom
    scored = tuple(f.model_copy(update={"probability": 0.1, "threshold": 0.5, "status": "absent", "reason": None})
                   for f in run.result.findings)  # fmt: skip
    whole = run.result.model_copy(update={"findings": scored})
    for result, flag in ((whole, "COMPLETE"), (whole.model_copy(update={"planes": whole.planes[:2]}), "PARTIAL")):
        made = write_objects(replace(run, result=result), sources, tmp_path, **DIGESTS)
        report = pydicom.dcmread(next(path for path in made if path.stem == "findings"))
        assert report.CompletionFlag == flag


def test_pictures_bear_the_notice_and_show_the_montage(objects):
    amber = [round(255 * c) for c in to_rgb(AMBER)]
    for name in ("picture_sagittal", "picture_coronal", "picture_axial", "page"):
        picture = pydicom.dcmread(objects[name])
        pixels = picture.pixel_array
        banner = pixels[:BANNER].reshape(-1, 3)
        assert 0.7 < (banner == amber).all(axis=1).mean() < 0.99  # the rest is the notice's letters
        assert pixels[BANNER:].std() > 10
        assert picture.BurnedInAnnotation == "NO"
    directions = {p: list(pydicom.dcmread(objects[f"picture_{p}"]).PatientOrientation) for p in tasks.PLANES}
    assert directions == {"sagittal": ["P", "F"], "coronal": ["L", "F"], "axial": ["L", "P"]}


def test_every_object_belongs_to_the_study_and_says_what_it_is_not_for(phantom, objects):
    source = pydicom.dcmread(phantom[1][0])
    for path in objects.values():
        made = pydicom.dcmread(path)
        for keyword in ("PatientName", "PatientID", "PatientSex", "StudyInstanceUID", "StudyDescription", "StudyDate"):
            assert made[keyword].value == source[keyword].value, keyword
        assert made.SeriesDescription.endswith(NOTICE)
        if made.Modality != "SR":
            assert made.BodyPartExamined == "KNEE"
            assert (made.get("Laterality") or made.ImageLaterality) == "R"


def test_repeat_gives_the_same_bytes_and_a_change_gives_other_identifiers(phantom, objects, tmp_path):
    run, sources = phantom
    again = write_objects(run, sources, tmp_path / "again", **DIGESTS)
    assert {path.stem: path.read_bytes() for path in again} == {n: path.read_bytes() for n, path in objects.items()}
    uids = {pydicom.dcmread(path).SOPInstanceUID for path in objects.values()}
    assert len(uids) == len(objects)
    for number, (files, digests) in enumerate((
        (sources, {**DIGESTS, "model_digest": "c" * 64}),
        (sources, {**DIGESTS, "configuration_digest": "c" * 64}),
        ([*sources, late_image(sources[0], tmp_path / "late.dcm")], DIGESTS),
    )):  # fmt: skip
        other = write_objects(run, files, tmp_path / str(number), **digests)
        assert not uids & {pydicom.dcmread(path).SOPInstanceUID for path in other}


def late_image(source: Path, path: Path) -> Path:
    image = pydicom.dcmread(source)
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    image.save_as(path)
    return path


def test_report_names_the_report_it_supersedes_and_gives_remarks(phantom, abstained, tmp_path):
    run, sources = phantom
    doubt = "sagittal, fibula, volume: 0.3 ml, outside 3.4 to 23 ml"
    made = write_objects(run, sources, tmp_path, **DIGESTS, supersedes=[abstained[0]], remarks=[doubt])
    report = pydicom.dcmread(next(path for path in made if path.stem == "findings"))
    assert doubt in comments_of(report)
    earlier = report.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert earlier.ReferencedSOPInstanceUID == pydicom.dcmread(abstained[0]).SOPInstanceUID


def test_report_that_is_made_again_names_what_it_named_before_and_never_itself(phantom, tmp_path):
    _, sources = phantom

    def report(name, reason, *earlier):
        made = write_abstention(sources, tmp_path / name, [reason], joint="knee", supersedes=earlier, **DIGESTS)[0]
        return made, made.read_bytes()

    first, first_bytes = report("1", "no knee")
    other, other_bytes = report("2", "no contrast", first)
    assert report("3", "no knee", first)[1] == first_bytes
    assert report("4", "no knee", other, first)[1] == first_bytes
    assert report("5", "no contrast", first, other, first)[1] == other_bytes
    assert "PredecessorDocumentsSequence" not in pydicom.dcmread(first)
    named = pydicom.dcmread(other).PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert named.ReferencedSOPInstanceUID == pydicom.dcmread(first).SOPInstanceUID


def test_abstention_gives_its_reasons_and_every_image_as_evidence(phantom, abstained):
    report = highdicom.sr.srread(abstained[0])
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    assert report.CompletionFlag == "PARTIAL"
    texts = comments_of(report)
    assert texts[0] == NOTICE
    assert texts[1] == "No result: the study shows an ankle, not a knee"
    evaluation = measurement_groups(abstained[0])[0].get_qualitative_evaluations()[-1]
    assert evaluation.value.value == "ABSTAINED"
    assert len(report.get_evidence()) == len(phantom[1])


def test_abstention_for_another_reason_is_another_object(phantom, abstained, tmp_path):
    other = write_abstention(phantom[1], tmp_path, ["the model failed twice"], joint="knee", side="R", **DIGESTS)
    uids = [pydicom.dcmread(path).SOPInstanceUID for path in (*abstained, *other)]
    assert len(set(uids)) == 4


def test_abstention_does_not_tell_where_files_lie(phantom, tmp_path):
    _, sources = phantom
    reasons = [f"{sources[0]}: is cut short. Export the file again.", f"{sources[0].parent}: no usable MR volume."]
    report = pydicom.dcmread(write_abstention(sources, tmp_path, reasons, joint="knee", **DIGESTS)[0])
    assert comments_of(report)[1:] == [
        "No result: a file of the study: is cut short. Export the file again.",
        "No result: the study: no usable MR volume.",
    ]


def test_odd_names_of_patients_reach_no_log(phantom, tmp_path, caplog):
    image = pydicom.dcmread(phantom[1][0])
    image.PatientName = "Smith Jones"  # one component: highdicom warns of it, and quotes it
    image.save_as(tmp_path / "image.dcm")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        made = write_abstention([tmp_path / "image.dcm"], tmp_path, ["no knee"], joint="knee", **DIGESTS)
    assert pydicom.dcmread(made[0]).PatientName == "Smith Jones"
    assert "Smith" not in caplog.text + "".join(str(w.message) for w in warned)


def test_every_odd_file_that_is_an_object_gets_an_abstention_that_conforms(real_data, tmp_path):
    """Heads, phantoms, radiographs, damaged and badly typed files: refused in one sentence, or answered."""
    answered, refusals = 0, []
    for file in sorted(p for p in (real_data / "odd").rglob("*") if p.is_file()):
        try:
            made = write_abstention(
                [file], tmp_path, ["this is no knee"], joint="knee", created=datetime.datetime(2026, 1, 2), **DIGESTS
            )
        except InputError as error:
            refusals.append(str(error))
            continue
        answered += 1
        assert [error for path in made for error in errors_of_validators(path)] == [], file.name
    assert answered > 30
    assert refusals
    assert all("no DICOM object with valid" in refusal for refusal in refusals)


def test_study_with_other_objects_in_it_is_described_by_the_images_used(phantom, tmp_path):
    """A report that lies in the study's folder, named before the images, and paths that are written differently."""
    run, sources = phantom
    other = pydicom.dcmread(sources[0])
    other.SOPInstanceUID = other.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    other.PatientName, other.BodyPartExamined = "", "ABDOMEN"
    other.save_as(tmp_path / "0.dcm")
    roundabout = [path.parent / ".." / path.parent.name / path.name for path in sources]
    for path in write_objects(run, [tmp_path / "0.dcm", *roundabout], tmp_path / "out", **DIGESTS):
        made = pydicom.dcmread(path)
        assert made.PatientName == "Phantom^Knee"
        assert made.get("BodyPartExamined", "KNEE") == "KNEE"


def test_headers_that_break_the_rules_do_not_spoil_the_objects(tmp_path):
    """Sex X, 31 February, an identifier too long, control characters: left empty, and nothing else is touched."""
    files = write_series(
        tmp_path / "in", noise(4), **DATED, PatientID="7", PatientSex="X", PatientBirthDate="19700231",
        AccessionNumber="1234567890123456789", StudyDescription="knee[31m", PatientAge="very",
    )  # fmt: skip
    run = true_run(tmp_path / "in", random_labels)
    for path in write_objects(run, files, tmp_path / "out", **DIGESTS):
        made = pydicom.dcmread(path)
        assert made.PatientID == "7"
        assert (made.PatientSex, made.PatientBirthDate, made.AccessionNumber) == ("", "", "")
        assert "StudyDescription" not in made
        assert "PatientAge" not in made
        assert errors_of_dciodvfy(path) == []


LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def loss(dataset) -> tuple:
    """What an object or a header says of lossy compression; several values as a list."""
    values = [dataset.get(keyword) for keyword in LOSSY]
    return tuple(list(map(str, v)) if isinstance(v, MultiValue) else v if v is None else str(v) for v in values)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("syntax", "options", "method"),
    [(JPEG2000, {"j2k_cr": [10]}, "ISO_15444_1"), (JPEGLSNearLossless, {"jls_error": 40}, "ISO_14495_1")],
)
def test_objects_of_lossy_images_say_by_what_method_and_ratio(tmp_path, syntax, options, method, form):
    """One image of the series, not the first, and its header is silent."""
    files = write_series(tmp_path / "in", noise(4, 16, 64, 64), **DATED, PatientID="7", PatientSex="F")
    image = pydicom.dcmread(files[5])
    image.compress(syntax, generate_instance_uid=False, **options)
    for keyword in LOSSY:
        if keyword in image:
            delattr(image, keyword)
    image.save_as(files[5])
    run = true_run(tmp_path / "in", random_labels)
    seg, *_, picture, _ = write_objects(run, files, tmp_path / "out", forms=[form], **DIGESTS)
    for path in (seg, picture):
        told, ratio, by = loss(pydicom.dcmread(path))
        assert (told, by) == ("01", method)
        assert float(ratio) == pytest.approx(64 * 64 * 2 / len(image.PixelData), abs=0.01)
    if form == "binary":
        assert errors_of_dciodvfy(seg) == []
    assert errors_of_dciodvfy(picture) == []


def test_what_the_sources_say_of_lossy_compression_is_kept_with_every_value(tmp_path):
    """Decompressed by now; they went through two methods."""
    header = dict(zip(LOSSY, ("01", ["10", "4.5"], ["ISO_10918_1", "ISO_15444_1"]), strict=True))
    files = write_series(tmp_path / "in", noise(4), **DATED, PatientID="7", PatientSex="F", **header)
    made = write_objects(true_run(tmp_path / "in", random_labels), files, tmp_path / "out", **DIGESTS)
    for path in (made[0], made[-2]):
        assert loss(pydicom.dcmread(path)) == tuple(header.values())
        assert errors_of_dciodvfy(path) == []
    assert loss(pydicom.dcmread(made[-1])) == (None, None, None)  # the page shows no image


@pytest.mark.parametrize(
    ("syntax", "said", "found"),
    [
        (JPEGBaseline8Bit, {}, ("01", "33.03", "ISO_10918_1")),
        (JPEGBaseline8Bit, {"LossyImageCompression": "00"}, ("01", "33.03", "ISO_10918_1")),
        (JPEG2000, {}, ("01", "33.03", "ISO_15444_1")),
        (JPEG2000, {"LossyImageCompression": "00"}, ("00", None, None)),
        (JPEG2000, {"LossyImageCompression": "01", "LossyImageCompressionRatio": "8"}, ("01", "8", "ISO_15444_1")),
        (
            JPEG2000,
            {"LossyImageCompression": "01", "LossyImageCompressionRatio": "1.2345678901234567"},
            ("01", "33.03", "ISO_15444_1"),
        ),
        (ExplicitVRLittleEndian, {}, (None, None, None)),
        (ExplicitVRLittleEndian, {"LossyImageCompression": "00"}, ("00", None, None)),
        (ExplicitVRLittleEndian, {"LossyImageCompression": "01"}, ("01", None, None)),
    ],
)
def test_transfer_syntax_tells_of_loss_where_the_header_does_not(tmp_path, syntax, said, found):
    (file,) = write_series(tmp_path / "in", np.zeros((1, 128, 128), np.uint16))
    image = pydicom.dcmread(file)
    image.file_meta.TransferSyntaxUID = syntax
    if syntax.is_encapsulated:
        image.PixelData = encapsulate([bytes(976)], has_bot=False)  # 992 bytes with what tells of the parts
        image["PixelData"].VR = "OB"
    with config.disable_value_validation():
        for keyword, value in said.items():
            setattr(image, keyword, value)
        image.save_as(file)
    (header,) = read_sources([file]).values()
    assert loss(header) == found


def test_frames_of_a_multi_frame_image_are_referred_to_by_number(tmp_path, real_data):
    """A real enhanced file, its 19 frames moved to 19 places in another order."""
    image = pydicom.dcmread(real_data / "knee-enhanced" / "MOVEKNEE.dcm")
    first = read_frames(real_data / "knee-enhanced" / "MOVEKNEE.dcm")[0]
    order = np.random.default_rng(0).permutation(19)
    for place, group in zip(order, image.PerFrameFunctionalGroupsSequence, strict=True):
        position = pydicom.Dataset()
        position.ImagePositionPatient = [float(v) for v in np.array(first.position) + 4.0 * place * first.normal]
        group.PlanePositionSequence = [position]
    image.save_as(tmp_path / "stack.dcm")
    run = true_run(tmp_path / "stack.dcm", random_labels)
    made = write_objects(run, [tmp_path / "stack.dcm"], tmp_path / "out", **DIGESTS)
    labels, affine = run.label_maps["sagittal"]
    np.testing.assert_array_equal(labels_in_place(made[0], labels.shape, affine), labels)
    seg = pydicom.dcmread(made[0])
    assert [r.ReferencedSOPInstanceUID for r in seg.SourceImageSequence] == [image.SOPInstanceUID]
    for group in seg.PerFrameFunctionalGroupsSequence:
        reference = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert reference.ReferencedSOPClassUID == image.SOPClassUID
        there = image.PerFrameFunctionalGroupsSequence[reference.ReferencedFrameNumber - 1].PlanePositionSequence[0]
        assert group.PlanePositionSequence[0].ImagePositionPatient == pytest.approx(there.ImagePositionPatient)
    assert [error for path in made for error in errors_of_validators(path)] == []


def test_real_knee_is_read_back_voxel_by_voxel_and_conforms(tmp_path, real_data):
    """Big-endian, oblique, eight echoes in one series, year 1, no laterality: labels where the picture is bright."""
    sources = sorted((real_data / "knee-mese").glob("*.dcm"))

    def bright(volume):
        return np.digitize(volume.voxels, np.quantile(volume.voxels, np.linspace(0.5, 0.99, 11))).astype(np.uint8)

    run = true_run(real_data / "knee-mese", bright, side=None)
    with pytest.raises(InputError, match="no source image has a date"):
        write_objects(run, sources, tmp_path, **DIGESTS)
    made = write_objects(run, sources, tmp_path, created=datetime.datetime(2026, 1, 2, 3, 4, 5), **DIGESTS)
    labels, affine = run.label_maps["sagittal"]
    np.testing.assert_array_equal(labels_in_place(made[0], labels.shape, affine), labels)
    echoes = {pydicom.dcmread(path, stop_before_pixels=True).EchoTime for path, _ in run.frames["sagittal"]}
    assert len(echoes) == 1
    seg = pydicom.dcmread(made[0])
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 24
    assert [error for path in made for error in errors_of_validators(path)] == []


def errors_of_validators(path: Path) -> list[str]:
    return faults(pydicom.dcmread(path)) + errors_of_dciodvfy(path)


def errors_of_dciodvfy(path: Path) -> list[str]:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    ran = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    told = ran.stderr.splitlines()
    assert any("Segmentation" in line or "SR" in line or "SCImage" in line for line in told), told
    return [line for line in told if "Error" in line]


def test_dciodvfy_finds_no_error_in_any_object(objects, abstained):
    for path in (*objects.values(), *abstained):
        assert errors_of_dciodvfy(path) == [], path.name


def test_dsrdump_reads_the_reports(objects, abstained):
    if shutil.which("dsrdump") is None:
        pytest.skip("dsrdump is not installed (Debian package dcmtk)")
    for path, told in ((objects["findings"], "Probability"), (abstained[0], "Abstained: no result is given")):
        ran = subprocess.run(["dsrdump", "+Pl", str(path)], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert not [line for line in ran.stderr.splitlines() if line.startswith("E:")]
        assert told in ran.stdout
        assert NOTICE in ran.stdout


def test_answers_hold_their_check_digits():
    assert all(check_digit_holds(code.value) for code in (PRESENT, ABSENT, INDETERMINATE, UNKNOWN))


def test_only_dicom_images_of_one_dated_study_can_be_answered(phantom, tmp_path):
    run, sources = phantom
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    other = pydicom.dcmread(sources[0])
    other.StudyInstanceUID = "1.2.3"
    other.save_as(tmp_path / "other.dcm")
    undated = write_series(tmp_path / "undated", noise(5))
    for files, message in (
        ([text], "no DICOM object with valid"),
        ([*sources, tmp_path / "other.dcm"], "more than one study"),
        (sources[5:], "not among the sources"),
    ):
        with pytest.raises(InputError, match=message):
            write_objects(run, files, tmp_path / "out", **DIGESTS)
    undated_run = true_run(tmp_path / "undated", random_labels)
    with pytest.raises(InputError, match="no source image has a date"):
        write_objects(undated_run, undated, tmp_path / "out", **DIGESTS)
    with pytest.raises(InputError, match="not read from DICOM"):
        write_objects(replace(run, frames={}), sources, tmp_path / "out", **DIGESTS)
    assert not (tmp_path / "out").exists()
    at = datetime.datetime(2026, 1, 2, 3, 4, 5)
    made = write_objects(undated_run, undated, tmp_path / "out", created=at, **DIGESTS)
    assert {pydicom.dcmread(path).ContentDate for path in made} == {"20260102"}


def test_moment_of_receipt_counts_where_no_header_has_a_date_and_only_there(phantom, tmp_path):
    run, sources = phantom
    undated = write_series(tmp_path / "undated", noise(5))
    undated_run = true_run(tmp_path / "undated", random_labels)
    received = datetime.datetime(2026, 3, 4, 5, 6, 7)
    for own, files, wanted in ((undated_run, undated, "20260304"), (run, sources, None)):
        made = [
            *write_objects(own, files, tmp_path / "out", received=received, **DIGESTS),
            *write_abstention(files, tmp_path / "out", ["no knee"], joint="knee", received=received, **DIGESTS),
        ]
        dates = {pydicom.dcmread(path).ContentDate for path in made}
        assert dates == {wanted or pydicom.dcmread(sources[0]).StudyDate}


def test_label_map_of_another_grid_is_refused(phantom, tmp_path):
    run, sources = phantom
    labels, affine = run.label_maps["axial"]
    moved = affine.copy()
    moved[0, 3] += 3.0  # mm
    for wrong, message in (((labels, moved), "3.0 mm off"), ((labels[1:], affine), "voxels, the source images")):
        with pytest.raises(InputError, match=message):
            write_objects(
                replace(run, label_maps={**run.label_maps, "axial": wrong}), sources, tmp_path / "out", **DIGESTS
            )
    assert not (tmp_path / "out").exists()
