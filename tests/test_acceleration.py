"""Ops inside models: this project's, guided-diffusion's by its structure, MONAI's own; and out again."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from orthokernels.acceleration import accelerate, blocks, restore
from orthokernels.models.orthodiffusion import UNet
from orthokernels.ops import conv3d
from orthokernels.schedulers import DDIMScheduler

pytest.importorskip("triton", reason="Triton is not installed")


class GroupNorm32(nn.GroupNorm):
    """As published: float32 arithmetic (float64 is left, to be exact against)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(torch.promote_types(x.dtype, torch.float32))).type(x.dtype)


class GuidedBlock(nn.Module):
    """A residual block put together as guided-diffusion does, with FiLM, and resampling inside."""

    def __init__(self, channels: int, film: bool, updown: bool) -> None:
        super().__init__()
        self.updown, self.use_scale_shift_norm = updown, film
        self.in_layers = nn.Sequential(GroupNorm32(4, channels), nn.SiLU(), nn.Conv3d(channels, channels, 3, padding=1))
        self.h_upd = self.x_upd = nn.AvgPool3d(2) if updown else nn.Identity()
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(12, 2 * channels if film else channels))
        self.out_layers = nn.Sequential(
            GroupNorm32(4, channels), nn.SiLU(), nn.Dropout(0.0), nn.Conv3d(channels, channels, 3, padding=1)
        )
        self.skip_connection = nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self._forward(x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.updown:
            h = self.h_upd(self.in_layers[:-1](x))
            x = self.x_upd(x)
            h = self.in_layers[-1](h)
        else:
            h = self.in_layers(x)
        embedded = self.emb_layers(emb)[..., None, None, None]
        if self.use_scale_shift_norm:
            scale, shift = embedded.chunk(2, dim=1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            return self.skip_connection(x) + self.out_layers[1:](h)
        return self.skip_connection(x) + self.out_layers(h + embedded)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Projections that start at zero would hide what lies behind them."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.2 + (0.5 if parameter.ndim == 1 else 0.0)
    return model


class QKVAttention(nn.Module):
    """The newer order of guided-diffusion: q, k and v first, then heads."""

    def __init__(self, heads: int, legacy: bool) -> None:
        super().__init__()
        self.heads, self.legacy = heads, legacy

    def forward(self, qkv: Tensor) -> Tensor:
        order = (self.heads, 3, -1) if self.legacy else (3, self.heads, -1)
        q, k, v = qkv.unflatten(1, order).unbind(2 if self.legacy else 1)
        weights = (q.transpose(2, 3) @ k * q.shape[2] ** -0.5).softmax(dim=3)
        return (v @ weights.transpose(2, 3)).flatten(1, 2)


class QKVAttentionLegacy(QKVAttention):
    """Heads first, then q, k and v of each."""


class GuidedAttention(nn.Module):
    """An attention block put together as guided-diffusion does."""

    def __init__(self, channels: int, heads: int, legacy: bool) -> None:
        super().__init__()
        self.num_heads = heads
        self.norm = GroupNorm32(4, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.attention = QKVAttentionLegacy(heads, True) if legacy else QKVAttention(heads, False)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        h = self.proj_out(self.attention(self.qkv(self.norm(x.flatten(2)))))
        return x + h.view(x.shape)


def volume(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def project_unet():
    model = UNet(base_channels=8, channel_mults=(1, 2), groups=4, attention_rates=(2,))
    return model, (volume(1, 1, 4, 6, 6), torch.tensor([10]))


def monai_unet():
    nets = pytest.importorskip("monai.networks.nets", reason="MONAI is not installed")
    model = nets.DiffusionModelUNet(
        spatial_dims=3, in_channels=1, out_channels=1, channels=(8, 16), attention_levels=(False, True),
        num_res_blocks=1, num_head_channels=8, norm_num_groups=4, resblock_updown=True,
    )  # fmt: skip
    return model, (volume(1, 1, 4, 4, 4), torch.tensor([10]))


def monai_autoencoder():
    nets = pytest.importorskip("monai.networks.nets", reason="MONAI is not installed")
    model = nets.AutoencoderKL(
        spatial_dims=3, in_channels=1, out_channels=1, channels=(8, 16), attention_levels=(False, False),
        num_res_blocks=1, latent_channels=2, norm_num_groups=4, with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    ).encoder  # fmt: skip
    return model, (volume(1, 1, 4, 4, 4),)


def guided(film: bool, updown: bool):
    return GuidedBlock(8, film, updown), (volume(2, 8, 2, 4, 4), volume(2, 12))


def attention(legacy: bool, last: bool):
    x = volume(2, 8, 2, 3, 4)
    x = x.contiguous(memory_format=torch.channels_last_3d) if last else x
    # PyTorch's own channels-last normalisation writes a gradient that nobody wants through a null pointer (2.13, CPU).
    return GuidedAttention(8, 2, legacy), (x.requires_grad_(),)


def sequence():
    layers = (
        nn.Conv3d(1, 8, 1),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.GroupNorm(4, 8),
        nn.Upsample(scale_factor=2, mode="trilinear"),
    )
    return nn.Sequential(*layers), (volume(1, 1, 2, 3, 3),)


MODELS = {
    "project": project_unet, "monai_unet": monai_unet, "monai_autoencoder": monai_autoencoder, "sequence": sequence,
    **{f"guided_{film}_{up}": lambda film=film, up=up: guided(film, up) for film in (0, 1) for up in (0, 1)},
    **{
        f"attention_{old}_{last}": lambda old=old, last=last: attention(old, last) for old in (0, 1) for last in (0, 1)
    },
}  # fmt: skip


def outcome(model: nn.Module, inputs: tuple[Tensor, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The output and every parameter's gradient."""
    given = [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs]
    model.zero_grad()
    y = model(*given)
    (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).view(y.shape)).sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", list(MODELS))
def test_output_and_gradients_stay_as_exact(name):
    model, inputs = MODELS[name]()
    randomised(model)
    exact = outcome(copy.deepcopy(model).double(), inputs, torch.float64)
    plain = outcome(copy.deepcopy(model), inputs)
    keys = list(model.state_dict())
    report = accelerate(model, backend="triton")
    assert report.replaced
    assert list(model.state_dict()) == keys
    largest = max(float(want.abs().max()) for want in exact[1:])
    for own, other, want in zip(outcome(model, inputs), plain, exact, strict=True):
        # Twice the untouched model's own error, and where that is luckily small a few roundings of the largest value. A
        # bias in front of a normalisation has no gradient: its own is the rounding of a sum of others.
        bound = 2 * (other - want).abs().max() + 1e-5 * want.abs().max() + 1e-7 * largest
        assert (own - want).abs().max() <= bound


@pytest.mark.parametrize("name", list(MODELS))
def test_restoring_gives_the_same_bits_again(name):
    model, inputs = MODELS[name]()
    randomised(model)
    before, classes = outcome(model, inputs), [type(module) for module in model.modules()]
    accelerate(model, backend="triton", memory_format=None)
    assert [type(module) for module in model.modules()] != classes
    restore(model)
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(a, b) for a, b in zip(outcome(model, inputs), before, strict=True))


def test_the_report_names_every_module_and_why_one_was_left():
    model, _ = MODELS["project"]()
    report = accelerate(model, backend="triton")
    kinds = {row.kind: row.ops for row in report.replaced}
    assert kinds == {
        "ResBlock": ("group_norm_silu",), "Upsample": ("upsample2x_trilinear",), "Sequential": ("group_norm_silu",),
        "AttentionBlock": ("attention3d",), "UNet": ("group_norm_silu",),
    }  # fmt: skip
    assert "middle_block.0: ResBlock -> group_norm_silu" in str(report)
    assert not report.left


def test_on_a_cpu_all_but_attention_is_replaced_and_that_is_told():
    model, inputs = MODELS["project"]()
    before = model(*inputs)
    report = accelerate(model)
    assert {row.ops for row in report.replaced} == {("group_norm_silu",), ("upsample2x_trilinear",), ("conv3d",)}
    assert {row.kind for row in report.left} == {"AttentionBlock"}
    (reason,) = {row.reason for row in report.left}
    assert reason.startswith("PyTorch's own attention takes calls without bias and window")
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs), before, rtol=1e-4, atol=1e-5)  # float32 through some dozen layers


def test_on_a_cpu_every_native_kernel_is_called_where_it_is_asked_for():
    model, inputs = MODELS["project"]()
    for parameter in model.parameters():  # layers that begin at zero would hide what comes before them
        nn.init.normal_(parameter, std=0.1)
    before = model(*inputs)
    assert before.std() > 0.01
    report = accelerate(model, backend="cpu")
    every = ("group_norm_silu", "upsample2x_trilinear", "conv3d", "attention3d")
    assert {row.ops for row in report.replaced} == {(op,) for op in every}
    torch.testing.assert_close(model(*inputs), before, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sides", [(4, 8, 8), (4, 64, 64)])
def test_on_a_cpu_a_convolution_learns_natively_where_the_volume_is_large(sides, monkeypatch):
    conv, x = nn.Conv3d(16, 16, 3, padding=1), torch.randn(1, 16, *sides)
    assert accelerate(nn.Sequential(conv)).replaced
    called = []
    monkeypatch.setattr(blocks, "conv3d", lambda *given, **options: called.append(given) or conv3d(*given, **options))
    learnt = conv(x)
    assert bool(called) == (sides == (4, 64, 64))
    with torch.no_grad():
        torch.testing.assert_close(conv(x), learnt)
    assert called


def test_on_a_cpu_a_network_learns_natively_what_it_learned_before():
    model = randomised(UNet(base_channels=16, channel_mults=(1, 2), groups=4, attention_rates=()))
    inputs = volume(1, 1, 4, 64, 64), torch.tensor([10])  # 2^14 voxels, from which convolutions learn natively
    want = outcome(copy.deepcopy(model), inputs)
    accelerate(model)
    for own, other in zip(outcome(model, inputs), want, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=2e-5 * float(other.abs().max()) + 1e-6)


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (nn.Conv3d(4, 4, 5, padding=2), "its kernel is neither 3 x 3 x 3 nor 1 x 1 x 1"),
        (nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1)), "its kernel is neither 3 x 3 x 3 nor 1 x 1 x 1"),
        (nn.Conv3d(4, 4, 3, padding=1, stride=3), "its stride is neither 1 nor 2 along all axes"),
        (nn.Conv3d(4, 4, 3), "it does not pad with zeros to its own size"),
        (nn.Conv3d(4, 4, 3, padding=1, padding_mode="circular"), "it does not pad with zeros to its own size"),
        (nn.Conv3d(4, 4, 3, padding=1, groups=2), "it is dilated or grouped"),
    ],
)
def test_on_a_cpu_other_convolutions_are_left(conv, reason):
    assert [row.reason for row in accelerate(nn.Sequential(conv)).left] == [reason]


def test_on_a_cpu_a_model_in_double_precision_is_left_as_it_is():
    report = accelerate(nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU()).double())
    assert [row.reason for row in report.left] == ["no kernel computes group_norm_silu on cpu in torch.float64"]


def test_only_what_was_asked_for_is_replaced():
    model, _ = MODELS["project"]()
    report = accelerate(model, ops="upsample2x_trilinear", backend="triton")
    assert {row.kind for row in report.replaced} == {"Upsample"}
    assert {row.reason for row in report.left} == {"group_norm_silu was not asked for", "attention3d was not asked for"}
    with pytest.raises(ValueError, match="ops: 'attention'; there are group_norm_silu"):
        accelerate(model, ops="attention")


def test_a_hook_that_would_be_lost_keeps_its_module():
    model = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU())
    model[0].register_forward_hook(lambda *_: None)
    report = accelerate(model, backend="triton")
    assert report.left[0].reason == "its GroupNorm has a hook, which would not be called"


@pytest.mark.parametrize("register", ["register_forward_pre_hook", "register_full_backward_pre_hook"])
@pytest.mark.parametrize("part", ["in_layers", "out_layers"])
def test_a_hook_on_layers_that_would_be_passed_by_keeps_their_block(part, register):
    model, inputs = MODELS["guided_1_0"]()
    seen = []
    getattr(getattr(model, part), register)(lambda *given: seen.append(part))
    report = accelerate(model, ops="group_norm_silu", backend="torch")
    assert [row.reason for row in report.left] == ["its Sequential has a hook, which would not be called"]
    if part == "in_layers":  # FiLM takes the other's layers one by one
        model(*inputs).sum().backward()
        assert seen


def test_an_attention_block_with_another_norm_is_left_alone():
    model, inputs = MODELS["attention_0_0"]()
    model.norm = nn.LayerNorm(24)
    want = model(*inputs)
    report = accelerate(model, backend="torch")
    assert [row.reason for row in report.left] == ["its norm is LayerNorm, not GroupNorm"]
    assert torch.equal(model(*inputs), want)


@pytest.mark.parametrize("name", ["project", "guided_1_1", "attention_1_0", "sequence"])
def test_an_accelerated_model_is_pickled_and_copied(name, tmp_path):
    model, inputs = MODELS[name]()
    kinds = [type(module) for module in randomised(model).modules()]
    accelerate(model, backend="torch")
    torch.save(model, tmp_path / "model.pt")
    for other in (torch.load(tmp_path / "model.pt", weights_only=False), copy.deepcopy(model)):
        assert [type(module) for module in other.modules()] == [type(module) for module in model.modules()]
        assert torch.equal(other(*inputs), model(*inputs))
        restore(other)
        assert [type(module) for module in other.modules()] == kinds


def test_a_group_norm_of_its_own_kind_is_left_alone():
    class Scaled(nn.GroupNorm):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    report = accelerate(nn.Sequential(Scaled(2, 4), nn.SiLU()), backend="triton")
    assert report.left[0].reason == "Scaled is not known to compute what GroupNorm does"


def test_the_decoder_s_inputs_are_not_concatenated():
    model, _ = MODELS["project"]()
    x, skip = volume(1, 8, 2, 3, 3), volume(1, 8, 2, 3, 3)
    assert torch.equal(model._join(x, skip), torch.cat([x, skip], dim=1))
    accelerate(model, backend="triton")
    assert model._join(x, skip) == (x, skip)
    restore(model)
    assert isinstance(model._join(x, skip), Tensor)


class Called(TorchDispatchMode):
    """Names of this package's ops that were called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.namespace == "orthokernels":
            self.names.append(function._opname)
        return function(*arguments, **(options or {}))


def test_attention_over_few_voxels_is_one_op():
    model, (few,) = MODELS["attention_1_0"]()
    many = volume(1, 8, 5, 15, 15)
    want = randomised(model)(many)
    accelerate(model, backend="torch")
    for x, lowered, names in (
        (few, False, ["attention_block"]),
        (few, True, ["group_norm_silu", "attention3d"]),  # autocast multiplies in bfloat16, and so do the single ops
        (few.bfloat16(), True, ["attention_block"]),
        (many, False, ["group_norm_silu", "attention3d"]),
    ):
        with Called() as called, torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            found = model(x)
        assert called.names == names
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)  # float32 rounding of sums below 100


def test_an_attention_block_is_compiled_whole():
    model, (x,) = MODELS["attention_0_0"]()
    randomised(model)
    want = outcome(copy.deepcopy(model), (x,))
    accelerate(model, backend="torch")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for own, other in zip(outcome(compiled, (x,)), want, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_a_decoder_that_is_not_all_replaced_concatenates():
    model, inputs = MODELS["project"]()
    want = randomised(model)(*inputs)
    model.output_blocks[0][0].in_layers[0].register_forward_hook(lambda *_: None)
    report = accelerate(model, backend="triton")
    assert {row.kind: row.reason for row in report.left} == {
        "ResBlock": "its GroupNorm has a hook, which would not be called",
        "UNet": "not all blocks of its decoder were replaced, so it concatenates their inputs",
    }
    torch.testing.assert_close(model(*inputs), want, rtol=1e-4, atol=1e-4)  # float32 rounding of sums below 100


def test_a_hook_on_a_decoder_block_sees_what_it_always_saw():
    model, inputs = MODELS["project"]()
    seen: list[Tensor] = []
    model.output_blocks[1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    report = accelerate(model, backend="torch")
    assert [row.reason for row in report.left] == [
        "a block of its decoder has a hook, which would see its two inputs apart"
    ]
    model(*inputs)
    assert isinstance(seen[0], Tensor)


def test_gradients_under_ddp_are_those_without(tmp_path):
    model, inputs = MODELS["project"]()
    want = outcome(copy.deepcopy(randomised(model)), inputs)
    accelerate(model, backend="torch")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        found = outcome(nn.parallel.DistributedDataParallel(model), inputs)
    finally:
        torch.distributed.destroy_process_group()
    for own, other in zip(found, want, strict=True):
        # The same sums in another order, as the op's definition takes them.
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()) + 1e-6)


def test_monai_s_network_stays_channels_last_behind_its_attention():
    nets = pytest.importorskip("monai.networks.nets", reason="MONAI is not installed")
    model = randomised(monai_unet()[0])
    accelerate(model, backend="cpu")
    assert model.conv_in.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
    blocks = [own for own in model.modules() if isinstance(own, nets.diffusion_model_unet.DiffusionUNetResnetBlock)]
    laid = []
    for block in blocks:
        block.register_forward_hook(
            lambda _, given, made: laid.append(made.is_contiguous(memory_format=torch.channels_last_3d))
        )
    model(volume(1, 1, 4, 4, 4), torch.tensor([10]))
    assert laid == [True] * len(blocks)


def test_monai_s_attention_is_left_where_it_does_more():
    blocks = pytest.importorskip("monai.networks.blocks.selfattention", reason="MONAI is not installed")
    for options, reason in (
        ({"save_attn": True}, "it keeps its attention matrix"),
        ({"dropout_rate": 0.1}, "it drops attention weights"),
        ({"causal": True, "sequence_length": 4}, "it is causal"),
    ):
        report = accelerate(nn.Sequential(blocks.SABlock(8, 2, **options)), backend="triton")
        assert report.left[0].reason == reason
    model, x = blocks.SABlock(8, 2), volume(2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    want = model(x), model(x, mask)
    accelerate(nn.Sequential(model), backend="triton")
    torch.testing.assert_close((model(x), model(x, mask)), want, rtol=1e-5, atol=1e-6)


def test_sampling_stays_with_eager():
    # Of every kind of block the fewest: a step of interpreted kernels takes a second all the same.
    model = randomised(UNet(base_channels=4, channel_mults=(1,), groups=2, attention_rates=())).eval()
    x = volume(1, 1, 2, 4, 4)

    @torch.no_grad()
    def sampled(steps: int, dtype: torch.dtype) -> Tensor:
        scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
        scheduler.set_timesteps(steps)
        moving = x
        for timestep in scheduler.timesteps:
            output = model.to(dtype)(moving.to(dtype), timestep.expand(1))
            moving = scheduler.step(output.float(), timestep, moving).prev_sample
        model.float()
        return moving

    def psnr(found: Tensor, want: Tensor) -> float:
        return float(10 * torch.log10((want.max() - want.min()) ** 2 / (found - want).square().mean()))

    steps = {"torch": 50, "triton": 10} | ({"cpu": 50} if importlib.util.find_spec("orthokernels._native") else {})
    eager = {own: sampled(own, torch.float32) for own in {*steps.values()}}
    figures = {}
    for backend, own in steps.items():
        accelerate(model, backend=backend)
        figures[backend] = psnr(sampled(own, torch.float32), eager[own])
    accelerate(model, backend="torch")  # the interpreter's bfloat16 is not a GPU's
    half = psnr(sampled(50, torch.bfloat16), eager[50])
    print({name: f"{figure:.1f} dB" for name, figure in {**figures, "bfloat16": half}.items()})
    assert min(figures.values()) > 60
    assert half > 20


@pytest.mark.parametrize("first", ["compile", "accelerate"])
def test_it_works_with_torch_compile_in_either_order(first):
    model, inputs = MODELS["guided_0_0"]()
    want = randomised(model)(*inputs)
    if first == "accelerate":
        accelerate(model, backend="torch")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(*inputs)
    if first == "compile":
        accelerate(model, backend="torch")
    torch.testing.assert_close(compiled(*inputs), want, rtol=1e-5, atol=1e-5)  # float32 rounding of sums below 10


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("learns", [False, True])
def test_an_exported_model_takes_any_batch_and_sides(learns, strict):
    """Whether a kernel wins anything by a size is no question of a graph that is for all sizes."""
    model = nn.Sequential(*(nn.Conv3d(8, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.SiLU(), nn.GroupNorm(4, 8)))
    model.append(nn.Upsample(scale_factor=2, mode="trilinear"))
    small, large = volume(2, 8, 5, 5, 5), volume(3, 8, 16, 17, 18)
    want = randomised(model)(large)
    accelerate(model)
    open_axes = dict.fromkeys((0, 2, 3, 4), torch.export.Dim.AUTO)
    with torch.set_grad_enabled(learns):
        program = torch.export.export(model, (small,), dynamic_shapes=(open_axes,), strict=strict)
    assert all(own.upper > 10**9 for own in program.range_constraints.values())
    # float32 rounding of sums below 20, in the order of Winograd's algorithm
    torch.testing.assert_close(program.module()(large), want, rtol=1e-4, atol=1e-4)


def test_autocast_keeps_half_precision_between_convolutions():
    model, inputs = MODELS["guided_0_0"]()
    randomised(model)
    inputs = [tensor.bfloat16() for tensor in inputs]  # as a convolution under autocast gives them
    seen: list[torch.dtype] = []
    model.in_layers[2].register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(*inputs)
        accelerate(model, backend="torch")
        found = model(*inputs)
    # bfloat16 has 8 digits: both differ from the truth by about 2^-8 of values below 8.
    torch.testing.assert_close(found.float(), plain.float(), rtol=0.05, atol=0.1)
    assert seen[-1] == torch.bfloat16


def test_gradient_checkpointing_recomputes_through_the_ops():
    plain, inputs = MODELS["project"]()
    model = UNet(base_channels=8, channel_mults=(1, 2), groups=4, attention_rates=(2,), checkpoint=True)
    model.load_state_dict(randomised(plain).state_dict())
    want = outcome(plain, inputs)
    accelerate(model, backend="torch")
    for own, other in zip(outcome(model, inputs), want, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_weights_and_buffers_of_two_dimensions_keep_their_memory_format():
    model = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
    model.flat = nn.Conv2d(2, 4, 3)
    model.register_buffer("places", torch.zeros(1, 2, 3, 4))
    assert accelerate(model).replaced
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert model.flat.weight.is_contiguous()
    assert model.places.is_contiguous()


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adagrad])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_fused_optimiser_s_moments_stay_those_of_their_weights(kind, loaded):
    """PyTorch's go by places in memory: its state is from before the weights were laid channels last."""
    x = volume(1, 4, 4, 4, 4)

    def learned(step_from: int, to: int, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        for step in range(step_from, to):
            optimiser.zero_grad()
            model(x + step).square().mean().backward()
            optimiser.step()

    weights = []
    for accelerated in (False, True):
        model = randomised(nn.Sequential(nn.Conv3d(4, 4, 3, padding=1)))
        optimiser = kind(model.parameters(), lr=0.01, fused=True)
        learned(0, 2, model, optimiser)
        if accelerated:
            saved = copy.deepcopy(optimiser.state_dict())
            accelerate(model)
            assert model[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
            optimiser = kind(model.parameters(), lr=0.01, fused=True) if loaded else optimiser
            if loaded:
                optimiser.load_state_dict(saved)
        learned(2, 4, model, optimiser)
        weights.append(model[0].weight.detach().clone())
    # Gradients are off by float32 rounding, and a step by as much of the rate; moments of others are off by the rate.
    torch.testing.assert_close(*weights, rtol=0, atol=1e-4)


def test_what_fails_changes_nothing(monkeypatch):
    model = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv3d(4, 4, 3, padding=1))
    accelerate(model)
    classes = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match="ops: 'attention'"):
        accelerate(model, ops="attention")
    assert [type(module) for module in model.modules()] == classes
    restore(model)
    classes = [type(module) for module in model.modules()]
    with pytest.raises(TypeError):
        accelerate(model, memory_format="channels_last")
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.parametrize("backend", ["auto", "torch", "cpu"])
def test_vectors_and_empty_batches_go_the_way_they_went(backend):
    if backend == "cpu":
        pytest.importorskip("orthokernels._native")
    of_vectors = nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.SiLU())
    of_volumes = nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Upsample(scale_factor=2, mode="trilinear")
    )
    for model, x in ((of_vectors, volume(5, 3)), (of_vectors, volume(0, 3)), (of_volumes, volume(0, 2, 2, 4, 4))):
        restore(model)
        want = model(x)
        accelerate(model, ops=("group_norm_silu", "upsample2x_trilinear"), backend=backend)
        assert torch.equal(model(x), want)
    block, (few, emb) = MODELS["guided_1_0"]()
    accelerate(block, ops="group_norm_silu", backend=backend)
    assert block(few[:0], emb[:0]).shape == few[:0].shape
    attention, (few,) = MODELS["attention_0_0"]()
    accelerate(attention, ops="attention3d", backend=backend)
    assert attention(few[:0]).shape == few[:0].shape
