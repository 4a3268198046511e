"""Untrained weights at the published size: to try the whole way of a study without any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from orthokernels.models.orthodiffusion.fusion import FUSIONS
from orthokernels.models.orthodiffusion.pooling import SelfAttentionPool
from orthokernels.models.orthodiffusion.segmentation import SegmentationHead
from orthokernels.models.orthodiffusion.unet import UNet
from orthokernels.models.orthodiffusion.weights import PlaneWeights, Weights, ready, save_module
from orthokernels.models.weights_folder import Settings
from orthokernels.tasks import LABELS, PLANES, STRUCTURES


def random_weights(seed: int, joint: str = "knee", planes: tuple[str, ...] = PLANES) -> Weights:
    """A full set of untrained modules at the published size; the same seed gives the same weights."""
    labels = len(LABELS[joint])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = {}
        # Every plane is drawn, asked for or not, so that a plane's weights do not depend on the others.
        for plane in PLANES:
            pooling = SelfAttentionPool()
            found[plane] = PlaneWeights(
                denoiser=_varied(UNet()),
                segmentation=_following(SegmentationHead(classes=len(STRUCTURES) + 1)),
                pooling=pooling,
                head=nn.Linear(pooling.out_channels, labels),
            )
        fusion = FUSIONS["gating"](labels=labels)
    return ready(
        Weights(
            name=f"random:{seed}",
            trained=False,
            joint=joint,
            planes={plane: found[plane] for plane in planes},
            fusion=fusion,
            fusion_name="gating",
        )
    )


def save_random(seed: int, folder: Path, joint: str = "knee") -> None:
    """The weights of ``random_weights`` as a weights folder.

    Raises:
        InputError: the folder can't be written.
    """
    weights = random_weights(seed, joint)
    facts: dict[str, Any] = {"trained": False, "origin": {"made by": weights.name}}
    for plane, own in weights.planes.items():
        segmentation, pooling, head = own.segmentation, own.pooling, own.head
        assert isinstance(segmentation, SegmentationHead)
        assert isinstance(pooling, SelfAttentionPool)
        assert isinstance(head, nn.Linear)
        linear = {"in_features": head.in_features, "out_features": head.out_features}
        for name, module, kind, arguments in (
            ("", own.denoiser, "unet", {}),
            (".segmentation", segmentation, "segmentation_head", {"classes": segmentation.classes}),
            (f".{joint}.pooling", pooling, "selfattn", {}),
            (f".{joint}.head", head, "linear", linear),
        ):
            save_module(module, folder / f"{plane}{name}.safetensors", kind, plane=plane, arguments=arguments, **facts)
    assert weights.fusion is not None
    labels = {"labels": len(LABELS[joint])}
    save_module(weights.fusion, folder / f"{joint}.fusion.safetensors", "gating", arguments=labels, **facts)
    (folder / "weights.json").write_text(Settings(name=weights.name).model_dump_json(indent=1) + "\n")


def _varied(unet: UNet) -> UNet:
    """An untrained denoiser whose features follow the picture: no biases, and convolutions that keep the variance.

    PyTorch's usual start shrinks the signal at each layer until the biases decide, and features are alike everywhere.
    """
    for layer in unet.modules():
        if isinstance(layer, nn.Conv3d) and bool(layer.weight.any()):  # those that start at zero stay there
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return unet


def _following(head: SegmentationHead) -> SegmentationHead:
    """An untrained head whose classes follow its features, so that its label map shows whether it lies where it should.

    The transposed convolutions mix channels at random and interpolate linearly in space. The last layer is scaled and
    shifted so that on random features every class has the same mean and spread: none wins everywhere.
    """
    taps = torch.tensor([0.25, 0.75, 0.75, 0.25])  # linear interpolation by 2
    kernel = taps[:, None, None] * taps[:, None] * taps
    for layer in head.net:
        if isinstance(layer, nn.ConvTranspose3d):
            mixing = torch.randn(layer.in_channels, layer.out_channels) * (2 / layer.in_channels) ** 0.5
            layer.weight.data = mixing[:, :, None, None, None] * kernel
            layer.bias.data.zero_()  # type: ignore[union-attr]
    first, last = head.net[0], head.net[-1]
    assert isinstance(first, nn.ConvTranspose3d)
    assert isinstance(last, nn.Conv3d)
    last.weight.data.normal_()
    last.bias.data.zero_()  # type: ignore[union-attr]
    with torch.no_grad():
        logits = head(torch.randn(1, first.in_channels, 1, 8, 8)).transpose(0, 1).flatten(1)  # [classes, voxels]
    spread, mean = torch.std_mean(logits, dim=1)
    last.weight.data /= spread.view(-1, 1, 1, 1, 1)
    last.bias.data -= mean / spread  # type: ignore[union-attr]
    return head
