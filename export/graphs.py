"""Which graphs weights make: their names, what goes in and comes out, and which of them a joint's study goes through.

    {plane}.features                      the noisy pass where every task reads the same network at the same timestep
    {plane}.segmentation.features         else the segmentation's, and
    {plane}.{joint}.features              a joint's own, or {plane}.diagnosis.features where several joints share one
    {plane}.segmentation                  maps (and volume) -> logits
    {plane}.{joint}.pooling, .head        map -> vector of a slab; vector of a series -> logits
    {joint}.fusion, .late_fusion          the planes' vectors (or, gated, their logits) -> logits
    {plane}.denoiser                      for those who sample

Volumes are slabs of 16 slices; every tensor is float32, and its first axis is the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from orthokernels.export.modules import (
    Denoiser,
    FeaturePass,
    Gating,
    LateFusionPass,
    Logits,
    Pooling,
    Segmentation,
)
from torch import nn

from orthokernels.bundle.manifest import PlaneGraphs
from orthokernels.data.prepare import SLAB
from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion.inference import segmentation_blocks
from orthokernels.models.orthodiffusion.patient_data import LateFusion
from orthokernels.models.orthodiffusion.segmentation import MultiscaleSegmentationHead
from orthokernels.models.orthodiffusion.unet import UNet
from orthokernels.models.orthodiffusion.weights import PlaneWeights, Weights, digest_of
from orthokernels.tasks import LABELS, PLANES, class_names

Sides = tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """A graph to be written.

    Attributes:
        kind: "features", "segmentation", "pooling", "head", "fusion", "late_fusion" or "denoiser".
        module: takes the inputs in their order and gives a tuple of the outputs.
        inputs, outputs: each tensor's sides behind the batch.
        labels: what the last axis but space of its logits stands for; none where it gives no logits.
    """

    name: str
    kind: str
    module: nn.Module
    inputs: dict[str, Sides]
    outputs: dict[str, Sides]
    labels: tuple[str, ...] = ()


@dataclass
class Plan:
    """Every graph by name, and those that each joint uses: of its planes, and its fusions."""

    graphs: dict[str, Source] = field(default_factory=dict)
    planes: dict[str, dict[str, PlaneGraphs]] = field(default_factory=dict)
    fusion: dict[str, str] = field(default_factory=dict)
    late_fusion: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, module: nn.Module, inputs: Mapping[str, Sides], outputs: Sequence[str]) -> Source:
        """A graph whose kind is the end of its name, its outputs measured."""
        sides = output_sides(module, list(inputs.values()))
        kind = name.rpartition(".")[2]
        self.graphs[name] = Source(
            name, kind, module.eval(), dict(inputs), dict(zip(outputs, sides, strict=True)), _labels(name, kind, sides)
        )
        return self.graphs[name]


def plan_graphs(weights: Sequence[Weights], *, denoiser: bool = False) -> Plan:
    """The graphs of weights.

    Args:
        weights: of one folder, one for each joint.
        denoiser: also the whole networks.

    Raises:
        InputError: the weights belong to different networks.
    """
    _check(weights)
    made = Plan(planes={own.joint: {} for own in weights})
    for plane in PLANES:
        joints = {own.joint: own.planes[plane] for own in weights if plane in own.planes}
        if joints:
            _add_plane(made, plane, joints, weights[0].size)
            if denoiser:
                volume = (1, SLAB, weights[0].size, weights[0].size)
                network = next(iter(joints.values())).denoiser
                made.add(f"{plane}.denoiser", Denoiser(network), {"noisy": volume, "timestep": ()}, ["noise"])
    for own in weights:
        _add_fusions(made, own, own.late_fusion)
    return made


def _check(weights: Sequence[Weights]) -> None:
    """That the joints' weights are one folder's."""
    for own in weights[1:]:
        for plane, found in own.planes.items():
            first = weights[0].planes.get(plane)
            same = first is not None and digest_of(first.denoiser.state_dict()) == digest_of(
                found.denoiser.state_dict()
            )  # fmt: skip
            if own.size != weights[0].size or not same:
                raise InputError(
                    f"the {own.joint} weights {own.name!r} have another {plane} denoiser than the "
                    f"{weights[0].joint}'s. Give weights of one folder."
                )


@dataclass
class _Pass:
    """A noisy pass: the network, the blocks that are read, and by whom."""

    unet: UNet
    timestep: int
    blocks: set[str] = field(default_factory=set)
    readers: list[str] = field(default_factory=list)

    def read(self, reader: str, blocks: Sequence[str]) -> None:
        self.blocks.update(blocks)
        self.readers += [reader] * (reader not in self.readers)


def _add_plane(made: Plan, plane: str, joints: Mapping[str, PlaneWeights], size: int) -> None:
    volume = (1, SLAB, size, size)
    features: dict[str, str] = {}  # the pass of each reader
    passes = _passes(joints)
    for own in passes:
        name = f"{plane}.features" if len(passes) == 1 else f"{plane}.{_owner(own.readers)}.features"
        blocks = [block for block in own.unet.feature_names if block in own.blocks]
        made.add(name, FeaturePass(own.unet, own.timestep, blocks), {"volume": volume, "noise": volume}, blocks)
        features |= dict.fromkeys(own.readers, name)
    for joint, weights in joints.items():
        logits = _add_segmentation(made, plane, weights, features, volume)
        found = made.planes[joint][plane] = PlaneGraphs(
            timestep=weights.timestep,
            block=weights.block,
            classes=weights.segmentation.classes if weights.segmentation is not None else None,
            segmentation_features=features["segmentation"] if weights.segmentation is not None else None,
            diagnosis_features=features.get(joint),
            segmentation=logits,
        )
        if weights.pooling is not None:
            made.planes[joint][plane] = found.model_copy(
                update=_add_diagnosis(made, plane, joint, weights, found, volume)
            )  # fmt: skip


def _passes(joints: Mapping[str, PlaneWeights]) -> list[_Pass]:
    """The passes that the heads of a plane need, as ``inference.slab_features`` has them."""
    passes: dict[tuple[str, int], _Pass] = {}

    def read(unet: UNet, timestep: int, reader: str, blocks: Sequence[str]) -> None:
        passes.setdefault((digest_of(unet.state_dict()), timestep), _Pass(unet, timestep)).read(reader, blocks)

    for joint, own in joints.items():
        if own.segmentation is not None:
            unet = own.segmentation_encoder or own.denoiser
            read(unet, own.segmentation_point.timestep, "segmentation", segmentation_blocks(own, unet))
        if own.pooling is not None or own.segmentation is None:
            read(own.encoder or own.denoiser, own.timestep, joint, [own.block])
    return list(passes.values())


def _owner(readers: Sequence[str]) -> str:
    """Whose pass it is by name."""
    if "segmentation" in readers:
        return "segmentation"
    return readers[0] if len(readers) == 1 else "diagnosis"


def _add_segmentation(
    made: Plan, plane: str, weights: PlaneWeights, features: Mapping[str, str], volume: Sides
) -> str | None:
    """The graph's name; it is made once, for whichever joint comes first."""
    head, name = weights.segmentation, f"{plane}.segmentation"
    if head is None:
        return None
    if name not in made.graphs:
        blocks = segmentation_blocks(weights, weights.segmentation_encoder or weights.denoiser)
        maps = made.graphs[features["segmentation"]].outputs
        inputs = {block: maps[block] for block in blocks}
        if isinstance(head, MultiscaleSegmentationHead) and head.input_skip:
            inputs["volume"] = volume
        made.add(name, Segmentation(head, blocks), inputs, ["logits"])
    return name


def _add_diagnosis(
    made: Plan, plane: str, joint: str, weights: PlaneWeights, graphs: PlaneGraphs, volume: Sides
) -> dict[str, str]:
    """Pooling and single-plane head; what ``PlaneGraphs`` says of them."""
    assert weights.pooling is not None
    assert graphs.diagnosis_features is not None
    pooling = Pooling(weights.pooling)
    inputs = {weights.block: made.graphs[graphs.diagnosis_features].outputs[weights.block]}
    if pooling.reads_structures:
        assert graphs.segmentation is not None  # weights are not loaded without the head that this pooling reads
        inputs |= {"logits": made.graphs[graphs.segmentation].outputs["logits"], "volume": volume}
    found = {"pooling": made.add(f"{plane}.{joint}.pooling", pooling, inputs, ["vector"]).name}
    if weights.head is not None:
        width = {"vector": (_width(weights.pooling),)}
        found["head"] = made.add(f"{plane}.{joint}.head", Logits(weights.head), width, ["logits"]).name
    return found


def _add_fusions(made: Plan, weights: Weights, late_fusion: LateFusion | None) -> None:
    joint = weights.joint
    widths = {
        plane: (_width(own.pooling),)
        for plane in PLANES if (own := weights.planes.get(plane)) is not None and own.pooling is not None
    }  # fmt: skip
    if len(widths) < len(PLANES):
        return  # a fusion needs every plane
    if weights.fusion is not None and weights.fusion_name == "gating":
        planes = {"planes": (len(PLANES), len(LABELS[joint]))}
        made.fusion[joint] = made.add(f"{joint}.fusion", Gating(weights.fusion), planes, ["logits", "shares"]).name
    elif weights.fusion is not None:
        made.fusion[joint] = made.add(f"{joint}.fusion", Logits(weights.fusion), widths, ["logits"]).name
    if late_fusion is not None:
        first = late_fusion.tab_proj[0]
        events, width = late_fusion.event_embed.weight.shape
        assert isinstance(first, nn.Linear)
        columns = _columns(first.in_features - width, int(events))
        made.late_fusion[joint] = made.add(
            f"{joint}.late_fusion", LateFusionPass(late_fusion), {**widths, **columns}, ["logits", "share"]
        ).name


def _width(pooling: nn.Module) -> int:
    """Of a series' vector."""
    width = pooling.out_channels
    assert isinstance(width, int)
    return width


def _columns(known: int, events: int) -> dict[str, Sides]:
    """The patient's columns: sex and patient type have three classes each, as the patient table encodes them."""
    classes = 3
    return {"continuous": (known - 2 * classes,), "sex": (classes,), "patient_type": (classes,), "event": (events,)}


def _labels(name: str, kind: str, sides: Sequence[Sides]) -> tuple[str, ...]:
    if kind == "segmentation":
        return class_names(sides[0][0])
    if kind in ("head", "fusion", "late_fusion"):
        return tuple(label.key for label in LABELS[name.split(".")[-2]])
    return ()


@torch.no_grad()
def output_sides(module: nn.Module, inputs: Sequence[Sides]) -> list[Sides]:
    """The sides of a module's outputs behind the batch; nothing is computed."""
    shadow = copy.deepcopy(module).to("meta")
    return [tuple(out.shape[1:]) for out in shadow(*(torch.empty((1, *sides), device="meta") for sides in inputs))]
