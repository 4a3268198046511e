"""The GPU suites' machinery, on a CPU and tiny shapes: what is measured there says nothing, that it is told does."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from orthokernels.bench.gpu import plots, report, timing
from orthokernels.bench.gpu.case import Bar, Case, Corner, decompose, judge, rows_of
from orthokernels.bench.gpu.ceilings import Ceilings
from orthokernels.bench.gpu.check import FAR, UNFINISHED, WRONG, check_parts, checks, compare, parts, poisoned
from orthokernels.bench.gpu.check import main as check
from orthokernels.bench.gpu.check_cases import Comparison
from orthokernels.bench.gpu.floors import count, meta
from orthokernels.bench.gpu.peers import load, peers
from orthokernels.bench.gpu.setting import Setting, setting_for
from orthokernels.bench.gpu.suite import SUITES, run_suite
from orthokernels.bench.gpu.timing import Absent, Contender, CudaClock, Effort, HostClock, Timing, measure, time_limit
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


class Graphs(HostClock):
    """A clock whose graphs can't be captured of calls that say so."""

    captures = True

    def __init__(self) -> None:
        self.asked = 0

    def capture(self, call):
        self.asked += 1
        if call() == "fails":
            raise RuntimeError("operation not permitted when stream is capturing")
        return call


def test_behind_a_capture_that_failed_none_is_tried_and_no_memory_given_back(monkeypatch):
    monkeypatch.setattr(timing, "_no_capture", [])
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    timing.empty_cache()
    clock = Graphs()
    contenders = [Contender("a", lambda: lambda: "works"), Contender("b", lambda: lambda: "fails")]
    for _ in range(2):
        found = measure([*contenders, Contender("c", lambda: lambda: "works")], clock, effort=QUICK)
        timing.empty_cache()
        assert all(len(own.seconds) == 2 for own in found.values())
        assert "operation not permitted" in found["b"].notes[0]
        assert found["c"].notes[0].startswith("no CUDA graph: an earlier one failed here")
    assert (clock.asked, len(emptied)) == (2, 1)


def test_the_device_waits_until_the_host_has_launched_all_of_a_call(monkeypatch):
    order = []

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            order.append("event")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: order.append(cycles))
    clock = object.__new__(CudaClock)
    clock.cold, clock._leads = torch.ones(2), {}

    def call():
        order.append("call")
        time.sleep(0.005)

    for _ in range(2):
        clock.start(call)
    assert [own for own in order if isinstance(own, str)] == 2 * ["event", "call", "event"]
    assert order[0] > 0  # it waits before the first event
    assert order[4] >= 0.005 * 2e9  # as long as the host took


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
    found = [row for part in parts(TINY) for row in checks(TINY, part)]
    assert [row for row in found if row.fault] == []
    assert {row.op for row in found} == set(ops_of("triton"))


def test_each_op_and_dtype_is_a_part_and_large_volumes_are_one():
    told = parts(Setting(torch.device("cuda")))  # none is needed to name them
    assert len(told) == 3 * len(ops_of("triton")) + 1
    assert told[-1] == FAR


def test_the_check_runs_each_part_in_a_process_and_keeps_the_record(tmp_path, capsys):
    given = ["--device", "cpu", "--tiny", "--ops", "add_noise,plane_gating", "--out", str(tmp_path), "--seed", "7"]
    assert check(given) == 0
    told = capsys.readouterr().out
    assert "add_noise: 2 of 2 right" in told
    assert "plane_gating: 2 of 2 right" in told
    facts = json.loads((tmp_path / "check.json").read_text())
    assert {row["op"] for row in facts["rows"]} == {"add_noise", "plane_gating"}
    assert (facts["seed"], facts["unfinished"]) == (7, [])


_ROW = '{"op": "op", "what": "first", "error": 0.0, "plain": 0.0, "fault": null}'
_PARTS = {
    "op quick": f"print('a compiler\\'s word'); print({_ROW!r})",
    "op slow": f"import time; print({_ROW!r}, flush=True); time.sleep(60)",
    "op broken": f"import sys; print({_ROW!r}); sys.exit('an illegal memory access')",
}


def test_a_part_that_is_late_is_not_wrong_and_one_that_breaks_off_is():
    begin = lambda part: [sys.executable, "-S", "-E", "-c", _PARTS[part]]  # noqa: E731
    started = time.monotonic()
    found = {part.part: part for part in check_parts(list(_PARTS), begin, seconds=4.0, workers=3)}
    assert time.monotonic() - started < 50
    assert found["op quick"].unfinished is None
    assert [row.fault for row in found["op quick"].rows] == [None]
    assert [row.fault for row in found["op slow"].rows] == [None]  # what it found before is kept
    assert found["op slow"].unfinished.startswith("stopped after 4 s")
    assert [row.fault for row in found["op broken"].rows] == [None, "exit code 1: an illegal memory access"]
    only = list(check_parts(["op slow", "op quick"], begin, seconds=0.5, workers=1))
    assert [part.unfinished[:9] for part in only] == ["stopped a", "not begun"]


def test_the_check_tells_a_lack_of_time_from_a_wrong_result(monkeypatch, tmp_path, capsys):
    given = ["--device", "cpu", "--tiny", "--ops", "add_noise", "--out", str(tmp_path)]
    assert check([*given, "--seconds", "0"]) == UNFINISHED
    assert "WRONG" not in capsys.readouterr().out
    assert json.loads((tmp_path / "check.json").read_text())["unfinished"][0]["part"] == "add_noise float32"
    monkeypatch.setattr("sys.executable", "false")
    assert check(given) == WRONG


_BARE = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"pydantic", "typer", "click", "rich", "pydicom", "nibabel", "safetensors", "scipy",
                                  "matplotlib", "numba", "onnx", "onnxruntime", "openvino", "PIL", "huggingface_hub",
                                  "cryptography", "diffusers", "monai"}:
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Refuse())
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("start --help", 0, "Compile every kernel"),
        ("start compile --targets 75", 2, "--targets 75: there are 80, 90, 100."),
        ("start ops --device cpu --tiny --minutes 0 --out {out}", 0, "Left out: group_norm_silu forward"),
        ("start model --device cpu --tiny --minutes 0 --out {out}", 0, "Ours, and the quickest that is not ours"),
        ("start training --device cpu --tiny --minutes 0 --out {out}", 0, "{out}/training.json"),
        ("check --device cpu --tiny --part", 2, "expected one argument"),
        ("check --device cpu --tiny --ops nothing", 2, "--ops nothing: there are add_noise"),
        ("report {out}", 1, "has no record of a suite."),
    ],
)
def test_the_script_s_commands_need_neither_a_command_line_package_nor_another(command, code, told, tmp_path):
    module, *rest = command.format(out=tmp_path).split()
    done = subprocess.run(
        [sys.executable, "-c", _BARE, f"orthokernels.bench.gpu.{module}", *rest], capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert told.format(out=tmp_path) in done.stdout + done.stderr


def test_the_script_starts_only_modules_that_need_no_command_line_package():
    script = (ROOT / "bench" / "gpu.sh").read_text()
    modules = set(re.findall(r"-m (orthokernels[.\w]*)", script))
    assert modules == {f"orthokernels.bench.gpu.{name}" for name in ("check", "start", "report")}


def test_where_pip_fails_the_script_uses_the_sources_with_all_rooms(tmp_path):
    told = tmp_path / "told"
    looks = (
        "import importlib.util as u\n"
        "rooms = [u.find_spec(f'orthokernels.{room}') is not None for room in ('bench', 'edge', 'export')]\n"
        f"print(u.find_spec('orthokernels').origin, rooms, file=open({str(told)!r}, 'a'))"
    )
    python = tmp_path / "python"
    # Without site-packages: an installed copy would be found first. -c looks where -m does.
    python.write_text(
        "#!/bin/bash\n"
        'if [[ "$1 $2" == "-m pip" ]]; then exit 1; fi\n'
        'if [[ "$1" == -c && "$2" == *get_device* ]]; then echo 90; exit 0; fi\n'
        'if [[ "$1" == -c && "$2" == *is_available* ]]; then exit 0; fi\n'
        f'if [[ "$1" == -m ]]; then exec {sys.executable} -S -c "{looks}"; fi\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "bench" / "gpu.sh"), str(tmp_path / "out")],
        env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = told.read_text().splitlines()
    assert len(lines) == 6  # compile, check, three suites, report
    assert all(line.endswith("[True, True, True]") and not line.startswith(str(ROOT)) for line in lines), lines


def test_the_script_is_valid_bash():
    subprocess.run(["bash", "-n", str(ROOT / "bench" / "gpu.sh")], check=True)
