"""What the reference path costs: one feature pass, a three-plane study, and reading a real series.

Each figure stands beside what it is held to, measured in the same run:

- ``features``: the feature pass of one plane at the published size (1 x 1 x 16 x 256 x 256, "mid_2"), against the same
  modules called in turn, and against the same weights in plain eager PyTorch with nothing in place, as published.
  Rounds are interleaved and ratios taken round by round, since machines are shared and noisy: quote the ratio, their
  time over ours.
- ``study``: peak resident memory of a whole three-plane study, in a process of its own. Limit: 4 GB.
- ``read``: reading the headers and pixels of a 192-file series and preparing it. Limit: 2 s.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from orthokernels.bench.record import Row
from torch import Tensor, nn

from orthokernels.models.orthodiffusion import GaussianDiffusion, UNet, features
from orthokernels.models.orthodiffusion.unet import ResBlock, Upsample, fold, unfold

SHAPE = (1, 1, 16, 256, 256)
TIMESTEP, BLOCK = 100, "mid_2"
STUDY_LIMIT_MB, READ_LIMIT_S = 4000.0, 2.0


def called_in_turn(unet: UNet, x: Tensor, timesteps: Tensor) -> Tensor:
    """The same modules called one after the other, every skip kept; their own in-place steps are theirs to use."""
    emb = unet._embed(timesteps)
    skips = []
    for block in unet.input_blocks:
        x = block(x, emb)
        skips.append(x)
    first, attention, second = list(unet.middle_block)
    return second(attention(first(x, emb)), emb)


def eager_pass(unet: UNet, x: Tensor, timesteps: Tensor) -> Tensor:
    """The same weights put together as the published forward pass does: nothing in place, every skip kept."""
    emb = unet._embed(timesteps)
    skips = []
    for block in unet.input_blocks:
        for layer in block.children():
            x = _eager_residual(layer, x, emb) if isinstance(layer, ResBlock) else layer(x)
        skips.append(x)
    first, attention, second = list(unet.middle_block)
    return _eager_residual(second, attention(_eager_residual(first, x, emb)), emb)


def _eager_residual(block: Any, x: Tensor, emb: Tensor) -> Tensor:
    norm, _, convolution = block.in_layers
    h = convolution(F.silu(norm(x))) + block.emb_layers(emb)[:, :, None, None, None]
    norm, _, dropout, convolution = block.out_layers
    return block.skip_connection(x) + convolution(dropout(F.silu(norm(h))))


class Eager(nn.Module):
    """The denoiser as the published forward pass puts it together: nothing in place, every skip kept."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        unet, emb = self.unet, self.unet._embed(timesteps)
        x, skips = fold(x, unet.patch), []
        for block in unet.input_blocks:
            x = _layers(block, x, emb, None)
            skips.append(x)
        x = _layers(unet.middle_block, x, emb, None)
        for block in unet.output_blocks:
            x = torch.cat([x, skips.pop()], dim=1)
            x = _layers(block, x, emb, skips[-1].shape[2:] if skips else None)
        norm, _, convolution = unet.out
        return unfold(convolution(F.silu(norm(x))), unet.patch)


def _layers(block: Any, x: Tensor, emb: Tensor, size: torch.Size | None) -> Tensor:
    for layer in block:
        if isinstance(layer, ResBlock):
            x = _eager_residual(layer, x, emb)
        else:
            x = layer(x, size) if isinstance(layer, Upsample) else layer(x)
    return x


def bench_features(rounds: int) -> list[Row]:
    """Median seconds of one feature pass, ours and the peers', interleaved."""
    torch.manual_seed(0)
    contiguous = UNet().eval()
    channels_last = UNet().eval().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    channels_last.load_state_dict(contiguous.state_dict())
    x = torch.rand(SHAPE) * 2 - 1
    x_last = x.contiguous(memory_format=torch.channels_last_3d)
    diffusion, timesteps = GaussianDiffusion(), torch.tensor([TIMESTEP])

    def ours() -> Tensor:
        return features(channels_last, diffusion, x_last, (BLOCK,), timestep=TIMESTEP)[BLOCK]

    def noisy(volume: Tensor) -> Tensor:
        return diffusion.add_noise(volume, timesteps, torch.randn_like(volume))

    runs: dict[str, Callable[[], Tensor]] = {
        "orthokernels": ours,
        "same modules in turn, channels-last": lambda: called_in_turn(channels_last, noisy(x_last), timesteps),
        "nothing in place, channels-last": lambda: eager_pass(channels_last, noisy(x_last), timesteps),
        "nothing in place, contiguous": lambda: eager_pass(contiguous, noisy(x), timesteps),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                if number > 0:  # the first round warms up
                    seconds[name].append(time.perf_counter() - started)
    ours_each = seconds["orthokernels"]
    return [
        Row(
            "features",
            name,
            "s",
            each,
            ratio=statistics.median(theirs / ours for theirs, ours in zip(each, ours_each, strict=True)),
        )
        for name, each in seconds.items()
    ]


_STUDY = """
import json, sys
from orthokernels.pipeline import run
made = run(sys.argv[1], sys.argv[2], weights="random:0")
print(json.dumps({"mb": made.result.peak_memory_mb, "seconds": made.result.seconds}))
"""


def bench_study() -> list[Row]:
    """Peak resident memory and seconds of a three-plane phantom study with report, in a fresh process."""
    from orthokernels.data.phantom import make_study, write_dicom

    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder, "study")
        write_dicom(make_study(0), study)
        done = subprocess.run(
            [sys.executable, "-c", _STUDY, str(study), str(Path(folder, "out"))],
            capture_output=True,
            text=True,
            check=True,
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return [
        Row("study", "peak resident memory", "MB", [found["mb"]], limit=STUDY_LIMIT_MB),
        Row("study", "all stages", "s", [sum(found["seconds"].values())]),
        *(Row("study", stage, "s", [value]) for stage, value in found["seconds"].items()),
    ]


def bench_read(folder: Path, rounds: int) -> list[Row]:
    """Seconds to read and prepare a series in this process; the first time also loads or compiles the kernel."""
    from orthokernels.data.prepare import prepare
    from orthokernels.data.study import read_study

    seconds = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        study = read_study([folder])
        for plane, stacks in study.stacks.items():
            volume = study.load(plane) if stacks else None
            if volume is not None:
                prepare(volume, "full")
        seconds.append(time.perf_counter() - started)
    files = sum(1 for path in folder.rglob("*") if path.is_file())
    return [
        Row("read", f"first time, {files} files", "s", seconds[:1], limit=READ_LIMIT_S),
        Row("read", f"again, {files} files", "s", seconds[1:], limit=READ_LIMIT_S),
    ]
