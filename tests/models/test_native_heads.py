"""The native engine's heads, poolings and fusions against the reference in float64."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("orthokernels._native")

from orthokernels.models.native.fusion import late_fusion, make_fusion  # noqa: E402
from orthokernels.models.native.pooling import POOLINGS as NATIVE_POOLINGS  # noqa: E402
from orthokernels.models.native.segmentation import SEGMENTATIONS  # noqa: E402
from orthokernels.models.orthodiffusion import (  # noqa: E402
    FUSIONS,
    POOLINGS,
    LateFusion,
    MultiscaleSegmentationHead,
    SegmentationHead,
)

# float32 sums of some hundred products, through at most twelve layers: 2e-6 each for Winograd's, independent of each
# other, and a head's normalisations divide by a deviation near 1.
CLOSE = 2e-5


def varied(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """With weights that keep the signal's size, and normalisations that are not the identity."""
    torch.manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim < 2:
            torch.nn.init.normal_(parameter, 0.5, 0.3)
        else:
            torch.nn.init.kaiming_normal_(parameter)
    return module.eval()


def state_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def relative(found, expected) -> float:
    expected = expected.detach().numpy()
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def channels_last(x: torch.Tensor) -> np.ndarray:
    """A map as a plan gives it."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x[0].numpy(), 0, -1)), -1, 0)


@pytest.mark.parametrize("sides", [(1, 2, 3), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("exact", [False, True])
def test_the_published_head_is_the_reference(sides, exact):
    module = varied(SegmentationHead(in_channels=24, classes=5))
    head = SEGMENTATIONS["segmentation_head"](state_of(module), {"in_channels": 24, "classes": 5}, exact=exact)
    x = torch.randn(1, 24, *sides)
    found = head.logits({"mid_2": channels_last(x)}, np.zeros([16 * side for side in sides], np.float32))
    assert head.classes == 5
    assert head.blocks({}, "mid_2") == ("mid_2",)
    assert relative(found, module.double()(x.double())[0]) < CLOSE
    assert {"net.0", "net.2.block.4", "net.10"} <= {row["name"] for row in head.describe()}


MULTISCALE = {
    "published": ({"widths": (16, 16, 32, 32), "classes": 4}, (8, 24, 16)),
    "odd sides": ({"widths": (16, 16, 32, 32), "classes": 3}, (5, 13, 22)),
    "patches": ({"widths": (16, 24, 32), "classes": 4, "patch": (1, 2, 2), "convolutions": 1}, (6, 20, 12)),
    "no volume": ({"widths": (12, 20, 20), "classes": 2, "input_skip": False, "channels": (6, 10)}, (4, 6, 10)),
}


@pytest.mark.parametrize("kind", MULTISCALE)
def test_the_head_of_every_resolution_is_the_reference(kind):
    arguments, sides = MULTISCALE[kind]
    module = varied(MultiscaleSegmentationHead(**arguments))
    head = SEGMENTATIONS["multiscale_segmentation_head"](state_of(module), arguments)
    patch = arguments.get("patch", (1, 1, 1))
    folded = [side // own for side, own in zip(sides, patch, strict=True)]
    maps = {}
    for level, width in enumerate(arguments["widths"]):
        halvings = min(level, len(arguments["widths"]) - 2)
        maps[f"in_{level}"] = torch.randn(1, width, *(-(-side // 2**halvings) for side in folded))
    volume = torch.rand(1, 1, *sides) * 2 - 1
    found = head.logits({name: channels_last(own) for name, own in maps.items()}, volume[0, 0].numpy(), threads=2)
    doubled = {name: own.double() for name, own in maps.items()}
    assert relative(found, module.double()(doubled, volume.double())[0]) < CLOSE


def test_a_head_that_reads_other_levels_than_the_network_has_is_refused():
    arguments = {"widths": (16, 16), "classes": 2}
    head = SEGMENTATIONS["multiscale_segmentation_head"](state_of(MultiscaleSegmentationHead(**arguments)), arguments)
    names = ("input_blocks.0.0.weight", "input_blocks.1.0.op.weight", "middle_block.0.qkv.weight")
    assert head.blocks(dict.fromkeys((names[0], names[2])), "mid_2") == ("in_0", "mid_0")
    with pytest.raises(ValueError, match="the head reads 1 levels, the network has 2"):
        head.blocks(dict.fromkeys(names), "mid_2")


POOLED = {
    "selfattn": {"channels": 24, "heads": 4},
    "local": {"channels": 24, "hidden": 7},
    "none": {"channels": 24},
    "grid": {"channels": 24, "cells": (3, 4), "kept": 60, "mirror": True},
    "structures": {"channels": 24, "cells": (3, 4), "kept": 700, "classes": 5, "bins": 16},
}


@pytest.mark.parametrize("sides", [(2, 6, 8), (1, 5, 9)], ids=str)
@pytest.mark.parametrize("kind", POOLED)
def test_poolings_are_the_reference(kind, sides):
    arguments = POOLED[kind]
    module = varied(POOLINGS[kind](**arguments))
    rng = np.random.default_rng(0)
    if kind == "structures":
        numbers = 2 * 24 * 12 + 8 * 7 + 4 * 49  # the grid's, the histograms', the features'
        module.places.copy_(torch.from_numpy(rng.permutation(numbers)[:700]))
        module.usual.copy_(torch.linspace(-1, 1, 700))
    pooling = NATIVE_POOLINGS[kind](state_of(module), arguments)
    x = torch.from_numpy(rng.standard_normal((1, 24, *sides), dtype=np.float32))
    whole = tuple(2 * side for side in sides)
    logits = torch.from_numpy(rng.standard_normal((1, 5, *whole), dtype=np.float32))
    logits[:, 4] = -9  # a structure that is found nowhere
    volume = torch.from_numpy(rng.uniform(-1.1, 1.1, (1, 1, *whole)).astype(np.float32))
    found = pooling.vector(channels_last(x), logits[0].numpy(), volume[0, 0].numpy(), threads=2)
    more = (logits, volume) if kind == "structures" else ()
    expected = module(x, *more)
    # Sums of at most 60 x 24 products, or of some hundred voxels.
    assert relative(found, expected[0]) < CLOSE
    mean = np.stack([found, found * 2]).mean(axis=0)
    if kind == "structures":
        series = module.of_series(torch.from_numpy(mean)[None])[0]
        assert relative(pooling.of_series(mean), series) < CLOSE
        assert np.isfinite(pooling.of_series(mean)).all()
    else:
        assert pooling.of_series(mean) is mean


@pytest.mark.parametrize("extra", [{}, {"hidden": True}], ids=["linear", "hidden"])
@pytest.mark.parametrize("kind", ["simple_concat", "linear_concat", "linear_add", "crossattn"])
def test_fusions_of_vectors_are_the_reference(kind, extra):
    arguments = {"width": 20, "labels": 5, **({} if kind == "simple_concat" else {"out_width": 12}), **extra}
    module = varied(FUSIONS[kind](**arguments))
    planes = torch.randn(3, 20)
    logits, shares = make_fusion(kind, state_of(module), arguments)(planes.numpy())
    assert shares is None
    assert relative(logits, module(*planes[:, None])[0]) < CLOSE


@pytest.mark.parametrize("stacking", [False, True])
def test_the_gate_is_the_reference(stacking):
    arguments = {"labels": 6, "hidden": 9, "stacking": stacking}
    module = varied(FUSIONS["gating"](**arguments))
    planes = torch.randn(3, 6)
    expected, weights = module(planes[None])
    logits, shares = make_fusion("gating", state_of(module), arguments)(planes.numpy())
    assert relative(logits, expected[0]) < CLOSE
    assert shares is not None
    assert relative(shares, weights[0]) < CLOSE


def test_fusion_with_patient_data_is_the_reference():
    module = varied(LateFusion(mri_width=30, labels=4))
    mri, continuous = torch.randn(1, 30), torch.randn(1, 3)
    sex, kind, event = torch.tensor([[0.0, 1, 0]]), torch.tensor([[1.0, 0, 0]]), 7
    expected = module(mri, continuous, sex, kind, torch.tensor([event]))
    found = late_fusion(state_of(module), *(own[0].numpy() for own in (mri, continuous, sex, kind)), event)
    for name in ("fused", "mri", "tabular"):
        assert relative(found[name], expected[name][0]) < CLOSE, name
    assert relative(found["alpha"], expected["alpha"]) < CLOSE


def refused(make, kind, module, arguments, changes, message):
    state = {**state_of(module), **changes}
    state = {name: own for name, own in state.items() if own is not None}
    with pytest.raises((ValueError, TypeError), match=message):
        make(kind, state, arguments)


def test_tensors_and_arguments_that_do_not_fit_are_told():
    def pooling(kind, *own):
        return NATIVE_POOLINGS[kind](*own)

    attention, grid = POOLINGS["selfattn"](channels=8, heads=2), POOLINGS["grid"](channels=8, cells=(2, 2), kept=5)
    given = {"channels": 8, "heads": 2}
    refused(pooling, "selfattn", attention, given, {"q_proj.bias": None}, r"there is no q_proj\.bias")
    refused(pooling, "selfattn", attention, given, {"more": np.zeros(1)}, "more is unknown")
    refused(pooling, "selfattn", attention, {"channels": 9, "heads": 3}, {}, r"shape \(8, 8\), not \(9, 9\)")
    refused(pooling, "selfattn", attention, {"channels": 8, "heads": 3}, {}, "3 heads do not divide 8 channels")
    refused(pooling, "selfattn", attention, {**given, "head": 2}, {}, "no argument 'head'")
    cells = {"channels": 8, "cells": (2, 2), "kept": 5}
    beyond = {"places": np.array([0, 1, 2, 3, 64])}
    refused(pooling, "grid", grid, cells, beyond, "places are not numbers from 0 to 63")
    refused(pooling, "grid", grid, cells, {"places": np.zeros(5)}, "places are not numbers")
    fusion = FUSIONS["linear_add"](width=8, labels=3, out_width=4)
    refused(make_fusion, "linear_add", fusion, {"width": 8, "labels": 4, "out_width": 4}, {}, "shape")

    def head(kind, *own):
        return SEGMENTATIONS[kind](*own)

    module = SegmentationHead(in_channels=8, classes=3)
    given = {"in_channels": 8, "classes": 3}
    refused(head, "segmentation_head", module, given, {"net.3.bias": None}, r"there is no net\.3\.bias")
    refused(head, "segmentation_head", module, {**given, "classes": 4}, {}, "makes 3 channels, not 4")
    refused(head, "segmentation_head", module, {**given, "in_channels": 16}, {}, "weight: shape")
    flat = {"net.10.weight": np.zeros((3, 16), np.float32)}
    refused(head, "segmentation_head", module, given, flat, "weight: shape")
