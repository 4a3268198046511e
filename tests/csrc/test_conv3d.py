"""The native convolution: every algorithm, on any shape, with all that stands around it; and what bad input gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
native = pytest.importorskip("orthokernels._native")

# Relative L2 error to float64 of 64 channels of unit variance (csrc/cpu/conv3d.h). n products added one by one: the
# k-th sum, of the size sqrt(k), is rounded by 2^-24 / sqrt(3) of itself, together 2^-24 sqrt(n / 6); 1e-6 for 27 x 64.
BOUNDS = {
    "direct": 1e-6, "F(2,2,2)": 8e-7, "F(1,4,4)": 2e-6, "F(2,4,4)": 2e-6, "F(4,4,4)": 4e-6, "F(2,2,2)/2": 8e-7,
}  # fmt: skip

SIDES = [(3, 5, 7), (1, 16, 16), (16, 9, 12), (4, 4, 4), (2, 1, 1), (5, 13, 6)]


def inputs(out: int, channels: int, sides: tuple[int, ...], kernel: int = 3, skip: int = 0):
    rng = np.random.default_rng([out, channels, *sides, kernel, skip])
    x = rng.standard_normal((*sides, channels), dtype=np.float32)
    weight = rng.standard_normal((out, channels + skip, kernel, kernel, kernel), dtype=np.float32)
    return rng, x, weight / np.float32(np.sqrt(weight[0].size))


def definition(x, weight, *, stride=1, skip=None, scale=None, shift=None, bias=None, residual=None):
    """In float64, [depth, height, width, channels]."""
    joint = torch.from_numpy(x if skip is None else np.concatenate([x, skip], axis=-1)).double()
    if scale is not None:
        joint = torch.nn.functional.silu(joint * torch.from_numpy(scale) + torch.from_numpy(shift))
    kernel = weight.shape[-1]
    own = None if bias is None else torch.from_numpy(bias).double()
    weights = torch.from_numpy(weight).double()
    y = torch.nn.functional.conv3d(joint.permute(3, 0, 1, 2)[None], weights, own, stride=stride, padding=kernel // 2)
    y = y[0].permute(1, 2, 3, 0).numpy()
    return y if residual is None else y + residual


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def bound(algorithm: str, channels: int) -> float:
    return BOUNDS[algorithm] * max(1, channels / 64) ** 0.5


def poisoned(*shape: int):
    return np.full(shape, np.nan, dtype=np.float32)


def algorithms(out: int, channels: int, kernel: int, stride: int, sides) -> list[str]:
    return native.conv3d_algorithms(out, channels, kernel, stride, list(sides))


@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("out", "channels"), [(16, 16), (64, 32), (48, 80)])
def test_every_algorithm_is_within_its_bound(out, channels, stride, sides):
    _, x, weight = inputs(out, channels, sides)
    expected = definition(x, weight, stride=stride)
    for algorithm in algorithms(out, channels, 3, stride, sides):
        conv = native.Conv3d(weight, stride, sides, algorithm)
        y = poisoned(*conv.out_sides, out)
        conv.run(x, y)
        assert relative(y, expected) < bound(algorithm, channels), algorithm


@pytest.mark.parametrize("tiles", [1, 2, 7, 60])
@pytest.mark.parametrize("stride", [1, 2])
def test_any_box_of_tiles_makes_the_whole_volume(stride, tiles):
    sides, channels = (9, 21, 30), 16
    _, x, weight = inputs(channels, channels, sides)
    expected = definition(x, weight, stride=stride)
    for algorithm in algorithms(channels, channels, 3, stride, sides):
        conv = native.Conv3d(weight, stride, sides, algorithm, tiles=tiles)
        y = poisoned(*conv.out_sides, channels)
        conv.run(x, y)
        assert relative(y, expected) < bound(algorithm, channels), algorithm


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_few_channels_are_convolved_with_all_that_stands_around(channels, stride):
    sides, out = (3, 5, 53), 32
    rng, x, weight = inputs(out, channels, sides)
    conv = native.Conv3d(weight, stride, sides, "direct")
    bias, residual = rng.standard_normal(out, np.float32), rng.standard_normal((*conv.out_sides, out), np.float32)
    for own in ({}, {"bias": bias}, {"bias": bias, "residual": residual}):
        y, moments = poisoned(*conv.out_sides, out), poisoned(conv.moment_blocks, 3, out)
        conv.run(x, y, moments=moments, threads=2, **own)
        assert relative(y, definition(x, weight, stride=stride, **own)) < bound("direct", channels)
        # Of each row: a sum of at most 53 distances to the first of them, each addition rounded by 2^-24 of it.
        means = y.mean(2, dtype=np.float64).reshape(-1, out)
        np.testing.assert_allclose(moments[:, 1], means, atol=53 * 2**-24 * 2 * np.abs(y).max())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("out", "channels"), [(1, 64), (2, 21), (64, 1), (3, 5), (24, 8), (33, 17)])
def test_direct_takes_any_channels_kernel_and_stride(out, channels, kernel, stride):
    sides = (3, 5, 7)
    _, x, weight = inputs(out, channels, sides, kernel)
    conv = native.Conv3d(weight, stride, sides, "direct")
    assert conv.out_sides == tuple(-(-side // stride) for side in sides)
    y = poisoned(*conv.out_sides, out)
    conv.run(x, y)
    assert relative(y, definition(x, weight, stride=stride)) < bound("direct", channels)


@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
# The second go in pieces of 48 channels, of which one is of both volumes; the third have too few outputs for lanes.
# Means of unit variance have 24 bits. A block sums distances to its first voxel: were that three deviations from the
# mean, the k-th sum would be 3 k, rounded by 2^-24 / sqrt(3) of itself, 2^-24 sqrt(n) in the mean of n: of 390 voxels
# 1.2e-6, which one channel in a few dozen comes to.
@pytest.mark.parametrize(
    ("out", "channels", "behind", "of_means"), [(32, 16, 48, 1e-6), (32, 80, 64, 2e-6), (2, 16, 27, 1e-6)]
)
def test_what_stands_around_a_convolution_in_a_block(out, channels, behind, of_means, stride, sides):
    made = [-(-side // stride) for side in sides]
    rng, x, weight = inputs(out, channels, sides, skip=behind)
    given = {
        "skip": rng.standard_normal((*sides, behind), dtype=np.float32),
        "bias": rng.standard_normal(out, dtype=np.float32),
        "residual": rng.standard_normal((*made, out), dtype=np.float32),
    }
    film = {name: rng.standard_normal(channels + behind, dtype=np.float32) for name in ("scale", "shift")}
    for algorithm in algorithms(out, channels, 3, stride, sides):
        own = given if algorithm == "direct" else {**given, **film}
        conv = native.Conv3d(weight, stride, sides, algorithm, tiles=12)
        y, moments = poisoned(*made, out), poisoned(conv.moment_blocks, 3, out)
        conv.run(x, y, moments=moments, threads=2, **own)
        expected = definition(x, weight, stride=stride, **own)
        assert relative(y, expected) < 2 * bound(algorithm, channels + behind), algorithm
        in_place = given["residual"].copy()
        conv.run(x, in_place, **{**own, "residual": in_place})
        assert in_place.tobytes() == y.tobytes(), algorithm
        count, mean, squares = moments.astype(np.float64).swapaxes(0, 1)
        assert (count.sum(0) == np.prod(made)).all()
        whole = (count * mean).sum(0) / count.sum(0)
        variance = (squares + count * (mean - whole) ** 2).sum(0) / count.sum(0)
        np.testing.assert_allclose(whole, y.mean((0, 1, 2), dtype=np.float64), atol=of_means)
        np.testing.assert_allclose(variance, y.var((0, 1, 2), dtype=np.float64), rtol=1e-5, atol=1e-7)


# Of the weights' gradient (csrc/cpu/conv3d_gradient.h).
GRADIENT_BOUNDS = {"F(2,2,2)": 2e-6, "F(1,4,4)": 4e-6, "F(2,4,4)": 6e-6, "F(4,4,4)": 8e-6, "F(2,2,2)/2": 2e-6}


def weight_gradient(x, dy, stride):
    """In float64."""
    volume, gradient = (torch.from_numpy(own).double().movedim(-1, 0)[None] for own in (x, dy))
    shape = (dy.shape[-1], x.shape[-1], 3, 3, 3)
    return torch.nn.grad.conv3d_weight(volume, shape, gradient, stride=stride, padding=1).numpy()


@pytest.mark.parametrize("sides", [*SIDES, (8, 40, 72)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("out", "channels"), [(16, 16), (64, 32), (48, 80)])
def test_the_weights_gradient_is_the_definition_s_at_any_number_of_threads(out, channels, stride, sides):
    rng, x, _ = inputs(out, channels, sides)
    dy = rng.standard_normal((*(-(-side // stride) for side in sides), out), dtype=np.float32)
    expected = weight_gradient(x, dy, stride)
    for algorithm in algorithms(out, channels, 3, stride, sides)[1:]:
        made = set()
        for threads in (1, 2, 5):
            dw = poisoned(out, channels, 3, 3, 3)
            native.conv3d_weight_gradient(x, dy, dw, stride=stride, algorithm=algorithm, threads=threads)
            made.add(dw.tobytes())
        assert relative(dw, expected) < GRADIENT_BOUNDS[algorithm], algorithm
        assert len(made) == 1, algorithm


@pytest.mark.parametrize(
    ("widest", "out", "channels", "skip", "own"),
    [
        ("avx512", 64, 32, 0, "avx512"),
        ("avx512", 24, 32, 0, "avx2"),
        ("avx512", 32, 8, 0, "avx2"),
        ("avx512", 48, 48, 24, "avx2"),  # each of two volumes is read by whole vectors
        ("avx512", 48, 48, 16, "avx512"),
        ("avx2", 24, 8, 0, "avx2"),
        ("portable", 24, 8, 0, "portable"),
    ],
)
def test_winograd_s_kernels_are_the_widest_whose_lanes_divide_the_channels(widest, out, channels, skip, own):
    # A function of numbers alone, so that every processor tells what one with AVX-512 would do.
    assert native.winograd_instruction_set(widest, out, channels, skip) == own
    if widest == native.instruction_set():
        assert len(native.conv3d_algorithms(out, channels, 3, 1, (4, 4, 4), skip)) > 1


def test_bad_input_to_the_weights_gradient_gets_a_sentence():
    sides = (4, 6, 8)
    rng, x, weight = inputs(16, 16, sides)
    dy, dw = rng.standard_normal((*sides, 16), dtype=np.float32), poisoned(*weight.shape)
    for arguments, options, told in [
        ((x[0], dy, dw), {}, r"x: shape \(6, 8, 16\)"),
        ((x, dy[:3].copy(), dw), {}, r"dy: shape \(3, 6, 8, 16\); must be \(4, 6, 8, any\)"),
        ((x, dy, dw[:8].copy()), {}, r"dw: shape \(8, 16, 3, 3, 3\); must be \(16, 16, 3, 3, 3\)"),
        ((x, dy, dw), {"algorithm": "direct"}, "algorithm: direct: the weights' gradient goes by Winograd's alone"),
        ((x, dy, dw), {"algorithm": "F(2,2,2)/2"}, "it takes 3 x 3 x 3 kernels of stride 2"),
        ((x[..., :3].copy(), dy, dw[:, :3].copy()), {}, "the vectors' lanes do not divide the channels"),
        ((x, dy, dw), {"stride": 3}, "stride: 3"),
        ((x, dy, dw), {"threads": 0}, "threads: 0"),
    ]:
        with pytest.raises(ValueError, match=told):
            native.conv3d_weight_gradient(*arguments, **{"stride": 1, "algorithm": "F(2,4,4)", **options})
    one = np.zeros((1, 2, 2, 16), np.float32)
    with pytest.raises(ValueError, match="dw: overlaps x, which is read"):
        native.conv3d_weight_gradient(dw.reshape(-1)[:64].reshape(one.shape), one, dw, stride=1, algorithm="F(2,4,4)")
    assert np.isnan(dw).all()  # nothing was written


def test_a_volume_that_no_cache_keeps_is_the_same_as_in_parts():
    rng, x, weight = inputs(64, 1, (4, 261, 258))
    bias = rng.standard_normal(64, dtype=np.float32)

    def made(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        conv = native.Conv3d(weight, 1, part.shape[:3], "direct")
        room = poisoned(part[..., 0].size * 64 + 16)
        first = -room.ctypes.data % 64 // 4  # as a plan's arena has its volumes: only these are written past the caches
        y = room[first : first + part[..., 0].size * 64].reshape(*part.shape[:3], 64)
        moments = poisoned(conv.moment_blocks, 3, 64)
        conv.run(part, y, bias=bias, moments=moments, threads=2)
        return y, moments.reshape(*part.shape[:2], 3, 64)

    whole, upper = made(x), made(np.ascontiguousarray(x[:, :100]))
    assert whole[0].nbytes >= 2**26 > upper[0].nbytes  # kLargeBytes, csrc/cpu/conv3d_direct.cpp
    for own, other in zip(whole, upper, strict=True):
        assert np.array_equal(own[:, :99], other[:, :99])  # the last row has another below it
    assert relative(whole[0], definition(x, weight, bias=bias)) < bound("direct", 64)


def test_moments_of_a_large_mean_keep_their_digits():
    sides, out = (4, 8, 8), 16
    _, x, weight = inputs(out, 16, sides)
    bias = np.full(out, 100, dtype=np.float32)
    for algorithm in algorithms(out, 16, 3, 1, sides):
        conv = native.Conv3d(weight * np.float32(0.1), 1, sides, algorithm)
        y, moments = poisoned(*sides, out), poisoned(conv.moment_blocks, 3, out)
        conv.run(x, y, bias=bias, moments=moments)
        count, mean, squares = moments.astype(np.float64).swapaxes(0, 1)
        whole = (count * mean).sum(0) / count.sum(0)
        variance = (squares + count * (mean - whole) ** 2).sum(0) / count.sum(0)
        # The differences to the pivot are exact; their squares' sum of 256 values loses at most 256 roundings.
        np.testing.assert_allclose(variance, y.astype(np.float64).var((0, 1, 2)), rtol=256 * 2**-24)


def test_moments_of_values_far_from_a_box_s_first_keep_their_digits():
    sides, out = (16, 32, 48), 16
    _, x, weight = inputs(out, 16, sides)
    x[0, 0, 0] += 1000
    for algorithm in algorithms(out, 16, 3, 1, sides):
        conv = native.Conv3d(weight, 1, sides, algorithm)
        y, moments = poisoned(*sides, out), poisoned(conv.moment_blocks, 3, out)
        conv.run(x, y, moments=moments)
        count, mean, squares = moments.astype(np.float64).swapaxes(0, 1)
        whole = (count * mean).sum(0) / count.sum(0)
        variance = (squares + count * (mean - whole) ** 2).sum(0) / count.sum(0)
        # F(2,2,2) has the least tiles: its first, of 8 voxels, lies far from the other 95 of the box. Their squares'
        # sum is up to 96 times what is left of it, after 8 + 96 additions, whose roundings have either sign.
        np.testing.assert_allclose(variance, y.astype(np.float64).var((0, 1, 2)), rtol=96 * np.sqrt(8 + 96) * 2**-24)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [1, 32])
def test_any_number_of_threads_gives_the_same_bytes(channels, stride):
    sides, out = (5, 13, 30), 32
    _, x, weight = inputs(out, channels, sides)
    for algorithm in algorithms(out, channels, 3, stride, sides):
        conv = native.Conv3d(weight, stride, sides, algorithm)
        made = set()
        for threads in (1, 2, 3, 7):
            y, moments = poisoned(*conv.out_sides, out), poisoned(conv.moment_blocks, 3, out)
            conv.run(x, y, moments=moments, threads=threads)
            made.add(y.tobytes() + moments.tobytes())
        assert len(made) == 1, algorithm


def test_the_sum_may_be_written_over_the_residual():
    sides = (4, 6, 8)
    rng, x, weight = inputs(16, 16, sides)
    residual = rng.standard_normal((*sides, 16), dtype=np.float32)
    expected = definition(x, weight, residual=residual)
    for algorithm in algorithms(16, 16, 3, 1, sides):
        y = residual.copy()
        native.Conv3d(weight, 1, sides, algorithm).run(x, y, residual=y)
        assert relative(y, expected) < 2 * bound(algorithm, 16)


def test_bad_input_gets_a_sentence():
    sides = (4, 6, 8)
    _, x, weight = inputs(16, 16, sides)
    conv = native.Conv3d(weight, 1, sides, "F(4,4,4)")
    y = poisoned(*sides, 16)
    frozen = y.copy()
    frozen.setflags(write=False)
    unaligned = np.frombuffer(bytearray(x.nbytes + 1), dtype=np.uint8)[1:].view(np.float32).reshape(x.shape)
    for arguments, told in [
        ((x.astype(np.float64), y), "x: type float64; must be float32."),
        ((x[0], y), r"x: shape \(6, 8, 16\); must be \(4, 6, 8, any\)."),
        ((x[..., ::-1], y), "x: is not contiguous"),
        ((unaligned, y), "x: is not aligned"),
        ((x[..., :8].copy(), y), "x: 8 channels; the weights have 16."),
        ((x, y[:3]), r"y: shape \(3, 6, 8, 16\)"),
        ((x, frozen), "y: is read-only."),
        ((x, x), "y: overlaps x, which is read."),
    ]:
        with pytest.raises(ValueError, match=told):
            conv.run(*arguments)
    moments = poisoned(conv.moment_blocks, 3, 16)
    room = poisoned(y.size + 16)
    half, moved = (room[first : first + y.size].reshape(y.shape) for first in (0, 16))
    for given, told in [
        ({"y": half, "bias": half.reshape(-1)[:16]}, "y: overlaps bias, which is read."),
        ({"y": half, "residual": moved}, "y: overlaps residual, which is read."),
        ({"y": y, "moments": moments, "residual": y, "bias": moments[0, 0]}, "moments: overlaps bias, which is read."),
        ({"y": half, "moments": half.reshape(-1)[: moments.size].reshape(moments.shape)}, "y: overlaps moments, which"),
    ]:
        with pytest.raises(ValueError, match=told):
            conv.run(x, **given)
    with pytest.raises(ValueError, match="shift: scale and shift go together"):
        conv.run(x, y, scale=np.ones(16, np.float32))
    with pytest.raises(ValueError, match=r"threads: 0; allowed are 1 to 1024\."):
        conv.run(x, y, threads=0)
    assert np.isnan(y).all()  # nothing was written
    for arguments, told in [
        ((weight[..., 0], 1, sides, "direct"), "weight: shape"),
        ((weight[..., :2].copy(), 1, sides, "direct"), "weight: kernels of"),
        ((weight, 3, sides, "direct"), "stride: 3; allowed are 1 and 2."),
        ((weight, 1, (4, -6, 8), "direct"), "sides: -6; allowed are 1 to 2147483647."),
        ((weight, 1, (2**30, 2**30, 2**30), "direct"), "are too many"),
        ((weight, 1, sides, "F(9,9,9)"), "algorithm: 'F.9,9,9.'; there are direct"),
        ((weight, 2, sides, "F(4,4,4)"), "algorithm: F.4,4,4.: it takes 3 x 3 x 3 kernels of stride 1"),
        ((weight, 1, sides, "F(2,2,2)/2"), "algorithm: F.2,2,2./2: it takes 3 x 3 x 3 kernels of stride 2"),
        ((weight[:5].copy(), 1, sides, "F(4,4,4)"), "the vectors' lanes do not divide the channels"),
    ]:
        with pytest.raises(ValueError, match=told):
            native.Conv3d(*arguments)


def test_no_memory_is_told_with_the_size_that_was_asked_for():
    overcommit = Path("/proc/sys/vm/overcommit_memory")
    if overcommit.is_file() and overcommit.read_text().strip() == "1":
        pytest.skip("this system promises any amount of memory")
    sides = (16, 128, 128)  # 4096 tiles
    weight = np.zeros((64, 64, 3, 3, 3), dtype=np.float32)
    x = np.zeros((*sides, 64), dtype=np.float32)
    conv = native.Conv3d(weight, 1, sides, "F(4,4,4)", tiles=4096)
    with pytest.raises(MemoryError, match=f"no memory for {conv.workspace_bytes(threads=1024)} bytes"):
        conv.run(x, poisoned(*sides, 64), threads=1024)  # a quarter of a terabyte
