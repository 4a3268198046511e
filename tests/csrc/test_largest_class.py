"""The class with the largest logit at the scanner's pixels: its definition to the bit, on every processor."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

native = pytest.importorskip("orthokernels._native")

CASES = [((4, 32, 32), (110, 130)), ((12, 64, 48), (64, 48)), ((3, 40, 40), (17, 23)), ((2, 1, 5), (3, 1))]


def position(output: int, outputs: int, samples: int) -> tuple[int, int, float]:
    """OpenCV's: the samples around an output, and the weight of the second."""
    place = (output + 0.5) * (samples / outputs) - 0.5
    if place <= 0:
        return 0, 0, 0.0
    if place >= samples - 1:
        return samples - 1, samples - 1, 0.0
    return int(place), int(place) + 1, place - int(place)


def definition(logits: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """In float64: along the rows first, then across them; ties go to the lower class."""
    wide = logits.astype(np.float64)
    labels = np.empty(shape, np.uint8)
    for i in range(shape[0]):
        h0, h1, wh = position(i, shape[0], logits.shape[1])
        for j in range(shape[1]):
            w0, w1, ww = position(j, shape[1], logits.shape[2])
            upper, lower = (wide[:, h, w0] * (1.0 - ww) + wide[:, h, w1] * ww for h in (h0, h1))
            labels[i, j] = np.argmax(upper * (1.0 - wh) + lower * wh)
    return labels


def made(case) -> np.ndarray:
    # Few values, so that ties are many.
    return np.random.default_rng(case[0]).integers(-2, 3, case[0]).astype(np.float32) * np.float32(0.3)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_labels_are_the_definition_s_at_any_number_of_threads(case):
    logits, expected = made(case), definition(made(case), case[1])
    for threads in (1, 2, 3, 7):
        labels = np.full(case[1], 255, np.uint8)
        native.largest_class([(logits, 1.0)], labels, threads=threads)
        np.testing.assert_array_equal(labels, expected)


def test_views_of_any_order_are_read_and_written_where_they_lie():
    case = CASES[0]
    logits, expected = made(case), definition(made(case), case[1])
    last = np.ascontiguousarray(logits.transpose(1, 2, 0)).transpose(2, 0, 1)
    volume = np.zeros((130, 5, 110), np.uint8)
    native.largest_class([(last, 1.0)], volume[::-1, 2].T)
    np.testing.assert_array_equal(volume[::-1, 2].T, expected)
    assert not volume[:, [0, 1, 3, 4]].any()


@pytest.mark.parametrize("instruction_set", ["portable", "avx2", "avx512"])
def test_every_instruction_set_gives_the_same_labels(instruction_set):
    code = (
        "import numpy as np, sys\nfrom orthokernels import _native\n"
        "logits = np.random.default_rng(0).standard_normal((12, 64, 64), dtype=np.float32)\n"
        "labels = np.empty((190, 170), np.uint8)\n_native.largest_class([(logits, 1.0)], labels)\n"
        "sys.stdout.buffer.write(labels.tobytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "ORTHOKERNELS_ISA": instruction_set}, capture_output=True
    )
    if done.returncode and b"ORTHOKERNELS_ISA" in done.stderr:
        pytest.skip(f"{instruction_set} can not run here")
    logits = np.random.default_rng(0).standard_normal((12, 64, 64), dtype=np.float32)
    labels = np.empty((190, 170), np.uint8)
    native.largest_class([(logits, 1.0)], labels)
    assert done.stdout == labels.tobytes()


def test_slabs_are_weighted_and_added_in_float32_in_their_order():
    rng = np.random.default_rng(5)
    slabs = [(rng.standard_normal((12, 40, 30), dtype=np.float32), weight) for weight in (3.0, 2.0, 0.1)]
    slabs[1] = (np.ascontiguousarray(slabs[1][0].transpose(1, 2, 0)).transpose(2, 0, 1), 2.0)
    total = slabs[0][0] * np.float32(3) + slabs[1][0] * np.float32(2)
    total += slabs[2][0] * np.float32(0.1)
    for shape in ((90, 70), (40, 30), (11, 7)):
        labels = np.full(shape, 255, np.uint8)
        native.largest_class(slabs, labels, threads=2)
        np.testing.assert_array_equal(labels, definition(total, shape))


def test_labels_do_not_lie_over_logits():
    logits, labels = made(CASES[0]), np.zeros((64, 64), np.uint8)
    over = logits.view(np.uint8).reshape(-1)[: labels.size].reshape(labels.shape)
    for target in (over, over[::-1].T):
        with pytest.raises(ValueError, match="labels: overlaps logits, which is read"):
            native.largest_class([(made(CASES[0]), 1.0), (logits, 1.0)], target, threads=2)
    np.testing.assert_array_equal(logits, made(CASES[0]))
    # Two halves of one array lie apart.
    both = np.concatenate([logits.view(np.uint8).reshape(-1), labels.reshape(-1)])
    halves = both[: logits.nbytes].view(np.float32).reshape(logits.shape), both[logits.nbytes :].reshape(labels.shape)
    native.largest_class([(halves[0], 1.0)], halves[1])
    np.testing.assert_array_equal(halves[1], definition(logits, labels.shape))


@pytest.mark.parametrize("shape", [(1, 2**55), (2**55, 1)])
def test_labels_that_repeat_one_pixel_too_often_are_refused(shape):
    labels = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), shape, (0, 0), writeable=True)
    with pytest.raises(ValueError, match="labels: 36028797018963968; allowed are 1 to 2147483647"):
        native.largest_class([(made(CASES[0]), 1.0)], labels, threads=1024)


def test_bad_input_gets_a_sentence():
    logits, labels = np.zeros((3, 4, 4), np.float32), np.zeros((5, 5), np.uint8)
    frozen = labels.copy()
    frozen.flags.writeable = False
    for slabs, target, told in [
        ([], labels, "logits: has no slab"),
        ([logits.astype(np.float64)], labels, "logits: must be float32"),
        ([logits[0]], labels, "logits: must have 3 axes"),
        ([logits[:0]], labels, "logits: is empty"),
        ([logits, logits[:, 1:]], labels, "logits: has slabs of different shapes"),
        ([np.zeros((257, 1, 1), np.float32)], labels, "logits: has more than 256 classes"),
        ([logits], labels.astype(np.int16), "labels: must be uint8"),
        ([logits], frozen, "labels: is read-only"),
    ]:
        with pytest.raises(ValueError, match=told):
            native.largest_class([(own, 1.0) for own in slabs], target)
