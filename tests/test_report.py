"""Pictures, the HTML page and the JSON file of a result, all rendered for real."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orthokernels import tasks
from orthokernels.data.study import LeftOut
from orthokernels.montage import draw_montage
from orthokernels.montage_layout import WIDTH, choose_slices, colour, edge_letters, plan, slice_position
from orthokernels.report import findings_json, html, montage
from orthokernels.result import Finding, Model, Plane, PlaneArrays, PlaneResult, StructureVolume, StudyResult

HOSTILE = 'SAG <script>alert("x")</script> $x^2$ & 膝'
NAMES = tasks.class_names(12)
# Sagittal as on a reading station: i to posterior, j to superior, k to the right.
SAGITTAL = np.array([[0, 0, 4.0, -30], [-0.5, 0, 0, 40], [0, 0.5, 0, -20], [0, 0, 0, 1.0]])


def _spaced(i: float, j: float, k: float = 4.0) -> np.ndarray:
    return SAGITTAL @ np.diag([i / 0.5, j / 0.5, k / 4.0, 1.0])


def _block(shape: tuple[int, int, int] = (64, 64, 20)) -> np.ndarray:
    """A dim volume with one bright block at high i and high j, in every slice."""
    voxels = np.full(shape, 50, np.int16)
    voxels[3 * shape[0] // 4 :, 3 * shape[1] // 4 :] = 900
    return voxels


def _plane(voxels: np.ndarray, affine: np.ndarray = SAGITTAL, **fields: object) -> PlaneResult:
    known: dict = {
        "plane": "sagittal",
        "description": "SAG PD FS",
        "series_hash": "9f2c51d0",
        "chosen_because": "the only usable volume",
        "obliquity_degrees": 3.2,
        "shape": voxels.shape,
        "spacing_mm": tuple(np.linalg.norm(affine[:3, :3], axis=0)),
        "contrast": "PD fat-suppressed",
        "labelled_slices": (4, 20),
    }
    return PlaneResult(**(known | fields))


def _study(planes: tuple[PlaneResult, ...], trained: bool = True, **fields: object) -> StudyResult:
    weights: dict[Plane, float] = {"sagittal": 0.5, "coronal": 0.3, "axial": 0.2}
    findings = [
        Finding(
            label=x.key,
            name=x.name,
            status="present" if p > 0.5 else "absent",
            probability=p,
            threshold=0.5,
            plane_weights=weights,
        )
        for x, p in zip(tasks.LABELS["knee"][:7], (0.86, 0.12, 0.55, 0.31, 0.08, 0.4, 0.02), strict=True)
    ]
    findings.append(Finding(label="EFFU", name="Joint effusion", status="not evaluated", reason="no output for it"))
    model = Model(
        weights="knee.safetensors",
        digest="3f" * 32,
        trained=trained,
        timestep={"sagittal": 50},
        block={"sagittal": "up.2"},
        fusion="attention",
    )
    known: dict = {
        "untrained": None if trained else tasks.UNTRAINED_NOTICE,
        "study_hash": "c0ffee",
        "joint": "knee",
        "laterality": "right",
        "preparation": "full",
        "seed": 17,
        "model": model,
        "planes": planes,
        "findings": tuple(findings),
        "warnings": ("The side was guessed.",),
        "left_out": (LeftOut("<img src=x>", "not an image"),),
        "versions": {"orthokernels": "0.1.0"},
        "seconds": {"read": 1.82, "heads": 0.9},
        "peak_memory_mb": 3120.4,
    }
    return StudyResult(**(known | fields))


def _render(path: Path, plane: PlaneResult, arrays: PlaneArrays, untrained: bool = False) -> np.ndarray:
    """Pixels of a montage, axes (y, x, RGB)."""
    montage(plane, arrays, path, untrained=untrained)
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def _near(pixels: np.ndarray, rgb: tuple[int, int, int], within: int = 12) -> int:
    return int((np.abs(pixels - np.array(rgb)).max(axis=2) <= within).sum())


def _tile_pixels(pixels: np.ndarray, plane: PlaneResult, arrays: PlaneArrays, overlay: bool) -> np.ndarray:
    sheet = plan(plane, arrays, untrained=False)
    left, top = sheet.corner(0, overlay)
    return pixels[top : top + sheet.tile[1], left : left + sheet.tile[0]]


class _Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.rows: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append("")

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.rows:
            self.rows[-1] += " " + " ".join(data.split())


def test_bright_block_at_high_i_and_high_j_is_in_the_upper_right(tmp_path: Path) -> None:
    voxels = _block()
    plane, arrays = _plane(voxels), PlaneArrays(voxels, None, SAGITTAL)
    tile = _tile_pixels(_render(tmp_path / "m.png", plane, arrays), plane, arrays, overlay=False).mean(axis=2)
    h, w = tile.shape
    # The block fills the last quarter each way; an eighth in from the corner is its middle, clear of the letters.
    assert tile[h // 8 - 5 : h // 8 + 5, 7 * w // 8 - 5 : 7 * w // 8 + 5].min() > 200
    for y, x in ((h // 8, w // 8), (7 * h // 8, 7 * w // 8), (3 * h // 4, w // 4)):
        assert tile[y - 5 : y + 5, x - 5 : x + 5].max() < 60


def test_overlay_shows_the_structure_in_its_colour_and_the_plain_picture_does_not(tmp_path: Path) -> None:
    voxels = np.full((64, 64, 20), 50, np.int16)
    labels = np.zeros(voxels.shape, np.uint8)
    labels[40:60, 40:60] = 8
    plane, arrays = _plane(voxels), PlaneArrays(voxels, labels, SAGITTAL, NAMES)
    pixels = _render(tmp_path / "m.png", plane, arrays)
    red = colour("medial_meniscus", 8)
    plain, overlay = (_tile_pixels(pixels, plane, arrays, overlay=x) for x in (False, True))
    h, w = overlay.shape[:2]
    assert _near(overlay, red, 40) > 100
    assert _near(plain, red, 40) == 0
    # Over black, a quarter of the colour is left inside the contour; nothing is drawn at the mirrored place.
    inside = overlay[h * 14 // 64, w * 50 // 64]
    assert inside == pytest.approx(np.array(red) * 0.25, abs=3)
    assert overlay[h * 50 // 64, w * 14 // 64].max() == 0


def test_pictures_keep_physical_proportions() -> None:
    voxels = np.zeros((100, 50, 16), np.int16)
    affine = _spaced(0.5, 2.0)
    sheet = plan(_plane(voxels, affine), PlaneArrays(voxels, None, affine), untrained=False)
    # 50 mm wide and 100 mm high; each side is rounded to a pixel.
    assert sheet.tile[1] / sheet.tile[0] == pytest.approx(2.0, abs=0.01)


def test_letters_and_positions_follow_the_affine() -> None:
    assert edge_letters(SAGITTAL) == ("A", "P", "I", "S")
    assert slice_position(SAGITTAL, (64, 64, 20), 0) == "L 30.0 mm"
    assert slice_position(SAGITTAL, (64, 64, 20), 10) == "R 10.0 mm"
    coronal = np.array([[-0.5, 0, 0, 10], [0, 0, -3.0, 20], [0, 0.5, 0, 0], [0, 0, 0, 1.0]])
    assert edge_letters(coronal) == ("R", "L", "I", "S")
    assert slice_position(coronal, (64, 64, 20), 10) == "P 10.0 mm"


@pytest.mark.parametrize("slices", [1, 5, 16, 200])
def test_labelled_slices_are_shown_first(slices: int) -> None:
    labels = np.zeros((4, 4, slices), np.uint8)
    labels[1, 1, slices // 2 : slices // 2 + 3] = 1
    chosen = choose_slices(labels, slices)
    assert len(chosen) == min(slices, 12)
    assert list(chosen) == sorted(set(chosen))
    assert set(range(slices // 2, min(slices, slices // 2 + 3))) <= set(chosen)


def _labelled(shape: tuple[int, int, int], classes: int) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    for index in range(1, classes):
        labels[index % shape[0], :, shape[2] // 3 : shape[2] // 2] = index
    return labels


CASES = {
    "no segmentation": (_block(), None, SAGITTAL, ()),
    "nothing labelled": (_block(), np.zeros((64, 64, 20), np.uint8), SAGITTAL, NAMES),
    "eleven structures": (_block(), _labelled((64, 64, 20), 12), SAGITTAL, NAMES),
    "unnamed classes": (_block(), _labelled((64, 64, 20), 11), SAGITTAL, tasks.class_names(11)),
    "names missing": (_block(), _labelled((64, 64, 20), 5), SAGITTAL, ()),
    "narrow": (_block((24, 128, 16)), _labelled((24, 128, 16), 3), _spaced(0.4, 1.2), NAMES),
    "flat": (_block((160, 32, 200)), _labelled((160, 32, 200), 3), _spaced(1.0, 0.5, 0.8), NAMES),
    "constant": (np.full((32, 48, 16), 7, np.int16), None, SAGITTAL, ()),
    "not finite": (np.where(_block() > 100, np.nan, 1.0), None, SAGITTAL, ()),
    "label to the edge": (_block((32, 32, 16)), np.ones((32, 32, 16), np.uint8), SAGITTAL, NAMES),
}


@pytest.mark.parametrize("case", CASES)
def test_montage_of_any_volume_is_written(case: str, tmp_path: Path) -> None:
    voxels, labels, affine, names = CASES[case]
    reason = "the weights have no segmentation head" if labels is None else None
    plane = _plane(voxels, affine, description=HOSTILE, segmentation_reason=reason)
    pixels = _render(tmp_path / "m.png", plane, PlaneArrays(voxels, labels, affine, names))
    assert pixels.shape[1] == WIDTH
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]
    for index in range(1, 0 if labels is None else int(labels.max()) + 1):
        key = names[index] if index < len(names) else f"class_{index}"
        assert _near(pixels, colour(key, index), 2) >= 18 * 18, f"no legend swatch for {key}"


def test_noise_of_a_large_matrix_stays_below_the_size_limit(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 4000, (512, 512, 16)).astype(np.int16)
    _render(tmp_path / "m.png", _plane(voxels), PlaneArrays(voxels, None, SAGITTAL))
    assert (tmp_path / "m.png").stat().st_size < 2_500_000


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    voxels, labels = _block(), _labelled((64, 64, 20), 12)
    for name in ("a.png", "b.png"):
        montage(_plane(voxels), PlaneArrays(voxels, labels, SAGITTAL, NAMES), tmp_path / name, untrained=False)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_untrained_band_is_on_top_only_when_untrained(tmp_path: Path) -> None:
    voxels = _block()
    arrays = PlaneArrays(voxels, None, SAGITTAL)
    amber = (255, 178, 36)
    marked = _render(tmp_path / "u.png", _plane(voxels), arrays, untrained=True)
    plain = _render(tmp_path / "t.png", _plane(voxels), arrays)
    assert _near(marked[:50], amber) > 50 * WIDTH // 2
    assert _near(plain[:50], amber) == 0


def test_labels_on_another_grid_are_refused(tmp_path: Path) -> None:
    arrays = PlaneArrays(_block(), np.zeros((64, 64, 19), np.uint8), SAGITTAL, NAMES)
    with pytest.raises(ValueError, match=r"labels have shape \(64, 64, 19\), voxels \(64, 64, 20\)"):
        montage(_plane(_block()), arrays, tmp_path / "m.png", untrained=False)


@pytest.fixture
def page_with_picture(tmp_path: Path) -> str:
    voxels, labels = _block(), _labelled((64, 64, 20), 12)
    structures = tuple(
        StructureVolume(index=s.index, key=s.key, name=s.name, ml=1.25 * s.index, voxels=s.index, cut_off=s.index == 3)
        for s in tasks.STRUCTURES
    )
    sagittal = _plane(voxels, description=HOSTILE, structures=structures, warnings=("Spacing was <b>guessed</b>.",))
    axial = _plane(voxels, plane="axial", segmentation_reason="no axial head", labelled_slices=None)
    montage(sagittal, PlaneArrays(voxels, labels, SAGITTAL, NAMES), tmp_path / "s.png", untrained=False)
    return html(_study((sagittal, axial)), {"sagittal": tmp_path / "s.png"})


def test_a_structure_at_the_edge_is_told_as_at_least_so_much(page_with_picture: str) -> None:
    assert page_with_picture.count("≥ 3.75") == page_with_picture.count("≥ ") == 1
    assert "it reaches the edge of what was labelled" in page_with_picture


def test_the_picture_tells_a_structure_at_the_edge_as_at_least_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr("orthokernels.montage._write", lambda draw, at, text, *rest, **more: written.append(text))
    voxels, labels = _block(), _labelled((64, 64, 20), 3)
    structures = tuple(
        StructureVolume(index=s.index, key=s.key, name=s.name, ml=1.25, voxels=5, cut_off=s.index == 2)
        for s in tasks.STRUCTURES[:2]
    )
    arrays = PlaneArrays(voxels, labels, SAGITTAL, NAMES)
    draw_montage(_plane(voxels, structures=structures), arrays, untrained=False)
    assert [text for text in written if text.endswith(" ml")] == ["1.25 ml", "≥ 1.25 ml"]
    assert sum("; ≥: it reaches the edge of what was labelled" in text for text in written) == 1


def test_page_needs_nothing_beside_it(page_with_picture: str) -> None:
    page = _Page(page_with_picture)
    links = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "action", "srcset")]
    assert len(links) == 1
    assert all(v is not None and v.startswith("data:image/png;base64,") for v in links)
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    assert "url(" not in page_with_picture
    assert "@import" not in page_with_picture


def test_text_of_headers_is_shown_and_not_obeyed(page_with_picture: str) -> None:
    page = _Page(page_with_picture)
    assert HOSTILE in page.text
    assert "<img src=x>" in page.text
    assert "Spacing was <b>guessed</b>." in page.text
    assert "<script" not in page_with_picture


def test_page_is_accessible(page_with_picture: str) -> None:
    page = _Page(page_with_picture)
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert images
    assert all(attrs.get("alt") for attrs in images)
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in page.tags if tag == "th")
    graphics = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert all(attrs.get("aria-label") or attrs.get("aria-hidden") for attrs in graphics)
    assert ("html", {"lang": "en"}) in page.tags


def test_every_label_has_its_status_in_its_row(page_with_picture: str) -> None:
    rows = _Page(page_with_picture).rows
    for finding in _study(()).findings:
        row = next(r for r in rows if r.split()[:1] == [finding.label])
        assert finding.name in row
        assert finding.status in row
        assert (f"{finding.probability:.2f}" if finding.probability is not None else "no output for it") in row


@pytest.mark.parametrize(
    ("probability", "threshold", "status", "shown"),
    [
        (0.86, 0.5, "present", ("0.86", "0.50")),
        (0.4996, 0.5, "absent", ("0.4996", "0.5000")),
        (0.35102, 0.35118, "indeterminate", ("0.3510", "0.3512")),
        (0.5, 0.5, "present", ("0.50", "0.50")),
        (0.3512, 0.3511, "present", ("0.35", "0.35")),
        (0.5 - 1e-9, 0.5, "absent", ("0.500000", "0.500000")),
        (0.12, None, "absent", ("0.12", "")),
    ],
)
def test_a_probability_below_its_threshold_is_seen_to_be(probability, threshold, status, shown) -> None:
    finding = Finding(label="ACL", name="ACL", status=status, probability=probability, threshold=threshold)
    assert finding.shown == shown
    row = next(r for r in _Page(html(_study((), findings=(finding,)), {})).rows if r.split()[:1] == ["ACL"])
    assert " ".join(shown).strip() in " ".join(row.split())


@pytest.mark.parametrize("weighed", [True, False])
def test_planes_have_a_column_and_a_key_only_where_a_fusion_weighs_them(weighed: bool) -> None:
    study = _study((_plane(np.zeros((8, 8, 4), np.float32), np.eye(4)),))
    if not weighed:
        study = study.model_copy(
            update={"findings": tuple(f.model_copy(update={"plane_weights": {}}) for f in study.findings)}
        )
    page = html(study, {})
    assert ("Weight of each plane" in page, '<rect class="plane-axial"' in page) == (weighed, weighed)
    assert ("How much each plane counts is not known" in page) != weighed


def test_structures_stand_with_their_volume_and_colour(page_with_picture: str) -> None:
    rows = _Page(page_with_picture).rows
    for s in tasks.STRUCTURES:
        assert any(s.name in r and f"{1.25 * s.index:.2f}" in r for r in rows)
        assert f"rgb({','.join(map(str, s.colour))})" in page_with_picture
    assert "No segmentation: no axial head" in page_with_picture
    assert "slices 5 to 20" in page_with_picture


@pytest.mark.parametrize("trained", [True, False])
def test_page_says_untrained_only_when_untrained(trained: bool) -> None:
    page = html(_study((_plane(_block()),), trained=trained), {})
    assert ("UNTRAINED" in page) == (not trained)
    assert tasks.RESEARCH_NOTICE in page


def test_many_things_left_out_for_one_reason_are_folded() -> None:
    left_out = tuple(LeftOut(f"series {n}", "fewer than 8 slices") for n in range(30))
    page = html(_study((), left_out=(*left_out, LeftOut("series 31", "a localizer"))), {})
    assert page.count("fewer than 8 slices") == 1
    assert page.count("<details>") == 1
    assert all(item in _Page(page).text for item in (*(x.what for x in left_out), "series 31"))


def test_page_of_an_empty_result_says_so() -> None:
    page = html(_study((), findings=(), left_out=(), warnings=(), seconds={}, versions={}, peak_memory_mb=None), {})
    assert "No finding was scored." in page
    assert "No plane was found in this study." in page


def test_json_comes_back_as_the_same_result() -> None:
    result = _study((_plane(_block(), description=HOSTILE),))
    text = findings_json(result)
    assert StudyResult.model_validate_json(text) == result
    assert text.startswith('{\n  "notice": ')
    assert json.loads(text)["notice"] == tasks.RESEARCH_NOTICE


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_json_cannot_say(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        findings_json(_study((), seconds={"read": value}))


def test_report_does_not_need_pytorch() -> None:
    check = "import sys; sys.modules['torch'] = None; import orthokernels.report"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=Path(__file__).parents[1])


def test_page_says_what_the_weights_say_of_themselves():
    plain = _study(())
    noticed = plain.model_copy(update={"model": plain.model.model_copy(update={"notice": "Trained on <toys> only."})})
    assert "Trained on &lt;toys&gt; only." in html(noticed, {})
    assert html(plain, {}).count('class="notice"') == 1
