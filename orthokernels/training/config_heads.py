"""Settings of the sub-commands that train and judge heads. Every default is the published value where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from orthokernels.models.weights_folder import FeaturePoint, Timestep
from orthokernels.training.config import (
    AugmentConfig,
    DataConfig,
    LoopConfig,
    NotNegative,
    OptimiserConfig,
    Positive,
    Section,
    Share,
    Some,
)

Plane = Literal["sagittal", "coronal", "axial"]
Rate = Annotated[float, Field(gt=0)]


class HeadConfig(Section):
    """Adam, and a rate that falls from epoch to epoch along a cosine.

    Attributes:
        epochs: passes over the training rows.
        batch: rows of a step; None takes all at once.
        learning_rate: that of the first epoch.
        weight_decay: share of the weights that is added to the gradient; in fine-tuning decoupled (AdamW).
        standardise: features to mean 0 and deviation 1 first, folded into the layers afterwards.
    """

    epochs: NotNegative = 10
    batch: Positive | None = 10
    learning_rate: Rate = 5e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    standardise: bool = False


class FusionConfig(Section):
    """Three planes to one, by the publication's recipe.

    Attributes:
        modes: those that are trained.
        keep: which is written: one mode, or the best on validation data.
        head: training of the modes that read the planes' vectors.
        gate: training of "gating", which reads the planes' logits.
        hidden: the heads of those have a hidden layer of half the width.
        out_width: width of the vectors that "linear_concat", "linear_add" and "crossattn" make.
        folds: parts of the patients; the gate learns from logits of heads that did not see the part.
        stacking: pass the gated logits through one more network, which sees all labels at once.
    """

    modes: tuple[Literal["simple_concat", "linear_concat", "linear_add", "crossattn", "gating"], ...] = (
        "simple_concat", "linear_concat", "linear_add", "crossattn", "gating",
    )  # fmt: skip
    keep: Literal["best", "simple_concat", "linear_concat", "linear_add", "crossattn", "gating"] = "best"
    head: HeadConfig = HeadConfig(epochs=5, batch=10, learning_rate=5e-5)
    gate: HeadConfig = HeadConfig(epochs=40, batch=None, learning_rate=1e-3, weight_decay=1e-4)
    hidden: bool = False
    out_width: Positive = 512
    folds: Annotated[int, Field(ge=2)] = 5
    stacking: bool = False

    @field_validator("keep")
    @classmethod
    def _is_trained(cls, keep: str, others: ValidationInfo) -> str:
        modes = others.data.get("modes")  # absent where they are wrong themselves
        if keep != "best" and modes is not None and keep not in modes:
            raise ValueError(f"is not among fusion.modes ({', '.join(modes)}), so nothing would train it; add it there")
        return keep


class DiagnoseConfig(Section):
    """``orthokernels train diagnose``.

    Attributes:
        planes: whose heads are trained; fusion needs all three.
        encoder: "probe" leaves the denoiser as it is; "finetune" trains its encoder and middle with the heads.
        start: the network that features are read from, and that fine-tuning begins with: the pre-trained "denoiser", as
            published, or the encoder that was fine-tuned for "segmentation" before.
        pooling: how a feature map becomes a vector, under its published name.
        pooling_heads: attention heads of "selfattn".
        grid: cells of "grid" and "structures" along height and width. "structures" also reads what the segmentation
            head finds. Neither is published, and both read frozen features alone.
        grid_kept: how many of a grid's numbers are kept for each label.
        points: timestep and block by plane, where they are not the weights' own.
        probe: stage I on frozen features.
        finetune: stage I with the encoder.
        encoder_rate: the encoder's rate as a share of the head's, in fine-tuning.
        frozen_levels: how many of the finest levels are not fine-tuned.
        thresholds: how each label's threshold is chosen on validation data; "half" keeps 0.5.
        patient_data: a CSV with columns study, age, height, weight, sex, patient_type, event, for late fusion.
        late_fusion: training of the late fusion with them.
        loop: the loop of fine-tuning; ``finetune`` says how long it runs, and its batch.
        augment: random changes in fine-tuning.
        seed: decides everything random here.
        draws: noise draws that features are averaged over.
        features: folder of computed features; None is beside the prepared volumes.
        half: store tensors as float16.
    """

    planes: Annotated[tuple[Plane, ...], Some] = ("sagittal", "coronal", "axial")
    data: DataConfig = DataConfig()
    encoder: Literal["probe", "finetune"] = "probe"
    start: Literal["denoiser", "segmentation"] = "denoiser"
    pooling: Literal["selfattn", "local", "none", "grid", "structures"] = "selfattn"
    pooling_heads: Positive = 16
    grid: tuple[Positive, Positive] = (8, 8)
    grid_kept: Positive = 16
    points: dict[Plane, FeaturePoint] = Field(default_factory=dict)
    probe: HeadConfig = HeadConfig()
    finetune: HeadConfig = HeadConfig(epochs=5)
    encoder_rate: Share = 0.05
    frozen_levels: NotNegative = 0
    fusion: FusionConfig = FusionConfig()
    thresholds: Literal["f1", "youden", "half"] = "f1"
    patient_data: Path | None = None
    late_fusion: HeadConfig = HeadConfig(epochs=10, batch=10, learning_rate=1e-5)
    loop: LoopConfig = LoopConfig()
    augment: AugmentConfig = AugmentConfig()
    seed: NotNegative = 42
    draws: Positive = 1
    features: Path | None = None
    half: bool = False


class SegmentConfig(Section):
    """``orthokernels train segment``.

    Attributes:
        planes: trained one after the other, a head each.
        head: "multiscale" reads the encoder at every resolution; "published" reads one map at 1/16.
        head_channels: width of the multiscale head at each level, finest first; None is its default.
        input_skip: the multiscale head also reads the volume.
        points: timestep (and for the published head the block) by plane, where they are not the weights' own.
        epochs: passes over the training series; ``loop.steps`` counts instead where ``epochs`` is None, or is left out
            and the steps are given.
        encoder_rate: rate of encoder and middle as a share of the head's; 0 leaves them as they are.
        cross_entropy: weight of the cross-entropy beside soft Dice.
        placed: share of the slabs that are placed on a voxel of a structure, drawn evenly from those that a series
            shows; the others lie at random.
        whole_share: share of the steps, the last ones, in which nothing is cropped. Small crops teach most in a given
            time; but a normalisation over a crop sees other means than one over a slice, which the network must meet.
        keep_best: keep the weights of the best validation Dice instead of the last.
        validate_series: at most so many series are validated on.
        half: store tensors as float16.
    """

    planes: Annotated[tuple[Plane, ...], Some] = ("sagittal", "coronal", "axial")
    data: DataConfig = DataConfig()
    head: Literal["multiscale", "published"] = "multiscale"
    head_channels: tuple[Positive, ...] | None = None
    input_skip: bool = True
    points: dict[Plane, FeaturePoint] = Field(default_factory=dict)
    epochs: Positive | None = 30
    encoder_rate: Share = 0.05
    cross_entropy: Annotated[float, Field(ge=0)] = 0.2
    placed: Share = 0.0
    whole_share: Share = 0.0
    optimiser: OptimiserConfig = OptimiserConfig(rate=1e-3, schedule="cosine")
    loop: LoopConfig = LoopConfig(batch=10)
    augment: AugmentConfig = AugmentConfig()
    keep_best: bool = False
    validate_series: Positive = 32
    half: bool = False

    @model_validator(mode="before")
    @classmethod
    def _steps_count_where_they_are_given(cls, given: Any) -> Any:
        loop = given.get("loop") if isinstance(given, dict) else None
        return {"epochs": None, **given} if isinstance(loop, dict) and "steps" in loop else given


class EvaluateConfig(Section):
    """``orthokernels train evaluate``.

    Attributes:
        data: how the test set is read; ``size`` is the weights' own, and so is ``preparation`` ("full" where it is not
            known, unless it is given here); nothing is cached.
        split: which records are the test set: all, or those of a split that the data set names or that is drawn by
            ``data.validate_share``, ``data.test_share`` and ``data.split_seed``, which must be those of the training.
        seed, draws: of the features' noise, as ``orthokernels run``.
        bootstrap: draws of the intervals.
        level: of the intervals.
        surface_distance: also the 95th-percentile surface distance, which takes longest.
    """

    data: DataConfig = DataConfig()
    split: Literal["train", "validate", "test", "all"] = "all"
    seed: NotNegative = 0
    draws: Positive = 1
    bootstrap: Positive = 1000
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    surface_distance: bool = True


class SweepConfig(Section):
    """``orthokernels train sweep``.

    Attributes:
        planes: tried one after the other.
        task: "diagnosis" scores a linear probe by macro AUROC; "segmentation" a linear classifier of voxels by the mean
            of the classes' recall.
        timesteps: to try.
        blocks: to try; None is every block of encoder and middle.
        regularisation: inverse strength of the probe's ridge (scikit-learn's C).
        voxels: of each class and series that the voxel classifier is given.
        seed: decides the features' noise and what is drawn.
        features: folder of computed features; None is beside the prepared volumes.
        write: write the best of each plane into the weights' settings.
    """

    planes: Annotated[tuple[Plane, ...], Some] = ("sagittal", "coronal", "axial")
    data: DataConfig = DataConfig()
    task: Literal["diagnosis", "segmentation"] = "diagnosis"
    timesteps: Annotated[tuple[Timestep, ...], Some] = (10, 30, 50, 100, 150, 200, 300, 500)
    blocks: tuple[str, ...] | None = None
    regularisation: Rate = 0.1
    voxels: Positive = 50
    seed: NotNegative = 0
    features: Path | None = None
    write: bool = True


class LabelsConfig(Section):
    """``orthokernels train labels``: how few labels do.

    Attributes:
        data: by default the test patients are those that ``train pretrain`` holds out by its defaults, so that the
            denoiser never saw them; with another share or seed, here or there, it may have seen them.
        task: "segmentation" (Dice) or "diagnosis" (macro AUROC).
        plane: the one that is compared.
        shares: of the training patients whose labels are used.
        seeds: a repetition each; a seed draws the patients (more of them with a larger share, the same ones kept) and
            everything random in training.
        methods: "pretrained" and "scratch" train the same network and heads, from the denoiser's weights and from
            none; "frozen" and "untrained" train the heads alone, on the denoiser as it is and on the same network with
            random weights; "monai" is MONAI's 3D U-Net or 3D ResNet-18.
        point: timestep and block, where they are not the weights' own.
        head_channels: those of the segmentation head, as in ``train segment``.
        pooling, pooling_heads, grid, grid_kept, probe: those of diagnosis, as in ``train diagnose``. "grid" reads
            frozen features: its methods are "frozen" and "untrained", trained as ``probe`` says, and "monai".
        encoder_rate: rate of a pre-trained encoder as a share of the head's; all else learns at the full rate.
        optimiser, loop, augment: those of every other method alike; ``loop.steps`` is the budget.
        bootstrap: draws of the intervals.
    """

    task: Literal["segmentation", "diagnosis"] = "segmentation"
    plane: Plane = "sagittal"
    data: DataConfig = DataConfig(validate_share=0.0, test_share=0.1)
    shares: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Some] = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
    seeds: Annotated[tuple[NotNegative, ...], Some] = (0, 1, 2)
    methods: Annotated[tuple[Literal["pretrained", "scratch", "frozen", "untrained", "monai"], ...], Some] = (
        "pretrained", "scratch", "monai",
    )  # fmt: skip
    point: FeaturePoint | None = None
    head_channels: tuple[Positive, ...] | None = None
    pooling: Literal["selfattn", "local", "none", "grid"] = "selfattn"
    pooling_heads: Positive = 16
    grid: tuple[Positive, Positive] = (8, 8)
    grid_kept: Positive = 16
    probe: HeadConfig = HeadConfig()
    encoder_rate: Share = 0.05
    optimiser: OptimiserConfig = OptimiserConfig(rate=1e-3, schedule="cosine")
    loop: LoopConfig = LoopConfig(steps=500, batch=4, validate_every=0)
    augment: AugmentConfig = AugmentConfig()
    bootstrap: Positive = 1000

    @property
    def baseline(self) -> str:
        """The method that others are held against: the same network without pre-training."""
        return "scratch" if "scratch" in self.methods else "untrained"

    @model_validator(mode="after")
    def _grid_reads_frozen_features(self) -> LabelsConfig:
        trained = sorted({"pretrained", "scratch"} & set(self.methods))
        if self.task == "diagnosis" and self.pooling == "grid" and trained:
            raise ValueError(
                f"pooling = grid reads frozen features and can not compare {' and '.join(trained)}. "
                "Set methods to frozen, untrained and monai, or another pooling."
            )
        return self
