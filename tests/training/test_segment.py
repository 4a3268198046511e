"""Training a segmentation head: its loss, what learns, and that it learns."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from orthokernels.errors import InputError
from orthokernels.models.orthodiffusion import MultiscaleSegmentationHead, UNet
from orthokernels.models.orthodiffusion.unet import level_starts
from orthokernels.models.orthodiffusion.weights import load_weights, save_encoder
from orthokernels.models.weights_folder import FeaturePoint, load_card, load_settings
from orthokernels.training.config import LoopConfig, OptimiserConfig
from orthokernels.training.config_heads import SegmentConfig
from orthokernels.training.distributed import Processes, alone
from orthokernels.training.segment import segment, training_run
from orthokernels.training.segmentation_task import (
    FeatureNetwork,
    SegmentationNetwork,
    confusion,
    groups,
    segmentation_losses,
)
from orthokernels.training.selection import labelled, select
from tests.training.toy import NETWORK, data_settings, write_studies, write_volume, write_weights


def config(folder, **changes) -> SegmentConfig:
    return SegmentConfig(
        **{
            "planes": ("sagittal",), "data": data_settings(folder), "epochs": None,
            "loop": LoopConfig(steps=40, batch=4, validate_every=0), "optimiser": OptimiserConfig(rate=1e-2),
            "encoder_rate": 0.1, **changes,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return write_studies(tmp_path_factory.mktemp("studies"), 12)


SHORT = LoopConfig(steps=1, batch=1, validate_every=0)


@pytest.fixture(scope="module")
def begun(studies, tmp_path_factory):
    """A weights folder with the checkpoint of a run, and its cache's folder."""
    weights = write_weights(tmp_path_factory.mktemp("begun"), planes=("sagittal",))
    cache = tmp_path_factory.mktemp("cache")
    segment(studies, weights, weights, config(cache, loop=SHORT, validate_series=1))
    return weights, cache


def test_losses_equal_the_definitions_in_float64():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 3, 5, 6).double(), torch.randint(-1, 3, (2, 3, 5, 6))  # class 3 never occurs
    entropy, overlap = segmentation_losses(logits, labels)
    assert float(entropy) == pytest.approx(float(F.cross_entropy(logits, labels, ignore_index=-1)), rel=1e-12)
    known = labels >= 0
    p = logits.softmax(dim=1).movedim(1, 0)[:, known]
    t = F.one_hot(labels[known], 4).T.double()
    dice = [(2 * (p[c] * t[c]).sum() + 1) / (p[c].sum() + t[c].sum() + 1) for c in (1, 2)]
    assert float(overlap) == pytest.approx(1 - float(sum(dice)) / 2, rel=1e-12)


def test_ignored_voxels_have_no_gradient():
    logits = torch.randn(1, 3, 2, 4, 4, requires_grad=True)
    labels = torch.randint(0, 3, (1, 2, 4, 4))
    labels[:, :, :2] = -1
    sum(segmentation_losses(logits, labels)).backward()
    assert not logits.grad[:, :, :, :2].any()
    assert bool(logits.grad[:, :, :, 2:].any())


def test_nothing_labelled_is_no_nan():
    losses = segmentation_losses(torch.randn(1, 3, 2, 4, 4), torch.full((1, 2, 4, 4), -1))
    assert all(math.isfinite(float(value)) for value in losses)


def test_confusion_counts_pairs():
    table = confusion(torch.tensor([1, 1, 0, 2]), torch.tensor([1, 0, -1, 2]), 3)
    assert table.tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("trainable", [True, False])
def test_encoder_and_middle_learn_at_their_share_and_the_rest_never(trainable):
    unet, head = UNet(**NETWORK), MultiscaleSegmentationHead((8, 16, 16, 16), 12, patch=(1, 2, 2))
    network = SegmentationNetwork(unet, head, "mid_2", trainable=trainable)
    x = torch.randn(1, 1, 16, 16, 16)
    network(x, x, torch.tensor([100])).square().mean().backward()
    reached = {name for name, parameter in unet.named_parameters() if parameter.grad is not None}
    inside = {n for n, _ in unet.named_parameters() if n.startswith(("input_blocks", "middle_block"))}
    assert reached == (inside if trainable else set())
    found = groups(network, 0.05)
    assert [group["scale"] for group in found] == ([1.0, 0.05] if trainable else [1.0])
    assert len(found[0]["params"]) == len(list(head.parameters()))


def test_frozen_levels_get_no_gradient_and_coarser_ones_do():
    unet = UNet(**NETWORK)
    network = FeatureNetwork(unet, ("mid_2",), trainable=True, frozen_levels=1)
    for parameter in unet.parameters():  # a projection starts at zero, and would stop the gradient on its way down
        torch.nn.init.normal_(parameter, std=0.1)
    maps = network(torch.randn(1, 1, 16, 16, 16), torch.tensor([10]))["mid_2"]
    maps.square().mean().backward()
    first = level_starts(unet)[1]
    for name, parameter in unet.named_parameters():
        block = name.split(".")
        learns = block[0] == "middle_block" or (block[0] == "input_blocks" and int(block[1]) >= first)
        assert (parameter.grad is not None and bool(parameter.grad.any())) == learns, name


def test_no_level_left_to_learn_is_refused():
    with pytest.raises(InputError, match="frozen_levels = 9: the encoder has 3 levels"):
        FeatureNetwork(UNet(**NETWORK), ("mid_2",), trainable=True, frozen_levels=9)


def test_head_learns_and_the_folder_loads(studies, tmp_path):
    weights = write_weights(tmp_path / "weights", planes=("sagittal",))
    before = (weights / "sagittal.safetensors").read_bytes()
    figures = segment(studies, weights, tmp_path / "out", config(tmp_path))
    # Boxes at about the same places, each of its own brightness; an untrained head scores under 0.1.
    assert figures["sagittal"]["validation/dice"] > 0.5
    loaded = load_weights(str(tmp_path / "out"), planes=("sagittal",)).planes["sagittal"]
    assert isinstance(loaded.segmentation, MultiscaleSegmentationHead)
    assert loaded.segmentation_encoder is not None
    assert (tmp_path / "out" / "sagittal.safetensors").read_bytes() == before
    assert sorted(p.name for p in weights.iterdir()) == ["sagittal.json", "sagittal.safetensors", "weights.json"]


def test_dice_of_training_series_is_not_called_validation(studies, tmp_path):
    for share, side in ((0.0, "training"), (0.3, "validation")):
        weights = write_weights(tmp_path / side, planes=("sagittal",))
        own = data_settings(tmp_path, validate_share=share)
        segment(studies, weights, weights, config(tmp_path, data=own, loop=SHORT))
        origin = load_card(weights / "sagittal.segmentation.safetensors", None).origin
        assert [name for name in origin if name.endswith("_dice")] == [f"{side}_dice"]


def test_epochs_count_every_process_s_slabs(studies, tmp_path):
    own = config(tmp_path, epochs=2, loop=LoopConfig(batch=2, accumulate=2), whole_share=0.5)
    selection = select(studies, own.data, 32, ("sagittal",), labelled, alone())
    assert len(selection.train) == 8
    for world, steps in ((1, 4), (2, 2)):
        run = training_run(tmp_path, selection, own, Processes(0, world, torch.device("cpu")))
        assert run.config.steps == steps
        assert run.samples.whole_from == 8


def test_frozen_encoder_writes_none_and_removes_an_earlier_one(studies, tmp_path):
    weights = write_weights(tmp_path / "weights", planes=("sagittal",))
    short = LoopConfig(steps=2, batch=2, validate_every=0)
    segment(studies, weights, weights, config(tmp_path, loop=short))
    assert (weights / "sagittal.segmentation.encoder.safetensors").is_file()
    segment(studies, weights, weights, config(tmp_path, loop=short, encoder_rate=0), resume=False)
    assert not (weights / "sagittal.segmentation.encoder.safetensors").exists()
    assert load_weights(str(weights), planes=("sagittal",)).planes["sagittal"].segmentation_encoder is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": {"sagittal": {"timestep": 20, "block": "mid_2"}}}, "timestep was 100, is 20"),
        ({"encoder_rate": 0.5}, r"encoder_rate was 0\.1, is 0\.5"),
        ({"cross_entropy": 1.0}, r"cross_entropy was 0\.2, is 1\.0"),
        ({"augment": {"gain": 0.1}}, r"augment\.gain was 0\.0, is 0\.1"),
        ({"placed": 0.5}, r"placed was 0\.0, is 0\.5"),
        ({"loop": SHORT.model_copy(update={"clip_norm": 1.0})}, r"loop\.clip_norm was None, is 1\.0"),
        ({"masks_mirrored": True}, r"data\.masks_mirrored was False, is True"),
        ({"preparation": "published"}, r"heads were trained on studies of data\.preparation=full"),
    ],
)
def test_a_run_of_other_settings_is_not_taken_up(studies, begun, tmp_path, change, message):
    if change.keys() & {"preparation", "masks_mirrored"}:
        change = {"data": data_settings(begun[1], **change)}
    shutil.copytree(begun[0], tmp_path / "out")
    with pytest.raises(InputError, match=message):
        segment(studies, tmp_path / "out", tmp_path / "out", config(begun[1], **{"loop": SHORT, **change}))


def test_a_finished_run_without_best_weights_says_how_to_get_them(studies, begun, tmp_path):
    folder = shutil.copytree(begun[0], tmp_path / "again")
    with pytest.raises(
        InputError, match=r"best\.pt: the run kept no best weights\. Set keep_best=false, or .* --fresh"
    ):
        segment(studies, folder, folder, config(begun[1], loop=SHORT, validate_series=1, keep_best=True))


def test_heads_of_another_preparation_are_refused_before_anything_is_copied(studies, begun, tmp_path):
    other = config(begun[1], loop=SHORT, data=data_settings(begun[1], preparation="published"))
    with pytest.raises(InputError, match=r"heads were trained on studies of data\.preparation=full"):
        segment(studies, begun[0], tmp_path / "new", other)
    assert not (tmp_path / "new").exists()


def test_a_run_is_not_taken_up_on_other_labels_under_the_same_names(studies, tmp_path):
    weights, data = (
        write_weights(tmp_path / "weights", planes=("sagittal",)),
        shutil.copytree(studies, tmp_path / "data"),
    )
    own = config(tmp_path / "cache", loop=SHORT, validate_series=1)
    segment(data, weights, weights, own)
    segment(shutil.copytree(data, tmp_path / "elsewhere"), weights, weights, own)  # the same content
    for path in data.glob("*/sagittal_labels.nii.gz"):
        write_volume(path, voxels=np.ones((32, 32, 16), np.uint8))
    with pytest.raises(InputError, match="training labels was"):
        segment(data, weights, weights, own)


def test_a_head_beside_another_encoder_or_timestep_than_its_own_is_refused(begun, tmp_path):
    for kept in (True, False):  # as where writing broke off, in its two orders
        folder = shutil.copytree(begun[0], tmp_path / str(kept))
        path = folder / "sagittal.segmentation.encoder.safetensors"
        if kept:
            save_encoder(UNet(**NETWORK), path, plane="sagittal", joint="knee")
        else:
            path.unlink()
        with pytest.raises(InputError, match=r"segmentation\.safetensors: was trained on another segmentation encoder"):
            load_weights(str(folder), planes=("sagittal",))
    assert load_weights(str(begun[0]), planes=("sagittal",)).planes["sagittal"].segmentation_encoder is not None
    settings = load_settings(begun[0])
    folder = shutil.copytree(begun[0], tmp_path / "moved")
    for point, fits in (({"timestep": 100, "block": "in_1"}, True), ({"timestep": 30, "block": "mid_2"}, False)):
        points = {"segmentation": {"sagittal": FeaturePoint(**point)}}
        (folder / "weights.json").write_text(settings.model_copy(update={"points": points}).model_dump_json())
        if fits:  # the multiscale head reads every level
            assert load_weights(str(folder), planes=("sagittal",)).planes["sagittal"].segmentation is not None
            continue
        with pytest.raises(InputError, match=r"trained on features of timestep 100, and weights\.json takes"):
            load_weights(str(folder), planes=("sagittal",))


def test_published_head_needs_a_sixteenfold_map(studies, tmp_path):
    weights = write_weights(tmp_path / "weights", planes=("sagittal",))
    with pytest.raises(InputError, match="doubles a map four times, but mid_2 is 4 x 8 x 8 times smaller"):
        segment(studies, weights, tmp_path / "out", config(tmp_path, head="published"))


def test_data_without_label_maps_are_refused_in_one_sentence(tmp_path):
    write_volume(tmp_path / "data" / "a" / "sagittal.nii.gz")
    (tmp_path / "data" / "studies.csv").write_text("study,patient\na,p\n")
    weights = write_weights(tmp_path / "weights", planes=("sagittal",))
    settings = config(tmp_path, data=data_settings(tmp_path, validate_share=0.0))
    with pytest.raises(InputError, match="no sagittal series to train on has label maps"):
        segment(tmp_path / "data", weights, tmp_path / "out", settings)
