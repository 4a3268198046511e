"""Forms that need no data: half precision, and weights alone in INT8."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from orthokernels.runtime.sessions import onnx_runtime

# What sums over many voxels, or exponentiates: it stays in float32, since half precision ends at 65504.
_NOT_IN_HALF = ("InstanceNormalization", "LayerNormalization", "ReduceMean", "ReduceSum", "Softmax")

# Which input of an op its weights are.
_WEIGHTS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}


def weighted_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The convolutions and linear layers of a graph: those whose weights are constants."""
    constants = {tensor.name for tensor in model.graph.initializer}
    known = [node for node in model.graph.node if node.op_type in _WEIGHTS]
    return [node for node in known if node.input[_WEIGHTS[node.op_type]] in constants]


def in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in float16 but for normalisations and sums; its inputs and outputs stay float32."""
    onnx_runtime()  # before its tools load it
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    left = [*DEFAULT_OP_BLOCK_LIST, *_NOT_IN_HALF]
    halved = OnnxModel(convert_float_to_float16(copy, keep_io_types=True, op_block_list=left))
    halved.topological_sort()  # the conversions lie behind all else, and a graph is in the order of its computation
    _rename_inner(halved.model)
    return halved.model


def _rename_inner(model: onnx.ModelProto) -> None:
    """Call what is converted to an output "~" and its name: OpenVINO, which knows the two as one, tells the first."""
    names = {node.input[0]: f"~{node.output[0]}" for node in model.graph.node if node.op_type == "Cast"}
    outputs = {f"~{output.name}" for output in model.graph.output}
    names = {old: new for old, new in names.items() if new in outputs}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
        for place, name in enumerate(node.output):
            node.output[place] = names.get(name, name)


def with_int8_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its layers' weights in INT8, symmetric with a scale for each output channel.

    They are brought back to float32 as they are read: the arithmetic is fp32's, the file a quarter of its size.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in copy.graph.initializer}
    axes = {node.input[_WEIGHTS[node.op_type]]: _output_axis(node) for node in weighted_nodes(copy)}
    added = []
    for name, axis in axes.items():
        values = numpy_helper.to_array(tensors[name])
        axis %= values.ndim
        others = tuple(n for n in range(values.ndim) if n != axis)
        largest = np.abs(values).max(axis=others)
        scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        shape = [-1 if n == axis else 1 for n in range(values.ndim)]
        stored = np.rint(values / scale.reshape(shape)).astype(np.int8)
        copy.graph.initializer.remove(tensors[name])
        copy.graph.initializer.extend(
            [numpy_helper.from_array(stored, f"{name}.int8"), numpy_helper.from_array(scale, f"{name}.scale")]
        )
        added.append(
            onnx.helper.make_node(
                "DequantizeLinear", [f"{name}.int8", f"{name}.scale"], [name], name=f"{name}.float", axis=axis
            )
        )
    nodes = [*added, *copy.graph.node]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _output_axis(node: onnx.NodeProto) -> int:
    """The axis of the weights that counts output channels."""
    if node.op_type == "Gemm":
        transposed = any(own.name == "transB" and own.i for own in node.attribute)
        return 0 if transposed else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}[node.op_type]
