"""What a model's studies look like as vectors: they calibrate what reads vectors, and tell what is unlike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
from orthokernels.export.bundle import Draft
from orthokernels.export.chain import Chain
from orthokernels.export.examples import SeriesExample
from orthokernels.export.graphs import Plan

from orthokernels.bundle.manifest import Known
from orthokernels.bundle.novelty_tables import write_table
from orthokernels.models.study_model import Array
from orthokernels.novelty import LEAST_VECTORS, fit
from orthokernels.progress import Progress
from orthokernels.runtime.sessions import Session
from orthokernels.tasks import PLANES

# By joint and plane, then by study.
Vectors = Mapping[tuple[str, str], Mapping[str, Array]]


def known_vectors(
    plan: Plan, sessions: Mapping[str, Session], examples: Mapping[str, Iterable[SeriesExample]],
    tell: Progress = lambda what, done, total: None,
) -> dict[tuple[str, str], dict[str, Array]]:  # fmt: skip
    """Vectors of prepared series, by joint; nothing else of these is kept."""
    chain, found = Chain(plan, sessions), dict[tuple[str, str], dict[str, Array]]()
    for joint, own in examples.items():
        for number, example in enumerate(own):
            tell(f"Calibrating, {joint}: series", number, 0)
            graphs = plan.planes[joint].get(example.plane)
            if graphs is not None and graphs.pooling is not None:
                found.setdefault((joint, example.plane), {})[example.study] = chain.vector(joint, example)
    return found


def inputs_of_vectors(plan: Plan, sessions: Mapping[str, Session], known: Vectors) -> dict[str, list[dict[str, Array]]]:
    """What heads and fusions are given for known vectors, by graph."""
    chain, found = Chain(plan, sessions), dict[str, list[dict[str, Array]]]()
    for (joint, plane), own in known.items():
        if (head := plan.planes[joint][plane].head) is not None:
            found[head] = [{"vector": vector[None]} for vector in own.values()]
    for joint, fusion in plan.fusion.items():
        found[fusion] = [chain.fusion_inputs(joint, vectors) for vectors in whole_studies(known, joint)]
    return found


def whole_studies(vectors: Vectors, joint: str) -> list[dict[str, Array]]:
    """Every plane's vector of each of a joint's studies that has all planes."""
    planes = {plane: vectors.get((joint, plane), {}) for plane in PLANES}
    studies = [study for study in planes[PLANES[0]] if all(study in own for own in planes.values())]
    return [{plane: planes[plane][study] for plane in PLANES} for study in studies]


def know(made: Draft, vectors: Vectors, source: Literal["phantoms", "own studies"]) -> None:
    """Write a table of every plane of which enough studies are known into the bundle's folder."""
    for (joint, plane), own in vectors.items():
        if len(own) >= LEAST_VECTORS:
            novelty = fit(np.stack([own[study] for study in sorted(own)]))
            file = write_table(made.folder, joint, plane, novelty)
            made.known[joint, plane] = Known(file=file, studies=len(own), source=source)
