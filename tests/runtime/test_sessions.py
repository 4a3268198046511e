"""What an engine does beside computing."""

from __future__ import annotations

import os
import subprocess
import sys

import onnx
import pytest

from tests.bundle.test_verify import onnx_model

_OPEN = """
import sys
from pathlib import Path
import numpy as np
from orthokernels.runtime.sessions import open_graph
print(open_graph(Path(sys.argv[1]), sys.argv[2])({"x": np.ones((1, 3), np.float32)})["y"])
if sys.argv[2] == "openvino":
    from orthokernels.export.quantise import _nncf
    assert _nncf().telemetry.wrapper.telemetry.__class__.__name__ == "MagicMock"
"""


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_an_engine_keeps_no_record_of_whose_machine_it_is(tmp_path, engine):
    path = tmp_path / "small.onnx"
    onnx.save_model(onnx_model(), path)
    home = tmp_path / "home"
    home.mkdir()
    env = {name: own for name, own in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI", "NNCF_CI")}
    env |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", _OPEN, str(path), engine], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "2." in done.stdout
    assert list(home.rglob("*")) == []
