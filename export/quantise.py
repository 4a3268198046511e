"""INT8 by NNCF: weights and activations, with layers taken back to float until the gate holds.

Two files of it: OpenVINO's own IR, and ONNX with pairs of QuantizeLinear and DequantizeLinear, which every runtime
reads. Weights are quantised per output channel, and over half of INT8's range: on an AVX2 processor without VNNI
products of whole bytes would overflow the 16 bits that they are added in.

A transposed convolution over maps of a single slice stays in float32. On AVX2 OpenVINO took 20 ms for it in INT8 and
4 in float32 (256 to 128 channels, 16 x 16); over deeper maps INT8 was faster (7 and 9 ms, 13 and 18, 22 and 45).
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
from orthokernels.export.forms import weighted_nodes
from orthokernels.export.onnx_file import save

from orthokernels.models.study_model import Array
from orthokernels.runtime.sessions import Session, open_graph, openvino_core

# A graph alone may use half of what the whole form may lose, on studies that are few.
LARGEST_SHARE = 0.5

# Taking layers back one by one runs the studies once for each layer: tens of minutes for a denoiser. It is tried where
# what is lost is at most this many times what is accepted; a graph that loses more stays in fp32.
WORTH_RANKING = 2.0

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
    form: str
    layers: int
    in_float: dict[str, str] = field(default_factory=dict)
    used: float = 0.0
    used_at_first: float = 0.0
    sums_in_float: bool = False
    refused: str = ""


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
    import openvino

    read = openvino_core().read_model
    slow = slow_layers(onnx.load(fp32))
    layers = [node.name for node in weighted_nodes(onnx.load(fp32))]
    careful = False
    model = _quantise(read(fp32), inputs, slow, careful)
    first = share = _judge(model, used)
    if share > largest:
        careful = True
        model = _quantise(read(fp32), inputs, slow, careful)
        share = _judge(model, used)
    if largest < share <= WORTH_RANKING * largest and len(layers) - len(slow) > 1:
        model = _with_accuracy_control(read(fp32), inputs, slow, used, largest)
        share = _judge(model, used)
    taken_back = [layer for layer in _in_float(model) if layer not in slow]
    reason = f"with every layer in INT8 {first:.2f} of the allowance was used up, {share:.2f} without this and its like"
    made = Quantised(
        name, "int8", len(layers), {**slow, **dict.fromkeys(taken_back, reason)}, share, first, careful,
        _refusal(share, largest, len(layers), len(slow) + len(taken_back)),
    )  # fmt: skip
    if not made.refused:
        openvino.save_model(model, path, compress_to_fp16=False)
    return made


def write_int8_qdq(
    name: str, fp32: Path, path: Path, inputs: Sequence[Mapping[str, Array]], used: Used, *,
    like: Quantised, largest: float = LARGEST_SHARE,
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
    refused = _refusal(share, largest, like.layers, len(like.in_float))
    if refused:
        path.unlink()
    return replace(like, form="int8_qdq", used=share, used_at_first=share, refused=refused)


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


def _options(in_float: Mapping[str, str], careful: bool) -> dict[str, Any]:
    """What NNCF is asked for. Careful: nothing but layers in INT8, and what goes into them over its own range."""
    import nncf

    if not careful:
        return {"ignored_scope": nncf.IgnoredScope(names=list(in_float), validate=False)}
    return {
        "preset": nncf.QuantizationPreset.MIXED,
        "ignored_scope": nncf.IgnoredScope(names=list(in_float), types=list(_BETWEEN_LAYERS), validate=False),
    }


# Additions, products and normalisations, as OpenVINO and as ONNX call them.
_BETWEEN_LAYERS = ("Add", "Multiply", "Subtract", "MVN", "Mul", "Sub", "InstanceNormalization")


def _advanced() -> Any:
    import nncf

    return nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)


def _quantise(
    model: Any, inputs: Sequence[Mapping[str, Array]], in_float: Mapping[str, str], careful: bool
) -> Any:  # fmt: skip
    import nncf

    if not isinstance(model, onnx.ModelProto):  # OpenVINO calls a layer without its bias so
        in_float = dict.fromkeys([*in_float, *(f"{name}/WithoutBiases" for name in in_float)], "")
    with _quiet():
        return nncf.quantize(
            model, nncf.Dataset(inputs), subset_size=len(inputs), advanced_parameters=_advanced(),
            **_options(in_float, careful),
        )  # fmt: skip


def _with_accuracy_control(
    model: Any, inputs: Sequence[Mapping[str, Array]], slow: Mapping[str, str], used: Used, largest: float
) -> Any:
    """NNCF ranks the layers by what each costs and takes back the worst until what is used up is small enough."""
    import nncf

    def validate(compiled: Any, items: Any) -> tuple[float, None]:
        return 1 - used(_session(compiled)), None  # NNCF divides by fp32's

    with _quiet():
        return nncf.quantize_with_accuracy_control(
            model, nncf.Dataset(inputs), nncf.Dataset(inputs), validate, max_drop=largest,
            drop_type=nncf.DropType.ABSOLUTE, subset_size=len(inputs), advanced_quantization_parameters=_advanced(),
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(ranking_subset_size=4),
            **_options(slow, careful=True),
        )  # fmt: skip


class _quiet(redirect_stdout):  # noqa: N801 (used as the function that it stands for)
    """NNCF's progress bars go to standard error, and its remarks nowhere."""

    def __init__(self) -> None:
        import nncf

        nncf.set_log_level(logging.ERROR)
        super().__init__(sys.stderr)


def _judge(model: Any, used: Used) -> float:
    import openvino

    with tempfile.TemporaryDirectory() as folder:  # as it will be read
        path = Path(folder) / "graph.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
        return used(open_graph(path, "openvino"))


def _session(compiled: Any) -> Session:
    """A model that NNCF has compiled, as a session."""
    names = [output.get_any_name() for output in compiled.outputs]

    def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
        made = compiled(dict(inputs))
        return {name: made[n] for n, name in enumerate(names)}

    return run


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
