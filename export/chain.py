"""The way of prepared series through graphs, each computed by whichever session stands for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from orthokernels.export.examples import SeriesExample
from orthokernels.export.graphs import Plan
from orthokernels.export.modules import Pooling

from orthokernels.models.noise import feature_noise
from orthokernels.models.orthodiffusion.regional_pooling import StructurePool
from orthokernels.models.study_model import Array
from orthokernels.runtime.sessions import Session
from orthokernels.tasks import PLANES


class Chain:
    """Graphs of a plan, and what computes each.

    Args:
        plan: says which graph reads which.
        sessions: by graph.
        seed: of the features' noise.
    """

    def __init__(self, plan: Plan, sessions: Mapping[str, Session], *, seed: int = 0) -> None:
        self.plan, self.sessions, self.seed = plan, sessions, seed

    def run(self, name: str, **tensors: Array) -> dict[str, Array]:
        """One graph; tensors that it does not read may be among those given."""
        return self.sessions[name]({own: tensors[own] for own in self.plan.graphs[name].inputs})

    def logits(self, joint: str, example: SeriesExample) -> Iterable[Array]:
        """Each slab's class logits, [classes, 16, size, size]."""
        own = self.plan.planes[joint][example.plane]
        assert own.segmentation is not None
        assert own.segmentation_features is not None
        for volume, noise in self._slabs(example):
            maps = self.run(own.segmentation_features, volume=volume, noise=noise)
            yield self.run(own.segmentation, volume=volume, **maps)["logits"][0]

    def reads_logits(self, joint: str, plane: str) -> bool:
        """Whether the pooling reads what the segmentation found."""
        own = self.plan.planes[joint][plane]
        return own.pooling is not None and "logits" in self.plan.graphs[own.pooling].inputs

    def vector(self, joint: str, example: SeriesExample, logits: Iterable[Array] | None = None) -> Array:
        """The series' vector, [width].

        Args:
            logits: each slab's class logits where they are known; else they are computed if the pooling reads them.
        """
        own = self.plan.planes[joint][example.plane]
        assert own.pooling is not None
        assert own.diagnosis_features is not None
        reads_logits = self.reads_logits(joint, example.plane)
        found = iter((self.logits(joint, example) if logits is None else logits) if reads_logits else ())
        vectors = []
        for volume, noise in self._slabs(example):
            read = {"volume": volume, **self.run(own.diagnosis_features, volume=volume, noise=noise)}
            if reads_logits:
                read["logits"] = next(found)[None]
            vectors.append(self.run(own.pooling, **read)["vector"])
        mean: Array = np.concatenate(vectors).mean(axis=0, dtype=np.float32)
        module = self.plan.graphs[own.pooling].module
        assert isinstance(module, Pooling)
        if isinstance(module.pooling, StructurePool):
            return module.pooling.of_series(torch.from_numpy(mean)[None])[0].numpy()
        return mean

    def score(self, joint: str, plane: str, vector: Array) -> Array:
        """The plane's own head's logits, [labels]."""
        head = self.plan.planes[joint][plane].head
        assert head is not None
        return self.run(head, vector=vector[None])["logits"][0]

    def fuse(self, joint: str, vectors: Mapping[str, Array]) -> Array:
        """The study's logits, [labels], of every plane's vector."""
        return self.run(self.plan.fusion[joint], **self.fusion_inputs(joint, vectors))["logits"][0]

    def fusion_inputs(self, joint: str, vectors: Mapping[str, Array]) -> dict[str, Array]:
        """What the fusion reads: the vectors, or what the planes' own heads make of them."""
        if "planes" not in self.plan.graphs[self.plan.fusion[joint]].inputs:
            return {plane: vectors[plane][None] for plane in PLANES}
        return {"planes": np.stack([self.score(joint, plane, vectors[plane]) for plane in PLANES])[None]}

    def _slabs(self, example: SeriesExample) -> Iterable[tuple[Array, Array]]:
        for slab, start in zip(example.slabs, example.starts, strict=True):
            noise = feature_noise((1, *slab.shape), seed=self.seed, sample=start)
            yield slab[None, None], noise[None]


class Recorder:
    """A session that keeps what it is given, up to a number of calls and of bytes; one call in any case."""

    def __init__(self, session: Session, most: int, most_bytes: int) -> None:
        self.session, self.most, self.bytes_left = session, most, most_bytes
        self.inputs: list[dict[str, Array]] = []

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        size = sum(own.nbytes for own in inputs.values())
        if not self.inputs or (len(self.inputs) < self.most and size <= self.bytes_left):
            self.bytes_left -= size
            self.inputs.append({name: np.array(own) for name, own in inputs.items()})
        return self.session(inputs)


def record_inputs(
    plan: Plan, sessions: Mapping[str, Session], examples: Mapping[str, Sequence[SeriesExample]], *, most: int,
    most_bytes: int,
) -> dict[str, list[dict[str, Array]]]:  # fmt: skip
    """What each graph up to the vectors is given when examples (by joint) go through.

    At most so many calls of each graph are kept, and so many bytes.
    """
    recorders = {name: Recorder(session, most, most_bytes) for name, session in sessions.items()}
    chain = Chain(plan, recorders)
    for joint, own in examples.items():
        for example in own:
            graphs = plan.planes[joint].get(example.plane)
            if graphs is None:
                continue
            if graphs.pooling is not None:
                chain.vector(joint, example)
            if graphs.segmentation is not None and not chain.reads_logits(joint, example.plane):
                for _ in chain.logits(joint, example):
                    pass
    return {name: recorder.inputs for name, recorder in recorders.items()}
