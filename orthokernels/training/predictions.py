"""What weights make of a data set, series by series, with the numbers that ``pipeline.run`` gives study by study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orthokernels.data.geometry import spacing
from orthokernels.data.prepare import Mode, prepare
from orthokernels.data.restore import Restorer
from orthokernels.models.orthodiffusion.inference import series_vector, slab_features, slab_output
from orthokernels.models.orthodiffusion.weights import PlaneWeights, Weights
from orthokernels.tasks import LABELS, PLANES
from orthokernels.training.metrics import dice
from orthokernels.training.series import IGNORED, Record, load_labels, load_volume
from orthokernels.training.surface_distance import surface_distance_95
from orthokernels.training.triplets import Triplets, triplets

Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class SeriesOutput:
    """One series: its pooled vector [1, width], and its scores per structure where it is labelled.

    A score is None where it can't be told: Dice of a structure in neither map, distance of one that is not in both.
    """

    record: Record
    vector: Tensor | None
    dice: tuple[float | None, ...] | None
    distance: tuple[float | None, ...] | None


@dataclass(frozen=True)
class Findings:
    """Probabilities of the studies that have a series in every plane that the weights score.

    Attributes:
        labels: keys of those that the data tell.
        truth, probability: [studies, labels].
        single: the same from each plane's own head.
    """

    labels: tuple[str, ...]
    studies: tuple[str, ...]
    patients: tuple[str, ...]
    truth: np.ndarray
    probability: np.ndarray
    single: dict[str, np.ndarray]


@torch.inference_mode()
def run_series(
    record: Record,
    weights: PlaneWeights,
    *,
    size: int,
    mode: Mode = "full",
    seed: int = 0,
    draws: int = 1,
    device: torch.device | str = "cpu",
    surface_distance: bool = True,
) -> tuple[SeriesOutput, np.ndarray | None]:
    """One series through one plane's modules (on ``device`` already), and its label map on the native grid, uint8.

    Raises:
        InputError: the image or its labels can not be read.
    """
    volume = load_volume(record)
    prepared = prepare(volume, mode, size)
    segments = weights.segmentation is not None and record.labelled
    restorer = Restorer(prepared.way_back) if segments else None
    vectors = []
    for number, start in enumerate(prepared.way_back.starts):
        x0 = torch.from_numpy(prepared.slab(number))[None].to(device).contiguous(memory_format=torch.channels_last_3d)
        output = slab_output(weights, slab_features(weights, x0, seed=seed, draws=draws, sample=start), x0)
        if output.vector is not None:
            vectors.append(output.vector)
        if restorer is not None and output.logits is not None:
            restorer.add(output.logits[0].float().cpu().numpy())
    vector = series_vector(weights, vectors).cpu() if vectors else None
    if restorer is None or weights.segmentation is None:
        return SeriesOutput(record, vector, None, None), None
    found, truth = restorer.labels(), load_labels(record, volume)
    known = (truth >= 0) & prepared.way_back.covered()  # what nobody labelled, or was not looked at, counts neither way
    found[~known], truth[~known] = 0, IGNORED
    classes = weights.segmentation.classes
    distance = None
    if surface_distance:
        mm = spacing(volume.affine)
        distance = tuple(surface_distance_95(found == c, truth == c, mm, known) for c in range(1, classes))
    return SeriesOutput(record, vector, tuple(dice(found, truth, classes)), distance), found


def run_records(
    records: Sequence[Record],
    weights: Weights,
    *,
    mode: Mode = "full",
    seed: int = 0,
    draws: int = 1,
    device: torch.device | str = "cpu",
    surface_distance: bool = True,
    tell: Tell = lambda done, total: None,
) -> list[SeriesOutput]:
    """Every record of a plane that the weights have."""
    for own in weights.planes.values():
        for module in own.modules().values():
            module.to(device)
        for unet in own.networks():
            unet.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    usable = [record for record in records if record.plane in weights.planes]
    found = []
    for number, record in enumerate(usable):
        tell(number, len(usable))
        found.append(
            run_series(
                record, weights.planes[record.plane], size=weights.size, mode=mode, seed=seed, draws=draws,
                device=device, surface_distance=surface_distance,
            )[0]
        )  # fmt: skip
    for own in weights.planes.values():
        for module in own.modules().values():
            module.to("cpu")
    return found


@torch.inference_mode()
def study_findings(outputs: Sequence[SeriesOutput], weights: Weights) -> Findings | None:
    """Fused probabilities, mean over each study's triplets; None where the weights have no heads.

    Labels that no study knows are left out, and studies that do not know all of the others.
    """
    planes = tuple(
        p for p in PLANES if p in weights.planes and weights.planes[p].pooling is not None
        and (weights.fusion is not None or weights.planes[p].head is not None)
    )  # fmt: skip
    own = {p: [o for o in outputs if o.record.plane == p and o.vector is not None] for p in planes}
    if not planes or not all(own.values()):
        return None
    vectors = {p: torch.cat([o.vector for o in found if o.vector is not None]) for p, found in own.items()}
    found = triplets({p: [o.record for o in outputs] for p, outputs in own.items()}, planes)
    if not found.told()[0].any():
        return None
    rows = {p: vectors[p][torch.from_numpy(found.rows[:, n])] for n, p in enumerate(planes)}
    fused = found.mean_per_study(_probabilities(weights, rows).numpy())
    single = {
        p: found.mean_per_study(head(rows[p]).sigmoid().numpy())
        for p in planes if (head := weights.planes[p].head) is not None
    }  # fmt: skip
    return _told(found, fused, single, weights.joint)


def _told(found: Triplets, fused: np.ndarray, single: Mapping[str, np.ndarray], joint: str) -> Findings:
    studies, labels = found.told()
    told = np.ix_(studies, labels)
    return Findings(
        tuple(label.key for label, keep in zip(LABELS[joint], labels, strict=True) if keep),
        tuple(study for study, keep in zip(found.studies, studies, strict=True) if keep),
        tuple(patient for patient, keep in zip(found.patients, studies, strict=True) if keep),
        found.truth[told].astype(int),
        fused[told],
        {plane: values[told] for plane, values in single.items()},
    )


def _probabilities(weights: Weights, rows: Mapping[str, Tensor]) -> Tensor:
    """[rows, labels]: fused where all planes are there, else the mean of the single ones, as the pipeline does."""
    single = {p: head(vector) for p, vector in rows.items() if (head := weights.planes[p].head) is not None}
    if weights.fusion is not None and weights.fusion_name == "gating" and len(single) == len(PLANES):
        return weights.fusion(torch.stack([single[plane] for plane in PLANES], dim=1))[0].sigmoid()
    if weights.fusion is not None and weights.fusion_name != "gating" and len(rows) == len(PLANES):
        return weights.fusion(*(rows[plane] for plane in PLANES)).sigmoid()
    return torch.stack(list(single.values())).sigmoid().mean(dim=0)
