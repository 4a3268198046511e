"""MONAI's own networks, trained on the same slabs, splits and budget, to compare with."""

from __future__ import annotations

from torch import nn

from orthokernels.errors import need


def unet3d(classes: int) -> nn.Module:
    """MONAI's residual 3D U-Net (Kerfoot et al.): [batch, 1, D, H, W] -> [batch, classes, D, H, W].

    Four levels; sides must be multiples of 8. The depth of 16 allows no more halvings than three.
    """
    need("The comparison with MONAI", "monai", "train")
    from monai.networks.nets import UNet

    return UNet(
        spatial_dims=3, in_channels=1, out_channels=classes, channels=(16, 32, 64, 128), strides=(2, 2, 2),
        num_res_units=2,
    )  # fmt: skip


def resnet18(labels: int) -> nn.Module:
    """MONAI's 3D ResNet-18: [batch, 1, D, H, W] -> logits [batch, labels]."""
    need("The comparison with MONAI", "monai", "train")
    from monai.networks.nets import resnet18 as build

    return build(spatial_dims=3, n_input_channels=1, num_classes=labels, pretrained=False)
