"""dcmtk's programs are found where pynetdicom's scripts of the same names come first."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from orthokernels.edge.dcmtk import program

from orthokernels.errors import InputError
from tests.edge.conftest import needs


def test_a_script_of_the_same_name_is_passed_over(tmp_path, monkeypatch):
    needs("storescu")
    own = program("storescu")
    script = tmp_path / "storescu"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(own).parent}")
    assert shutil.which("storescu") == str(script)
    assert program("storescu") == own


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"dcmtk's storescu is not installed\. Install it: apt-get install dcmtk"):
        program("storescu")
