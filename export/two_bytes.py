"""Linear layers over vectors in INT8, two bytes a number, from standardised inputs.

A vector holds percentiles beside logarithms of volumes and maxima of maps: one scale for all of them leaves the small
ones nothing, and weights that undo the spread are rounded away. So each input is first brought to a mean m of 0 and a
deviation s of 1, and the weights to match:

    W x + b = (W diag(s)) z + (b + W m),    z = (x - m) / s

A few studies do not show how far out z may be: what is wrong with a joint is what lies far out. With four known studies
new ones of the demo reached 23 deviations, and one byte that ended at 5 moved their logits by 0.2 to 0.6 of the logits'
spread; one that reaches further has steps as large as the differences that findings hang on. So what the first byte
leaves over goes into a second one, of z and of the weights alike, and the layer becomes four products of bytes:

    W z = (W1 + W2) (z1 + z2) = W1 z1 + W1 z2 + W2 z1 + W2 z2

These layers have a few thousand weights: four products of them cost nothing beside one convolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from orthokernels.export.forms import weighted_nodes

from orthokernels.models.study_model import Array
from orthokernels.runtime.sessions import onnx_runtime

# Deviations from the mean that the first byte reaches to; the second leaves steps of 0.002 deviations all the same.
REACH = 64.0

# Of a weight's byte: on AVX2 without VNNI products of whole bytes overflow the 16 bits that they are added in.
HALF = 63


def in_two_bytes(model: onnx.ModelProto, inputs: Sequence[Mapping[str, Array]]) -> onnx.ModelProto:
    """The graph with every linear layer as the head of this file says, by QuantizeLinear and DequantizeLinear.

    Args:
        model: whose weighted nodes are linear layers (Gemm, MatMul).
        inputs: of the graph, that tell means and deviations.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    layers = weighted_nodes(copy)
    read = _values(model, [node.input[0] for node in layers], inputs)
    nodes = []
    for node in copy.graph.node:
        if node in layers:
            nodes += _rewritten(copy, node, read[node.input[0]])
        else:
            nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    read_still = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in copy.graph.initializer if tensor.name in read_still]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    return copy


def _values(
    model: onnx.ModelProto, names: Sequence[str], inputs: Sequence[Mapping[str, Array]]
) -> dict[str, np.ndarray]:
    """What tensors hold for all inputs, [rows, width] each."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    given = {own.name for own in shown.graph.input}
    inner = [name for name in dict.fromkeys(names) if name not in given]
    shown.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in inner)
    session = onnx_runtime().InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    made = [dict(zip(inner, session.run(inner, dict(own)), strict=True)) if inner else {} for own in inputs]
    rows = [{**own, **more} for own, more in zip(inputs, made, strict=True)]
    return {name: np.concatenate([own[name].reshape(-1, own[name].shape[-1]) for own in rows]) for name in names}


def _deviations(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Of each input, [inputs]; of one that never changed, that at which its weights are as large as others' are.

    Left as they are, they could be the largest by far, and the bytes of all others would end at their scale.
    """
    found = rows.std(axis=0, dtype=np.float64)
    changes = found > 1e-6 * np.abs(rows.mean(axis=0, dtype=np.float64)) + 1e-12
    largest = np.abs(weight).max(axis=1)
    sizes = (largest * found)[changes & (largest > 0)]
    usual = float(np.median(sizes)) if len(sizes) else 1.0
    return np.where(changes, found, np.divide(usual, largest, out=np.ones_like(largest), where=largest > 0))


def _rewritten(model: onnx.ModelProto, node: onnx.NodeProto, rows: np.ndarray) -> list[onnx.NodeProto]:
    """The nodes that stand for a layer; their constants go into the model."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    weight = numpy_helper.to_array(constants[node.input[1]]).astype(np.float64)
    if any(own.name == "transB" and own.i for own in node.attribute):
        weight = weight.T  # [inputs, outputs]
    bias = numpy_helper.to_array(constants[node.input[2]]).astype(np.float64) if len(node.input) > 2 else 0.0
    mean, deviation = rows.mean(axis=0, dtype=np.float64), _deviations(rows, weight)
    name, source, made = node.name, node.input[0], node.output[0]

    def constant(suffix: str, value: np.ndarray | float, dtype: type = np.float32) -> str:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), f"{name}.{suffix}"))
        return f"{name}.{suffix}"

    found: list[onnx.NodeProto] = []

    def op(kind: str, suffix: str, *read: str, **attributes: Any) -> str:
        out = made if suffix == "sum" else f"{name}.{suffix}"
        found.append(helper.make_node(kind, read, [out], name=f"{name}.{suffix}", **attributes))
        return out

    def rounded(suffix: str, value: str, step: float) -> str:
        scale, zero = constant(f"{suffix}.step", step), constant(f"{suffix}.zero", 0, np.int8)
        return op("DequantizeLinear", suffix, op("QuantizeLinear", f"{suffix}.byte", value, scale, zero), scale, zero)

    def stored(suffix: str, value: np.ndarray, step: np.ndarray) -> str:
        byte, scale = constant(f"{suffix}.byte", np.rint(value / step), np.int8), constant(f"{suffix}.step", step)
        zero = constant(f"{suffix}.zero", np.zeros(len(step)), np.int8)
        return op("DequantizeLinear", suffix, byte, scale, zero, axis=1)

    z = op("Sub", "centred", source, constant("mean", mean))
    z = op("Mul", "standard", z, constant("share", 1 / deviation))
    z1 = rounded("z1", z, REACH / 127)
    z2 = rounded("z2", op("Sub", "z.left", z, z1), REACH / 127 / 254)
    changed = weight * deviation[:, None]
    step = np.maximum(np.abs(changed).max(axis=0), 1e-30).astype(np.float32) / HALF
    w1 = stored("w1", changed, step)
    w2 = stored("w2", changed - np.rint(changed / step) * step, step / (2 * HALF))
    total = op("MatMul", "first", z1, w1)
    total = op("Add", "both", total, op("MatMul", "second", z2, w1))
    total = op("Add", "most", total, op("MatMul", "third", z1, w2))
    total = op("Add", "all", total, op("MatMul", "fourth", z2, w2))
    op("Add", "sum", total, constant("offset", bias + mean @ weight))
    return found
