"""Where folders that commands make may go, and who may read what is in them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from orthokernels.export.bundle import BundleFolder

from orthokernels.data.phantom import make_study, write_nifti
from orthokernels.data.phantom.dataset import Recipe, write_studies
from orthokernels.errors import InputError
from orthokernels.folders import add_to_table, place_of, read_table, umask
from orthokernels.writing import OutputFolder


@pytest.mark.parametrize("make", [OutputFolder, BundleFolder])
def test_folder_that_can_not_be_replaced_is_refused_before_the_work(make, tmp_path, monkeypatch):
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    (tmp_path / "link").symlink_to(mounted)
    monkeypatch.chdir(mounted)
    for out in (".", mounted, tmp_path / "link"):
        with pytest.raises(InputError, match="is the current folder, which can't be replaced"):
            make(out)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "ismount", lambda path: path == mounted)
    with pytest.raises(InputError, match=rf"--out {mounted}: is a mounted folder, which can't be replaced\."):
        make(mounted)
    assert place_of(mounted / "new") == mounted / "new"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["link", "mounted"]  # and nothing beside them


def test_link_to_an_empty_folder_is_filled_where_it_points(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    assert OutputFolder(tmp_path / "link").path == tmp_path / "there"
    with BundleFolder(tmp_path / "link") as folder:
        assert folder.path == tmp_path / "there"
        os.replace(folder.draft, folder.path)
    assert (tmp_path / "link").is_symlink()


def test_umask_is_told_and_stays():
    before = os.umask(0o027)
    try:
        assert umask() == umask() == 0o027
    finally:
        os.umask(before)


def test_phantom_where_nothing_can_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    told = r"file/x/study: can't be written \(Not a directory\)\. Choose another place"
    with pytest.raises(InputError, match=told):
        write_nifti(make_study(1, matrix=32), tmp_path / "file" / "x" / "study")
    with pytest.raises(InputError, match=told):
        write_studies(tmp_path / "file" / "x" / "study", [1], Recipe(matrix=32))


@pytest.mark.parametrize("content", ["", "[1]", "null", "{", "[" * 100_000, "\x00", "1" * 5000])
def test_a_broken_table_is_an_empty_one_and_takes_new_lines(tmp_path, content):
    file = tmp_path / "table.json"
    file.write_text(content)
    assert read_table(file) == {}
    add_to_table(file, "a", 1)
    assert read_table(file) == {"a": 1}


def test_a_pipe_in_place_of_a_table_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "table.json")
    assert read_table(tmp_path / "table.json") == {}
    add_to_table(tmp_path / "table.json", "a", 1)
    assert read_table(tmp_path / "table.json") == {"a": 1}


def test_a_table_that_can_not_be_replaced_leaves_nothing_beside_it(tmp_path):
    (tmp_path / "table.json").mkdir()
    for _ in range(2):
        add_to_table(tmp_path / "table.json", "a", 1)
    assert not list(tmp_path.glob(".writing-*"))


_ADD = """
import sys
from pathlib import Path
from orthokernels.folders import add_to_table
for number in range(40):
    add_to_table(Path(sys.argv[1]), f"{sys.argv[2]} {number}", number)
"""


def test_processes_that_add_at_once_keep_each_other_s_lines(tmp_path):
    file = tmp_path / "table.json"
    adding = [subprocess.Popen([sys.executable, "-c", _ADD, str(file), str(own)]) for own in range(3)]
    assert [own.wait() for own in adding] == [0, 0, 0]
    read_table.cache_clear()
    assert len(read_table(file)) == 3 * 40
