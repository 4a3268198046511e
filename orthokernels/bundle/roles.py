"""Whether the graphs of a manifest can do what it names them for: each is given what it reads, and makes what is taken.

features       volume, noise                                            -> maps
segmentation   maps of its features, volume                             -> logits
pooling        maps of its features, volume, logits of a segmentation   -> vector
head           vector                                                   -> logits
fusion         the planes' vectors; all planes' logits for "gating"     -> logits; and shares
late_fusion    the planes' vectors, the patient's columns               -> logits, share
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from orthokernels.bundle.manifest import Graph, Joint, Manifest, PlaneGraphs
from orthokernels.errors import InputError
from orthokernels.tasks import PLANES

_COLUMNS = ("continuous", "sex", "patient_type", "event")  # of a patient


@dataclass(frozen=True)
class _Role:
    """What a graph is named for, the tensors that it is given, those that are taken of it, and the logits' classes."""

    what: str
    graph: str | None
    given: Collection[str]
    taken: Collection[str]
    classes: int | None = None


def check_roles(path: Path, manifest: Manifest) -> None:
    """Hold what each joint names against the graphs.

    Args:
        path: of the manifest, for messages.
        manifest: whose graphs are there.

    Raises:
        InputError: a graph that reads what is not there, does not make what is taken, or makes too few classes.
    """
    for joint, own in manifest.joints.items():
        for plane, graphs in own.planes.items():
            if (graphs.segmentation is None) != (graphs.classes is None):
                raise InputError(f"{path}: the {joint}'s {plane} has classes without a segmentation, or the reverse.")
        if own.fusion is not None and own.fusion_name is None:
            raise InputError(f"{path}: the {joint}'s fusion has no fusion_name.")
        for role in _roles(joint, own, manifest.graphs):
            if role.graph is not None:
                _check(path, role, manifest.graphs[role.graph])


def _roles(joint: str, own: Joint, graphs: Mapping[str, Graph]) -> Iterator[_Role]:
    labels = len(own.findings)
    for plane, named in own.planes.items():
        yield from _plane_roles(f"the {joint}'s {plane}", named, graphs, labels)
    if own.fusion_name == "gating":
        yield _Role(f"the {joint}'s fusion by gating", own.fusion, ("planes",), ("logits", "shares"), labels)
    else:
        yield _Role(f"the {joint}'s fusion of vectors", own.fusion, PLANES, ("logits",), labels)
    yield _Role(f"the {joint}'s late fusion", own.late_fusion, (*PLANES, *_COLUMNS), ("logits", "share"), labels)


def _plane_roles(where: str, own: PlaneGraphs, graphs: Mapping[str, Graph], labels: int) -> Iterator[_Role]:
    def maps(features: str | None) -> tuple[str, ...]:
        return () if features is None else tuple(graphs[features].outputs)

    noisy = ("volume", "noise")
    yield _Role(f"{where} features of the segmentation", own.segmentation_features, noisy, ())
    yield _Role(f"{where} features of the diagnosis", own.diagnosis_features, noisy, ())
    given = (*maps(own.segmentation_features), "volume")
    yield _Role(f"{where} segmentation", own.segmentation, given, ("logits",), own.classes)
    found = () if own.segmentation is None else ("logits",)
    given = (*maps(own.diagnosis_features), "volume", *found)
    yield _Role(f"{where} pooling", own.pooling, given, ("vector",))
    yield _Role(f"{where} head", own.head, ("vector",), ("logits",), labels)


def _check(path: Path, role: _Role, graph: Graph) -> None:
    named = f"{path}: the graph {role.graph!r} can't be {role.what}"
    for tensor in graph.inputs:
        if tensor not in role.given:
            raise InputError(f"{named}: it reads {tensor!r}, which is not given. Fetch the bundle again.")
    for tensor in role.taken:
        if tensor not in graph.outputs:
            raise InputError(f"{named}: it makes no {tensor!r}. Fetch the bundle again.")
    sides = graph.outputs["logits"][1:2] if role.classes is not None else []
    if sides and isinstance(sides[0], int) and sides[0] != role.classes:
        raise InputError(f"{named}: it tells {sides[0]} classes apart, not {role.classes}. Fetch the bundle again.")
