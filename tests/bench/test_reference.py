"""The bench compares like with like, and its record says what was measured."""

from __future__ import annotations

import torch
from orthokernels.bench.record import Row, markdown, record
from orthokernels.bench.reference import called_in_turn, eager_pass

from orthokernels.models.orthodiffusion import UNet


def test_the_eager_peers_compute_the_same_features():
    unet = UNet(base_channels=16, channel_mults=(1, 2), attention_rates=(2,), groups=8).eval()
    x, timesteps = torch.randn(1, 1, 4, 8, 8), torch.tensor([100])
    with torch.inference_mode():
        ours = unet.features(x, timesteps, ("mid_2",))["mid_2"]
        assert torch.equal(eager_pass(unet, x, timesteps), ours)
        assert torch.equal(called_in_turn(unet, x, timesteps), ours)


def test_record_names_machine_versions_command_and_commit():
    facts = record([Row("a", "first", "s", [1.0, 3.0, 2.0], ratio=1.0, limit=4.0)], "orthokernels bench")
    assert facts["rows"][0]["median"] == 2.0
    assert facts["processor"]["cores"] >= 1
    assert "torch" in facts["versions"]
    assert facts["commit"]
    table = markdown(facts)
    assert "| a | first | 2 s | 1.4 | 2.6 | 1.00 | 4 s |" in table
