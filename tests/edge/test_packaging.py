"""What it is installed by: the systemd unit's hardening, the image's recipe, the bill of materials."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import orthokernels.edge
import pytest

PACKAGING = Path(orthokernels.edge.__file__).parent / "packaging"
UNIT = PACKAGING / "orthokernels-edge.service"
ROOT = Path(__file__).parents[2]

# What systemd 252 makes of the unit: 0 is closed, 10 open. Most of what is left is the network itself, and that
# addresses are not limited, which only who installs it can know.
WORST_EXPOSURE = 1.3


@pytest.fixture
def unit(tmp_path) -> Path:
    """The unit with a program that is there, which systemd looks for."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (Debian's systemd)")
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace("/opt/orthokernels/bin/orthokernels", shutil.which("true")))
    return path


def test_systemd_finds_no_mistake_in_the_unit(unit):
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    told = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, told) == (0, [])


def test_unit_is_as_closed_as_it_was(unit):
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert exposure is not None, done.stdout + done.stderr
    assert float(exposure[1]) <= WORST_EXPOSURE


def test_unit_watches_and_starts_again(unit):
    text = unit.read_text()
    for line in ("Type=notify", "WatchdogSec=60", "Restart=on-failure", "User=orthokernels", "MemoryMax=12G"):
        assert f"\n{line}\n" in text


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, comments and continued lines resolved."""
    lines = [line for line in (PACKAGING / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def test_image_runs_as_nobody_special_from_pinned_bases_with_a_health_check():
    found = instructions()
    bases = [told.split()[0] for name, told in found if name == "FROM"]
    assert len(bases) == 2
    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-bookworm", base) for base in bases)
    assert found[-1][0] == "CMD"
    users = [told for name, told in found if name == "USER"]
    assert users
    assert not users[-1].startswith(("0", "root"))
    assert json.loads(dict(found)["HEALTHCHECK"].partition("CMD ")[2])[:3] == ["orthokernels", "edge", "probe"]


def test_everything_that_the_image_is_built_from_is_there_and_let_through():
    let_through = set(re.findall(r"^!(\S+)$", (PACKAGING / "Dockerfile.dockerignore").read_text(), re.MULTILINE))
    copied = {
        source
        for name, told in instructions()
        if name == "COPY" and not told.startswith("--from")
        for source in told.split()[:-1]
    }
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("this is no source tree")
    assert copied == let_through
    assert all((ROOT / source).exists() for source in copied)


def test_trial_s_shell_is_right_and_installs_the_unit_as_its_head_says():
    trial = PACKAGING / "try.sh"
    assert subprocess.run(["bash", "-n", trial], check=False).returncode == 0
    head = UNIT.read_text().partition("[Unit]")[0]
    told = [line.strip("# ") for line in head.splitlines() if line.startswith("#   ") and "appliance.toml" not in line]
    assert len(told) == 4
    missing = [step for line in told for step in line.split(" && ") if step not in trial.read_text()]
    assert not missing


def test_bill_of_materials_names_vendored_files_and_the_native_module(tmp_path):
    pytest.importorskip("cyclonedx", reason="cyclonedx-bom is not installed")
    own_components = runpy.run_path(str(PACKAGING / "sbom.py"))["own_components"]
    (tmp_path / "_native.cpython.so").write_bytes(b"native")
    vendor = tmp_path / "edge" / "web" / "static" / "vendor"
    vendor.mkdir(parents=True)
    (vendor / "niivue-0.69.0.umd.js").write_bytes(b"js")
    native, niivue = own_components(tmp_path)
    assert native["name"] == "orthokernels native module"
    assert niivue["purl"] == "pkg:npm/%40niivue/niivue@0.69.0"
    (vendor / "other-1.0.0.js").write_bytes(b"")
    with pytest.raises(SystemExit, match="does not know whose it is"):
        list(own_components(tmp_path))


def test_committed_bill_of_materials_is_valid_and_holds_what_the_appliance_requires():
    pytest.importorskip("cyclonedx", reason="cyclonedx-bom is not installed")
    text = (PACKAGING / "sbom.json").read_text(encoding="utf-8")
    runpy.run_path(str(PACKAGING / "sbom.py"))["check"](text)
    bill = json.loads(text)
    names = {component["name"].lower() for component in bill["components"]}
    assert {"pynetdicom", "pydicom", "highdicom", "numpy", "orthokernels native module"} <= names
    assert "torch" not in names
    assert bill["metadata"]["component"]["name"] == "orthokernels"


def test_committed_bill_of_materials_names_each_vendored_file_by_what_it_is_pinned_to():
    components = json.loads((PACKAGING / "sbom.json").read_text(encoding="utf-8"))["components"]
    vendor = PACKAGING.parent / "web" / "static" / "vendor"
    pinned = [line.split() for line in (vendor / "SHA256SUMS").read_text().splitlines()]
    assert sorted(name for _, name in pinned) == sorted(path.name for path in vendor.glob("*.js"))
    for digest, name in pinned:
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest
        (found,) = (one for one in components if {"alg": "SHA-256", "content": digest} in one.get("hashes", ()))
        assert found["purl"] == f"pkg:npm/{found['name'].replace('@', '%40')}@{found['version']}"
        assert name.startswith(f"{found['name'].rpartition('/')[2]}-{found['version']}.")
        assert found["licenses"] == [{"license": {"id": "BSD-2-Clause"}}]
