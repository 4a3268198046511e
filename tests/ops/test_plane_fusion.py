"""Planes on one grid: every backend against the float64 definition, the definition against PyTorch's own resampling."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from orthokernels.backends.torch.plane_fusion import sampled
from orthokernels.ops import plane_fusion
from orthokernels.ops.plane_fusion import matrices, reference

pytest.importorskip("triton", reason="Triton is not installed")


def affine(spacing, *, angle=0.0, origin=(0.0, 0.0, 0.0), order=(0, 1, 2)) -> Tensor:
    """Indices to millimetres: axes in an order, turned in the first two directions."""
    turn = torch.eye(3, dtype=torch.float64)
    c, s = math.cos(angle), math.sin(angle)
    turn[:2, :2] = torch.tensor([[c, -s], [s, c]])
    found = torch.eye(4, dtype=torch.float64)
    found[:3, :3] = (turn @ torch.eye(3, dtype=torch.float64)[list(order)].T) * torch.tensor(
        spacing, dtype=torch.float64
    )
    found[:3, 3] = torch.tensor(origin)
    return found


# Three oblique planes with thick slices, as a knee has them, small.
AFFINES = [
    affine((4.0, 1.1, 0.9), angle=0.2, origin=(-6, -4, -4)),
    affine((3.5, 1.0, 1.0), angle=-0.1, origin=(-5, -5, -3), order=(1, 0, 2)),
    affine((3.0, 0.8, 1.2), origin=(-4, -5, -4), order=(2, 1, 0)),
]
SIDES = [(4, 7, 5), (3, 6, 7), (3, 7, 5)]
RESULT = affine((3.7, 3.1, 2.9), angle=0.05, origin=(-6, -5, -5))  # coarse: a plane's voxel reaches few of its own


def made(dtype=torch.float32, *, channels=6, groups=3, missing=(), channels_last=False, sides=(4, 3, 5)):
    draw = torch.Generator().manual_seed(0)
    volumes: list[Tensor | None] = []
    for n, own in enumerate(SIDES):
        x = torch.randn((2, channels, *own), generator=draw).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last_3d) if channels_last else x
        volumes.append(None if n in missing else x)
    return volumes, torch.randn((2, 3, groups, *sides), generator=draw)


def both_ways(function, volumes, gates, *, result=RESULT, **options) -> list[Tensor]:
    leaves = [None if v is None else v.detach().requires_grad_() for v in volumes]
    gate = gates.detach().requires_grad_()
    out = function(leaves, AFFINES, gate, result, **options)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, [*(v for v in leaves if v is not None), gate], upstream)]


def exactly(volumes, gates, **options) -> list[Tensor]:
    return both_ways(reference, [None if v is None else v.double() for v in volumes], gates.double(), **options)


def test_resampling_is_pytorch_s_where_all_of_it_lies_inside():
    volume = torch.randn((1, 2, 4, 6, 5), generator=torch.Generator().manual_seed(0)).double()
    to_plane = torch.tensor([[0.4, 0.1, 0, 0.3], [0, 0.7, 0.1, 0.2], [0.1, 0, 0.6, 0.5]], dtype=torch.float64)
    sides = (4, 5, 6)
    found, inside = sampled(volume, to_plane, sides)
    index = torch.stack(torch.meshgrid(*(torch.arange(s, dtype=torch.float64) for s in sides), indexing="ij"), dim=-1)
    c = index @ to_plane[:, :3].T + to_plane[:, 3]
    grid = (2 * c / (torch.tensor(volume.shape[2:]) - 1) - 1).flip(-1)[None]
    want = F.grid_sample(volume, grid, align_corners=True, padding_mode="border")
    assert inside.float().mean() > 0.8
    torch.testing.assert_close(found[:, :, inside], want[:, :, inside])
    assert not found[:, :, ~inside].any()


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("missing", [(), (0, 2)], ids=str)
def test_result_and_gradients_are_the_definition_s(missing, channels_last, backend):
    volumes, gates = made(missing=missing, channels_last=channels_last)
    for own, want in zip(
        both_ways(plane_fusion, volumes, gates, backend=backend), exactly(volumes, gates), strict=True
    ):
        # Coordinates up to 10 are known to 1e-6 in float32, features change by up to 5 a voxel, and a gradient adds up
        # some fifty such terms.
        assert (own - want).abs().max() <= 1e-4 * max(1.0, float(want.abs().max()))


# Fine and half turned; and with axes in another order, thrice as fine along one.
RESULTS = [
    affine((1.1, 1.0, 0.9), angle=0.8, origin=(-4, -1, -2)),
    affine((0.5, 2.0, 1.9), angle=-2.2, origin=(3, 2, -3), order=(2, 0, 1)),
]


@pytest.mark.parametrize("missing", [(1, 2), (0, 2), (0, 1)], ids=str)
@pytest.mark.parametrize("result", RESULTS, ids=["fine", "turned"])
def test_a_plane_s_gradient_finds_all_that_its_voxels_gave(result, missing):
    volumes, gates = made(channels=2, groups=1, missing=missing, sides=(7, 6, 5))
    own, exact = (
        both_ways(plane_fusion, volumes, gates, result=result, backend="triton"),
        exactly(volumes, gates, result=result),
    )
    assert exact[1].count_nonzero() > 20
    for found, want in zip(own, exact, strict=True):
        assert (found - want).abs().max() <= 1e-4 * max(1.0, float(want.abs().max()))


def test_some_voxels_lie_in_every_plane_and_some_in_none():
    # Or the test above would be of less than it says.
    volumes, _ = made()
    to_plane, *_ = matrices(AFFINES, RESULT, volumes)
    count = sum(sampled(v.double(), m, (4, 3, 5))[1].int() for v, m in zip(volumes, to_plane, strict=True))
    assert {0, 1, 2, 3} <= set(count.unique().tolist())


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (5, 1), (10, 5)])
def test_one_channel_and_one_group_to_many(channels, groups, channels_last, backend):
    volumes, gates = made(
        channels=channels, groups=groups, missing=(0, 2), channels_last=channels_last, sides=(2, 3, 2)
    )
    for own, want in zip(
        both_ways(plane_fusion, volumes, gates, backend=backend), exactly(volumes, gates), strict=True
    ):
        assert (own - want).abs().max() <= 1e-4 * max(1.0, float(want.abs().max()))


def test_one_voxel_of_a_channels_last_result():
    volumes, gates = made(missing=(0,), channels_last=True, sides=(1, 1, 1))
    out, *_ = both_ways(plane_fusion, volumes, gates, backend="cpu")
    assert (out - exactly(volumes, gates)[0]).abs().max() <= 1e-4


def test_half_precision_volumes_are_mixed_in_float32():
    volumes, gates = made(torch.float16, missing=(0, 1))
    out, *_ = both_ways(plane_fusion, volumes, gates, backend="triton")
    want, *_ = exactly(volumes, gates)
    assert out.dtype == torch.float16
    assert (out - want).abs().max() <= 0.6 * want.abs().max() * torch.finfo(torch.float16).eps


def test_two_runs_give_the_same_bytes():
    volumes, gates = made(missing=(0, 2))
    runs = [both_ways(plane_fusion, volumes, gates, backend="triton") for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_boxes_take_in_every_voxel_that_has_a_share():
    volumes, _ = made()
    to_plane, _, spans = matrices(AFFINES, RESULT, volumes)
    for n, volume in enumerate(volumes):
        ones = torch.zeros_like(volume[:1, :1], dtype=torch.float64)
        ones[0, 0, 1, 3, 3] = 1
        share, _ = sampled(ones, to_plane[n], (40, 40, 40))
        where = share[0, 0].nonzero()
        if len(where):
            assert (where.amax(0) - where.amin(0) + 1 <= spans[n]).all()


@pytest.mark.parametrize("whole", [True, False])
def test_gradients_pass_gradcheck(whole):
    volumes, gates = made(torch.float64, channels=2, groups=2, missing=(1,), sides=(2, 3, 2))
    if not whole:  # every number by itself, of a corner of one sample
        volumes, gates = [volumes[0][:1, :, :2, :3, :3], None, volumes[2][:1, :, :2, :5, :2]], gates[:1]
    leaves = [v.clone().requires_grad_() for v in volumes if v is not None] + [gates.double().requires_grad_()]
    out = plane_fusion([leaves[0], None, leaves[1]], AFFINES, leaves[2], RESULT)
    assert all(own.any() for own in torch.autograd.grad(out.sum(), leaves))  # some voxels lie in both
    check = torch.autograd.gradcheck
    assert check(lambda a, c, g: plane_fusion([a, None, c], AFFINES, g, RESULT), leaves, fast_mode=whole)


@pytest.mark.parametrize("backend", ["torch", "cpu", "triton"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_registration_passes_opcheck(backend, channels_last):
    volumes, gates = made(channels=2, groups=1, missing=(0, 2), channels_last=channels_last, sides=(2, 2, 2))
    leaves = [None if v is None else v.requires_grad_() for v in volumes]
    arguments = (*leaves, gates.requires_grad_(), *matrices(AFFINES, RESULT, volumes), backend)
    torch.library.opcheck(torch.ops.orthokernels.plane_fusion.default, arguments)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda v, a, g: (v[:2], a, g), "volumes: 2 are given"),
        (lambda v, a, g: ([None] * 3, a, g), "every plane is missing"),
        (lambda v, a, g: ([v[0], v[1].double(), v[2]], a, g), r"volumes\[1\]: torch.float64"),
        (lambda v, a, g: (v, a, g[:, :2]), "gates: shape"),
        (lambda v, a, g: (v, a, g.repeat(1, 1, 4, 1, 1, 1)), "groups a divisor of 6"),
        (lambda v, a, g: (v, [a[0], a[1], torch.zeros(4, 4)], g), r"affines\[2\]: its voxels have no volume"),
        (lambda v, a, g: (v, a[:2], g), "affines: 2 are given"),
        (lambda v, a, g: (v, a, g[:, :, :0]), r"gates: shape \(2, 3, 0, 4, 3, 5\); no side may be 0"),
        (lambda v, a, g: (v, [a[0], None, a[2]], g), r"affines\[1\]: None; must be 4 x 4 finite numbers"),
        (lambda v, a, g: (v, [a[0], [[None] * 4] * 4, a[2]], g), r"affines\[1\]: \[\[None, .*must be 4 x 4"),
        (lambda v, a, g: (v, [a[0], a[1], a[2].T], g), r"affines\[2\]: its last row is .*must be 0 0 0 1"),
    ],
)
def test_bad_arguments_are_named(change, told):
    volumes, gates = made()
    volumes, affines, gates = change(volumes, AFFINES, gates)
    with pytest.raises(ValueError, match=told):
        plane_fusion(volumes, affines, gates, RESULT)
