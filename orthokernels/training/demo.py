"""The demo weights, from nothing: digital joints, denoisers without labels, then heads for every task.

Each stage leaves its result under the output folder and is taken up where an interrupted run left it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import Field

from orthokernels.data.phantom.dataset import Recipe, write_studies
from orthokernels.models.orthodiffusion.weights import load_weights
from orthokernels.models.weights_folder import Settings
from orthokernels.tasks import LABELS
from orthokernels.training.card import model_card, write_card
from orthokernels.training.config import DataConfig, Positive, PretrainConfig, Section
from orthokernels.training.config_heads import DiagnoseConfig, EvaluateConfig, SegmentConfig
from orthokernels.training.diagnose import diagnose
from orthokernels.training.distributed import Processes
from orthokernels.training.evaluate import Evaluation, evaluate
from orthokernels.training.pretrain import pretrain
from orthokernels.training.segment import segment
from orthokernels.training.weights_folder import change_settings

RECIPE = Path(__file__).parent / "recipes" / "demo.yaml"
NAME = "demo"
NOTICE = (
    "Demo weights: trained on digital phantoms alone, never on a patient. They show how the package works; what they "
    "say about a real joint means nothing."
)
ABOUT = (
    "Small weights for trying the package: one denoiser per plane, pre-trained without labels on digital knees, a "
    "segmentation head for the knee's eleven structures in each plane, and diagnosis heads with fusion for the knee's "
    "8, the ankle's 4 and the shoulder's 8 findings. Ankle and shoulder start from the denoisers of the knee.",
    "No patient's image was used. The phantom's pictures are simpler than real ones: figures below say how well the "
    "method works on it, and nothing about patients.",
)
REMARKS = RECIPE.with_name("demo_remarks.md")
FIRST_TEST_SEED = 1_000_000  # studies to train and choose with have seeds from 0


class DemoConfig(Section):
    """``orthokernels train demo``.

    Attributes:
        studies: digital studies of each joint to train and choose with.
        test_studies: of each joint, seen by neither.
        matrix: pixels along a slice's side.
        pretrain, segment: settings of these stages, which see knees alone.
        diagnose: settings of each joint's diagnosis.
    """

    studies: dict[str, Positive] = Field(default_factory=lambda: dict.fromkeys(LABELS, 300))
    test_studies: Positive = 100
    matrix: Positive = 128
    pretrain: PretrainConfig = PretrainConfig()
    segment: SegmentConfig = SegmentConfig()
    diagnose: dict[str, DiagnoseConfig] = Field(default_factory=dict)


def train_demo(
    out: Path,
    config: DemoConfig,
    *,
    workers: int = 1,
    processes: Processes | None = None,
    resume: bool = True,
    silent: bool = True,
    tell: Callable[[str], None] = lambda what: None,
) -> dict[str, float]:
    """Make the demo weights in ``out``/weights; returns each stage's seconds.

    Args:
        out: folder for the studies, the prepared volumes, the checkpoints and the weights.
        config: what to do; ``RECIPE`` is what the stored weights were made with.
        workers: processes that make studies.
        processes: that train; this one alone by default.
        resume: take up what an interrupted run left.
        tell: called as each stage begins.

    Raises:
        InputError: ``out`` holds something else, or can not be written.
    """
    seconds: dict[str, float] = {}
    weights = weights_folder(out)

    def stage(name: str, make: Callable[[], object]) -> None:
        tell(name)
        started = time.monotonic()
        make()
        seconds[name] = round(time.monotonic() - started, 1)

    knees = data_folder(out, "knee")
    options: dict[str, Any] = {"processes": processes, "resume": resume, "silent": silent}
    for joint in config.studies:
        stage(f"phantoms of the {joint}", partial(write_data, out, joint, config, workers))
    stage("pretrain", partial(pretrain, knees, weights, _with_cache(config.pretrain, out), **options))
    change_settings(weights, _named)
    stage("segment", partial(segment, knees, weights, weights, _with_cache(config.segment, out), **options))
    for joint in config.studies:
        settings = _with_cache(config.diagnose.get(joint, DiagnoseConfig()), out, joint=joint)
        stage(f"diagnose {joint}", partial(diagnose, data_folder(out, joint), weights, weights, settings, **options))
    (out / "seconds.json").write_text(json.dumps(seconds, indent=1) + "\n")
    return seconds


def judge_demo(
    out: Path,
    config: DemoConfig,
    *,
    facts: Mapping[str, str],
    device: torch.device | str = "cpu",
    silent: bool = True,
    tell: Callable[[str], None] = lambda what: None,
) -> dict[str, Evaluation]:
    """Score the weights that ``train_demo`` made on the test studies, and write their model card.

    Args:
        facts: rows of the card's table, such as command and versions.

    Returns:
        What ``evaluate`` gives, by joint; its tables and plots are under ``out``/evaluation.
    """
    weights = {joint: load_weights(str(weights_folder(out)), joint) for joint in config.studies}
    found: dict[str, Evaluation] = {}
    for joint, own in weights.items():
        tell(f"evaluate {joint}")
        chosen = EvaluateConfig.model_validate({"data": {"joint": joint}})
        test = data_folder(out, joint, test=True)
        found[joint] = evaluate(test, own, chosen, out / "evaluation" / joint, device=device, silent=silent)
    card = model_card(
        weights, found, title="Demo weights", about=ABOUT, facts={**_told(config), **facts}, remarks=REMARKS.read_text()
    )
    write_card(weights_folder(out) / "README.md", card)
    return found


def _told(config: DemoConfig) -> dict[str, str]:
    """What the recipe says, for the card."""
    studies = ", ".join(f"{joint} {count}" for joint, count in config.studies.items())
    return {
        "trained and chosen on": f"digital studies of three series, {config.matrix} x {config.matrix}: {studies}",
        "tested on": f"{config.test_studies} further studies of each joint, seeds from {FIRST_TEST_SEED}",
        "pre-training": f"{_steps(config.pretrain)}, knees only",
        "segmentation": f"{_steps(config.segment)}, whole slices in the last {config.segment.whole_share:.0%}",
        **{f"diagnosis, {joint}": _diagnosis(own) for joint, own in config.diagnose.items()},
        "licence": "Apache-2.0, as the package",
    }


def _steps(config: PretrainConfig | SegmentConfig) -> str:
    """How long a stage trains on what."""
    crop = config.augment.crop
    slabs = "slabs" if crop is None else f"crops of {crop} x {crop}"
    return f"{config.loop.steps} steps of {config.loop.batch} {slabs} a plane"


def _diagnosis(config: DiagnoseConfig) -> str:
    start = "the denoisers" if config.start == "denoiser" else "the encoders of the segmentation"
    if config.encoder == "probe":
        return f"{config.probe.epochs} epochs on frozen features of {start}, pooling {config.pooling}"
    frozen = f" (finest {config.frozen_levels} level frozen)" if config.frozen_levels else ""
    return f"{config.finetune.epochs} epochs with the encoder{frozen}, from {start}, pooling {config.pooling}"


def weights_folder(out: Path) -> Path:
    """Where the weights are made."""
    return out / "weights"


def data_folder(out: Path, joint: str, *, test: bool = False) -> Path:
    """Where a joint's studies lie."""
    return out / "data" / (f"{joint}_test" if test else joint)


def write_data(out: Path, joint: str, config: DemoConfig, workers: int) -> None:
    """A joint's studies to train and choose with, and those to test with."""
    recipe = Recipe(joint=joint, matrix=config.matrix, nifti=True)
    write_studies(data_folder(out, joint), range(config.studies[joint]), recipe, workers=workers)
    tests = range(FIRST_TEST_SEED, FIRST_TEST_SEED + config.test_studies)
    write_studies(data_folder(out, joint, test=True), tests, recipe, workers=workers)


def _named(settings: Settings) -> Settings:
    return settings.model_copy(update={"name": NAME, "notice": NOTICE})


Stage = TypeVar("Stage", PretrainConfig, SegmentConfig, DiagnoseConfig)


def _with_cache(config: Stage, out: Path, **data: str) -> Stage:
    """The same settings with prepared volumes beside the studies."""
    changed: DataConfig = config.data.model_copy(update={"cache": config.data.cache or out / "prepared", **data})
    return config.model_copy(update={"data": changed})
