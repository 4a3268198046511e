"""What a graph file would do, read without running it: its ops, and the other files it names.

ONNX and OpenVINO's IR; both may point to files beside them, and both may name ops that only a library brings along.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from orthokernels.errors import InputError, need

# Ops that our exports are made of, and their kin. None reads a file, runs code, or draws random numbers.
_ONNX = """
    Abs Add And ArgMax AveragePool BatchNormalization Cast CastLike Ceil Clip Concat Constant ConstantOfShape Conv
    ConvTranspose Cos DepthToSpace DequantizeLinear Div DynamicQuantizeLinear Einsum Equal Erf Exp Expand Flatten Floor
    Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization
    HardSigmoid HardSwish Identity InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log
    LogSoftmax MatMul MatMulInteger Max MaxPool Mean Min Mod Mul Neg Not OneHot Or Pad Pow PRelu QuantizeLinear Range
    Reciprocal ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round
    ScatterElements ScatterND Shape Sigmoid Sign Sin Size Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze Sub Sum
    Swish Tanh Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
_IR = """
    Abs AdaptiveAvgPool AdaptiveMaxPool Add AvgPool BatchNormInference Broadcast Ceiling Clamp Concat Const Convert
    ConvertLike Convolution ConvolutionBackpropData Cos CumSum DepthToSpace Divide Einsum Equal Erf Exp FakeConvert
    FakeQuantize Floor FloorMod Gather GatherElements GatherND Gelu Greater GreaterEqual GroupConvolution
    GroupConvolutionBackpropData GroupNormalization HSwish HardSigmoid HistC Interpolate IsFinite IsInf IsNaN Less
    LessEqual Log LogicalAnd LogicalNot LogicalOr LogicalXor MVN MatMul MaxPool Maximum Minimum Mod Multiply Negative
    NonZero NotEqual OneHot PReLU Pad Parameter Power ROIPooling Range ReLU ReduceL2 ReduceLogicalAnd ReduceLogicalOr
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Reshape Result ReverseSequence Roll Round
    ScaledDotProductAttention ScatterElementsUpdate ScatterNDUpdate ScatterUpdate Select ShapeOf Sigmoid Sign Sin Slice
    SoftMax Softmax SoftPlus SpaceToDepth Split Sqrt SquaredDifference Squeeze StridedSlice Subtract Swish Tan Tanh
    Tile TopK Transpose Unsqueeze VariadicSplit
"""
ONNX_OPS, IR_OPS = frozenset(_ONNX.split()), frozenset(_IR.split())

REVISION = 2  # of what is looked at; it rises with every change, so that bundles that were read before are read anew


def check_graph(folder: Path, files: list[str]) -> None:
    """Read one form of a graph: the model file and, of an IR, the weights beside it.

    Raises:
        InputError: an op that is not on the list, a file outside ``files``, or a file that can't be read.
    """
    path = folder / files[0]
    suffix = PurePosixPath(files[0]).suffix
    if suffix == ".onnx":
        _check_onnx(path, files)
    elif suffix == ".xml":
        _check_ir(path, files)
    else:
        raise InputError(f"{path}: is no graph; bundles hold .onnx files, and .xml files with their .bin.")


def _check_onnx(path: Path, files: list[str]) -> None:
    need("reading a bundle's graphs", "onnx", "runtime")
    import onnx
    from google.protobuf.message import DecodeError

    if len(files) > 1:
        raise InputError(f"{path}: an ONNX graph is one file, and {', '.join(files[1:])} is listed with it.")
    try:
        model = onnx.load_model(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise InputError(f"{path}: can't be read as ONNX ({error}). Make the bundle again.") from error
    if model.functions:
        raise InputError(f"{path}: defines a function of its own ({model.functions[0].name}), which is not allowed.")
    for node in _nodes(model.graph):
        if node.domain not in ("", "ai.onnx") or node.op_type not in ONNX_OPS:
            own = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            raise InputError(f"{path}: uses the op {own}, which is not on the list of allowed ones.")
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            where = next((entry.value for entry in tensor.external_data if entry.key == "location"), "another file")
            raise InputError(f"{path}: keeps the tensor {tensor.name!r} in {where!r}; a bundle's graphs are whole.")


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in _inner(attribute):
                yield from _nodes(inner)


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor that is kept in a graph, in its nodes and in the graphs inside these."""
    yield from graph.initializer
    sparse = [*graph.sparse_initializer]
    for node in graph.node:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
            sparse += attribute.sparse_tensors
            if attribute.HasField("sparse_tensor"):
                sparse.append(attribute.sparse_tensor)
            for inner in _inner(attribute):
                yield from _tensors(inner)
    for own in sparse:
        yield from (own.values, own.indices)


def _inner(attribute: Any) -> Iterator[Any]:
    """The graphs that an attribute holds: a loop's body, a condition's branches."""
    yield from attribute.graphs
    if attribute.HasField("g"):
        yield attribute.g


def _check_ir(path: Path, files: list[str]) -> None:
    need("reading a bundle's graphs", "defusedxml", "runtime")
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import parse

    beside = PurePosixPath(files[0]).with_suffix(".bin").as_posix()
    if files[1:] != [beside]:
        raise InputError(f"{path}: an OpenVINO graph has its weights in {beside}, and nothing else beside it.")
    try:
        root = parse(path).getroot()
        if root is None:
            raise ValueError("there is nothing in it")
    except (ParseError, DefusedXmlException, OSError, ValueError) as error:
        raise InputError(f"{path}: can't be read as OpenVINO's IR ({error}). Make the bundle again.") from error
    # OpenVINO's own reader knows no namespaces: what would carry another name here is a plain layer to it.
    if root.tag != "net" or any("{" in name for own in root.iter() for name in (own.tag, *own.attrib)):
        raise InputError(f"{path}: is no plain IR: its root is {root.tag}, or it has XML namespaces.")
    size = (path.parent / PurePosixPath(beside).name).stat().st_size
    for layer in root.iter("layer"):
        kind, version = layer.get("type", ""), layer.get("version", "")
        if kind not in IR_OPS or not version.startswith("opset"):
            raise InputError(f"{path}: uses the op {version}::{kind}, which is not on the list of allowed ones.")
        if kind == "Const":
            _check_range(path, layer, size)


def _check_range(path: Path, layer: Any, size: int) -> None:
    """A constant's bytes lie inside the weights file."""
    data = layer.find("data")
    try:
        offset, length = int(data.get("offset")), int(data.get("size"))
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: the constant {layer.get('name')!r} does not say where it lies.") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise InputError(f"{path}: the constant {layer.get('name')!r} lies outside its weights file.")
