"""Heads on fixed vectors: single planes, every fusion of three, and the gate on out-of-fold logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orthokernels.models.orthodiffusion.fusion import FUSIONS, GatingFusion
from orthokernels.training.config_heads import FusionConfig, HeadConfig
from orthokernels.training.loop import TrainingStoppedError

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Vectors:
    """Pooled vectors of the triplets of a set of studies.

    Attributes:
        planes: one [triplets, width] per plane, float32.
        truth: [triplets, labels].
        weight: [triplets].
        patients: per triplet.
    """

    planes: tuple[Tensor, ...]
    truth: Tensor
    weight: Tensor
    patients: tuple[str, ...]

    def __getitem__(self, rows: np.ndarray) -> Vectors:
        chosen = torch.from_numpy(rows)
        return Vectors(
            tuple(plane[chosen] for plane in self.planes),
            self.truth[chosen],
            self.weight[chosen],
            tuple(self.patients[row] for row in rows),
        )


def weighted_bce(logits: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Binary cross-entropy, mean over known labels (truth is NaN where unknown), rows by weight.

    Args:
        weight: [rows], of mean 1 over all rows that are trained on (``mean_one``). A batch is not divided by its own
            weights: alone in a batch, a row's would cancel.
    """
    known = truth.isfinite()
    each = F.binary_cross_entropy_with_logits(logits, truth.nan_to_num(), reduction="none")
    return (each * (weight[:, None] * known)).sum() / known.sum().clamp(min=1)


def mean_one(weight: Tensor) -> Tensor:
    """Weights [rows] of the training rows, scaled to mean 1; equal ones become 1 exactly."""
    return (weight.double() / weight.double().mean()).to(weight.dtype)


def fit(
    module: nn.Module,
    inputs: Sequence[Any],
    truth: Tensor,
    weight: Tensor,
    config: HeadConfig,
    *,
    seed: int,
    logits_of: Callable[..., Tensor] | None = None,
) -> None:
    """Train ``module`` on rows of ``inputs``: Adam, cosine per epoch, as both published stages do.

    Args:
        inputs: what ``module`` takes, each [rows, ...], or anything that a tensor of rows chooses from.
        truth: [rows, labels].
        weight: [rows], of any scale.
        logits_of: gets logits out of the module's output, where it gives more than logits.

    Raises:
        TrainingStoppedError: the loss is not finite.
    """
    weight = mean_one(weight)
    optimiser = torch.optim.Adam(module.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, config.epochs))
    order = torch.Generator().manual_seed(seed)
    batch = config.batch or len(truth)
    module.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of dropout
        for epoch in range(config.epochs):
            for rows in torch.randperm(len(truth), generator=order).split(batch):
                out = module(*(values[rows] for values in inputs))
                loss = weighted_bce(logits_of(out) if logits_of else out, truth[rows], weight[rows])
                if not bool(torch.isfinite(loss)):
                    raise TrainingStoppedError(
                        f"epoch {epoch + 1} of a head: the loss is {loss.item()}. Train with a learning_rate below "
                        f"{config.learning_rate:g}, or with standardise=true."
                    )
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
            schedule.step()
    module.eval()


def seeded(build: Callable[[], Module], seed: int) -> Module:
    """A new module whose first weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def train_plane_head(vectors: Vectors, plane: int, config: HeadConfig, *, seed: int) -> nn.Linear:
    """One linear layer on one plane's vectors."""
    inputs = vectors.planes[plane]
    head = seeded(lambda: nn.Linear(inputs.shape[1], vectors.truth.shape[1]), seed + plane)
    scale = Standardisation.of(inputs, enabled=config.standardise)
    fit(head, [scale(inputs)], vectors.truth, vectors.weight, config, seed=seed + plane)
    scale.fold_into(head)
    return head


def train_fusion(name: str, vectors: Vectors, config: FusionConfig, *, seed: int) -> nn.Module:
    """A fusion of ``FUSIONS`` other than the gate, from scratch."""
    fusion = seeded(lambda: FUSIONS[name](**fusion_arguments(name, vectors, config)), seed)
    scales = [Standardisation.of(plane, enabled=config.head.standardise) for plane in vectors.planes]
    inputs = [scale(plane) for scale, plane in zip(scales, vectors.planes, strict=True)]
    fit(fusion, inputs, vectors.truth, vectors.weight, config.head, seed=seed)
    if name == "simple_concat":
        first = fusion.net[0] if config.hidden else fusion.net  # type: ignore[index]
        joined = Standardisation(torch.cat([s.mean for s in scales]), torch.cat([s.deviation for s in scales]))
        joined.fold_into(first)  # type: ignore[arg-type]
    else:
        for number, scale in enumerate(scales, start=1):
            scale.fold_into(getattr(fusion.fusion, f"proj{number}"))
    return fusion


def fusion_arguments(name: str, vectors: Vectors, config: FusionConfig) -> dict[str, Any]:
    """Constructor arguments of a fusion, as its card keeps them."""
    labels = int(vectors.truth.shape[1])
    if name == "gating":
        return {"labels": labels, "planes": len(vectors.planes), "stacking": config.stacking}
    arguments: dict[str, Any] = {"width": int(vectors.planes[0].shape[1]), "labels": labels}
    if name != "simple_concat":
        arguments["out_width"] = config.out_width
    return arguments | {"hidden": config.hidden}


def patient_folds(patients: Sequence[str], folds: int, *, seed: int) -> np.ndarray:
    """The fold of each row, 0 to ``folds`` - 1. A patient's rows share one; sizes differ by one patient at most."""
    names = sorted(set(patients))
    order = np.random.default_rng(seed).permutation(len(names))
    fold_of = {names[n]: position % folds for position, n in enumerate(order)}
    return np.array([fold_of[patient] for patient in patients], np.intp)


def out_of_fold_logits(vectors: Vectors, config: FusionConfig, *, seed: int) -> Tensor:
    """Each plane's logits for each row, from heads that never saw the row's patient: [triplets, planes, labels]."""
    folds = patient_folds(vectors.patients, min(config.folds, len(set(vectors.patients))), seed=seed)
    logits = torch.full((len(vectors.truth), len(vectors.planes), vectors.truth.shape[1]), math.nan)
    for fold in np.unique(folds):
        seen, held = vectors[np.flatnonzero(folds != fold)], torch.from_numpy(folds == fold)
        for plane, inputs in enumerate(vectors.planes):
            head = train_plane_head(seen, plane, config.head, seed=seed)
            with torch.no_grad():
                logits[held, plane] = head(inputs[held])
    return logits


def train_gate(vectors: Vectors, config: FusionConfig, *, seed: int) -> tuple[list[nn.Linear], GatingFusion]:
    """Single-plane heads on all rows, and the gate on their out-of-fold logits (facts of the publication: 5 folds).

    The gate must not learn from logits of rows that the heads were trained on: those are surer than any it will meet.
    """
    logits = out_of_fold_logits(vectors, config, seed=seed)
    gate = seeded(lambda: GatingFusion(**fusion_arguments("gating", vectors, config)), seed)
    fit(gate, [logits], vectors.truth, vectors.weight, config.gate, seed=seed, logits_of=lambda out: out[0])
    heads = [train_plane_head(vectors, plane, config.head, seed=seed) for plane in range(len(vectors.planes))]
    return heads, gate


class Standardisation:
    """(x - mean) / deviation per column of the training rows, and its way into the linear layer behind it.

    Features of a small network differ in scale by orders of magnitude, which a fixed number of Adam steps can't make
    up. Folding it into the layer afterwards leaves the module as published.
    """

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        self.mean, self.deviation = mean, deviation

    @classmethod
    def of(cls, rows: Tensor, *, enabled: bool = True) -> Standardisation:
        """Of [rows, width]; the identity unless ``enabled``. Columns that never change are left as they are."""
        if not enabled:
            return cls(torch.zeros(rows.shape[1]), torch.ones(rows.shape[1]))
        deviation, mean = torch.std_mean(rows.double(), dim=0, correction=0)
        still = deviation <= 1e-6 * mean.abs() + 1e-12
        return cls(mean.float(), torch.where(still, 1.0, deviation).float())

    def __call__(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) / self.deviation

    @torch.no_grad()
    def fold_into(self, layer: nn.Linear) -> None:
        """Change ``layer`` so that on raw rows it gives what it gave on standardised ones."""
        weight = layer.weight.double() / self.deviation
        layer.bias.sub_((weight @ self.mean.double()).to(layer.bias))
        layer.weight.copy_(weight)
