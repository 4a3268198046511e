"""The GPU suites' machinery, on a CPU and tiny shapes: what is measured there says nothing, that it is told does."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from orthokernels.bench.gpu import plots, report
from orthokernels.bench.gpu.case import Bar, Case, Corner, decompose, judge, rows_of
from orthokernels.bench.gpu.ceilings import Ceilings
from orthokernels.bench.gpu.check import checks, compare, poisoned
from orthokernels.bench.gpu.check_cases import Comparison
from orthokernels.bench.gpu.floors import count, meta
from orthokernels.bench.gpu.peers import load, peers
from orthokernels.bench.gpu.setting import Setting, setting_for
from orthokernels.bench.gpu.suite import SUITES, run_suite
from orthokernels.bench.gpu.timing import Absent, Contender, Effort, HostClock, Timing, measure, time_limit
from torch import nn
from typer.testing import CliRunner

from orthokernels.backends.registry import ops_of
from orthokernels.cli import app
from orthokernels.errors import InputError

TINY = Setting(torch.device("cpu"), tiny=True)
QUICK = Effort(seconds=0.01, least=2, most=2)
CEILINGS = Ceilings(bandwidth=1e9, rates={"bfloat16": 1e12, "float16": 1e12, "float32": 1e12})
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def plain_ops(monkeypatch):
    """Interpreted kernels would take minutes; the ops' own tests run them."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_runs_from_end_to_end(suite, tmp_path, monkeypatch):
    from importlib import import_module

    module = import_module(f"orthokernels.bench.gpu.{suite}_suite")
    every = module.cases(TINY)
    facts = run_suite(suite, TINY, "a command", minutes=10, own_cases=every)
    assert {row["case"] for row in facts["rows"]} == {case.name for case in every}
    assert not facts["left_out"]
    for case in every:  # ours is measured, first, and counted
        ours = next(row for row in facts["rows"] if row["case"] == case.name)
        assert ours["contender"].startswith("orthokernels")
        absent = "MONAI" in case.name and ours["state"] == "left out"
        assert absent or (ours["state"] == "measured" and ours["floor_percent"] > 0)
    for row in facts["rows"]:
        assert row["state"] == "measured" or row["note"], row
    written = [*report.write(facts, tmp_path), *plots.draw(facts, tmp_path)]
    assert {path.suffix for path in written} == {".json", ".csv", ".md", ".png"}
    assert json.loads((tmp_path / f"{suite}.json").read_text())["rows"] == facts["rows"]
    with (tmp_path / f"{suite}.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(facts["rows"])
    text = (tmp_path / f"{suite}.md").read_text()
    assert "to try the machinery" in text
    assert all(case.name in text for case in every)


def test_the_ops_suite_has_the_promised_shapes():
    from orthokernels.bench.gpu import ops_suite

    names = "\n".join(case.name for case in ops_suite.cases(Setting(torch.device("cpu"))))
    for shape in (
        "group_norm_silu forward, 1x64x16x256x256 bf16, channels-last",
        "group_norm_silu backward, 8x64x16x256x256 bf16, channels-last",
        "group_norm_silu forward, 1x128x20x256x256 bf16, contiguous",
        "16x16x16 = 4096 tokens",
        "windows of 1x7x7",
        "16 heads of 16, 256 tokens",
        "attention_block forward, 1x256x1x16x16 bf16",
        "denoise_step DPM-Solver++, 1x1x16x256x256",
    ):
        assert shape in names


def told_by(contenders, **options) -> dict[str, Timing]:
    return measure(contenders, HostClock(), effort=QUICK, **options)


def fails() -> object:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nGPU 0 has ...")


def test_a_failing_contender_is_a_row_and_the_others_go_on():
    def late():
        calls = iter(range(100))

        def call():
            if next(calls) > 6:
                raise ValueError("fails behind its warm-up")

        return call

    timings = told_by(
        [Contender("breaks", fails), Contender("late", late), Contender("works", lambda: lambda: None)]
    )  # fmt: skip
    assert timings["breaks"].reason == "out of memory: CUDA out of memory. Tried to allocate 20 GiB."
    assert timings["late"].reason == "ValueError: fails behind its warm-up"
    assert len(timings["works"].seconds) == 2
    case = Case("a case", 10, 0, "bfloat16", lambda: [])
    states = {row.contender: row.state for row in rows_of("ops", case, timings)}
    assert states["breaks"] == "failed"
    assert states["works"] == "measured"


def test_a_contender_that_is_never_warm_is_stopped_and_absent_ones_are_told():
    def absent():
        raise Absent("it is not installed")

    timings = told_by([Contender("slow", lambda: time.sleep(30)), Contender("absent", absent)], patience=0.2)
    assert timings["slow"].reason == "it was not warm after 0 s"
    assert (timings["absent"].reason, timings["absent"].tried) == ("it is not installed", False)


def test_the_limit_is_taken_back():
    with time_limit(0.05):
        pass
    time.sleep(0.1)


def test_cases_for_which_no_time_is_left_are_named():
    facts = run_suite("ops", TINY, "a command", minutes=0.0, own_cases=[Case("a case", 1, 0, "bfloat16", list)])
    assert facts["left_out"] == ["a case: the time was up"]
    assert "a case: the time was up" in report.markdown(facts)


def test_the_speed_up_is_the_product_of_its_factors():
    times = {
        Corner.KERNELS_LAST: 1.0, Corner.PLAIN_CONTIGUOUS: 24.0, Corner.PLAIN_LAST: 12.0,
        Corner.KERNELS_CONTIGUOUS: 2.0, Corner.UNFUSED_CONTIGUOUS: 6.0,
    }  # fmt: skip
    case = Case("a case", 500_000_000, 0, "bfloat16", list, (Bar("floor", 0.8), Bar("faster", 20.0, Corner.PLAIN_LAST)))
    rows = rows_of("ops", case, {str(name): Timing([value]) for name, value in times.items()})
    parts = decompose(rows)
    assert (parts["total"], parts["parallelism"], parts["fusion"], parts["layout"]) == (24.0, 4.0, 3.0, 2.0)
    assert parts["layout_alone"] == 2.0
    floor, faster = judge(case, rows, CEILINGS, binding=True)
    assert (floor["value"], floor["met"]) == (0.5, False)  # half a second of bytes in one second
    assert (faster["value"], faster["met"]) == (12.0, False)
    assert report.verdict(floor) == "50 %, MISSED"
    elsewhere = judge(case, rows, CEILINGS, binding=False)[0]
    assert report.verdict(elsewhere) == "50 %, not judged: no H200"


def test_operations_and_bytes_of_a_network_are_those_of_its_layers():
    network = nn.Sequential(nn.Conv3d(2, 4, 1, bias=False), nn.GroupNorm(2, 4))
    found = count(network, lambda own: own(meta(1, 2, 3, 5, 7)), 2)
    voxels = 3 * 5 * 7
    assert found.operations == 2 * 2 * 4 * voxels
    assert found.moved == 2 * ((2 + 4) * voxels + 2 * 4 + 3 * 4 * voxels)


def test_a_peer_that_is_missing_says_so():
    for peer in peers():
        if peer.reason is None:
            load(peer.name)
        else:
            assert peer.reason.startswith((f"{peer.name} is not installed", f"{peer.name} can't be imported"))
            with pytest.raises(Absent):
                load(peer.name)


def test_without_a_gpu_one_sentence_and_exit_code_2(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA device is visible to PyTorch"):
        setting_for("cuda", False)
    with pytest.raises(InputError, match="add --tiny"):
        setting_for("cpu", False)
    result = CliRunner().invoke(app, ["bench", "ops"])
    assert isinstance(result.exception, InputError)  # main() turns it into exit code 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_command_itself_exits_with_2():
    done = subprocess.run([sys.executable, "-m", "orthokernels.cli", "bench", "model"], capture_output=True, text=True)
    told = (
        "orthokernels: no CUDA device is visible to PyTorch; to try the machinery without one: --device cpu --tiny.\n"
    )
    assert (done.returncode, done.stderr) == (2, told)


def test_training_on_a_cpu_is_still_the_cpu_s_own_measurement(monkeypatch, tmp_path):
    asked = []
    import orthokernels.bench.training

    monkeypatch.setattr(orthokernels.bench.training, "main", asked.append)
    assert CliRunner().invoke(app, ["bench", "training", "--device", "cpu", "--out", str(tmp_path)]).exit_code == 0
    assert asked == [tmp_path]


def test_the_check_finds_what_is_wrong():
    x = {"x": torch.randn(3, 5)}
    assert compare("op", Comparison("right", lambda x: x * 2, lambda x: x * 2, x)).fault is None
    assert "off by" in (compare("op", Comparison("wrong", lambda x: x * 2.01, lambda x: x * 2, x)).fault or "")

    def forgetful(x):
        y = torch.empty(3, 5)
        y[:2] = x[:2].detach()
        return y + 0 * x

    assert "result: off by nan" in (compare("op", Comparison("unwritten", forgetful, lambda x: x * 1, x)).fault or "")
    assert not torch.isnan(torch.ones(2)).any()
    with poisoned():
        assert torch.isnan(torch.empty(2)).all()


def test_the_plain_backend_passes_its_own_check():
    found = list(checks(TINY))
    assert [row for row in found if row.fault] == []
    assert {row.op for row in found} == set(ops_of("triton"))


def test_the_script_is_valid_bash():
    subprocess.run(["bash", "-n", str(ROOT / "bench" / "gpu.sh")], check=True)
