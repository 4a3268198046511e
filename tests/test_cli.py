from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

from orthokernels.cli import _importing
from orthokernels.data.study import read_study


def orthokernels(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orthokernels.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "100"},
    )


@pytest.mark.parametrize(
    "command", [[], ["run"], ["phantom"], ["info"], ["bench"], ["edge"], ["weights"], ["weights", "fetch"]]
)
def test_every_command_explains_itself(command):
    done = orthokernels(*command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_phantom_studies_can_be_read_as_a_study_each(tmp_path):
    done = orthokernels("phantom", "--count", 2, "--seed", 5, "--matrix", 64, "--out", tmp_path / "p")
    assert done.returncode == 0, done.stderr
    folders = sorted((tmp_path / "p").glob("study_*"))
    assert [folder.name for folder in folders] == ["study_00005", "study_00006"]
    assert done.stdout.split() == [str(folder) for folder in folders]
    for folder in folders:
        study = read_study([folder])
        assert all(len(stacks) == 1 for stacks in study.stacks.values())
        assert study.left_out == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["phantom", "--out", "{tmp}", "--joint", "hip"], "no phantom of the hip"),
        (["phantom", "--out", "{tmp}", "--side", "middle"], "--side is right or left"),
        (["phantom", "--out", "{tmp}/p", "--findings", "ACL,GOUT"], "no finding 'GOUT'"),
        (["phantom", "--out", "{tmp}/p", "--contrast", "flair"], "no contrast 'flair'"),
        (["weights", "convert", "{tmp}/none.pt", "{tmp}/out"], "no such file"),
        (["weights", "convert", "{tmp}/none.pt", "{tmp}/out", "--plane", "top"], "no plane 'top'"),
        (["weights", "fetch", "--planes", "top"], "no plane 'top'"),
    ],
)
def test_bad_arguments_end_with_one_sentence_and_exit_code_2(tmp_path, arguments, message):
    done = orthokernels(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_garbage_is_collected_again_behind_imports_that_fail():
    with pytest.raises(ModuleNotFoundError), _importing():
        import no_such_module  # noqa: F401
    assert gc.isenabled()
    assert gc.get_freeze_count() > 0
    gc.unfreeze()
