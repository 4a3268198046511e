"""The reference OrthoDiffusion model in plain PyTorch: what everything faster is checked against."""

from orthokernels.models.orthodiffusion.diffusion import GaussianDiffusion, cosine_schedule
from orthokernels.models.orthodiffusion.features import feature_noise, features
from orthokernels.models.orthodiffusion.fusion import (
    FUSIONS,
    ConcatFusion,
    CrossAttentionFusion,
    GatingFusion,
    Head,
    LinearAddFusion,
    LinearConcatFusion,
)
from orthokernels.models.orthodiffusion.patient_data import LateFusion, TabularNet
from orthokernels.models.orthodiffusion.pooling import (
    POOLINGS,
    GlobalAveragePool,
    GlobalLocalPool,
    SelfAttentionPool,
)
from orthokernels.models.orthodiffusion.segmentation import MultiscaleSegmentationHead, SegmentationHead
from orthokernels.models.orthodiffusion.unet import UNet

__all__ = [
    "FUSIONS",
    "POOLINGS",
    "ConcatFusion",
    "CrossAttentionFusion",
    "GatingFusion",
    "GaussianDiffusion",
    "GlobalAveragePool",
    "GlobalLocalPool",
    "Head",
    "LateFusion",
    "LinearAddFusion",
    "LinearConcatFusion",
    "MultiscaleSegmentationHead",
    "SegmentationHead",
    "SelfAttentionPool",
    "TabularNet",
    "UNet",
    "cosine_schedule",
    "feature_noise",
    "features",
]
