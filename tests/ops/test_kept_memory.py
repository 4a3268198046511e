"""Large results lie in memory that the last tensor gives back and the next result gets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import Tensor

from orthokernels.backends.cpu import kept_memory
from orthokernels.backends.cpu.kept_memory import KEPT, LEAST_BYTES, KeptMemory
from orthokernels.ops import layout
from orthokernels.ops.layout import empty_volume
from orthokernels.ops.upsample2x_trilinear import upsample2x_trilinear

SIDES = (16, 64, 64)
LEAST_CHANNELS = LEAST_BYTES // (4 * 16 * 64 * 64)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> KeptMemory:
    own = KeptMemory(8 * LEAST_BYTES)
    monkeypatch.setattr(layout, "KEPT", own)
    return own


def volume(channels: int = LEAST_CHANNELS, memory_format: torch.memory_format = torch.channels_last_3d) -> Tensor:
    return torch.empty((1, channels, *SIDES)).contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", [torch.channels_last_3d, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_result_is_as_pytorch_s_own(kept, memory_format, dtype):
    x = volume(memory_format=memory_format).to(dtype)
    made, expected = empty_volume(x), torch.empty_like(x)
    assert (made.shape, made.stride(), made.dtype) == (expected.shape, expected.stride(), expected.dtype)
    assert not made._is_view()
    assert made.data_ptr() % 64 == 0
    made.copy_(torch.arange(made.numel()).view(made.shape))
    assert torch.equal(made.add_(1).sum(dtype=torch.float64), torch.arange(1, made.numel() + 1).double().sum())


def test_memory_comes_back_with_the_last_tensor_and_goes_to_the_next_of_its_size(kept):
    made = empty_volume(volume())
    place, part = made.data_ptr(), made[:, 1:].numpy()
    del made
    assert kept.bytes == 0
    other = empty_volume(volume())
    assert other.data_ptr() != place
    del part
    assert kept.bytes == LEAST_BYTES
    larger = empty_volume(volume(2 * LEAST_CHANNELS))
    assert kept.bytes == LEAST_BYTES
    assert empty_volume(volume()).data_ptr() == place
    del other, larger
    kept.clear()
    assert kept.bytes == 0


def test_small_and_huge_results_are_pytorch_s(kept):
    for channels in (LEAST_CHANNELS - 1, 8 * LEAST_CHANNELS + 1):
        made = empty_volume(volume(channels))
        del made
    assert kept.bytes == 0


def test_no_more_is_kept_than_is_allowed_and_the_oldest_goes_first(kept):
    first = empty_volume(volume())
    later = [empty_volume(volume(2 * LEAST_CHANNELS)) for _ in range(4)]
    place = later[-1].data_ptr()
    del first
    while later:
        del later[0]
    assert kept.bytes == 8 * LEAST_BYTES
    assert empty_volume(volume(2 * LEAST_CHANNELS)).data_ptr() == place


def test_threads_never_share_a_result(kept):
    wrong = []

    def fill(number: float) -> None:
        for _ in range(5):
            own = [empty_volume(volume()).fill_(number) for _ in range(2)]
            wrong.extend(each[:, ::8, ::4, ::16, ::16].ne(number).sum().item() for each in own)

    threads = [threading.Thread(target=fill, args=(float(number),)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(wrong) == 0
    assert kept.bytes <= kept.most_bytes


def test_a_failed_allocation_gives_back_what_is_kept_first(kept, monkeypatch):
    made = empty_volume(volume())
    del made
    empty, asked = kept_memory.np.empty, []

    def scarce(size, dtype):
        asked.append(kept.bytes)
        if kept.bytes:
            raise MemoryError
        return empty(size, dtype)

    monkeypatch.setattr(kept_memory.np, "empty", scarce)
    assert empty_volume(volume(2 * LEAST_CHANNELS)).numel() == 2 * volume().numel()
    assert asked == [LEAST_BYTES, 0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_waits_for_no_thread_of_its_parent():
    with KEPT._lock:
        child = os.fork()
        if child == 0:
            os._exit(KEPT.empty((1,), torch.float32, torch.contiguous_format).numel() - 1)
    deadline = time.monotonic() + 30
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
    assert ended == (child, 0)


def test_a_default_device_elsewhere_changes_nothing(kept):
    x = volume()
    with torch.device("meta"):
        made = empty_volume(x)
    assert (made.device.type, made.shape) == ("cpu", x.shape)


def test_gradients_are_those_of_fresh_memory(kept):
    x = torch.randn(1, LEAST_CHANNELS // 8, *SIDES, requires_grad=True)  # its double has the size
    for _ in range(2):
        x.grad = None
        y = upsample2x_trilinear(x, backend="cpu")
        y += 1  # in place, since it is no view
        (y * y).sum().backward()
        found = x.grad
        del y
        assert kept.bytes >= LEAST_BYTES  # it lay there
    again = x.detach().requires_grad_()
    (upsample2x_trilinear(again, backend="torch") + 1).square().sum().backward()
    torch.testing.assert_close(found, again.grad, rtol=1e-4, atol=1e-4)  # sums of a few dozen products, float32


@pytest.mark.parametrize(("told", "expected"), [("0", "0"), ("64", str(2**26)), ("much", "InputError")])
def test_how_much_is_kept_stands_in_the_environment(told, expected):
    asked = "from orthokernels.backends.cpu.kept_memory import KEPT; print(KEPT.most_bytes)"
    done = subprocess.run(
        [sys.executable, "-c", asked], env={**os.environ, "ORTHOKERNELS_KEPT_MB": told}, capture_output=True, text=True
    )
    assert expected in done.stdout + done.stderr
