"""A real knee's label map painted as a phantom study, and the NRRD files that label maps come in."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from orthokernels.data.phantom.nrrd import read_nrrd
from orthokernels.data.phantom.painted import Atlas, paint_study, read_atlas
from orthokernels.errors import InputError
from orthokernels.tasks import PLANES, STRUCTURES

ATLAS = Path(__file__).parents[3] / "shared" / "data" / "knee-atlas-labels"
INDEX = {s.key: s.index for s in STRUCTURES}
HEADER = {
    "type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "4 3 2",
    "space directions": "(0.5,0,0) (0,-0.5,0) (0,0,2)", "endian": "little", "encoding": "gzip",
    "space origin": "(-10,20,-30)",
}  # fmt: skip
VALUES = np.arange(24, dtype="<i2").reshape(4, 3, 2)


def write_nrrd(path: Path, data: bytes | None = None, **changed: str | None) -> Path:
    """An NRRD file of VALUES; header fields changed or, where None, left out."""
    fields = {**HEADER, **{name.replace("_", " "): value for name, value in changed.items()}}
    header = "NRRD0004\n# a comment\n" + "".join(f"{k}: {v}\n" for k, v in fields.items() if v is not None)
    path.write_bytes(header.encode() + b"\n" + (data or gzip.compress(VALUES.tobytes(order="F"))))
    return path


def test_nrrd_is_read_with_its_place_in_the_patient(tmp_path):
    values, affine = read_nrrd(write_nrrd(tmp_path / "a.nrrd"))
    np.testing.assert_array_equal(values, VALUES)
    # Left and posterior are the negative directions of RAS.
    np.testing.assert_allclose(affine, [[-0.5, 0, 0, 10], [0, 0.5, 0, -20], [0, 0, 2, -30], [0, 0, 0, 1]])


def test_big_endian_raw_nrrd_is_read(tmp_path):
    data = VALUES.astype(">i2").tobytes(order="F")
    values, _ = read_nrrd(write_nrrd(tmp_path / "a.nrrd", data, encoding="raw", endian="big"))
    np.testing.assert_array_equal(values, VALUES)


@pytest.mark.parametrize(
    "changed",
    [
        {"data_file": "/etc/passwd"}, {"datafile": "other.raw"}, {"sizes": "4 3"}, {"sizes": "4 -3 2"},
        {"sizes": "99999 99999 99999"}, {"sizes": "4 3 9"}, {"sizes": "4 3 1"}, {"type": "double"}, {"type": None},
        {"encoding": "bzip2"}, {"space": "scanner-xyz"}, {"space_origin": "(nan,0,0)"},
        {"space_directions": "(1,0,0) (1,0,0) (0,0,1)"}, {"space_directions": "none (1,0,0) (0,0,1)"},
    ],
)  # fmt: skip
def test_nrrd_that_cannot_be_read_is_refused_in_one_sentence(tmp_path, changed):
    path = write_nrrd(tmp_path / "a.nrrd", **changed)
    with pytest.raises(InputError, match=r"a\.nrrd: an NRRD file that is damaged or not supported") as caught:
        read_nrrd(path)
    assert "\n" not in str(caught.value)


def test_damaged_or_missing_nrrd_is_refused(tmp_path):
    with pytest.raises(InputError, match="damaged"):
        read_nrrd(write_nrrd(tmp_path / "a.nrrd", b"no gzip at all"))
    (tmp_path / "b.nrrd").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match="not an NRRD file"):
        read_nrrd(tmp_path / "b.nrrd")
    with pytest.raises(InputError, match="can't be read"):
        read_nrrd(tmp_path / "none.nrrd")


def test_label_map_without_a_knee_is_refused(tmp_path):
    (tmp_path / "names.ctbl").write_text("# comment\n3 femur 1 2 3 255\n4 something 1 2 3 255\n")
    with pytest.raises(InputError, match="Give a knee's label map"):
        read_atlas(write_nrrd(tmp_path / "a.nrrd"), tmp_path / "names.ctbl")


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    if not ATLAS.is_dir():
        pytest.skip(f"{ATLAS} is absent: no label map of a real knee to paint")
    return read_atlas(ATLAS / "seg.nrrd", ATLAS / "knee.ctbl")


def test_real_knee_is_painted_in_three_planes_with_all_its_structures(atlas):
    study = paint_study(atlas, 1, matrix=96)
    assert tuple(series.plane for series in study.series) == PLANES
    assert study.findings == {}
    for series in study.series:
        assert set(np.unique(series.labels)) == {0, *INDEX.values()}
        medial, lateral, fibula = (
            series.affine[:3, :3] @ np.argwhere(series.labels == INDEX[key]).mean(axis=0)
            for key in ("medial_meniscus", "lateral_meniscus", "fibula")
        )
        towards = lateral - medial
        assert np.sign(towards[0]) == (1.0 if study.side == "right" else -1.0)
        assert (fibula - medial) @ towards > 0.0


@pytest.mark.parametrize(("contrast", "brighter"), [("pd_fs", "femoral_cartilage"), ("t1", "femur")])
def test_painted_knee_has_the_contrast_of_a_drawn_one(atlas, contrast, brighter):
    series = paint_study(atlas, 1, matrix=96, contrast=contrast).plane("sagittal")
    median = {key: np.median(series.voxels[series.labels == index]) for key, index in INDEX.items()}
    darker = {"femoral_cartilage", "femur"} - {brighter}
    assert median[brighter] > 1.3 * median[darker.pop()]
    for dark in ("medial_meniscus", "pcl"):
        assert median[dark] < 0.8 * median[brighter]


def test_unknown_contrast_is_named(atlas):
    with pytest.raises(InputError, match="no contrast 'flair'"):
        paint_study(atlas, contrast="flair")
