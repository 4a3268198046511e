"""The table of ops is complete, and says what is so."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

import pytest
import torch

from orthokernels import ops
from orthokernels.backends.registry import ops_of
from orthokernels.ops.capabilities import CAPABILITIES, backends_of

NAMES = [row.op for row in CAPABILITIES]


def test_every_op_is_in_the_table_once():
    assert sorted(NAMES) == sorted(ops_of("torch")) == sorted(ops.__all__)
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_op_s_name_is_a_file_in_every_room(name):
    root = Path(ops.__file__).parents[1]
    assert (root / "ops" / f"{name}.py").is_file()
    for backend in backends_of(name):
        assert (root / "backends" / backend / f"{name}.py").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_each_has_a_reference_a_count_of_bytes_and_a_place_among_torch_s_ops(name):
    module = import_module(f"orthokernels.ops.{name}")
    assert inspect.isfunction(module.reference)
    assert inspect.isfunction(module.bytes_moved)
    assert hasattr(torch.ops.orthokernels, name)
    gradients = next(row.gradients for row in CAPABILITIES if row.op == name)
    assert hasattr(torch.ops.orthokernels, f"{name}_backward") != gradients.startswith("none")
