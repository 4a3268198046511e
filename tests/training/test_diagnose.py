"""Training diagnosis heads: probes, fine-tuning, fusion, thresholds, patient data; and what lands in the folder."""

from __future__ import annotations

import copy
import csv
import functools
import json
import shutil

import numpy as np
import pytest
import torch

from orthokernels.errors import InputError
from orthokernels.models.native.load import load_native
from orthokernels.models.orthodiffusion.regional_pooling import GridPool, StructurePool
from orthokernels.models.orthodiffusion.unet import level_starts
from orthokernels.models.orthodiffusion.weights import load_weights, save_encoder
from orthokernels.models.weights_folder import FeaturePoint, load_settings
from orthokernels.tasks import LABELS, PLANES
from orthokernels.training import diagnose as training
from orthokernels.training import diagnosis_files
from orthokernels.training.checkpoint import Checkpoints
from orthokernels.training.config import load_config
from orthokernels.training.config_heads import DiagnoseConfig, FusionConfig, HeadConfig, SegmentConfig
from orthokernels.training.diagnose import diagnose
from orthokernels.training.diagnosis_files import write_heads
from orthokernels.training.distributed import alone
from orthokernels.training.features import SlabMaps
from orthokernels.training.metrics import auroc
from orthokernels.training.plane_heads import truth_and_weight
from orthokernels.training.predictions import run_records, study_findings
from orthokernels.training.probe import new_classifier, train_probe, vectors_of
from orthokernels.training.records import read_records
from orthokernels.training.regional_probe import chosen_numbers, grid_numbers_of, train_regional_probe
from orthokernels.training.segment import segment
from orthokernels.training.selection import diagnosed, select
from orthokernels.training.weights_folder import load_denoiser
from tests.training.toy import data_settings, write_studies, write_weights

QUICK = HeadConfig(epochs=20, batch=8, learning_rate=1e-2, standardise=True)


def config(folder, **changes) -> DiagnoseConfig:
    return DiagnoseConfig(
        **{
            "data": data_settings(folder, joint="ankle"), "pooling": "none", "probe": QUICK,
            "fusion": FusionConfig(head=QUICK, gate=HeadConfig(epochs=20, batch=None, learning_rate=1e-2), out_width=8),
            "points": {plane: {"timestep": 20, "block": "in_1"} for plane in PLANES}, **changes,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return write_studies(tmp_path_factory.mktemp("ankles"), 32, joint="ankle", labels=False)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("pooling", ["selfattn", "local", "none"])
def test_probe_learns_with_every_pooling_and_folding_changes_no_logit(pooling):
    draw = torch.Generator().manual_seed(0)
    truth = (torch.rand(60, 2, generator=draw) < 0.5).float()
    offset = torch.tensor([100.0, 0.01, 3.0, 0.0]).view(1, 4, 1, 1, 1)
    scale = torch.tensor([10.0, 0.001, 1.0, 5.0]).view(1, 4, 1, 1, 1)
    signal = torch.nn.functional.pad(truth, (0, 2)).view(60, 4, 1, 1, 1)
    maps = ((torch.randn(60, 4, 2, 3, 3, generator=draw) + signal) * scale + offset).half()
    own = SlabMaps.of([m[None].numpy() for m in maps])
    trained = train_probe(own, truth, torch.ones(60), pooling, 2, QUICK, seed=0)
    logits = trained.head(vectors_of(trained, own)).detach().numpy()
    assert np.mean([auroc(truth[:, n].numpy(), logits[:, n]) for n in range(2)]) > 0.95
    assert trained.scale is None


def _grid(channels, kept):
    return GridPool(channels, cells=(4, 4), kept=kept)


def test_a_grid_probe_finds_the_cell_that_follows_the_label():
    draw = torch.Generator().manual_seed(0)
    truth = (torch.rand(80, 2, generator=draw) < 0.4).float()
    maps = torch.randn(80, 3, 2, 8, 8, generator=draw)
    maps[:, 1, 0, 5, 2] += 6 * truth[:, 0]  # one bright voxel: in a maximum of its cell, hardly in any mean over all
    maps[:, 2, :, :2, :2] += 1.5 * truth[:, 1, None, None, None]
    own = SlabMaps.of([m[None].half().numpy() for m in maps])
    numbers = grid_numbers_of(GridPool(3, cells=(4, 4), kept=1), own)
    build = functools.partial(_grid, 3)
    trained = train_regional_probe(build, numbers, truth, torch.ones(80), 2, QUICK, seed=0)
    mean, largest = 2 * 16, 3 * 16 + 1 * 16 + 2 * 4 + 1
    assert mean in trained.pooling.places
    assert largest in trained.pooling.places
    assert trained.pooling.out_channels == 4
    logits = trained.head(vectors_of(trained, own)).detach().numpy()
    assert min(auroc(truth[:, n].numpy(), logits[:, n]) for n in range(2)) > 0.95


def test_a_mirrored_view_gives_the_same_grid():
    x = torch.randn(2, 3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    pooling = GridPool(3, cells=(4, 4), kept=20, mirror=True)
    torch.testing.assert_close(pooling(x), pooling(x.flip(-1)), rtol=0, atol=1e-6)  # means are summed in another order
    assert not torch.allclose(*(GridPool(3, cells=(4, 4), kept=20)(each) for each in (x, x.flip(-1))))


def test_columns_are_chosen_without_repetition_and_fill_up():
    numbers = torch.zeros(40, 5, dtype=torch.float64)
    truth = torch.zeros(40, 2)
    truth[::2] = 1
    numbers[:, 3] = truth[:, 0] + 0.01 * torch.arange(40) % 3
    numbers[:, 1] = truth[:, 0] + 0.5 * (torch.arange(40) % 3)
    assert chosen_numbers(numbers, truth, 1).tolist() == [1, 3]  # both labels want 3; 1 is next
    truth[:, 1] = float("nan")
    assert 3 in chosen_numbers(numbers, truth, 1)


def test_grid_heads_land_in_the_folder_and_read_frozen_features_alone(studies, cache, tmp_path):
    weights = write_weights(tmp_path / "weights")
    settings = config(cache, pooling="grid", grid=(4, 4), grid_kept=4)
    report = diagnose(studies, weights, weights, settings)
    assert report["fusion"][report["kept_fusion"]]["macro_auroc"] > 0.7
    loaded = load_weights(str(weights), "ankle")
    for plane, own in loaded.planes.items():
        assert isinstance(own.pooling, GridPool)
        assert own.pooling.mirror == (plane != "sagittal")
        assert own.pooling.out_channels == 16
    with pytest.raises(InputError, match="pooling = grid reads frozen features"):
        diagnose(studies, weights, weights, config(cache, pooling="grid", encoder="finetune"))


def test_structure_heads_score_as_the_pipeline_will(tmp_path, cache):
    studies = write_studies(tmp_path / "knees", 16)
    weights = write_weights(tmp_path / "weights")
    settings = config(cache, pooling="structures", grid=(4, 4), grid_kept=4, data=data_settings(cache))
    with pytest.raises(InputError, match="has no sagittal segmentation head, which pooling = structures reads"):
        diagnose(studies, weights, weights, settings)
    trained = SegmentConfig.model_validate(
        {"data": data_settings(cache), "epochs": None, "head_channels": [8, 8, 8], "loop": {"steps": 2, "batch": 2}}
    )
    segment(studies, weights, weights, trained)
    report = diagnose(studies, weights, weights, settings)
    assert report["kept_fusion"]
    found = load_weights(str(weights), "knee")
    assert isinstance(found.planes["axial"].pooling, StructurePool)
    assert found.planes["axial"].pooling.out_channels == 32
    # What the heads were trained on is what the pipeline's way gives: the planes' figures come out again.
    records = read_records(studies, "knee")
    held = {r.study for r in select_of(studies, cache)}
    outputs = run_records([r for r in records if r.study in held], found, surface_distance=False)
    scored = study_findings(outputs, found)
    area = np.nanmean([auroc(scored.truth[:, n], scored.single["sagittal"][:, n]) or np.nan for n in range(8)])
    assert area == pytest.approx(report["planes"]["sagittal"]["macro_auroc"], abs=1e-6)
    # Another segmentation beside the old heads: they would read what they were not trained on.
    shutil.copytree(weights, tmp_path / "other")
    segment(
        studies, tmp_path / "other", tmp_path / "other", trained.model_copy(update={"encoder_rate": 0}), resume=False
    )
    with pytest.raises(InputError, match=r"knee\.pooling\.safetensors: was trained on another segmentation"):
        load_weights(str(tmp_path / "other"), "knee")
    (weights / "sagittal.segmentation.safetensors").unlink()
    with pytest.raises(InputError, match="the sagittal pooling reads the structures"):
        load_weights(str(weights), "knee")


def select_of(studies, cache):
    """The validation records of ``data_settings``."""
    return select(studies, data_settings(cache), 32, PLANES, diagnosed, alone(), silent=True).validate


def test_a_table_without_one_of_the_findings_gives_figures_of_the_others(studies, cache, tmp_path):
    data = tmp_path / "ankles"
    shutil.copytree(studies, data)
    with (studies / "studies.csv").open() as file:
        rows = list(csv.DictReader(file))
    kept = [name for name in rows[0] if name != LABELS["ankle"][1].key]
    with (data / "studies.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, kept, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    report = diagnose(data, write_weights(tmp_path / "w"), tmp_path / "w", config(cache))
    told = [label.key for label in LABELS["ankle"] if label.key in kept]
    for figures in (*report["planes"].values(), *report["fusion"].values()):
        assert list(figures["auroc"]) == told
        assert figures["macro_auroc"] is not None
    best = max(report["fusion"], key=lambda name: report["fusion"][name]["macro_auroc"])
    assert report["fusion"][report["kept_fusion"]]["macro_auroc"] == report["fusion"][best]["macro_auroc"]


def test_series_of_a_study_share_its_weight(studies):
    records = [r for r in read_records(studies, "ankle") if r.plane == "axial"][:3]
    _, weight = truth_and_weight([*records, records[0]])
    assert weight.tolist() == [0.5, 1, 1, 0.5]


def test_probe_fusion_and_thresholds_land_in_the_folder(studies, cache, tmp_path):
    weights = write_weights(tmp_path / "weights")
    report = diagnose(studies, weights, tmp_path / "out", config(cache))
    # Stripes of a pitch per finding: even untrained first features tell most of them.
    assert report["fusion"][report["kept_fusion"]]["macro_auroc"] > 0.7
    assert set(report["fusion"]) == {"simple_concat", "linear_concat", "linear_add", "crossattn", "gating"}
    loaded = load_weights(str(tmp_path / "out"), "ankle")
    assert loaded.fusion_name == report["kept_fusion"]
    assert set(loaded.thresholds) == {label.key for label in LABELS["ankle"]}
    for own in loaded.planes.values():
        assert (own.timestep, own.block, own.encoder) == (20, "in_1", None)
        assert own.pooling is not None
        assert own.head is not None


def test_gate_writes_its_own_heads_and_a_table_of_weights(studies, cache, tmp_path):
    weights = write_weights(tmp_path / "weights")
    fusion = config(cache).fusion.model_copy(update={"modes": ("gating",), "keep": "gating"})
    diagnose(studies, weights, weights, config(cache, fusion=fusion))
    with (weights / "ankle.gate_weights.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == {label.key for label in LABELS["ankle"]}
    for row in rows:
        assert sum(float(row[f"w_{plane}"]) for plane in PLANES) == pytest.approx(1, abs=2e-4)  # four digits each
    assert load_weights(str(weights), "ankle").fusion_name == "gating"


def test_fine_tuning_writes_an_encoder_of_its_own(studies, cache, tmp_path):
    weights = write_weights(tmp_path / "weights", planes=("sagittal",))
    finetune = HeadConfig(epochs=1, batch=8, learning_rate=1e-3)
    changes = {"planes": ("sagittal",), "encoder": "finetune", "finetune": finetune, "pooling_heads": 2}
    report = diagnose(studies, weights, tmp_path / "out", config(cache, pooling="selfattn", **changes))
    loaded = load_weights(str(tmp_path / "out"), "ankle", ("sagittal",))
    own = loaded.planes["sagittal"]
    before, after = own.denoiser.state_dict(), own.encoder.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("input_blocks.0", "input_blocks.1.")) for name in changed)  # up to in_1
    assert "macro_auroc" in report["planes"]["sagittal"]
    assert loaded.fusion is None
    with pytest.raises(InputError, match=r"encoder_rate was 0\.05, is 0\.5"):
        diagnose(studies, weights, tmp_path / "out", config(cache, pooling="selfattn", encoder_rate=0.5, **changes))


def test_fine_tuning_reads_each_series_once_an_epoch(studies, cache, tmp_path):
    weights = write_weights(tmp_path / "weights", planes=("sagittal",))
    finetune = HeadConfig(epochs=2, batch=3, learning_rate=1e-3)
    settings = config(cache, planes=("sagittal",), encoder="finetune", finetune=finetune, loop={"accumulate": 4})
    diagnose(studies, weights, weights, settings)
    state = Checkpoints(weights / "training" / "sagittal.ankle" / "checkpoints").newest()[1]
    assert (state["step"], state["samples"]) == (4, 48)  # 2 x 24 series, 12 a step


@pytest.mark.parametrize("encoder", ["probe", "finetune"])
def test_diagnosis_can_start_from_the_segmentation_s_encoder(studies, cache, tmp_path, encoder):
    weights = write_weights(tmp_path / "weights", planes=("sagittal",))
    changes = {"planes": ("sagittal",), "encoder": encoder, "start": "segmentation", "frozen_levels": 1}
    points = {"sagittal": {"timestep": 20, "block": "mid_2"}}
    settings = config(cache, points=points, finetune=HeadConfig(epochs=1, batch=8, learning_rate=1e-3), **changes)
    with pytest.raises(InputError, match="no sagittal encoder that was fine-tuned for segmentation"):
        diagnose(studies, weights, weights, settings)
    denoiser, _ = load_denoiser(weights, "sagittal")
    start = copy.deepcopy(denoiser)
    for parameter in start.parameters():
        parameter.data.add_(0.01)
    save_encoder(start, weights / "sagittal.segmentation.encoder.safetensors", plane="sagittal", joint="knee")
    diagnose(studies, weights, weights, settings)
    own = load_weights(str(weights), "ankle", ("sagittal",)).planes["sagittal"]
    before, after = start.state_dict(), own.encoder.state_dict()
    changed = {n for n in before if n.startswith(("in", "mid")) and not torch.equal(before[n], after[n])}
    frozen = tuple(f"input_blocks.{n}." for n in range(level_starts(start)[1]))
    assert bool(changed) == (encoder == "finetune")
    assert not any(name.startswith(frozen) for name in changed)


def test_patient_data_are_fused_late(studies, cache, tmp_path):
    weights = write_weights(tmp_path / "weights")
    table = tmp_path / "patients.csv"
    rows = [f"study_{n:03d},{20 + n},{170 if n % 3 else ''},70,{n % 2},0,{'fall' if n % 4 else ''}" for n in range(32)]
    table.write_text("study,age,height,weight,sex,patient_type,event\n" + "\n".join(rows) + "\n")
    fusion = config(cache).fusion.model_copy(update={"modes": ("simple_concat",)})
    gates = weights / "ankle.gate_weights.csv"
    gates.write_text("of an earlier run whose fusion gated\n")
    report = diagnose(studies, weights, weights, config(cache, fusion=fusion, patient_data=table))
    assert not gates.exists()
    assert set(report["patient_data"]) == {"fused", "mri", "tabular", "mri_share"}
    assert all(0 < share < 1 for share in report["patient_data"]["mri_share"])
    assert (weights / "ankle.patient_data.safetensors").is_file()
    diagnose(studies, weights, weights, config(cache, fusion=fusion))  # its vectors are not those that it reads
    assert not list(weights.glob("ankle.patient_data.*"))


@pytest.mark.parametrize(("rows", "message"), [(4, "has no row for study study_"), (0, "lists nothing")])
def test_a_table_of_patients_that_is_wrong_is_told_before_training(studies, cache, tmp_path, rows, message):
    weights, table = write_weights(tmp_path / "weights"), tmp_path / "patients.csv"
    lines = [
        "study,age,height,weight,sex,patient_type,event",
        *(f"study_{n:03d},20,170,70,0,0,fall" for n in range(rows)),
    ]
    table.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=message):
        diagnose(studies, weights, weights, config(cache, patient_data=table))
    assert not list(weights.glob("*.ankle.*"))


def test_patient_data_that_nothing_could_be_fused_with_are_refused_before_training(studies, cache, tmp_path):
    weights, table = write_weights(tmp_path / "weights"), tmp_path / "patients.csv"
    table.write_text("study,age,height,weight,sex,patient_type,event\nstudy_000,20,170,70,0,0,fall\n")
    with pytest.raises(InputError, match="all three planes, and sagittal and coronal would not be trained"):
        diagnose(studies, weights, weights, config(cache, planes=("axial",), patient_data=table))
    apart = shutil.copytree(studies, tmp_path / "apart")
    for number, study in enumerate(sorted(path for path in apart.iterdir() if path.is_dir())):
        (study / f"{PLANES[number % 3]}.nii.gz").unlink()
    with pytest.raises(InputError, match="no training study has all three"):
        diagnose(apart, weights, weights, config(cache, patient_data=table))
    assert not list(weights.glob("*.ankle.*"))


@pytest.mark.parametrize("lacking", ["sagittal", "axial"])
def test_figures_of_training_data_are_called_so_whichever_plane_is_not_held_out(studies, cache, tmp_path, lacking):
    weights, data = write_weights(tmp_path / "weights"), shutil.copytree(studies, tmp_path / "data")
    with (studies / "studies.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["split"] = "validate" if row["patient"] in ("patient_000", "patient_001") else "train"
        if row["split"] == "validate":
            (data / row["study"] / f"{lacking}.nii.gz").unlink()
    with (data / "studies.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    fusion = config(cache).fusion.model_copy(update={"modes": ("simple_concat",)})
    report = diagnose(data, weights, weights, config(cache, fusion=fusion))
    assert report["validated_on_training_data"]
    assert report["kept_fusion"] == "simple_concat"


def test_pooling_heads_that_do_not_fit_are_named(studies, cache, tmp_path):
    weights = write_weights(tmp_path / "weights", planes=("axial",))
    with pytest.raises(InputError, match="pooling_heads: 3 heads do not divide 8 channels"):
        diagnose(studies, weights, weights, config(cache, planes=("axial",), pooling="selfattn", pooling_heads=3))


def test_fusion_to_keep_must_be_trained():
    with pytest.raises(InputError, match=r"^fusion\.keep = 'gating': is not among fusion\.modes \(linear_add\)"):
        load_config(DiagnoseConfig, None, ["fusion.modes=[linear_add]", "fusion.keep=gating"])
    chosen = load_config(DiagnoseConfig, None, ["fusion.modes=[linear_add, gating]", "fusion.keep=gating"])
    assert chosen.fusion.keep == "gating"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def rewritten(studies, cache, tmp_path_factory):
    """A folder with heads on the denoiser, and what would write heads with encoders of their own over them."""
    weights = write_weights(tmp_path_factory.mktemp("rewritten"))
    modes = config(cache).fusion.model_copy(update={"modes": ("simple_concat",)})
    diagnose(studies, weights, weights, config(cache, fusion=modes))
    before, kept = contents(weights), []
    tuned = config(cache, fusion=modes, encoder="finetune", finetune=HeadConfig(epochs=1, batch=8, learning_rate=1e-3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "write_heads", lambda out, *what: kept.append(what) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            diagnose(studies, weights, weights, tuned)
    assert contents(weights) == before  # a training that fails leaves the folder as it was
    return weights, kept[0]


def test_heads_whose_writing_breaks_off_are_refused_and_whole_ones_are_not(rewritten, tmp_path, monkeypatch):
    weights, what = rewritten
    old, writes = load_weights(str(weights), "ankle").digest(), []

    def counted(write, stop):
        def own(*args, **facts):
            if len(writes) == stop:
                raise KeyboardInterrupt
            writes.append(args[1].name)
            return write(*args, **facts)

        return own

    expected = [
        "ankle.fusion.safetensors",
        *(f"{plane}.ankle.{part}.safetensors" for plane in PLANES for part in ("head", "pooling", "encoder")),
    ]
    for stop in range(len(expected)):
        folder = shutil.copytree(weights, tmp_path / str(stop))
        with monkeypatch.context() as patch:
            writes.clear()
            for name in ("save_module", "save_encoder"):
                patch.setattr(diagnosis_files, name, counted(getattr(diagnosis_files, name), stop))
            with pytest.raises(KeyboardInterrupt):
                write_heads(folder, *what)
        assert writes == expected[:stop]
        for load in (load_weights, load_native):
            if not stop:
                assert load(str(folder) if load is load_weights else folder, "ankle")
                continue
            with pytest.raises(InputError, match="was trained on another"):
                load(str(folder) if load is load_weights else folder, "ankle")
    write_heads(weights, *what)
    found = load_weights(str(weights), "ankle")
    assert all(own.encoder is not None for own in found.planes.values())
    assert load_native(weights, "ankle").digest == found.digest() != old
    # Cards of earlier versions say nothing of encoder and pooling.
    for path in [*weights.glob("*.ankle.*.json"), weights / "ankle.fusion.json"]:
        card = json.loads(path.read_text())
        gone = {name: own for name, own in card["origin"].items() if not name.endswith(("encoder", "pooling", "head"))}
        path.write_text(json.dumps({**card, "origin": gone}))
    for stem in (f"axial.ankle.encoder{end}" for end in (".json", ".safetensors")):
        (weights / stem).unlink()
    assert load_weights(str(weights), "ankle").planes["axial"].encoder is None


@pytest.mark.parametrize("point", [{"timestep": 30, "block": "in_1"}, {"timestep": 20, "block": "mid_2"}])
def test_features_of_another_point_than_the_heads_were_trained_on_are_refused(studies, cache, tmp_path, point):
    weights = write_weights(tmp_path / "weights", planes=("axial",))
    diagnose(studies, weights, weights, config(cache, planes=("axial",)))
    assert load_native(weights, "ankle").digest == load_weights(str(weights), "ankle").digest()
    settings = load_settings(weights)
    points = {"ankle": {"axial": FeaturePoint(**point)}}
    (weights / "weights.json").write_text(settings.model_copy(update={"points": points}).model_dump_json())
    name, was, now = ("timestep", 20, 30) if point["timestep"] == 30 else ("block", "in_1", "mid_2")
    told = f"trained on features of {name} {was}, and weights.json takes them of {name} {now}"
    with pytest.raises(InputError, match=told):
        load_weights(str(weights), "ankle")
    with pytest.raises(InputError, match=told):
        load_native(weights, "ankle")


def test_planes_that_would_leave_another_s_heads_beside_theirs_are_refused(studies, cache, tmp_path):
    weights = write_weights(tmp_path / "weights")
    diagnose(studies, weights, weights, config(cache))
    before = contents(weights)
    told = (
        r"^--planes sagittal: .*weights also has ankle heads of coronal and axial, .*together \(--planes "
        r"sagittal,coronal,axial\), or remove coronal\.ankle\.\* and axial\.ankle\.\* first\.$"
    )
    for out in (weights, tmp_path / "out"):
        with pytest.raises(InputError, match=told):
            diagnose(studies, weights, out, config(cache, planes=("sagittal",)))
    assert contents(weights) == before
    assert not (tmp_path / "out").exists()
    # Heads of another joint are another model's.
    for path in weights.glob("*ankle.*"):
        path.rename(path.with_name(path.name.replace("ankle", "shoulder")))
    diagnose(studies, weights, weights, config(cache, planes=("sagittal",)))


def test_thresholds_of_half_stay(studies, cache, tmp_path):
    weights = write_weights(tmp_path / "weights", planes=("axial",))
    diagnose(studies, weights, weights, config(cache, planes=("axial",), thresholds="half"))
    assert set(load_settings(weights).thresholds["ankle"].values()) == {0.5}


def test_same_seed_same_untrained_classifier():
    first, second = (new_classifier("selfattn", 8, 2, 3, seed=1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
