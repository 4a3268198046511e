"""The denoiser beyond its golden figures: other shapes and settings, early stops, precision, memory, gradients."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
from torch import nn

from orthokernels.models.orthodiffusion.unet import (
    AttentionBlock,
    GroupNorm,
    ResBlock,
    UNet,
    Upsample,
    fold,
    timestep_embedding,
    unfold,
)
from tests.models.golden import fill, wave

SMALL = {"base_channels": 8, "channel_mults": (1, 2, 2), "attention_rates": (4,), "groups": 4}
SHAPE = (2, 1, 4, 12, 16)
TIMESTEPS = torch.tensor([3, 700])

# A layer sums up to K = 27 * 32 products, which errs by about sqrt(K) roundings; some 60 layers follow one another, and
# their errors add. Relative to the size of the whole tensor.
ROUNDINGS = 60 * math.sqrt(27 * 32)


def relative_error(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture
def unet():
    return fill(UNet(**SMALL))


@pytest.fixture
def x():
    return wave(SHAPE, 0.5, 0.37)


def record_runs(unet):
    """Hooks on every block; the returned list fills with the names of those that start to run."""
    ran = []
    for name, block in unet._blocks():
        block.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    return ran


def test_embedding_has_cosines_first_and_slows_down_to_the_longest_period():
    found = timestep_embedding(torch.tensor([0, 7]), 6, max_period=1000.0)
    frequencies = [1000.0 ** (-i / 3) for i in range(3)]
    expected = [[1.0] * 3 + [0.0] * 3, [f(7 * w) for f in (math.cos, math.sin) for w in frequencies]]
    # Angles below 8 err by half a unit in the last place of 8 from the product and as much from the frequency.
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=8 * 2**-23)


def test_network_of_float64_embeds_timesteps_in_float64(unet):
    seen = []
    unet.double().time_embed.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        unet.features(wave((1, *SHAPE[1:]), 0, 0.3).double(), torch.tensor([700]), ("in_1",))
    angles = [700 * 1000.0 ** (-i / 4) for i in range(4)]
    expected = torch.tensor([[f(a) for f in (math.cos, math.sin) for a in angles]], dtype=torch.float64)
    # Angles below 1024, and their frequencies, err by a few units of 1024's last place.
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=4 * 1024 * 2**-52)


def test_embedding_of_odd_width_ends_in_zero():
    found = timestep_embedding(torch.tensor([5]), 7)
    assert found.shape == (1, 7)
    assert found[0, -1] == 0
    assert torch.equal(found[:, :6], timestep_embedding(torch.tensor([5]), 6))


def test_norm_of_half_precision_is_computed_in_float32():
    norm = fill(GroupNorm(4, 16)).bfloat16()
    x = (100 + wave((2, 16, 3, 4, 5), 0.1, 0.7)).bfloat16()
    expected = nn.functional.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), norm.eps)
    found = norm(x)
    assert found.dtype == torch.bfloat16
    # Only the last rounding to bfloat16 (8 bits) is left. Float32's own error, amplified by the mean of 100, is 1e-5.
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_splits_heads_first_and_then_q_k_v(heads):
    block = fill(AttentionBlock(16, heads, groups=4)).double()
    x = wave((2, 16, 2, 3, 4), 0.2, 0.9).double()
    tokens = nn.functional.group_norm(x.flatten(2), 4, block.norm.weight, block.norm.bias)
    qkv = block.qkv(tokens)
    width = 16 // heads
    parts = []
    for head in range(heads):
        q, k, v = qkv[:, 3 * width * head : 3 * width * (head + 1)].split(width, dim=1)
        weights = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / math.sqrt(width), dim=2)
        parts.append(torch.einsum("bts,bcs->bct", weights, v))
    expected = x + block.proj_out(torch.cat(parts, dim=1)).view_as(x)
    # Float64 with sums of at most 24 terms: a thousand roundings are ample.
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1000 * 2**-52)


def test_new_residual_block_is_the_identity():
    x = wave((1, 8, 2, 4, 4), 0.3, 0.5)
    assert torch.equal(ResBlock(8, 8, 32, groups=4, dropout=0.0)(x, torch.ones(1, 32)), x)


def test_new_network_predicts_zero(x):
    assert torch.equal(UNet(**SMALL)(x, TIMESTEPS), torch.zeros(SHAPE))


@pytest.mark.parametrize("names", [("in_0", "in_5"), ("mid_0", "mid_1", "mid_2"), ("out_0", "out_5"), ("final",)])
def test_float32_is_within_rounding_of_float64(unet, x, names):
    with torch.inference_mode():
        found = unet.features(x, TIMESTEPS, names)
        exact = unet.double().features(x.double(), TIMESTEPS, names)
    for name in names:
        assert found[name].dtype == torch.float32
        assert exact[name].dtype == torch.float64
        assert relative_error(found[name], exact[name]) <= ROUNDINGS * 2**-24, name


def test_bfloat16_is_within_rounding_of_float64(unet, x):
    # The filled weights amplify: a tenth covers the roundings to 8 bits, where a wrong layer gives an error near 1.
    with torch.inference_mode():
        exact = unet.double().features(x.double(), TIMESTEPS, ("mid_2",))["mid_2"]
        found = unet.bfloat16().features(x.bfloat16(), TIMESTEPS, ("mid_2",))["mid_2"]
    assert found.dtype == torch.bfloat16
    assert relative_error(found, exact) <= 0.1


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ({"channel_mults": (1,)}, (1, 1, 3, 5, 7)),
        ({"in_channels": 3, "out_channels": 2}, (2, 3, 4, 8, 8)),
        ({"channel_mults": (1, 3, 2, 4)}, (1, 1, 8, 16, 16)),
        ({"res_blocks": 2}, (1, 1, 4, 8, 8)),
        ({"attention_rates": (1, 2, 4), "heads": 2}, (1, 1, 2, 8, 8)),
        ({"head_channels": 4}, (1, 1, 4, 8, 8)),
        ({"base_channels": 12, "groups": 3, "dropout": 0.1}, (1, 1, 4, 8, 8)),
    ],
    ids=str,
)
def test_other_settings_keep_the_volume_size(settings, shape):
    settings = {**SMALL, **settings}
    unet = fill(UNet(**settings))
    with torch.inference_mode():
        found = unet(wave(shape, 0, 0.3), torch.arange(shape[0]))
    assert found.shape == (shape[0], settings.get("out_channels", 1), *shape[2:])
    assert float(found.std()) > 0
    encoder = len(settings["channel_mults"]) * (settings.get("res_blocks", 1) + 1)
    assert len(unet.feature_names) == encoder + 3 + encoder + 1


@pytest.mark.parametrize("size", [(1, 8, 8), (5, 9, 13), (3, 7, 1), (16, 6, 10)])
def test_odd_sizes_come_back_to_their_own_size(unet, size):
    with torch.inference_mode():
        found = unet.features(wave((1, 1, *size), 0, 0.3), torch.tensor([9]), unet.feature_names)
    # Each level of the encoder halves and rounds up; out_0, out_2, out_4 are the first blocks of the decoder's levels.
    sizes = [size]
    for _ in range(2):
        sizes.append(tuple((n + 1) // 2 for n in sizes[-1]))
    assert [tuple(found[f"in_{i}"].shape[2:]) for i in range(6)] == [sizes[i] for i in (0, 0, 1, 1, 2, 2)]
    assert [tuple(found[f"out_{i}"].shape[2:]) for i in range(6)] == [sizes[i] for i in (2, 1, 1, 0, 0, 0)]
    assert tuple(found["final"].shape[2:]) == size
    assert all(bool(feature.isfinite().all()) for feature in found.values())


def test_upsampling_to_an_even_skip_is_a_trilinear_doubling():
    block = fill(Upsample(4))
    x = wave((1, 4, 1, 3, 5), 0.1, 0.7)
    doubled = nn.functional.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
    assert torch.equal(block(x, torch.Size((2, 6, 10))), block.conv(doubled))


def test_attention_stands_only_at_the_asked_rates():
    unet = UNet(**{**SMALL, "attention_rates": (2,)})
    with_attention = [
        name for name, block in unet._blocks() if any(isinstance(layer, AttentionBlock) for layer in block.modules())
    ]
    # Level 1 of three: in_3 (in_2 and in_4 halve), the middle's own, and out_2 and out_3.
    assert with_attention == ["in_3", "mid_1", "out_2", "out_3"]


def test_a_pass_stops_behind_the_last_feature_asked_for(unet, x):
    ran = record_runs(unet)
    with torch.inference_mode():
        for index, name in enumerate(unet.feature_names):
            ran.clear()
            found = unet.features(x, TIMESTEPS, (unet.feature_names[0], name))
            assert set(found) == {unet.feature_names[0], name}
            assert tuple(ran) == unet.feature_names[: index + 1]


@pytest.mark.parametrize(("name", "kept"), [("mid_2", False), ("out_0", True)])
def test_encoder_features_are_kept_only_for_a_decoder(unet, x, name, kept):
    outputs, alive = [], []
    for block in unet.input_blocks:
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(weakref.ref(output)))
    unet.middle_block[2].register_forward_pre_hook(lambda *_: alive.extend(ref() is not None for ref in outputs))
    with torch.no_grad():
        unet.features(x, TIMESTEPS, (name,))
    assert alive == [kept] * len(unet.input_blocks)


def test_features_asked_together_equal_those_asked_alone(unet, x):
    # In-place arithmetic behind a feature must not reach into it.
    with torch.inference_mode():
        together = unet.features(x, TIMESTEPS, unet.feature_names)
        assert list(together) == list(unet.feature_names)
        for name, feature in together.items():
            assert torch.equal(unet.features(x, TIMESTEPS, (name,))[name], feature), name
        assert torch.equal(unet(x, TIMESTEPS), together["final"])
    assert torch.equal(x, wave(SHAPE, 0.5, 0.37))


def test_a_pass_without_gradient_gives_the_same_bytes(unet, x):
    with_gradient = unet(x, TIMESTEPS)
    assert with_gradient.requires_grad
    with torch.no_grad():
        assert torch.equal(unet(x, TIMESTEPS), with_gradient)
    with torch.inference_mode():
        assert torch.equal(unet(x, TIMESTEPS), with_gradient)


def test_a_volume_does_not_see_its_batch(unet, x):
    unet, x = unet.double(), x.double()
    with torch.inference_mode():
        together = unet(x, TIMESTEPS)
        for n in range(2):
            alone = unet(x[n : n + 1], TIMESTEPS[n : n + 1])
            # The same sums, perhaps in another order.
            assert relative_error(alone, together[n : n + 1]) <= ROUNDINGS * 2**-52


def test_timestep_changes_the_prediction(unet, x):
    with torch.inference_mode():
        early, late = unet(x[:1], torch.tensor([3])), unet(x[:1], torch.tensor([700]))
    # 1e-3 is far above rounding in float32 (1e-4 by the bound above).
    assert relative_error(early, late) > 1e-3


def test_channels_last_equals_contiguous(unet, x):
    unet, x = unet.double(), x.double()
    with torch.inference_mode():
        contiguous = unet.features(x, TIMESTEPS, unet.feature_names)
        unet = unet.to(memory_format=torch.channels_last_3d)
        last = unet.features(x.to(memory_format=torch.channels_last_3d), TIMESTEPS, unet.feature_names)
    for name, feature in contiguous.items():
        assert relative_error(last[name], feature) <= ROUNDINGS * 2**-52, name


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="without oneDNN, convolutions are contiguous")
def test_channels_last_stays_channels_last(unet, x):
    unet = unet.to(memory_format=torch.channels_last_3d)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # on one thread PyTorch computes 1x1x1 convolutions without oneDNN, contiguous
    try:
        with torch.inference_mode():
            found = unet.features(x.to(memory_format=torch.channels_last_3d), TIMESTEPS, unet.feature_names)
    finally:
        torch.set_num_threads(threads)
    for name, feature in found.items():
        assert feature.is_contiguous(memory_format=torch.channels_last_3d), name


def test_gradient_of_the_input_is_the_slope():
    unet = fill(UNet(base_channels=4, channel_mults=(1, 2), attention_rates=(2,), groups=2)).double()
    x = wave((1, 1, 2, 4, 4), 0.5, 0.37).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: unet(x, torch.tensor([3])), (x,), fast_mode=True)


def test_gradient_reaches_every_parameter(unet, x):
    unet(x, TIMESTEPS).square().mean().backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().max()) > 0, name


def test_gradient_of_a_middle_feature_leaves_the_decoder_out(unet, x):
    unet.features(x, TIMESTEPS, ("mid_2",))["mid_2"].square().mean().backward()
    with_gradient = {name.split(".")[0] for name, p in unet.named_parameters() if p.grad is not None}
    assert with_gradient == {"time_embed", "input_blocks", "middle_block"}


def test_checkpointing_recomputes_and_gives_the_same_gradient(x):
    gradients, runs = [], []
    for checkpoint in (False, True):
        unet = fill(UNet(**SMALL, checkpoint=checkpoint)).double()
        ran = record_runs(unet)
        unet(x.double(), TIMESTEPS).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in unet.parameters()]))
        runs.append(len(ran))
    assert runs == [len(unet.feature_names), 2 * len(unet.feature_names)]
    assert relative_error(gradients[1], gradients[0]) <= ROUNDINGS * 2**-52


def test_checkpointing_repeats_the_same_dropout(x):
    gradients = []
    for checkpoint in (False, True):
        unet = fill(UNet(**SMALL, dropout=0.5, checkpoint=checkpoint)).double().train()
        torch.manual_seed(0)
        unet(x.double(), TIMESTEPS).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in unet.parameters()]))
    assert relative_error(gradients[1], gradients[0]) <= ROUNDINGS * 2**-52


def test_the_graph_is_captured_whole(unet, x):
    # The "eager" backend runs what was captured, op by op, so nothing but the capture is under test.
    torch.compiler.reset()
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(x, TIMESTEPS), unet(x, TIMESTEPS))


@pytest.mark.parametrize("names", [("mid_3",), ("mid_2", "output"), ()])
def test_unknown_or_missing_feature_names_are_refused(unet, x, names):
    with pytest.raises(ValueError, match=r"(mid_3|output|no feature was asked for).*this network has in_0, .*, final"):
        unet.features(x, TIMESTEPS, names)


def test_timesteps_of_another_batch_are_refused(unet, x):
    with pytest.raises(ValueError, match=r"\(1,\) for a batch of 2"):
        unet(x, torch.tensor([3]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"groups": 3}, "groups=3"), ({"heads": 3}, "heads=3"), ({"head_channels": 5}, "head_channels=5")],
)
def test_settings_that_do_not_divide_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        UNet(**{**SMALL, **settings})


@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 1, 3)])
def test_folded_volume_unfolds_to_itself_in_the_same_memory_format(patch):
    x = torch.randn(2, 3, 4, 6, 6)
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        given = x.contiguous(memory_format=memory_format)
        folded = fold(given, patch)
        assert folded.shape == (2, 3 * math.prod(patch), *(n // p for n, p in zip((4, 6, 6), patch, strict=True)))
        assert folded.is_contiguous(memory_format=memory_format)
        assert torch.equal(unfold(folded, patch), x)


def test_folding_orders_channels_as_pixel_unshuffle_does():
    x = torch.randn(1, 2, 1, 4, 4)
    expected = torch.nn.functional.pixel_unshuffle(x[:, :, 0], 2)
    assert torch.equal(fold(x, (1, 2, 2))[:, :, 0], expected)


def test_network_with_a_patch_keeps_the_volume_size_and_has_smaller_features():
    unet = fill(UNet(**SMALL, patch=(1, 2, 2)))
    x = torch.randn(1, 1, 4, 16, 16)
    found = unet.features(x, torch.tensor([5]), ("in_0", "final"))
    assert found["in_0"].shape[2:] == (4, 8, 8)
    assert found["final"].shape == x.shape


def test_a_side_that_the_patch_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"a patch of \(1, 2, 2\) does not divide a volume of \(4, 15, 16\)"):
        UNet(**SMALL, patch=(1, 2, 2))(torch.zeros(1, 1, 4, 15, 16), torch.tensor([0]))
