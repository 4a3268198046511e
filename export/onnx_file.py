"""One graph as one ONNX file: standard ops only, checked, its facts in it.

The way is ``torch.export`` with an open batch, then a few ops that ONNX does not have are written with those it has,
then PyTorch's exporter. What would tell of the machine that exported it (stack traces, paths) is taken out, so that
the same weights give the same bytes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from orthokernels.export.graphs import Source
from torch import Tensor

from orthokernels.errors import InputError

OPSET = 20
LARGEST_BYTES = 2**31 - 1  # of a protocol buffer, and so of an ONNX file without others beside it

_BATCH = "batch"
_aten = torch.ops.aten


def write_onnx(source: Source, path: Path, facts: Mapping[str, str]) -> None:
    """Write a graph in float32.

    Args:
        facts: written into the file as ``metadata_props``.

    Raises:
        InputError: the graph does not fit one file.
    """
    model = _exported(source)
    onnx.helper.set_model_props(model, dict(facts))
    save(model, path)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Check a model, shapes included, and write it as one file.

    Raises:
        InputError: it does not fit one file.
    """
    if model.ByteSize() > LARGEST_BYTES:
        raise InputError(
            f"{path.name}: {model.ByteSize() / 1e9:.1f} GB; one ONNX file holds 2.1 GB at most. Export a smaller "
            "network, or the int8 form alone."
        )
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _exported(source: Source) -> onnx.ModelProto:
    examples = tuple(torch.zeros((2, *sides)) for sides in source.inputs.values())
    batch = torch.export.Dim(_BATCH)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        exported = torch.export.export(
            _Named(source), examples, dynamic_shapes={"tensors": tuple({0: batch} for _ in examples)}, strict=False
        )
        if any(node.target in _WRITTEN_OTHERWISE for node in exported.graph.nodes):  # a fifth of the export's time
            exported = exported.run_decompositions(_WRITTEN_OTHERWISE)
        program = torch.onnx.export(
            exported, (), dynamo=True, verbose=False, opset_version=OPSET, input_names=list(source.inputs),
            output_names=list(source.outputs),
        )  # fmt: skip
    assert program is not None
    return _cleaned(program.model_proto, source.name)


class _Named(torch.nn.Module):
    """Any module behind one signature."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.module = source.module

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.module(*tensors)


def _cleaned(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Without traces of the export, and with the batch called by its name."""
    graph = model.graph
    graph.name, graph.doc_string, model.doc_string = name, "", ""
    del graph.metadata_props[:], model.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
        value.type.tensor_type.shape.dim[0].dim_param = _BATCH
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
    if model.functions or any(opset.domain for opset in model.opset_import):
        raise AssertionError(f"{name}: holds ops that are not ONNX's own")
    return model


def _windows(x: Tensor, sides: Sequence[int]) -> list[int] | None:
    """The window of a pooling to ``sides``, where they divide x's."""
    own = x.shape[2:]
    if any(mine % side for mine, side in zip(own, sides, strict=True)):
        return None
    return [mine // side for mine, side in zip(own, sides, strict=True)]


def _cells(x: Tensor, axis: int, cells: int) -> list[Tensor]:
    """An axis' cells as PyTorch's adaptive pooling cuts them; neighbours may share an element."""
    length = x.shape[axis]
    edges = [(n * length // cells, -(-(n + 1) * length // cells)) for n in range(cells)]
    return [x.narrow(axis, first, stop - first) for first, stop in edges]


def _mean_pool(x: Tensor, sides: Sequence[int]) -> Tensor:
    """``F.adaptive_avg_pool3d``."""
    if (window := _windows(x, sides)) is not None:
        return F.avg_pool3d(x, window)
    for axis, cells in enumerate(sides, start=2):
        x = torch.stack([cell.mean(dim=axis) for cell in _cells(x, axis, cells)], dim=axis)
    return x


def _max_pool(x: Tensor, sides: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``F.adaptive_max_pool3d``, values alone: where they were, which its op also tells, no graph asks."""
    if (window := _windows(x, sides)) is not None:
        return F.max_pool3d(x, window, return_indices=True)
    for axis, cells in enumerate(sides, start=2):
        x = torch.stack([cell.amax(dim=axis) for cell in _cells(x, axis, cells)], dim=axis)
    return x, torch.empty_like(x, dtype=torch.int64)


_WRITTEN_OTHERWISE = {
    _aten.adaptive_avg_pool3d.default: _mean_pool,
    _aten._adaptive_avg_pool3d.default: _mean_pool,
    _aten.adaptive_max_pool3d.default: _max_pool,
}
