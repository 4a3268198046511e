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

    def vector(self, joint: str, example: SeriesExample) -> Array:
        """The series' vector, [width]."""
        own = self.plan.planes[joint][example.plane]
        assert own.pooling is not None
        assert own.diagnosis_features is not None
        reads_logits = "logits" in self.plan.graphs[own.pooling].inputs
        logits = iter(self.logits(joint, example) if reads_logits else ())
        vectors = []
        for volume, noise in self._slabs(example):
            read = {"volume": volume, **self.run(own.diagnosis_features, volume=volume, noise=noise)}
            if reads_logits:
                read["logits"] = next(logits)[None]
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
        name = self.plan.fusion[joint]
        if "planes" not in self.plan.graphs[name].inputs:
            return self.run(name, **{plane: vectors[plane][None] for plane in PLANES})["logits"][0]
        scores = np.stack([self.score(joint, plane, vectors[plane]) for plane in PLANES])
        return self.run(name, planes=scores[None])["logits"][0]

    def _slabs(self, example: SeriesExample) -> Iterable[tuple[Array, Array]]:
        for slab, start in zip(example.slabs, example.starts, strict=True):
            noise = feature_noise((1, *slab.shape), seed=self.seed, sample=start)
            yield slab[None, None], noise[None]


class Recorder:
    """A session that keeps what it is given, up to a number of calls."""

    def __init__(self, session: Session, most: int) -> None:
        self.session, self.most = session, most
        self.inputs: list[dict[str, Array]] = []

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if len(self.inputs) < self.most:
            self.inputs.append({name: np.array(own) for name, own in inputs.items()})
        return self.session(inputs)


def record_inputs(
    plan: Plan, sessions: Mapping[str, Session], examples: Mapping[str, Sequence[SeriesExample]], *, most: int
) -> dict[str, list[dict[str, Array]]]:
    """What each graph is given when examples (by joint) go through; at most so many calls of each, joints in turn."""
    recorders = {name: Recorder(session, most) for name, session in sessions.items()}
    chain = Chain(plan, recorders)
    for joint, own in examples.items():
        vectors: dict[str, dict[str, Array]] = {}
        for example in own:
            graphs = plan.planes[joint].get(example.plane)
            if graphs is None:
                continue
            if graphs.pooling is not None:
                vector = vectors.setdefault(example.study, {})[example.plane] = chain.vector(joint, example)
                if graphs.head is not None:
                    chain.score(joint, example.plane, vector)
            pools_logits = graphs.pooling is not None and "logits" in plan.graphs[graphs.pooling].inputs
            if graphs.segmentation is not None and not pools_logits:
                for _ in chain.logits(joint, example):
                    pass
        for found in vectors.values():
            if joint in plan.fusion and len(found) == len(PLANES):
                chain.fuse(joint, found)
    return {name: recorder.inputs for name, recorder in recorders.items()}
