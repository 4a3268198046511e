"""The poolings against explicit formulas, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orthokernels.models.orthodiffusion.pooling import POOLINGS, GlobalAveragePool, GlobalLocalPool, SelfAttentionPool
from tests.models.golden import fill, wave

PUBLISHED = ("local", "none", "selfattn")  # ours know where a voxel was
OF_A_MAP = (*PUBLISHED, "grid")

# Float64 sums of at most 256 terms of size 1, a few of them in a row.
ROUNDING = 1000 * 2**-52


@pytest.fixture
def x():
    return wave((2, 32, 2, 3, 4), 0.4, 0.77).double()


@pytest.mark.parametrize("name", OF_A_MAP)
def test_width_of_the_vector_is_the_stated_one(name, x):
    pool = fill(POOLINGS[name](32)).double()
    assert pool(x).shape == (2, pool.out_channels)


@pytest.mark.parametrize("name", PUBLISHED)
def test_vector_does_not_know_where_a_voxel_was(name, x):
    pool = fill(POOLINGS[name](32)).double()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    shuffled = x.flatten(2)[:, :, order].view_as(x)
    torch.testing.assert_close(pool(shuffled), pool(x), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", PUBLISHED)
def test_vector_begins_with_the_mean_over_voxels(name, x):
    mean = x.mean(dim=(2, 3, 4))
    torch.testing.assert_close(fill(POOLINGS[name](32)).double()(x)[:, :32], mean, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("name", OF_A_MAP)
def test_channels_last_gives_the_same_vector(name, x):
    pool = fill(POOLINGS[name](32)).double()
    last = x.to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(pool(last), pool(x), rtol=0, atol=ROUNDING)


def test_self_attention_is_the_standard_multi_head_attention_averaged(x):
    pool = fill(SelfAttentionPool(32, heads=4)).double()
    standard = nn.MultiheadAttention(32, 4, batch_first=True).double()
    projections = (pool.q_proj, pool.k_proj, pool.v_proj)
    standard.load_state_dict(
        {
            "in_proj_weight": torch.cat([p.weight for p in projections]),
            "in_proj_bias": torch.cat([p.bias for p in projections]),
            "out_proj.weight": pool.out_proj.weight,
            "out_proj.bias": pool.out_proj.bias,
        }
    )
    tokens = x.flatten(2).transpose(1, 2)
    expected = standard(tokens, tokens, tokens)[0].mean(dim=1)
    torch.testing.assert_close(pool(x)[:, 32:], expected, rtol=0, atol=ROUNDING)


def test_self_attention_needs_heads_that_divide_the_channels():
    with pytest.raises(ValueError, match="5 heads do not divide 32 channels"):
        SelfAttentionPool(32, heads=5)


def test_local_weights_single_out_the_voxel_that_scores_highest(x):
    pool = GlobalLocalPool(32, hidden=1).double()
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.zero_()
        # Score 10000 times channel 0 (shifted to stay positive through the ReLU): the softmax is then a maximum.
        pool.attn[0].weight[0, 0], pool.attn[0].bias[0], pool.attn[2].weight[0, 0] = 1.0, 2.0, 10000.0
    tokens = x.flatten(2)
    scores, best = tokens[:, 0].topk(2)
    assert float((scores[:, 0] - scores[:, 1]).min()) > 0.005  # exp(-50) is far below float64's epsilon
    expected = torch.stack([tokens[n, :, best[n, 0]] for n in range(2)])
    torch.testing.assert_close(pool(x)[:, 32:], expected, rtol=0, atol=ROUNDING)


def test_local_weights_without_a_score_are_the_plain_mean(x):
    pool = GlobalLocalPool(32).double()
    nn.init.zeros_(pool.attn[2].weight)
    torch.testing.assert_close(pool(x)[:, 32:], x.mean(dim=(2, 3, 4)), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("pool", [SelfAttentionPool(32), GlobalLocalPool(32), GlobalAveragePool(32)])
def test_gradient_is_the_slope(pool, x):
    pool = fill(pool).double()
    assert torch.autograd.gradcheck(pool, (x[:1].requires_grad_(),), fast_mode=True)
