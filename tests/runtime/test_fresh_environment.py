"""The package as a box beside a scanner has it: a fresh environment, no PyTorch, one bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orthokernels.pipeline import run
from orthokernels.tasks import PLANES

REPOSITORY = Path(__file__).parents[2]
LARGEST_MB = 700  # of everything installed


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Where the package was installed with OpenVINO, and nothing that training needs."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip = [folder / "venv" / "bin" / "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    done = subprocess.run([*pip, f"{wheel(folder)}[openvino]"], capture_output=True, text=True, check=False)
    if "NewConnectionError" in done.stderr or "Temporary failure in name resolution" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    return folder / "venv"


def wheel(folder: Path) -> Path:
    """The package's wheel, made with what is built already; in isolation every kernel would be compiled anew."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", folder, REPOSITORY], check=True)
    return next(folder.glob("orthokernels-*.whl"))


def orthokernels(environment, *arguments):
    command = [environment / "bin" / "orthokernels", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("engine", ["native", "openvino"])
def test_a_study_runs_where_pytorch_is_not_installed(environment, weights, bundle, study, tmp_path, engine):
    has_torch = [environment / "bin" / "python", "-c", "import importlib.util as u; print(u.find_spec('torch'))"]
    assert subprocess.run(has_torch, capture_output=True, text=True, check=True).stdout.strip() == "None"
    assert orthokernels(environment, "bundle", "verify", bundle).returncode == 0
    done = orthokernels(
        environment, "run", study, "--bundle", bundle, "--engine", engine, "--out", tmp_path / "out", "--json"
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["model"]["engine"] == engine
    reference = run(study, weights=str(weights)).result
    assert told["model"]["digest"] == reference.model.digest
    for own, expected in zip(told["findings"], reference.findings, strict=True):
        assert own["probability"] == pytest.approx(expected.probability, abs=0.01)  # as test_bundle_run says
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"findings.json", "report.html", *(f"segmentation_{plane}.nii.gz" for plane in PLANES)} <= written


def test_weights_without_pytorch_say_what_to_install(environment, study, tmp_path):
    done = orthokernels(environment, "run", study, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "pip install 'orthokernels[torch]'" in done.stderr


def test_the_installation_is_small(environment):
    """What pip installs; Python's own bytecode, which any run writes, adds a fifth."""
    packages = next(environment.glob("lib/python3*/site-packages"))
    files = [path for path in packages.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= LARGEST_MB * 1e6
