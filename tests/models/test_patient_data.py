"""Late fusion with patient data: where the shares begin, what each input reaches."""

from __future__ import annotations

import pytest
import torch

from orthokernels.models.orthodiffusion.patient_data import LateFusion, TabularNet
from tests.models.golden import fill, wave


@pytest.fixture
def inputs():
    """Continuous columns, sex, patient type, event."""
    rows = torch.eye(3).double()
    return wave((4, 3), 2.0, 0.9).double(), rows[[0, 1, 2, 0]], rows[[1, 1, 0, 2]], torch.tensor([0, 3, 19, 7])


@pytest.fixture
def mri():
    return wave((4, 24), 1.0, 0.2).double()


def test_images_and_patient_data_count_alike_at_first(mri, inputs):
    found = LateFusion(24, labels=5).double().eval()(mri, *inputs)
    assert torch.equal(found["alpha"], torch.full((5,), 0.5).double())
    assert torch.equal(found["fused"], 0.5 * found["mri"] + 0.5 * found["tabular"])


@pytest.mark.parametrize(("parameter", "source"), [(100.0, "mri"), (-100.0, "tabular")])
def test_share_of_a_label_moves_it_alone_to_one_side(parameter, source, mri, inputs):
    fusion = LateFusion(24, labels=5).double().eval()
    with torch.no_grad():
        fusion.alpha_param[2] = parameter
    found = fusion(mri, *inputs)
    # sigmoid(100) is 1 to float64; sigmoid(-100) is 4e-44.
    torch.testing.assert_close(found["fused"][:, 2], found[source][:, 2], rtol=1e-15, atol=1e-15)
    assert torch.equal(found["fused"][:, :2], 0.5 * found["mri"][:, :2] + 0.5 * found["tabular"][:, :2])


def test_network_of_patient_data_alone_is_the_branch_of_the_fusion(mri, inputs):
    fusion, alone = fill(LateFusion(24, labels=5)).double(), TabularNet(labels=5).double().eval()
    names = {"event_embed": "event_embed", "tab_proj": "mlp", "tab_head": "out"}
    alone.load_state_dict(
        {
            name.replace(old, new): tensor
            for name, tensor in fusion.state_dict().items()
            for old, new in names.items()
            if name.startswith(old)
        }
    )
    assert torch.equal(alone(*inputs), fusion(mri, *inputs)["tabular"])


@pytest.mark.parametrize("column", range(4))
def test_every_column_reaches_the_scores(column, inputs):
    net = fill(TabularNet()).double()
    changed = list(inputs)
    changed[column] = changed[column].flip(0)
    assert bool(((net(*changed) - net(*inputs)).abs() > 1e-6).any())


def test_unknown_event_number_is_refused(inputs):
    with pytest.raises(IndexError):
        TabularNet(events=4).double()(*inputs)


def test_gradient_reaches_every_parameter(mri, inputs):
    fusion = fill(LateFusion(24)).double()
    fusion(mri, *inputs)["fused"].square().mean().backward()
    for name, parameter in fusion.named_parameters():
        assert float(parameter.grad.abs().max()) > 0, name
