"""What a bundle's model card says of its figures."""

from __future__ import annotations

import pytest

pytest.importorskip("markdown_it")

from orthokernels.export.card import card

from orthokernels.bundle.manifest import Manifest, Metric


def manifest(*names):
    metrics = tuple(Metric(task="knee", metric=own, form="fp32", value=0.9, fp32=0.9, studies=100) for own in names)
    return Manifest(
        name="small", version="0", intended_use="Research.", limits=(), trained=True, licence="none", origin="here",
        size=64, depth=16, structures={}, joints={}, graphs={}, native=True, minimum_versions={}, files={},
        metrics=metrics,
    )  # fmt: skip


def test_figures_are_said_to_be_of_phantoms_and_drawn_patients():
    assert "digital phantoms" in card(manifest("macro_auroc"))
    assert "drawn at random" not in card(manifest("macro_auroc"))
    assert "drawn at random" in card(manifest("macro_auroc", "patient_data_macro_auroc"))
    assert "phantoms" not in card(manifest())
