"""The reference model against the figures of the published modules, at the bounds beside ``DEEP`` and ``SHALLOW``."""

from __future__ import annotations

import pytest
import torch

from orthokernels.models.orthodiffusion import (
    ConcatFusion,
    CrossAttentionFusion,
    GatingFusion,
    GaussianDiffusion,
    GlobalLocalPool,
    LateFusion,
    LinearAddFusion,
    LinearConcatFusion,
    SegmentationHead,
    SelfAttentionPool,
    TabularNet,
    UNet,
)
from tests.models.golden import DEEP, FIGURES, SHALLOW, check, fill, wave

MODULES = {
    "unet": UNet,
    "self_attention_pool": SelfAttentionPool,
    "global_local_pool": GlobalLocalPool,
    "segmentation_head": lambda: SegmentationHead(classes=11),
    "fusion_concat": ConcatFusion,
    "fusion_linear": LinearConcatFusion,
    "fusion_cross_attention": CrossAttentionFusion,
    "fusion_gating": lambda: GatingFusion(stacking=True),
    "ehr_late_fusion": LateFusion,
    "ehr_tabular": TabularNet,
}


@pytest.fixture(scope="module")
def unet() -> UNet:
    return fill(UNet())


@pytest.mark.parametrize("name", sorted(FIGURES["state"]))
def test_state_has_the_published_names_and_shapes(name):
    found = {key: list(tensor.shape) for key, tensor in MODULES[name]().state_dict().items()}
    assert found == FIGURES["state"][name]


def test_parameter_counts_are_the_published_ones():
    unet = UNet()

    def count(*modules):
        return sum(p.numel() for module in modules for p in module.parameters())

    assert count(unet) == 34_524_545
    assert count(unet.input_blocks, unet.time_embed) == 6_308_352
    assert count(unet.middle_block) == 7_476_224
    assert count(unet.output_blocks) == 20_738_112
    assert count(unet.out) == 1_857
    assert count(SelfAttentionPool()) == 263_168
    assert count(SegmentationHead(classes=11)) == 3_892_779


def test_schedule_is_the_old_cosine_one():
    diffusion = GaussianDiffusion()
    for step, figure in FIGURES["schedule"].items():
        # Both are float64; alpha-bar is a product of up to 1000 factors, each rounded to 1e-16. Beta is 1 minus a
        # quotient of cosines near 1, so its own relative error is that of the quotient over beta.
        assert float(diffusion.betas[int(step)]) == pytest.approx(figure["beta"], rel=1e-10)
        assert float(diffusion.alpha_bar[int(step)]) == pytest.approx(figure["alpha_bar"], rel=1e-10)


@pytest.mark.parametrize("timestep", [0, 50, 100, 150, 200, 999])
def test_features_at_full_size(unet, timestep):
    prefix = f"unet/16x256x256/t{timestep}/"
    names = [name.removeprefix(prefix) for name in FIGURES if name.startswith(prefix)]
    assert {"mid_0", "mid_1", "mid_2"} <= set(names)
    x = wave((1, 1, 16, 256, 256), 0, 0.013)
    with torch.inference_mode():
        for name, found in unet.features(x, torch.tensor([timestep]), names).items():
            check(prefix + name, found, DEEP)


def test_decoder_at_two_timesteps(unet):
    prefix = "unet/2x16x64x64/t7,640/"
    names = [name.removeprefix(prefix) for name in FIGURES if name.startswith(prefix)]
    assert len(names) == 11
    with torch.inference_mode():
        found = unet.features(wave((2, 1, 16, 64, 64), 0, 0.013), torch.tensor([7, 640]), names)
    for name in names:
        check(prefix + name, found[name], DEEP)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("pool/self_attention", SelfAttentionPool),
        ("pool/global_local", GlobalLocalPool),
        ("segmentation_head", lambda: SegmentationHead(classes=11)),
    ],
)
def test_poolings_and_segmentation_head(name, make):
    with torch.inference_mode():
        check(name, fill(make())(wave((2, 256, 1, 16, 16), 3.0, 0.11)), SHALLOW)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("fusion/concat", ConcatFusion),
        ("fusion/linear_concat", LinearConcatFusion),
        ("fusion/linear_add", LinearAddFusion),
        ("fusion/cross_attention_concat", CrossAttentionFusion),
    ],
)
def test_fusions(name, make):
    planes = [wave((4, 512), start, 0.37) for start in (1.0, 2.0, 3.0)]
    with torch.inference_mode():
        check(name, fill(make())(*planes), SHALLOW)


def test_gating():
    with torch.inference_mode():
        logits, weights = fill(GatingFusion(stacking=True))(wave((4, 3, 8), 5.0, 0.61))
    check("fusion/gating", logits, SHALLOW)
    check("fusion/gating/weights", weights, SHALLOW)


def test_patient_data():
    rows = torch.eye(3)
    inputs = (wave((4, 3), 2.0, 0.9), rows[[0, 1, 2, 0]], rows[[1, 1, 0, 2]], torch.tensor([0, 3, 19, 7]))
    with torch.inference_mode():
        fused = fill(LateFusion())(wave((4, 1536), 1.0, 0.2), *inputs)
        tabular = fill(TabularNet())(*inputs)
    for name in ("fused", "mri", "alpha"):
        check(f"ehr/{name}", fused[name], SHALLOW)
    check("ehr/tabular", fused["tabular"], SHALLOW)
    assert tabular.shape == (4, 8)
