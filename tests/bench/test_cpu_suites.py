"""The CPU suites compare like with like, and tell what was left out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from orthokernels.bench.cpu import peers, subjects
from orthokernels.bench.cpu.plots import draw
from orthokernels.bench.cpu.suite import markdown, run_suite
from typer.testing import CliRunner

from orthokernels.cli import app
from orthokernels.errors import InputError

pytest.importorskip("orthokernels._native")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def plain_peers(monkeypatch):
    """Those that come with PyTorch, and one that is not installed."""
    plain = {name: peers.PEERS[name] for name in ("torch_eager", "torch_channels_last")}
    monkeypatch.setattr(peers, "PEERS", {**plain, "absent": (peers.torch_eager, ("no_such_package",))})
    return set(plain)


@pytest.mark.parametrize("suite", ["features", "layer", "denoiser"])
def test_every_contender_computes_the_same(suite, plain_peers):
    facts = run_suite(suite, threads=1, rounds=1, tiny=True)
    assert set(facts["ratios"]) == {"orthokernels", *plain_peers}
    assert facts["ratios"]["orthokernels"] == 1
    assert all(error < 5e-6 for error in facts["errors"].values())  # F(4,4,4)'s 2e-6 a layer, in a few layers
    assert facts["left_out"] == {"absent": "no_such_package is not installed"}
    assert bool(facts["layers"]) == (suite != "layer")
    for layer in facts["layers"]:
        assert layer["over_floor"] == pytest.approx(layer["seconds"] / layer["floor"])
    assert "Left out: absent (no_such_package is not installed)." in markdown(facts)


def test_peers_that_were_not_asked_for_are_left_out():
    facts = run_suite("sampling", threads=1, rounds=1, tiny=True, peers=["torch_eager"])
    assert set(facts["ratios"]) == {"orthokernels", "torch_eager"}
    assert facts["left_out"] == {}
    assert facts["command"].endswith("--tiny --peers torch_eager")


@pytest.mark.parametrize(("suite", "count"), [("heads", 4), ("sweep", 4), ("sampling", 1)])
def test_every_case_of_a_suite_is_measured(suite, count, plain_peers, tmp_path):
    facts = run_suite(suite, threads=1, rounds=1, tiny=True)
    cases = facts.get("cases", [facts])
    assert len(cases) == count
    for case in cases:
        assert set(case["ratios"]) == {"orthokernels", *plain_peers}
        assert all(error < 1e-5 for error in case["errors"].values()), case["name"]
        assert suite == "sampling" or case["name"] in markdown(facts)
        reason = "is not installed" if suite == "heads" else "a loop or a single op"
        assert reason in case["left_out"]["absent"]
    draw(facts, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_a_volume_too_large_to_hold_is_left_out_of_the_sweep(monkeypatch):
    monkeypatch.setattr(subjects, "MOST_BYTES", 4 * 16 * 2 * 16 * 16 - 1)
    assert list(subjects.sweep(1, tiny=True)) == []


def test_what_torch_compile_makes_is_measured_beside_it():
    facts = run_suite("layer", threads=1, rounds=1, tiny=True, peers=["torch_compile"])
    assert set(facts["ratios"]) == {"orthokernels", "torch_compile"}, facts["left_out"]
    assert facts["errors"]["torch_compile"] < 5e-6


def test_others_networks_compute_the_same_under_accelerate_and_learn_the_same():
    pytest.importorskip("monai", reason="MONAI is not installed")
    facts = run_suite("others", threads=1, rounds=1, tiny=True, peers=["torch_eager"])
    cases = [case["name"].split(", ")[1] for case in facts["cases"]]
    assert cases == ["a step", "a training step", "autoencoder", "a step"]
    for case in facts["cases"]:
        assert set(case["ratios"]) == {"orthokernels", "torch_eager"}
        # F(4,4,4)'s 2e-6 a layer; in the training step the loss after two, in which weights moved by 1e-4.
        assert all(error < 5e-6 for error in case["errors"].values()), case


def test_a_peer_that_fails_does_not_end_the_suite(monkeypatch):
    def fails(module, inputs, threads):
        raise RuntimeError("no such layer\nmore")

    monkeypatch.setattr(peers, "PEERS", {"broken": (fails, ()), "torch_eager": peers.PEERS["torch_eager"]})
    left_out: dict[str, str] = {}
    x = np.zeros((1, 1, 2, 4, 4), np.float32)
    ready = dict(peers.made_ready(torch.nn.Conv3d(1, 1, 1), (x,), 1, left_out))
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
    assert (tmp_path / "features.png").is_file()
    assert CliRunner().invoke(app, ["bench", "cpu", "--suite", "head"]).exit_code != 0
    assert CliRunner().invoke(app, ["bench", "cpu", "--peers", "eager"]).exit_code != 0
    assert CliRunner().invoke(app, ["bench", "cpu", "--cases", "conv3d"]).exit_code != 0


def test_a_sweep_may_be_of_some_cases(monkeypatch):
    monkeypatch.setattr(peers, "PEERS", {})
    facts = run_suite("sweep", threads=1, rounds=1, tiny=True, cases="group_norm,")
    assert [case["name"] for case in facts["cases"]] == ["group_norm, 16 channels, 2 x 16 x 16"]
    assert facts["command"].endswith("--cases 'group_norm,'")
    with pytest.raises(InputError, match="no case's name holds it"):
        run_suite("sweep", threads=1, rounds=1, tiny=True, cases="pooling")


def test_a_step_of_fine_tuning_learns_what_eager_s_does(plain_peers):
    facts = run_suite("finetuning", threads=1, rounds=2, tiny=True)
    assert set(facts["ratios"]) == {"orthokernels", *plain_peers}
    # Losses after three steps, which an encoder that does not learn changes by 2e-2; float32's rounding is 1e-7.
    assert all(error < 1e-5 for error in facts["errors"].values()), facts["errors"]
