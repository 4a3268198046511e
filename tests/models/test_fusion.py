"""The fusions of the three planes against explicit formulas, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orthokernels.models.orthodiffusion.fusion import (
    FUSIONS,
    ConcatFusion,
    CrossAttentionFusion,
    GatingFusion,
    Head,
    LinearAddFusion,
    LinearConcatFusion,
)
from tests.models.golden import fill, wave

# Float64 sums of at most 100 terms of size 1, a few of them in a row.
ROUNDING = 1000 * 2**-52
VECTOR_FUSIONS = {
    "simple_concat": lambda **settings: ConcatFusion(16, 5, **settings),
    "linear_concat": lambda **settings: LinearConcatFusion(16, 5, out_width=8, **settings),
    "linear_add": lambda **settings: LinearAddFusion(16, 5, out_width=8, **settings),
    "crossattn": lambda **settings: CrossAttentionFusion(16, 5, out_width=8, **settings),
}


@pytest.fixture
def planes():
    return tuple(wave((4, 16), start, 0.37).double() for start in (1.0, 2.0, 3.0))


@pytest.fixture
def logits():
    return 2 * wave((4, 3, 5), 5.0, 0.61).double()


def test_table_has_every_published_mode():
    assert set(FUSIONS) == {*VECTOR_FUSIONS, "gating"}
    for name, make in VECTOR_FUSIONS.items():
        assert isinstance(make(), FUSIONS[name])


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("name", sorted(VECTOR_FUSIONS))
def test_every_plane_counts_and_keeps_its_place(name, hidden, planes):
    fusion = fill(VECTOR_FUSIONS[name](hidden=hidden)).double()
    found = fusion(*planes)
    assert found.shape == (4, 5)
    for order in ((1, 0, 2), (0, 2, 1), (2, 1, 0)):
        # The filled weights are of size 0.5, so that a plane in another place changes the logits well above rounding.
        assert bool(((fusion(*(planes[i] for i in order)) - found).abs() > 1e-3).any())


@pytest.mark.parametrize("name", sorted(VECTOR_FUSIONS))
def test_gradient_is_the_slope(name, planes):
    fusion = fill(VECTOR_FUSIONS[name](hidden=True)).double()
    inputs = tuple(plane.requires_grad_() for plane in planes)
    assert torch.autograd.gradcheck(fusion, inputs, fast_mode=True)


def test_head_with_a_hidden_layer_has_half_the_width_and_drops_a_tenth():
    head = Head(16, 5, hidden=True)
    assert [tuple(p.shape) for p in head.parameters()] == [(8, 16), (8,), (5, 8), (5,)]
    assert [layer.p for layer in head.modules() if isinstance(layer, nn.Dropout)] == [0.1]


def test_linear_add_is_one_linear_map_of_each_plane(planes):
    fusion = fill(VECTOR_FUSIONS["linear_add"]()).double()
    maps = (fusion.fusion.proj1, fusion.fusion.proj2, fusion.fusion.proj3)
    summed = sum(plane @ m.weight.T + m.bias for plane, m in zip(planes, maps, strict=True))
    expected = summed @ fusion.head.net.weight.T + fusion.head.net.bias
    torch.testing.assert_close(fusion(*planes), expected, rtol=0, atol=ROUNDING)


def test_cross_attention_adds_what_each_plane_reads_in_the_next(planes):
    fusion = fill(VECTOR_FUSIONS["crossattn"]()).double()
    inner = fusion.fusion
    embedded = [p(plane) for p, plane in zip((inner.proj1, inner.proj2, inner.proj3), planes, strict=True)]
    parts = []
    for i, attention in enumerate((inner.cross12, inner.cross23, inner.cross31)):
        query, key = embedded[i][:, None], embedded[(i + 1) % 3][:, None]  # one token each, as published
        parts.append(inner.norm(query + attention(query, key, key, need_weights=False)[0])[:, 0])
    expected = fusion.head(torch.cat(parts, dim=1))
    torch.testing.assert_close(fusion(*planes), expected, rtol=0, atol=ROUNDING)


def test_gate_weights_are_shares_of_the_planes(logits):
    mixed, weights = fill(GatingFusion(5)).double()(logits)
    assert weights.shape == logits.shape
    assert bool((weights > 0).all())
    torch.testing.assert_close(weights.sum(dim=1), torch.ones_like(mixed), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(mixed, (weights * logits).sum(dim=1), rtol=0, atol=ROUNDING)


def test_gate_passes_on_what_all_planes_agree_on(logits):
    agreed = logits[:, :1].expand(-1, 3, -1)
    mixed, _ = fill(GatingFusion(5)).double()(agreed)
    torch.testing.assert_close(mixed, logits[:, 0], rtol=0, atol=ROUNDING)


def test_gate_looks_at_each_label_alone_and_stacking_at_all(logits):
    changed = logits.clone()
    changed[:, :, 0] += 1
    for stacking, moved in ((False, [True, False, False, False, False]), (True, [True] * 5)):
        fusion = fill(GatingFusion(5, stacking=stacking)).double()
        before, weights_before = fusion(logits)
        after, weights_after = fusion(changed)
        assert ((after - before).abs().amax(dim=0) > 1e-6).tolist() == moved
        assert torch.equal(weights_before[:, :, 1:], weights_after[:, :, 1:])


def test_stacking_is_a_network_over_the_mixed_logits(logits):
    fusion = fill(GatingFusion(5, stacking=True)).double()
    found, weights = fusion(logits)
    mixed = (weights * logits).sum(dim=1)
    first, last = fusion.meta[0], fusion.meta[3]
    expected = (mixed @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


def test_dropout_acts_in_training_only(logits):
    fusion = fill(GatingFusion(5)).double()
    assert torch.equal(fusion(logits)[1], fusion(logits)[1])
    fusion.train()
    torch.manual_seed(0)
    # 20 gates of 32 hidden units: two passes drop the same tenth with a chance below 1e-50.
    assert not torch.equal(fusion(logits)[1], fusion(logits)[1])
