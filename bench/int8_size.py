"""How much smaller a network is on disk in INT8: ``python -m orthokernels.bench.int8_size [--out FILE]``.

The published feature pass as OpenVINO writes it, in float32 and quantised by NNCF. Files hold weights and the graph,
whose sizes do not depend on the volume: a small one is exported, since calibrating at the published size takes 20 GB.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from orthokernels.bench.cpu.peers import exported_file, quantised
from orthokernels.bench.cpu.subjects import FeaturePass, network
from orthokernels.bench.record import circumstances

from orthokernels.runtime.sessions import openvino_core, openvino_runtime

SIDES, BLOCK = (16, 64, 64), "mid_2"


def main(out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for the figures.")] = None) -> None:
    """Export, quantise, save, and print the sizes as one JSON object."""
    torch.manual_seed(0)
    module = FeaturePass(network(tiny=False), BLOCK).eval()
    inputs = (np.zeros((1, 1, *SIDES), np.float32),)
    with exported_file(module, inputs) as path:
        sizes = {"fp32": _saved(openvino_core().read_model(path)), "int8": _saved(quantised(path, inputs))}
    facts = {
        **circumstances("python -m orthokernels.bench.int8_size"), "network": f"feature pass to {BLOCK}",
        "bytes": sizes, "times_smaller": round(sizes["fp32"] / sizes["int8"], 3),
    }  # fmt: skip
    print(json.dumps(facts, indent=1))
    if out is not None:
        out.write_text(json.dumps(facts, indent=1) + "\n")


def _saved(model: Any) -> int:
    """Bytes of a model's two files."""
    with tempfile.TemporaryDirectory() as folder:
        openvino_runtime().save_model(model, Path(folder, "model.xml"), compress_to_fp16=False)
        return sum(path.stat().st_size for path in Path(folder).iterdir())


if __name__ == "__main__":
    typer.run(main)
