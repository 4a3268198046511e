"""Modules that look like those an op serves: what computes something else is left, and told."""

from __future__ import annotations

import copy
import functools
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

from orthokernels.acceleration import accelerate, restore
from tests import test_acceleration as kit

EXACT = {"rtol": 1e-4, "atol": 1e-5}  # float32 through three layers of values below 10


def left_of(model: nn.Module, *inputs: Tensor, **options) -> set[str]:
    """The reasons of what was left; the model computes what it did, to the bit where nothing was replaced."""
    model.eval()
    want = model(*inputs)
    report = accelerate(model, backend="torch", memory_format=None, **options)
    found = model(*inputs)
    assert torch.equal(found, want) if not report.replaced else torch.allclose(found, want, **EXACT)
    return {row.reason for row in report.left}


class Standardised(nn.Conv3d):
    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3, 4), keepdim=True)
        return F.conv3d(input, weight, self.bias, self.stride, self.padding)


class Causal(nn.Conv3d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv3d(F.pad(input, (1, 1, 1, 1, 2, 0)), weight, bias)


class Halved(nn.SiLU):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / 2


class Sharpened(nn.Upsample):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Standardised(4, 4, 3, padding=1), "Standardised has a forward of its own"),
        (Causal(4, 4, 3, padding=1), "Causal has a forward of its own"),
        (Sharpened(scale_factor=2, mode="trilinear"), "Sharpened has a forward of its own"),
        (nn.Sequential(nn.GroupNorm(2, 4), Halved()), "its Halved has a forward of its own"),
    ],
    ids=lambda given: type(given).__name__,
)
def test_a_subclass_with_a_forward_of_its_own_is_left(module, reason):
    ops = ("group_norm_silu", "upsample2x_trilinear", "conv3d")
    assert left_of(nn.Sequential(module), kit.volume(1, 4, 2, 4, 4), ops=ops) == {reason}


def test_a_convolution_that_quantises_its_weights_is_left():
    qat = pytest.importorskip("torch.ao.nn.qat")
    qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    report = accelerate(nn.Sequential(qat.Conv3d(4, 4, 3, padding=1, qconfig=qconfig)), ops="conv3d", backend="torch")
    assert [row.reason for row in report.left] == ["Conv3d has a forward of its own"]


def test_monai_s_blocks_with_a_forward_of_their_own_are_left():
    nets = pytest.importorskip("monai.networks.nets", reason="MONAI is not installed")
    from monai.networks.blocks.selfattention import SABlock
    from monai.networks.nets.autoencoderkl import AEKLResBlock
    from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock

    assert nets

    def doubled(kind: type[nn.Module]) -> type[nn.Module]:
        return type(
            f"Doubled{kind.__name__}", (kind,), {"forward": lambda self, *given: 2 * kind.forward(self, *given)}
        )

    x = kit.volume(1, 8, 2, 4, 4)
    for kind, options, inputs in (
        (
            DiffusionUNetResnetBlock,
            {"spatial_dims": 3, "in_channels": 8, "temb_channels": 4, "norm_num_groups": 4},
            (x, kit.volume(1, 4)),
        ),
        (
            AEKLResBlock,
            {"spatial_dims": 3, "in_channels": 8, "norm_num_groups": 4, "norm_eps": 1e-6, "out_channels": 8},
            (x,),
        ),
        (SABlock, {"hidden_size": 8, "num_heads": 2}, (kit.volume(2, 5, 8),)),
    ):
        reasons = left_of(doubled(kind)(**options), *inputs, ops=("group_norm_silu", "attention3d"))
        assert reasons == {f"Doubled{kind.__name__} has a forward of its own"}
        inherited = type("Inherited", (kind,), {})(**options)
        assert left_of(inherited, *inputs, ops=("group_norm_silu", "attention3d")) == set()


def own_forward(module: nn.Module) -> None:
    """As accelerate's hooks do: the instance gets a forward that calls the class's."""
    module.forward = functools.partial(type(module).forward, module)


def test_a_forward_that_was_set_on_an_instance_is_kept():
    for of in (lambda model: model[0], lambda model: model[1]):
        model = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU())
        own_forward(of(model))
        kind = type(of(model)).__name__
        assert left_of(model, kit.volume(1, 4, 2, 2, 2)) == {
            f"the forward of its {kind} was set on the instance, and would not be called"
        }
    block, inputs = kit.guided(False, False)
    for module, given in ((nn.Conv3d(4, 4, 3, padding=1), (kit.volume(1, 4, 2, 4, 4),)), (block, inputs)):
        own_forward(module)
        ops = ("group_norm_silu", "conv3d") if module is not block else "group_norm_silu"
        assert left_of(module, *given, ops=ops) == {"its forward was set on the instance, and would not be called"}


@pytest.mark.parametrize("parametrise", [weight_norm, spectral_norm])
def test_a_parametrised_convolution_is_replaced(parametrise):
    model, x = nn.Sequential(parametrise(nn.Conv3d(4, 4, 3, padding=1))).eval(), kit.volume(1, 4, 2, 4, 4)
    want = model(x)
    assert [row.kind for row in accelerate(model, ops="conv3d", backend="cpu").replaced] == ["ParametrizedConv3d"]
    torch.testing.assert_close(model(x), want, **EXACT)


class Counted(nn.Module):
    """A parametrisation as spectral_norm's in training, which goes a step further whenever a weight is read."""

    def __init__(self) -> None:
        super().__init__()
        self.readings = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.readings += 1
        return weight


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize(
    ("make", "part", "sides"),
    [
        (lambda: nn.Sequential(nn.Conv3d(8, 8, 3, padding=1)), "0", (4, 4, 4)),  # too small to gain
        (lambda: nn.Sequential(nn.Conv3d(8, 8, 3, padding=1)), "0", (16, 16, 16)),
        (lambda: kit.GuidedAttention(8, 2, True), "qkv", (2, 3, 4)),
        (lambda: kit.monai_autoencoder()[0].blocks[1], "conv1.conv", (4, 4, 4)),
    ],
)
def test_a_parametrised_weight_is_read_once_a_pass(make, part, sides, learns):
    model, counted = make(), Counted()
    register_parametrization(model.get_submodule(part), "weight", counted)
    report = accelerate(model, backend="torch" if part == "qkv" else "auto")
    assert {row.name for row in report.replaced} & {part, ""}
    counted.readings = 0
    with torch.set_grad_enabled(learns):
        model(kit.volume(1, 8, *sides))
    assert counted.readings == 1


class LowRank(nn.Module):
    """An adapter in the place of a convolution; it has no weight of its own."""

    def __init__(self, base: nn.Module, given: int, made: int) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = nn.Conv3d(given, 2, 1, bias=False), nn.Conv3d(2, made, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def adapted(model: nn.Module, inside: bool) -> nn.Module:
    """Adapters around MONAI's first convolutions of all residual blocks, or inside of what MONAI has around these."""
    for block in list(model.modules()):
        if hasattr(block, "conv1"):
            own = block.conv1.conv
            adapter = LowRank(own if inside else block.conv1, own.in_channels, own.out_channels)
            if inside:
                block.conv1.conv = adapter
            else:
                block.conv1 = adapter
    return kit.randomised(model)


@pytest.mark.parametrize("name", ["monai_unet", "monai_autoencoder"])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("afterwards", [False, True])
def test_monai_s_convolutions_may_be_adapted(name, inside, afterwards):
    model, inputs = kit.MODELS[name]()
    if afterwards:
        accelerate(model)
    adapted(model, inside)
    if not afterwards:
        accelerate(model)
    found = model(*inputs).detach()
    restore(model)
    # float32 rounding through a dozen layers, in the order of Winograd's algorithm
    torch.testing.assert_close(found, model(*inputs), rtol=1e-3, atol=1e-3 * float(found.abs().max()))


def test_monai_s_network_is_mapped_over_samples():
    model, (x, timestep) = kit.monai_unet()
    kit.randomised(model)
    volumes = torch.cat([x, x.flip(2)])
    accelerate(model)
    found = torch.vmap(lambda own: model(own[None], timestep)[0])(volumes).detach()
    want = model(volumes, timestep.expand(2)).detach()
    # float32 rounding through a dozen layers
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


class HeadsFirst(nn.Module):
    """improved-diffusion's and GLIDE's order, under the name that guided-diffusion has for the other one."""

    def __init__(self, heads: int | None = None) -> None:
        super().__init__()
        if heads is not None:
            self.n_heads = heads

    def forward(self, qkv: Tensor) -> Tensor:
        heads = getattr(self, "n_heads", 1)
        q, k, v = qkv.reshape(len(qkv) * heads, -1, qkv.shape[2]).chunk(3, dim=1)
        weights = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(dim=-1)
        return (v @ weights.transpose(1, 2)).reshape(len(qkv), -1, qkv.shape[2])


HeadsFirst.__name__ = "QKVAttention"


class ImprovedAttention(kit.GuidedAttention):
    """As improved-diffusion's: the heads go into the batch before ``attention`` is called."""

    def __init__(self, channels: int, heads: int, legacy: bool = True) -> None:
        super().__init__(channels, heads, legacy)
        self.attention = HeadsFirst()

    def _forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x.flatten(2)))
        h = self.attention(qkv.reshape(len(qkv) * self.num_heads, -1, qkv.shape[2]))
        return x + self.proj_out(h.reshape(len(x), -1, h.shape[-1])).view(x.shape)


class GlideAttention(nn.Module):
    """As GLIDE's, which may attend to encoded text as well, and has no ``_forward``."""

    def __init__(self, channels: int, heads: int, legacy: bool = True) -> None:
        super().__init__()
        self.num_heads = heads
        self.norm = kit.GroupNorm32(4, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.attention = HeadsFirst(heads)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, encoder_out: Tensor | None = None) -> Tensor:
        h = x + self.proj_out(self.attention(self.qkv(self.norm(x.flatten(2))))).view(x.shape)
        return h if encoder_out is None else h + encoder_out.mean()


ATTENTIONS = [ImprovedAttention, GlideAttention, kit.GuidedAttention]


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize(
    "kind", [ImprovedAttention, GlideAttention, kit.GuidedAttention], ids=lambda kind: kind.__name__
)
def test_the_order_of_heads_is_found_by_trying(kind, heads, tmp_path):
    model = kit.randomised(kind(8, heads, legacy=False))
    few, many = kit.volume(2, 8, 2, 3, 4), kit.volume(1, 8, 5, 15, 15)
    want = model(few), model(many)
    assert accelerate(model, backend="torch", ops="attention3d").replaced
    torch.save(model, tmp_path / "model.pt")
    for other in (model, copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        torch.testing.assert_close((other(few), other(many)), want, **EXACT)


def test_projections_that_start_at_zero_hide_no_order():
    model = ImprovedAttention(8, 2)
    for own in model.proj_out.parameters():
        nn.init.zeros_(own)
    accelerate(model, backend="torch", ops="attention3d")
    x = kit.volume(2, 8, 2, 3, 4)
    want = type(model)._orthokernels_original(8, 2)
    want.load_state_dict(kit.randomised(model).state_dict())
    torch.testing.assert_close(model(x), want(x), **EXACT)


def test_what_attention_is_given_besides_goes_to_its_own_class():
    model, x = kit.randomised(GlideAttention(8, 2)), kit.volume(2, 8, 2, 3, 4)
    want = model(x), model(x, torch.ones(3)), model(x=x, encoder_out=None)
    assert accelerate(model, backend="torch", ops="attention3d").replaced
    torch.testing.assert_close((model(x), model(x, torch.ones(3)), model(x=x, encoder_out=None)), want, **EXACT)


class Averaged(kit.GuidedBlock):
    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return super()._forward(x, emb) / 2**0.5


class AveragedOutside(kit.GuidedBlock):
    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return super().forward(x, emb) / 2**0.5


class Scaled(kit.GuidedAttention):
    """A LayerScale, which at its beginning of 1 changes nothing yet."""

    def __init__(self, channels: int, heads: int, legacy: bool) -> None:
        super().__init__(channels, heads, legacy)
        self.gamma = nn.Parameter(torch.ones(1))

    def _forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * (super()._forward(x) - x)


class Swish(kit.GroupNorm32):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


Swish.__name__ = "GroupNorm32"


def test_what_only_has_the_parts_of_a_block_is_left():
    told = "computes something else than the block that it has the parts of"
    emb = kit.volume(2, 12)
    x = kit.volume(2, 8, 2, 4, 4)
    assert left_of(Averaged(8, False, False), x, emb, ops="group_norm_silu") == {f"Averaged {told}"}
    assert left_of(AveragedOutside(8, False, False), x, emb, ops="group_norm_silu") == set()
    assert left_of(Scaled(8, 2, True), kit.volume(2, 8, 2, 3, 4)) == {f"Scaled {told}"}
    model = nn.Sequential(Swish(2, 4), nn.SiLU())
    assert left_of(model, kit.volume(1, 4, 2, 2, 2)) == {"GroupNorm32 is not known to compute what GroupNorm does"}
    model = nn.Sequential(kit.GroupNorm32(2, 4), nn.SiLU())
    assert left_of(model, kit.volume(1, 4, 2, 2, 2)) == set()


def test_a_trial_is_not_noticed():
    block, inputs = kit.guided(True, False)
    seen = []
    for part in block.modules():
        if not isinstance(part, nn.GroupNorm | nn.SiLU | nn.Sequential):
            part.register_forward_hook(lambda *_: seen.append(1))
    keys = [own.clone() for own in block.parameters()]
    state = torch.random.get_rng_state()
    assert accelerate(block.train(), backend="torch", ops="group_norm_silu").replaced
    assert not seen
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(own, before) for own, before in zip(block.parameters(), keys, strict=True))
    assert all(part.training for part in block.modules())
    block(*inputs)
    assert seen


def test_what_can_not_be_tried_is_left():
    with torch.device("meta"):
        block, _ = kit.guided(False, False)
        block.in_layers[0] = block.out_layers[0] = nn.GroupNorm(4, 8)
    (row,) = accelerate(block, ops="group_norm_silu", backend="torch").left
    assert row.reason.startswith("it could not be tried whether it computes what the op does (NotImplementedError")


@pytest.mark.parametrize("make", [lambda: kit.guided(False, False), lambda: kit.attention(1, 0)])
def test_a_wrapper_is_not_taken_for_what_it_wraps(make):
    module, inputs = make()
    model = nn.Sequential(checkpoint_wrapper(kit.randomised(module)))
    want = model[0](*inputs)
    report = accelerate(model, backend="torch", ops=("group_norm_silu", "attention3d"))
    assert [row.name for row in report.replaced] == ["0._checkpoint_wrapped_module"]
    torch.testing.assert_close(model[0](*inputs), want, **EXACT)


def test_a_class_that_was_made_after_is_not_taken_away():
    model, x = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.Conv3d(4, 4, 1)), kit.volume(1, 4, 2, 4, 4)
    accelerate(model, ops="conv3d", backend="torch")
    weight_norm(model[0])
    want, classes = model(x), [type(module) for module in model]
    told = "model: 0 became ParametrizedAcceleratedConv3d after accelerate; undo that first"
    for again in (restore, accelerate):
        with pytest.raises(ValueError, match=told):
            again(model)
        assert [type(module) for module in model] == classes
        assert torch.equal(model(x), want)
    remove_parametrizations(model[0], "weight")
    restore(model)
    assert [type(module) for module in model] == [nn.Conv3d, nn.Conv3d]


def test_fully_shard_comes_first(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    x = kit.volume(1, 4, 2, 4, 4)
    made = [nn.Conv3d(4, 4, 3, padding=1) for _ in range(2)]
    want = [conv(x) for conv in made]
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        accelerate(made[0], ops="conv3d", backend="torch", memory_format=None)
        for conv in made:
            fully_shard(conv, mesh=mesh)
        with pytest.raises(ValueError, match=r"model: \(model\) became FSDPAcceleratedConv3d after accelerate"):
            restore(made[0])
        assert accelerate(made[1], ops="conv3d", backend="torch").replaced
        found = [conv(x) for conv in made]
        restore(made[1])
        assert type(made[1]).__name__ == "FSDPConv3d"
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(found, want, **EXACT)


@pytest.mark.parametrize("backend", ["trition", "cuda"])
def test_an_unknown_backend_is_named(backend):
    model = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU())
    accelerate(model)
    kind = type(model)
    with pytest.raises(ValueError, match=re.escape(f"backend: '{backend}'; there are auto, torch, cpu, triton.")):
        accelerate(model, backend=backend)
    assert type(model) is kind


def test_modules_may_be_called_by_keyword():
    x = kit.volume(1, 4, 2, 4, 4)
    for module in (
        nn.Conv3d(4, 4, 3, padding=1), nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU()),
        nn.Upsample(scale_factor=2, mode="trilinear"),
    ):  # fmt: skip
        want = module(input=x)
        assert accelerate(module, backend="torch", ops=("group_norm_silu", "conv3d", "upsample2x_trilinear")).replaced
        torch.testing.assert_close(module(input=x), want, **EXACT)
        with pytest.raises(TypeError):
            module()


def test_a_weight_without_a_bias_is_left():
    model = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU())
    model[0].register_parameter("bias", None)  # what bias=False makes, from PyTorch 2.12 on
    assert left_of(model, kit.volume(1, 4, 2, 2, 2)) == {"its GroupNorm has a weight without a bias"}


def test_a_convolution_that_waits_for_its_first_call_is_left():
    model = nn.Sequential(nn.LazyConv3d(4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU())
    report = accelerate(model)
    assert [row.reason for row in report.left] == [
        "its weight is not there before its first call; accelerate after that"
    ]
    assert report.replaced
    assert model(kit.volume(1, 2, 2, 4, 4)).shape == (1, 4, 2, 4, 4)
    assert [row.kind for row in accelerate(model).replaced] == ["Sequential", "Conv3d"]


def test_a_sequence_in_a_sequence_is_replaced():
    inner = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU())
    model = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), inner)
    assert left_of(model, kit.volume(1, 4, 2, 2, 2)) == set()
    assert [row.name for row in accelerate(model, backend="torch").replaced] == ["", "2"]
    restore(model)
    inner[0].register_forward_hook(lambda *_: None)
    report = accelerate(model, backend="torch")
    assert ([row.name for row in report.replaced], [row.name for row in report.left]) == ([""], ["2"])


def test_buffers_keep_their_memory_format():
    model = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv3d(4, 4, 3, padding=1))
    model.register_buffer("places", torch.zeros(1, 2, 3, 4, 5))
    assert accelerate(model).replaced
    assert model.places.is_contiguous()
    assert model[2].weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_under_ddp_the_memory_format_is_left(tmp_path):
    """PyTorch's buckets are laid out when the model is wrapped: the first step's gradients would be permuted."""
    model, inputs = kit.project_unet()
    want = kit.outcome(copy.deepcopy(kit.randomised(model)), inputs)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        report = accelerate(parallel, backend="torch")
        found = kit.outcome(parallel, inputs)
    finally:
        torch.distributed.destroy_process_group()
    assert report.replaced
    assert "the memory format was left: DistributedDataParallel laid out its gradients" in str(report)
    for own, other in zip(found, want, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()) + 1e-6)
