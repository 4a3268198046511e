"""The bill of materials of an installed appliance, as CycloneDX JSON: ``python sbom.py PYTHON OUT``.

Args:
    PYTHON: the interpreter of an environment that holds the appliance and nothing else, such as the image's.
    OUT: the file to write; it appears once it is complete and valid.

cyclonedx-bom lists the Python packages. Added here is what no package index knows: the native module, and the files of
others that lie in the package.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

_PROJECT = Path(__file__).parents[2] / "pyproject.toml"

# Vendored files, by the beginning of their name: whose they are, and under which licence.
_VENDORED = {"niivue": ("@niivue/niivue", "BSD-2-Clause")}


def bill(python: Path) -> dict[str, Any]:
    """The bill of materials of an environment."""
    done = subprocess.run(
        [
            sys.executable, "-m", "cyclonedx_py", "environment", "--pyproject", str(_PROJECT), "--output-reproducible",
            "--sv", "1.6", "--of", "JSON", "-o", "-", str(python),
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    made: dict[str, Any] = json.loads(done.stdout)
    # Where an environment lies is nobody's business, and differs from machine to machine.
    for component in made.get("components", ()):
        component.pop("externalReferences", None)
    made["components"] = [*made.get("components", ()), *own_components(_package(python))]
    return made


def _package(python: Path) -> Path:
    """Where the environment keeps the package."""
    asked = "import orthokernels; print(orthokernels.__path__[0])"
    done = subprocess.run([python, "-I", "-c", asked], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def own_components(package: Path) -> Iterator[dict[str, Any]]:
    """The native module and vendored files, each with its digest."""
    for path in sorted(package.glob("_native*.so")):
        yield {
            "type": "library", "bom-ref": f"native:{path.name}", "name": "orthokernels native module",
            "description": "C++17 and OpenMP, compiled from csrc; links the compiler's libgomp and libstdc++",
            "hashes": [_digest(path)], "licenses": [{"license": {"id": "Apache-2.0"}}],
        }  # fmt: skip
    for path in sorted((package / "edge").glob("**/vendor/*.js")):
        named = re.fullmatch(r"([a-z0-9]+)-(\d+\.\d+\.\d+)\..*", path.name)
        if named is None or named[1] not in _VENDORED:
            raise SystemExit(f"{path}: is vendored, and sbom.py does not know whose it is. Add it to _VENDORED.")
        name, licence = _VENDORED[named[1]]
        purl = f"pkg:npm/{name.replace('@', '%40')}@{named[2]}"
        yield {
            "type": "library", "bom-ref": purl, "name": name, "version": named[2], "purl": purl,
            "hashes": [_digest(path)], "licenses": [{"license": {"id": licence}}],
        }  # fmt: skip


def _digest(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        return {"alg": "SHA-256", "content": hashlib.file_digest(file, "sha256").hexdigest()}


def check(text: str) -> None:
    """Hold a bill against CycloneDX' own schema."""
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise SystemExit(f"The bill of materials is not valid CycloneDX: {error}")


def main() -> None:
    python, out = Path(sys.argv[1]).absolute(), Path(sys.argv[2])
    text = json.dumps(bill(python), indent=1) + "\n"
    check(text)
    with tempfile.NamedTemporaryFile("w", dir=out.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, out)
    print(f"{out}: {len(json.loads(text)['components'])} components")


if __name__ == "__main__":
    main()
