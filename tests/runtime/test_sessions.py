"""What an engine does beside computing."""

from __future__ import annotations

import os
import subprocess
import sys

import onnx

from tests.bundle.test_verify import onnx_model

_OPEN = """
import sys
from pathlib import Path
import numpy as np
from orthokernels.runtime.sessions import open_graph
print(open_graph(Path(sys.argv[1]), "onnxruntime")({"x": np.ones((1, 3), np.float32)})["y"])
"""


def test_onnx_runtime_keeps_no_record_of_whose_machine_it_is(tmp_path):
    path = tmp_path / "small.onnx"
    onnx.save_model(onnx_model(), path)
    home = tmp_path / "home"
    home.mkdir()
    env = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    env |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    done = subprocess.run([sys.executable, "-c", _OPEN, str(path)], env=env, capture_output=True, text=True, check=True)
    assert "2." in done.stdout
    assert list(home.rglob("*")) == []
