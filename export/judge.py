"""How much of what may be lost a graph in another form uses up, the other graphs being in fp32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from orthokernels.export.chain import Chain
from orthokernels.export.examples import SeriesExample
from orthokernels.export.gate import dice_used, logits_used
from orthokernels.export.graphs import Plan
from orthokernels.export.known import Vectors, whole_studies

from orthokernels.bundle.golden import worst
from orthokernels.models.study_model import Array
from orthokernels.runtime.sessions import Session
from orthokernels.tasks import PLANES


@dataclass
class _Reference:
    """What fp32 makes of the examples: Dice by (joint, plane), vectors by joint, plane and study.

    ``classes`` are each slab's label maps by joint, plane and study: all that poolings read of the logits.
    """

    dice: dict[tuple[str, str], list[float | None]] = field(default_factory=dict)
    vectors: dict[tuple[str, str], dict[str, Array]] = field(default_factory=dict)
    classes: dict[tuple[str, str, str], list[np.ndarray]] = field(default_factory=dict)


class Judge:
    """Runs a graph's form over a few studies, with fp32 before and behind it.

    Args:
        plan: of the graphs.
        sessions: of every graph in fp32.
        examples: by joint. Those with labels tell Dice; where none has, and for findings, logits are compared.
        known: fp32's vectors of more studies, which tell how much logits vary.
    """

    def __init__(
        self, plan: Plan, sessions: Mapping[str, Session], examples: Mapping[str, Sequence[SeriesExample]],
        known: Vectors,
    ) -> None:  # fmt: skip
        self.plan, self.sessions, self.examples, self.known = plan, sessions, examples, known
        self._reference = _Reference()

    def used(self, name: str, session: Session) -> float:
        """The share of the allowance that this graph uses up, in the worst of what it feeds; 0 where nothing does."""
        chain, fp32 = (Chain(self.plan, own) for own in ({**self.sessions, name: session}, self.sessions))
        found: list[float] = []
        for joint, own in self.examples.items():
            for plane in self.plan.planes[joint]:
                found += self._segmentation(chain, fp32, joint, plane, own, name)
                found += self._findings(chain, fp32, joint, plane, own, name)
            if self.plan.fusion.get(joint) == name:
                found.append(self._fusion(chain, fp32, joint, own))
        return worst(found)

    def _segmentation(
        self, chain: Chain, fp32: Chain, joint: str, plane: str, examples: Sequence[SeriesExample], name: str
    ) -> list[float]:
        graphs = self.plan.planes[joint][plane]
        labelled = [own for own in examples if own.plane == plane and own.labels is not None]
        if name not in (graphs.segmentation_features, graphs.segmentation) or not labelled:
            return []
        key = joint, plane
        if key not in self._reference.dice:
            self._reference.dice[key] = pooled_dice(fp32, joint, labelled)
        return [dice_used(pooled_dice(chain, joint, labelled), self._reference.dice[key])]

    def _findings(
        self, chain: Chain, fp32: Chain, joint: str, plane: str, examples: Sequence[SeriesExample], name: str
    ) -> list[float]:
        """From the plane's own head; the numbers that reach it where it has none."""
        graphs = self.plan.planes[joint][plane]
        if graphs.pooling is None or name not in self._behind_findings(joint, plane):
            return []
        before = self._vectors(fp32, joint, plane, examples)
        after = before
        if name != graphs.head:
            segments = name in (graphs.segmentation_features, graphs.segmentation)
            own = [example for example in examples if example.plane == plane]
            after = {
                e.study: chain.vector(joint, e, None if segments else self._logits(fp32, joint, e)) for e in own
            }  # fmt: skip
        usual = {**self.known.get((joint, plane), {}), **before}
        if graphs.head is None:
            return [logits_used(*(np.stack(list(v.values())) for v in (after, before, usual)))]
        scored = [
            np.stack([own.score(joint, plane, vector) for vector in vectors.values()])
            for own, vectors in ((chain, after), (fp32, before), (fp32, usual))
        ]
        return [logits_used(*scored)]

    def _logits(self, fp32: Chain, joint: str, example: SeriesExample) -> Iterator[Array]:
        """Logits with fp32's label maps, computed once: 1 for the class that was found, else 0."""
        if not fp32.reads_logits(joint, example.plane):
            return
        own = self.plan.planes[joint][example.plane]
        key = joint, example.plane, example.study
        if key not in self._reference.classes:
            found = [logits.argmax(axis=0).astype(np.uint8) for logits in fp32.logits(joint, example)]
            self._reference.classes[key] = found
        assert own.classes is not None
        values = np.arange(own.classes, dtype=np.uint8)[:, None, None, None]
        for classes in self._reference.classes[key]:
            yield (classes == values).astype(np.float32)

    def _behind_findings(self, joint: str, plane: str) -> tuple[str | None, ...]:
        graphs = self.plan.planes[joint][plane]
        assert graphs.pooling is not None
        own = (graphs.diagnosis_features, graphs.pooling, graphs.head)
        if "logits" in self.plan.graphs[graphs.pooling].inputs:
            return (*own, graphs.segmentation_features, graphs.segmentation)
        return own

    def _fusion(self, chain: Chain, fp32: Chain, joint: str, examples: Sequence[SeriesExample]) -> float:
        rows = whole_studies({(joint, plane): self._vectors(fp32, joint, plane, examples) for plane in PLANES}, joint)
        usual = [*rows, *whole_studies(self.known, joint)]
        before, after, more = (
            np.stack([own.fuse(joint, row) for row in found])
            for own, found in ((fp32, rows), (chain, rows), (fp32, usual))
        )
        return logits_used(after, before, more)

    def _vectors(
        self, fp32: Chain, joint: str, plane: str, examples: Sequence[SeriesExample]
    ) -> dict[str, Array]:  # fmt: skip
        """fp32's, by study."""
        key = joint, plane
        if key not in self._reference.vectors:
            own = [example for example in examples if example.plane == plane]
            self._reference.vectors[key] = {e.study: fp32.vector(joint, e, self._logits(fp32, joint, e)) for e in own}
        return self._reference.vectors[key]


def pooled_dice(chain: Chain, joint: str, examples: Sequence[SeriesExample]) -> list[float | None]:
    """Dice of each structure over all voxels of all examples together, on the networks' grid."""
    table: np.ndarray | None = None
    for example in examples:
        assert example.labels is not None
        for logits, truth in zip(chain.logits(joint, example), example.labels, strict=True):
            classes = len(logits)
            known = (truth >= 0) & (truth < classes)
            pairs = truth[known].astype(np.int64) * classes + logits.argmax(axis=0)[known]
            found = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
            table = found if table is None else table + found
    assert table is not None
    both, either = np.diag(table), table.sum(axis=0) + table.sum(axis=1)
    return [float(2 * both[n] / either[n]) if either[n] else None for n in range(1, len(table))]
