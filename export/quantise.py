"""INT8 by NNCF: weights and activations, with layers taken back to float until the gate holds.

Two files of it: OpenVINO's own IR, and ONNX with pairs of QuantizeLinear and DequantizeLinear, which every runtime
reads. Weights are quantised per output channel, and over half of INT8's range: on an AVX2 processor without VNNI
products of whole bytes would overflow the 16 bits that they are added in.

What loses too much is made again with sums and normalisations in float32, and if that is not enough with some of its
layers in float32 too (``_all_but_the_best``). Roundings of different layers do not know of one another, so what
groups of layers lose adds up in squares: each group is tried alone, and as many are taken as fit together.

A transposed convolution over maps of a single slice stays in float32. On AVX2 OpenVINO took 20 ms for it in INT8 and
4 in float32 (256 to 128 channels, 16 x 16); over deeper maps INT8 was faster (7 and 9 ms, 13 and 18, 22 and 45).
"""

from __future__ import annotations

import logging
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
from orthokernels.export.forms import weighted_nodes
from orthokernels.export.onnx_file import save
from orthokernels.export.two_bytes import in_two_bytes

from orthokernels.bundle.manifest import Form, Quantisation
from orthokernels.models.study_model import Array
from orthokernels.runtime.sessions import Session, open_graph, openvino_core, openvino_runtime

# A graph alone may use half of what the whole form may lose, on studies that are few.
LARGEST_SHARE = 0.5

# Layers are tried alone in so many groups, in the order of the computation; the groups that use up more than half of
# what is accepted are halved once.
GROUPS = 8

# Calls that calibrate a trial.
QUICK_CALLS = 4

# What the judge makes of a graph's session: the share of the allowance that it uses up.
Used = Callable[[Session], float]


@dataclass(frozen=True)
class Quantised:
    """What became of a graph in one form.

    Attributes:
        layers: convolutions and linear layers that the graph has.
        in_float: those that are in float32, and why.
        used: the share of what may be lost that is lost, as made.
        used_at_first: the same with everything in INT8 that can be.
        sums_in_float: additions, products and normalisations between the layers are in float32.
        refused: why there is no such form of the graph; empty where there is.
    """

    graph: str
    form: Form
    layers: int
    in_float: dict[str, str] = field(default_factory=dict)
    used: float = 0.0
    used_at_first: float = 0.0
    sums_in_float: bool = False
    refused: str = ""

    def record(self) -> Quantisation:
        """What the manifest keeps of it."""
        return Quantisation(
            graph=self.graph, form=self.form, layers=self.layers, in_float=self.in_float, refused=self.refused
        )  # fmt: skip


def write_int8(
    name: str, fp32: Path, path: Path, inputs: Sequence[Mapping[str, Array]], used: Used, *,
    largest: float = LARGEST_SHARE,
) -> Quantised:  # fmt: skip
    """Write OpenVINO's IR of a graph in INT8: ``path`` (.xml), and its weights beside it (.bin).

    Args:
        fp32: the graph's ONNX file.
        inputs: to calibrate with.
        used: judges what was made.
        largest: share of the allowance up to which it is accepted.
    """
    model = onnx.load(fp32)
    layers, slow = [node.name for node in weighted_nodes(model)], slow_layers(model)
    work = _Work(fp32, inputs, used)
    made, first = work.judged(slow, careful=False)
    careful, share, worst, tried = False, first, dict[str, str](), ""
    if share > largest:
        careful = True
        made, share = work.judged(slow, careful=True)
    if share > largest and len(layers) - len(slow) > 1:
        worst, alone = _all_but_the_best(work, [layer for layer in layers if layer not in slow], slow, largest)
        if len(worst) + len(slow) < len(layers):
            made, share = work.judged({**slow, **worst}, careful=True)
        else:
            tried = f"; its layers alone use up {min(alone):.2f} to {max(alone):.2f}"
    reasons = {**slow, **worst}
    in_float = {layer: reasons.get(layer, "NNCF left it so") for layer in _in_float(made)}
    found = Quantised(
        name, "int8", len(layers), in_float, share, first, careful,
        refused + tried if (refused := _refusal(share, largest, len(layers), len(in_float))) else "",
    )  # fmt: skip
    if not found.refused:
        openvino_runtime().save_model(made, path, compress_to_fp16=False)
    return found


@dataclass(frozen=True)
class _Work:
    """One graph, what calibrates it, and what judges it; see ``write_int8``."""

    fp32: Path
    inputs: Sequence[Mapping[str, Array]]
    used: Used

    def judged(self, in_float: Mapping[str, str], *, careful: bool, quick: bool = False) -> tuple[Any, float]:
        """In INT8 but for some layers, and the share of the allowance that this uses up."""
        inputs = self.inputs[:QUICK_CALLS] if quick else self.inputs
        model = _quantise(openvino_core().read_model(self.fp32), inputs, in_float, careful)
        return model, _judge(model, self.used)

    def alone(self, layers: Sequence[str], others: Sequence[str]) -> float:
        """The share that these layers use up by themselves."""
        return self.judged(dict.fromkeys((own for own in others if own not in layers), ""), careful=True, quick=True)[1]


def _all_but_the_best(
    work: _Work, layers: Sequence[str], slow: Mapping[str, str], largest: float
) -> tuple[dict[str, str], list[float]]:  # fmt: skip
    """The layers to leave in float32, and why: as few as let the rest use up no more than ``largest``.

    Also what each group that was tried uses up alone.
    """
    others = [*layers, *slow]
    tried = {own: work.alone(own, others) for own in _groups(layers, GROUPS)}
    for group, share in list(tried.items()):
        if share > largest / 2 and len(group) > 1:
            del tried[group]
            tried |= {half: work.alone(half, others) for half in _groups(group, 2)}
    kept: list[tuple[str, ...]] = []
    for group in sorted(tried, key=lambda own: tried[own] / len(own)):
        if _together([*kept, group], tried) <= largest:
            kept.append(group)
    while kept and work.judged(_left(tried, kept, slow, largest), careful=True)[1] > largest:
        kept.remove(max(kept, key=lambda own: tried[own]))
    left = {name: reason for name, reason in _left(tried, kept, slow, largest).items() if name not in slow}
    return left, list(tried.values())


def _groups(layers: Sequence[str], most: int) -> list[tuple[str, ...]]:
    """Neighbours together, in groups of sizes that differ by one at most."""
    count = min(most, len(layers))
    edges = [n * len(layers) // count for n in range(count + 1)]
    return [tuple(layers[first:stop]) for first, stop in pairwise(edges)]


def _together(groups: Sequence[tuple[str, ...]], tried: Mapping[tuple[str, ...], float]) -> float:
    return math.sqrt(sum(tried[own] ** 2 for own in groups))


def _left(
    tried: Mapping[tuple[str, ...], float], kept: Sequence[tuple[str, ...]], slow: Mapping[str, str], largest: float
) -> dict[str, str]:
    """What is left in float32 if these groups are not, and why."""
    found = dict(slow)
    for group, share in tried.items():
        if group not in kept:
            what = "alone" if len(group) == 1 else f"with {len(group) - 1} neighbours alone"
            reason = f"{what} uses up {share:.2f} of the allowance, and the whole graph may use up {largest:.2f}"
            found |= dict.fromkeys(group, reason)
    return found


def write_int8_qdq(
    name: str, fp32: Path, path: Path, inputs: Sequence[Mapping[str, Array]], used: Used, *,
    like: Quantised,
) -> Quantised:  # fmt: skip
    """Write ONNX with INT8 by QuantizeLinear and DequantizeLinear; arguments as ``write_int8``.

    Args:
        like: what ``write_int8`` made: what it left in float32 is so here too.
    """
    model = onnx.load(fp32)
    if like.layers <= len(like.in_float):
        return replace(like, form="int8_qdq")
    save(_quantise(model, inputs, like.in_float, like.sums_in_float), path)
    share = used(open_graph(path, "onnxruntime"))
    refused = _refusal(share, LARGEST_SHARE, like.layers, len(like.in_float))
    if refused:
        path.unlink()
    return replace(like, form="int8_qdq", used=share, used_at_first=share, refused=refused)


def write_int8_of_vectors(
    name: str, fp32: Path, paths: Mapping[Form, Path], inputs: Sequence[Mapping[str, Array]], used: Used
) -> list[Quantised]:  # fmt: skip
    """Write a graph that reads vectors in INT8, its linear layers ``in_two_bytes``.

    Args:
        paths: of "int8" (OpenVINO's IR, .xml) and "int8_qdq", where they are wanted.
        fp32, inputs, used: as ``write_int8``'s.
    """
    model = onnx.load(fp32)
    layers, found = len(weighted_nodes(model)), []
    with tempfile.TemporaryDirectory() as folder:
        portable = Path(folder, "graph.onnx")
        save(in_two_bytes(model, inputs), portable)
        for form, path in paths.items():
            if form == "int8":
                openvino_runtime().save_model(openvino_core().read_model(portable), path, compress_to_fp16=False)
            else:
                shutil.copyfile(portable, path)
            share = used(open_graph(path, "openvino" if form == "int8" else "onnxruntime"))
            refused = _refusal(share, LARGEST_SHARE, layers, 0)
            found.append(Quantised(name, form, layers, used=share, used_at_first=share, refused=refused))
            if refused:
                path.unlink()
                path.with_suffix(".bin").unlink(missing_ok=True)
    return found


def slow_layers(model: onnx.ModelProto) -> dict[str, str]:
    """Layers that are slower in INT8 than in float32, and why; see the head of this file."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {own.name: own.type.tensor_type.shape.dim for own in (*inferred.value_info, *inferred.input)}
    return {
        node.name: "a transposed convolution over maps of a single slice is slower in INT8 on AVX2"
        for node in model.graph.node
        if node.op_type == "ConvTranspose" and (sides := shapes.get(node.input[0])) and sides[2].dim_value == 1
    }


def _refusal(share: float, largest: float, layers: int, in_float: int) -> str:
    if share > largest:
        return f"uses up {share:.2f} of the allowance, and {largest:.2f} is accepted of one graph"
    return "no layer of it can be in INT8" if in_float >= layers else ""


def _nncf() -> Any:
    openvino_runtime()  # first, so that neither tells anybody of it
    import nncf

    return nncf


def _options(in_float: Mapping[str, str], careful: bool) -> dict[str, Any]:
    """What NNCF is asked for. Careful: nothing but layers in INT8, and what goes into them over its own range."""
    nncf = _nncf()
    if not careful:
        return {"ignored_scope": nncf.IgnoredScope(names=list(in_float), validate=False)}
    return {
        "preset": nncf.QuantizationPreset.MIXED,
        "ignored_scope": nncf.IgnoredScope(names=list(in_float), types=list(_BETWEEN_LAYERS), validate=False),
    }


# Additions, products and normalisations, as OpenVINO and as ONNX call them.
_BETWEEN_LAYERS = ("Add", "Multiply", "Subtract", "MVN", "Mul", "Sub", "InstanceNormalization")


def _quantise(
    model: Any, inputs: Sequence[Mapping[str, Array]], in_float: Mapping[str, str], careful: bool
) -> Any:  # fmt: skip
    nncf = _nncf()
    if not isinstance(model, onnx.ModelProto):  # OpenVINO calls a layer without its bias so
        in_float = dict.fromkeys([*in_float, *(f"{name}/WithoutBiases" for name in in_float)], "")
    advanced = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    with _quiet():
        return nncf.quantize(
            model, nncf.Dataset(inputs), subset_size=len(inputs), advanced_parameters=advanced,
            **_options(in_float, careful),
        )  # fmt: skip


class _quiet(redirect_stdout):  # noqa: N801 (used as the function that it stands for)
    """NNCF's progress bars go to standard error, and its remarks nowhere."""

    def __init__(self) -> None:
        _nncf().set_log_level(logging.ERROR)
        super().__init__(sys.stderr)


def _judge(model: Any, used: Used) -> float:
    with tempfile.TemporaryDirectory() as folder:  # as it will be read
        path = Path(folder) / "graph.xml"
        openvino_runtime().save_model(model, path, compress_to_fp16=False)
        return used(open_graph(path, "openvino"))


def _in_float(model: Any) -> list[str]:
    """Names, as in the ONNX file, of the layers whose weights are not quantised."""
    kinds = {"Convolution", "ConvolutionBackpropData", "MatMul", "GroupConvolution"}
    found = []
    for op in model.get_ordered_ops():
        if op.get_type_name() in kinds and not _is_quantised(op.input_value(1).get_node()):
            found.append(op.get_friendly_name().removesuffix("/WithoutBiases"))
    return found


def _is_quantised(node: Any) -> bool:
    """Whether a layer's second input is kept in one byte, goes through a FakeQuantize, or is no constant at all."""
    while node.get_type_name() in ("Convert", "Multiply", "Subtract", "Reshape", "Transpose"):
        node = node.input_value(0).get_node()
    return node.get_type_name() != "Constant" or node.get_element_type().size == 1
