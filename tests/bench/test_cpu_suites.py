"""The CPU suites compare like with like, and tell what was left out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from orthokernels.bench.cpu import peers
from orthokernels.bench.cpu.suite import markdown, run_suite
from typer.testing import CliRunner

from orthokernels.cli import app

pytest.importorskip("orthokernels._native")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("suite", ["features", "layer", "denoiser"])
def test_every_contender_computes_the_same(suite, monkeypatch):
    plain = {name: peers.PEERS[name] for name in ("torch_eager", "torch_channels_last")}
    monkeypatch.setattr(peers, "PEERS", {**plain, "absent": (peers.torch_eager, ("no_such_package",))})
    facts = run_suite(suite, threads=1, rounds=1, tiny=True)
    assert set(facts["ratios"]) == {"orthokernels", *plain}
    assert facts["ratios"]["orthokernels"] == 1
    assert all(error < 5e-6 for error in facts["errors"].values())  # F(4,4,4)'s 2e-6 a layer, in a few layers
    assert facts["left_out"] == {"absent": "no_such_package is not installed"}
    assert bool(facts["layers"]) == (suite != "layer")
    for layer in facts["layers"]:
        assert layer["over_floor"] == pytest.approx(layer["seconds"] / layer["floor"])
    assert "Left out: absent (no_such_package is not installed)." in markdown(facts)


def test_a_peer_that_fails_does_not_end_the_suite(monkeypatch):
    def fails(module, x, threads):
        raise RuntimeError("no such layer\nmore")

    monkeypatch.setattr(peers, "PEERS", {"broken": (fails, ()), "torch_eager": peers.PEERS["torch_eager"]})
    left_out: dict[str, str] = {}
    x = np.zeros((1, 1, 2, 4, 4), np.float32)
    ready = dict(peers.made_ready(torch.nn.Conv3d(1, 1, 1), x, 1, left_out))
    assert list(ready) == ["torch_eager"]
    assert left_out == {"broken": "RuntimeError: no such layer"}


def test_the_command_writes_what_it_prints(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "PEERS", {})
    given = ["bench", "cpu", "--suite", "features", "--tiny", "--rounds", "1", "--threads", "1", "--json"]
    done = CliRunner().invoke(app, [*given, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts == json.loads((tmp_path / "features.json").read_text())
    assert facts["peak_resident_mb"] < 200
    assert (tmp_path / "features.md").read_text() == markdown(facts)
    assert CliRunner().invoke(app, ["bench", "cpu", "--suite", "heads"]).exit_code != 0
