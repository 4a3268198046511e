"""The digital phantom against its two promises: three studies a second, and no easier to read than a real series.

- ``phantom``: processor seconds of one three-plane knee study at 128 x 128, by stage, on one core. Limit: 1/3 s.
- ``realism``: sagittal phantoms at 256 x 256 beside a real multi-echo series of a right knee (``knee-mese``, 3 T,
  0.625 x 0.625 x 3 mm), at the real series' echo and repetition time. Both are measured alike: signal ratios to
  marrow, signal over noise, grain (what is left of the variation within 5 mm when the noise is taken away), edge width
  and histogram. The real series' noise is what one echo differs from the mean of its two neighbours by; the phantom's
  is the difference to the same series without noise.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pydicom
import typer
from numba import njit
from orthokernels.bench.record import Row, markdown, record, write
from scipy import ndimage

from orthokernels.data.phantom.parts import Part
from orthokernels.data.phantom.protocol import KNEE
from orthokernels.data.phantom.study import JOINTS, acquire, draw_findings, draw_side, lattice_of, plan_series, sample

STUDY_LIMIT_S = 1.0 / 3.0
ECHO_MS = 31.56

# Boxes drawn by eye in the real series: slice by ascending SliceLocation, first and last row, first and last column.
BOXES: dict[str, tuple[tuple[int, int, int, int, int], ...]] = {
    "muscle": ((16, 120, 180, 185, 203), (6, 170, 230, 190, 205), (6, 15, 40, 60, 110), (12, 180, 230, 190, 215)),
    "marrow": ((6, 105, 135, 105, 160), (16, 110, 135, 90, 115), (12, 195, 235, 110, 150), (12, 60, 85, 105, 135)),
    "fat": ((12, 68, 88, 199, 207), (16, 20, 60, 203, 212)),
    "Hoffa's fat": ((12, 140, 160, 75, 88),),
    "cartilage": ((12, 92, 106, 77, 80),),
}
PARTS: dict[str, tuple[Part, ...]] = {
    "muscle": (Part.MUSCLE,),
    "marrow": (Part.FEMUR_MARROW, Part.TIBIA_MARROW),
    "fat": (Part.SUBCUTANEOUS_FAT,),
    "Hoffa's fat": (Part.HOFFA_FAT,),
    "cartilage": (Part.PATELLAR_CARTILAGE, Part.FEMORAL_CARTILAGE),
}


class Measured(NamedTuple):
    """What one series shows; each list has a value for each place it was measured in."""

    ratio: dict[str, list[float]]
    snr: dict[str, list[float]]
    grain: dict[str, list[float]]
    air: float
    edge_mm: float
    quantiles: np.ndarray


def bench_throughput(studies: int = 8) -> list[Row]:
    """Processor seconds by stage, one thread."""
    seconds: dict[str, list[float]] = {"anatomy and plan": [], "sampler": [], "receiver": [], "all": []}
    for seed in range(studies + 1):
        marks = [time.process_time()]
        knee = JOINTS["knee"].draw(np.random.default_rng(seed), draw_findings(seed, "knee"))
        planned = plan_series(seed, KNEE, draw_side(seed), "pd_fs", 128)
        marks.append(time.process_time())
        lattice = lattice_of(knee, planned)
        sampled = [sample(knee, series, lattice=lattice) for series in planned]
        marks.append(time.process_time())
        for (signal, labels), series in zip(sampled, planned, strict=True):
            acquire(signal, labels, series)
        marks.append(time.process_time())
        if seed > 0:  # the first compiles or loads
            for name, spent in zip(seconds, (*np.diff(marks), marks[-1] - marks[0]), strict=True):
                seconds[name].append(float(spent))
    return [
        Row("phantom", f"{name}, 3 planes at 128 x 128", "s", each, limit=STUDY_LIMIT_S if name == "all" else None)
        for name, each in seconds.items()
    ]


def read_real(folder: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """The echo nearest to ECHO_MS as (row, column, slice), its noise alone, and the side of a pixel in mm."""
    echoes: dict[float, list[tuple[float, np.ndarray]]] = {}
    spacing = 0.0
    for path in sorted(folder.glob("*.dcm")):
        image = pydicom.dcmread(path)
        spacing = float(image.PixelSpacing[0])
        echoes.setdefault(float(image.EchoTime), []).append((float(image.SliceLocation), image.pixel_array))
    times = sorted(echoes)
    stacks = [np.stack([p for _, p in sorted(echoes[t], key=lambda s: s[0])], -1).astype(np.float32) for t in times]
    n = min(range(1, len(times) - 1), key=lambda i: abs(times[i] - ECHO_MS))
    return stacks[n], (stacks[n] - (stacks[n - 1] + stacks[n + 1]) / 2.0) / np.sqrt(np.float32(1.5)), spacing


def make_phantom(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """A sagittal phantom timed as the real series: voxels, noise and parts (row, column, slice), and a pixel in mm."""
    planned = plan_series(seed, KNEE, "right", "pd", 256)[0]
    protocol = planned.protocol._replace(echo_time=ECHO_MS, repetition_time=2450.0)
    planned = planned._replace(protocol=protocol)
    quiet = planned._replace(protocol=protocol._replace(noise=0.0), rng=copy.deepcopy(planned.rng))
    knee = JOINTS["knee"].draw(np.random.default_rng(seed), draw_findings(seed, "knee"))
    signal, parts = sample(knee, planned, np.arange(len(Part), dtype=np.uint8))
    noisy, still = (acquire(signal, parts, each).voxels.astype(np.float32) for each in (planned, quiet))
    upright = (slice(None), slice(None, None, -1))
    pictures = [volume[upright].transpose(1, 0, 2) for volume in (noisy, noisy - still, parts)]
    return pictures[0], pictures[1], pictures[2], protocol.field_of_view / 256.0


def real_places(shape: tuple[int, ...]) -> tuple[dict[str, list[np.ndarray]], np.ndarray]:
    """The boxes as masks, and a strip of air."""
    places: dict[str, list[np.ndarray]] = {}
    for name, boxes in BOXES.items():
        for k, top, bottom, left, right in boxes:
            mask = np.zeros(shape, bool)
            mask[top:bottom, left:right, k] = True
            places.setdefault(name, []).append(mask)
    air = np.zeros(shape, bool)
    air[60:200, 2:20] = True
    return places, air


def phantom_places(parts: np.ndarray) -> tuple[dict[str, list[np.ndarray]], np.ndarray]:
    """Parts without their borders, by slice where a slice has enough of them, and the air in front of the knee."""
    places: dict[str, list[np.ndarray]] = {}
    for name, wanted in PARTS.items():
        across = np.ones((3, 3, 1), bool)
        inner = ndimage.binary_erosion(np.isin(parts, wanted), across, iterations=1 if name == "cartilage" else 3)
        for k in range(parts.shape[2]):
            mask = np.zeros(parts.shape, bool)
            mask[:, :, k] = inner[:, :, k]
            if mask.sum() >= 60:
                places.setdefault(name, []).append(mask)
    return places, ndimage.binary_erosion(parts == Part.AIR, np.ones((3, 3, 1), bool), iterations=8)


def measure(
    voxels: np.ndarray, noise: np.ndarray, places: dict[str, list[np.ndarray]], air: np.ndarray, pixel: float
) -> Measured:
    """A series (row, column, slice) by its places; ratios are to the mean of marrow."""
    marrow = statistics.median(float(voxels[mask].mean()) for mask in places["marrow"])
    wide = max(round(5.0 / pixel), 3)
    mean = ndimage.uniform_filter(voxels, (wide, wide, 0))
    local = ndimage.uniform_filter((voxels - mean) ** 2, (wide, wide, 0))
    ratio: dict[str, list[float]] = {name: [] for name in places}
    snr: dict[str, list[float]] = {name: [] for name in places}
    grain: dict[str, list[float]] = {name: [] for name in places}
    for name, masks in places.items():
        for mask in masks:
            level, spread = float(voxels[mask].mean()), float(noise[mask].std())
            ratio[name].append(level / marrow)
            snr[name].append(level / spread)
            grain[name].append(float(np.sqrt(max(float(np.median(local[mask])) - spread**2, 0.0))) / level)
    body = voxels[ndimage.uniform_filter(voxels, (5, 5, 0)) > 0.08 * marrow] / marrow
    edge = edge_width(np.ascontiguousarray(voxels), 0.5 * marrow) * pixel
    return Measured(
        ratio, snr, grain, float(voxels[air].std()) / marrow, edge, np.quantile(body, np.linspace(0, 1, 101))
    )


def edge_width(voxels: np.ndarray, height: float) -> float:
    """Median distance in pixels from 10 to 90 % of rises and falls by at least ``height`` along rows and columns."""
    widths = [edges_along(np.ascontiguousarray(np.moveaxis(voxels, axis, -1)), height) for axis in (0, 1)]
    return float(np.median(np.concatenate(widths)))


@njit(cache=True)
def edges_along(lines: np.ndarray, height: float) -> np.ndarray:
    """Widths of the edges along the last axis of (a, b, n): each a run in one direction."""
    found = []
    for a in range(lines.shape[0]):
        for b in range(lines.shape[1]):
            line = lines[a, b]
            start = 0
            for n in range(1, len(line)):
                last = n == len(line) - 1
                if last or (line[n + 1] - line[n]) * (line[n] - line[start]) <= 0.0:
                    rise = line[n] - line[start]
                    if abs(rise) >= height:
                        at = np.zeros(2)
                        for side, share in enumerate((0.1, 0.9)):
                            m = start
                            while (line[m + 1] - line[start]) / rise < share:
                                m += 1
                            at[side] = m + ((line[start] + share * rise) - line[m]) / (line[m + 1] - line[m])
                        found.append(at[1] - at[0])
                    start = n
    return np.array(found)


def compare(real: Measured, phantoms: list[Measured]) -> list[dict[str, Any]]:
    """One row for each measure: the real series' and the phantoms' median and range over places or studies."""
    rows = []

    def row(name: str, theirs: list[float], ours: list[float]) -> None:
        spans = {"real": theirs, "phantom": ours}
        rows.append({"measure": name} | {who: [min(v), statistics.median(v), max(v)] for who, v in spans.items()})

    for title, field in (("signal over marrow's", "ratio"), ("signal over noise", "snr"), ("grain", "grain")):
        for name in BOXES:
            ours = [statistics.median(getattr(p, field)[name]) for p in phantoms if name in getattr(p, field)]
            if (title, name) != ("signal over marrow's", "marrow") and ours:
                row(f"{title}, {name}", getattr(real, field)[name], ours)
    row("air's standard deviation over marrow", [real.air], [p.air for p in phantoms])
    row("edge width (10 to 90 %), mm", [real.edge_mm], [p.edge_mm for p in phantoms])
    for percent in (10, 25, 50, 75, 90):
        at = [float(p.quantiles[percent]) for p in phantoms]
        row(f"histogram of the leg over marrow, {percent} %", [float(real.quantiles[percent])], at)
    return rows


def comparison_markdown(rows: list[dict[str, Any]]) -> str:
    """The table of ``compare``: median (least to most)."""
    lines = ["| measure | real series | phantom |", "|---|---|---|"]
    for row in rows:
        spans = (f"{row[who][1]:.3g} ({row[who][0]:.3g} to {row[who][2]:.3g})" for who in ("real", "phantom"))
        lines.append(f"| {row['measure']} | " + " | ".join(spans) + " |")
    return "\n".join(lines) + "\n"


def picture(real: np.ndarray, phantoms: list[np.ndarray], path: Path) -> None:
    """Slices of the real series above those of the phantoms, each series' brightest half percent clipped."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    volumes = [real, *phantoms]
    figure, axes = plt.subplots(len(volumes), 4, figsize=(12, 3 * len(volumes)), facecolor="black")
    for row, volume in zip(axes, volumes, strict=True):
        for axis, share in zip(row, (0.25, 0.42, 0.55, 0.75), strict=True):
            axis.imshow(volume[:, :, round(share * volume.shape[2])], cmap="gray", vmax=np.percentile(volume, 99.5))
            axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 1, 0.01, 0.01)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(
    real: Annotated[Path | None, typer.Option(help="The knee-mese folder; realism is skipped without.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for phantom.json, phantom.md and phantom.png.")] = None,
    studies: Annotated[int, typer.Option(min=1, help="Phantoms to compare with the real series.")] = 6,
) -> None:
    """Measure the phantom's throughput, and compare it with a real series."""
    facts = record(bench_throughput(), "python -m orthokernels.bench.phantom" + (" --real DIR" if real else ""))
    text = markdown(facts)
    if real is not None:
        voxels, noise, pixel = read_real(real)
        theirs = measure(voxels, noise, *real_places(voxels.shape), pixel)
        made = [make_phantom(seed) for seed in range(studies)]
        ours = [measure(v, n, *phantom_places(parts), side) for v, n, parts, side in made]
        facts["realism"] = compare(theirs, ours)
        text += f"\nSagittal, TE {ECHO_MS:g} ms, TR 2450 ms, no fat suppression; median (least to most).\n\n"
        text += comparison_markdown(facts["realism"])
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            picture(voxels, [made[0][0], made[1 % len(made)][0]], out / "phantom.png")
    if out is not None:
        write(facts, out, "phantom")
        (out / "phantom.json").write_text(json.dumps(facts, indent=1) + "\n")
        (out / "phantom.md").write_text(text)
    print(text)


if __name__ == "__main__":
    typer.run(main)
