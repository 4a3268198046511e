"""Fusion on vectors: triplets and their weights, folds by patient, and every mode on a task that has an answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from orthokernels.models.orthodiffusion.fusion import FUSIONS
from orthokernels.tasks import PLANES
from orthokernels.training import fusion_training
from orthokernels.training.config_heads import FusionConfig, HeadConfig
from orthokernels.training.fusion_training import (
    Standardisation,
    Vectors,
    fit,
    mean_one,
    out_of_fold_logits,
    patient_folds,
    train_fusion,
    train_gate,
    train_plane_head,
    weighted_bce,
)
from orthokernels.training.loop import TrainingStoppedError
from orthokernels.training.metrics import auroc
from orthokernels.training.triplets import triplets


@dataclass(frozen=True)
class Series:
    study: str
    findings: tuple[float, ...] | None
    patient: str = "p"


def test_every_combination_of_series_is_a_triplet_and_a_study_weighs_one():
    planes = {
        "sagittal": [Series("b", (1.0,)), Series("a", (0.0,)), Series("b", (1.0,))],
        "coronal": [Series("a", (0.0,)), Series("b", (1.0,))],
        "axial": [Series("b", (1.0,)), Series("b", (1.0,)), Series("b", (1.0,)), Series("a", (0.0,))],
    }
    found = triplets(planes)
    assert found.studies == ("a", "b")
    assert found.rows.tolist() == [[1, 0, 3], [0, 1, 0], [0, 1, 1], [0, 1, 2], [2, 1, 0], [2, 1, 1], [2, 1, 2]]
    assert np.bincount(found.study).tolist() == [1, 6]
    np.testing.assert_allclose(np.bincount(found.study, found.weight), 1, rtol=1e-6)
    assert found.truth.tolist() == [[0], [1]]
    values = np.arange(7.0)[:, None]
    np.testing.assert_allclose(found.mean_per_study(values), [[0], [3.5]], rtol=1e-6)


def test_studies_that_lack_a_plane_or_disagree_with_themselves_are_left_out():
    planes = {
        "sagittal": [Series("a", (0.0,)), Series("b", (1.0,)), Series("c", None)],
        "coronal": [Series("a", (1.0,)), Series("b", (1.0,)), Series("c", (1.0,))],
        "axial": [Series("a", (0.0,)), Series("c", (1.0,))],
    }
    assert triplets(planes).studies == ()
    assert triplets(planes).rows.shape == (0, 3)
    assert triplets(planes, ("sagittal",)).studies == ("a", "b")


def vectors(rows=160, width=12, labels=2, seed=0) -> Vectors:
    """Each plane sees both labels, through noise of its own; features of very different scale."""
    draw = torch.Generator().manual_seed(seed)
    truth = (torch.rand(rows, labels, generator=draw) < 0.4).float()
    scales = torch.logspace(-2, 1, width)
    mixing = torch.randn(len(PLANES), labels, width, generator=torch.Generator().manual_seed(99))
    planes = tuple(
        ((truth @ mixing[n]) * 1.2 + torch.randn(rows, width, generator=draw)) * scales + 3 * scales
        for n in range(len(PLANES))
    )
    return Vectors(planes, truth, torch.ones(rows), tuple(f"p{n // 2}" for n in range(rows)))


QUICK = FusionConfig(
    head=HeadConfig(epochs=15, batch=16, learning_rate=1e-2, standardise=True),
    gate=HeadConfig(epochs=60, batch=None, learning_rate=1e-2),
    out_width=16,
)


@pytest.mark.parametrize("name", [name for name in FUSIONS if name != "gating"])
@pytest.mark.parametrize("hidden", [False, True])
def test_fusion_of_three_planes_beats_each_alone(name, hidden):
    train, test = vectors(), vectors(seed=1)
    config = QUICK.model_copy(update={"hidden": hidden})
    fused = train_fusion(name, train, config, seed=0)
    single = [train_plane_head(train, plane, config.head, seed=0) for plane in range(3)]

    def score(logits):
        return np.mean([auroc(test.truth[:, n].numpy(), logits[:, n].detach().numpy()) for n in range(2)])

    assert score(fused(*test.planes)) > max(score(head(test.planes[n])) for n, head in enumerate(single))
    assert score(fused(*test.planes)) > 0.95


def test_gate_beats_the_planes_mean_where_one_plane_is_noise():
    train, test = vectors(), vectors(seed=1)
    noise = torch.Generator().manual_seed(5)
    for own in (train, test):
        own.planes[2].copy_(torch.randn(own.planes[2].shape, generator=noise))
    heads, gate = train_gate(train, QUICK, seed=0)
    logits = torch.stack([head(plane) for head, plane in zip(heads, test.planes, strict=True)], dim=1)
    mixed, shares = gate(logits)
    assert float(shares.detach().mean(dim=(0, 2))[2]) < 0.2
    assert float(weighted_bce(mixed, test.truth, test.weight)) < float(
        weighted_bce(logits.mean(dim=1), test.truth, test.weight)
    )


def test_out_of_fold_logits_come_from_heads_that_never_saw_the_patient(monkeypatch):
    own = vectors(rows=40)
    seen = []

    def watched(fold, plane, config, *, seed):
        seen.append((plane, set(fold.patients)))
        return train_plane_head(fold, plane, config, seed=seed)

    monkeypatch.setattr(fusion_training, "train_plane_head", watched)
    config = QUICK.model_copy(update={"head": HeadConfig(epochs=1, batch=8)})
    logits = out_of_fold_logits(own, config, seed=3)
    assert bool(logits.isfinite().all())
    folds = patient_folds(own.patients, 5, seed=3)
    assert len(seen) == 15
    for number, (plane, patients) in enumerate(seen):
        held = {own.patients[row] for row in np.flatnonzero(folds == number // 3)}
        assert plane == number % 3
        assert held
        assert not held & patients
        assert held | patients == set(own.patients)


def test_folds_keep_a_patient_together_and_are_even():
    patients = [f"p{n % 13}" for n in range(60)]
    folds = patient_folds(patients, 5, seed=0)
    assert len({(p, f) for p, f in zip(patients, folds, strict=True)}) == 13
    sizes = np.bincount([folds[patients.index(f"p{n}")] for n in range(13)])
    assert sorted(sizes) == [2, 2, 3, 3, 3]


def test_a_row_of_weight_two_counts_as_two_rows():
    logits, truth = torch.tensor([[0.3, -1.0], [2.0, 0.1]]), torch.tensor([[1.0, 0], [0, 1]])
    twice = weighted_bce(logits[[0, 1, 1]], truth[[0, 1, 1]], torch.ones(3))
    torch.testing.assert_close(weighted_bce(logits, truth, mean_one(torch.tensor([1.0, 2.0]))), twice)


def test_a_row_s_weight_counts_in_a_batch_of_its_own():
    logits, truth = torch.tensor([[0.3, -1.0], [2.0, 0.1]]), torch.tensor([[1.0, float("nan")], [0, 1]])
    weight = mean_one(torch.tensor([0.1, 0.3]))
    torch.testing.assert_close(weight, torch.tensor([0.5, 1.5]))
    for row, own in enumerate(weight):
        alone = weighted_bce(logits[[row]], truth[[row]], weight[[row]])
        torch.testing.assert_close(alone, own * weighted_bce(logits[[row]], truth[[row]], torch.ones(1)))


@pytest.mark.parametrize("value", [1.0, 1 / 3, 0.7])
def test_equal_weights_change_no_bit(value):
    assert torch.equal(mean_one(torch.full((97,), value)), torch.ones(97))
    own = vectors(rows=40)
    first, second = (
        train_plane_head(Vectors(own.planes, own.truth, weight, own.patients), 0, HeadConfig(epochs=2), seed=0)
        for weight in (own.weight, own.weight * value)
    )
    assert torch.equal(first.weight, second.weight)


def test_a_loss_that_is_no_number_names_the_epoch():
    own = vectors(rows=20)
    with pytest.raises(
        TrainingStoppedError, match=r"epoch [2-9] of a head: the loss is (nan|inf).*learning_rate below"
    ):
        fit(
            torch.nn.Linear(12, 2), [own.planes[0]], own.truth, own.weight,
            HeadConfig(epochs=9, batch=None, learning_rate=1e37), seed=0,
        )  # fmt: skip


def test_same_seed_same_head_and_callers_generator_untouched():
    own = vectors(rows=30)
    state = torch.get_rng_state()
    first, second = (train_fusion("linear_add", own, QUICK, seed=4) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_standardisation_folded_in_changes_no_logit():
    own = vectors(rows=50)
    rows = own.planes[0]
    rows[:, 3] = 7.0  # a column that never changes
    scale = Standardisation.of(rows)
    head = torch.nn.Linear(12, 4)
    before = head(scale(rows))
    scale.fold_into(head)
    # Raw rows reach 1e1 with weights over deviations down to 1e-2: float32 rounding of 1e-7 grows a hundredfold.
    torch.testing.assert_close(head(rows), before, atol=1e-4, rtol=1e-4)
    assert float(scale(rows).std(dim=0, correction=0)[:3].sub(1).abs().max()) < 1e-5


def test_no_epoch_leaves_the_module_as_built():
    own = vectors(rows=10)
    head = torch.nn.Linear(12, 2)
    before = head.weight.clone()
    fit(head, [own.planes[0]], own.truth, own.weight, HeadConfig(epochs=0), seed=0)
    assert torch.equal(before, head.weight)
