"""Whether a folder is the bundle that its manifest describes: every file there, unchanged, and nothing else.

What is checked, in this order: the manifest's schema; the signature; names (no absolute path, no "..", no link);
missing, extra and changed files; what the graphs refer to; the ops they use. The first thing wrong ends it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from orthokernels.bundle.graph_files import check_graph
from orthokernels.bundle.manifest import MANIFEST, SCHEMA, SIGNATURE, Manifest
from orthokernels.bundle.signature import check_signature
from orthokernels.errors import InputError

_MANIFEST_LIMIT = 16 << 20  # bytes; a real one has some tens of thousands


@dataclass(frozen=True)
class Bundle:
    """A bundle that was verified.

    Attributes:
        folder: where it lies.
        manifest: what it says.
        digest: SHA-256 of the manifest, by which a result names its bundle.
        signer: the public key that signed it, in hexadecimal, where one did.
    """

    folder: Path
    manifest: Manifest
    digest: str
    signer: str | None


def verify(folder: Path | str, *, key: Path | None = None) -> Bundle:
    """Check a bundle; nothing of it is run.

    Args:
        folder: of the bundle.
        key: the public key (PEM) that must have signed it; without one, a signature need only be valid.

    Raises:
        InputError: the first thing that is not as it should be, in one line.
    """
    folder = Path(folder)
    content = _manifest_bytes(folder)
    manifest = _parse(folder, content)
    signer = check_signature(folder, content, key)
    for name in _names(manifest):
        _check_name(folder, name)
    _check_listing(folder, manifest)
    for name, file in manifest.files.items():
        _check_content(folder, name, file.sha256, file.bytes)
    _check_references(folder, manifest)
    for graph in manifest.graphs.values():
        for files in graph.forms.values():
            check_graph(folder, files)
    return Bundle(folder, manifest, hashlib.sha256(content).hexdigest(), signer)


def _manifest_bytes(folder: Path) -> bytes:
    path = folder / MANIFEST
    if path.is_symlink():
        raise InputError(f"{path}: is a symbolic link. A bundle holds files only.")
    try:
        with path.open("rb") as file:
            content = file.read(_MANIFEST_LIMIT + 1)
    except OSError as error:
        raise InputError(f"{folder}: is no bundle; {MANIFEST} can't be read ({error.strerror}).") from error
    if len(content) > _MANIFEST_LIMIT:
        raise InputError(f"{path}: is larger than {_MANIFEST_LIMIT >> 20} MiB, which no manifest is.")
    return content


def _parse(folder: Path, content: bytes) -> Manifest:
    path = folder / MANIFEST
    try:
        record = json.loads(content)
        version = record.get("schema_version") if isinstance(record, dict) else None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({error}). Fetch the bundle again.") from error
    if isinstance(version, int) and version > SCHEMA:
        raise InputError(f"{path}: has schema {version}, and this version of orthokernels reads {SCHEMA}. Upgrade it.")
    try:
        return Manifest.model_validate(record)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where or 'the whole'}: {first['msg']}. Fetch the bundle again.") from error


def _names(manifest: Manifest) -> Iterator[str]:
    """Every path in the manifest."""
    yield from manifest.files
    for graph in manifest.graphs.values():
        for files in graph.forms.values():
            yield from files
    for joint in manifest.joints.values():
        yield from (plane.structures for plane in joint.planes.values() if plane.structures is not None)
    for case in manifest.golden.values():
        yield from (*case.images, case.labels)


def _check_name(folder: Path, name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or "\\" in name or ":" in name or "\0" in name:
        raise InputError(f"{folder / MANIFEST}: {name!r} is not a path inside the folder.")
    if ".." in path.parts or not name or path.as_posix() != name:
        raise InputError(f"{folder / MANIFEST}: {name!r} leaves the folder or is not written plainly.")


def _check_listing(folder: Path, manifest: Manifest) -> None:
    """The folder's files are the manifest's."""
    found = set()
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise InputError(f"{folder}: {relative} is a symbolic link. A bundle holds files only.")
            if name in files:
                if not path.is_file():
                    raise InputError(f"{folder}: {relative} is not a regular file.")
                found.add(relative)
    found -= {MANIFEST, SIGNATURE}
    for name in sorted(manifest.files.keys() - found):
        raise InputError(f"{folder}: {name} is missing. Fetch the bundle again.")
    for name in sorted(found - manifest.files.keys()):
        raise InputError(f"{folder}: {name} is not in {MANIFEST}. Remove it, or fetch the bundle again.")


def _check_content(folder: Path, name: str, sha256: str, size: int) -> None:
    path = folder / name
    try:
        if path.stat().st_size != size:
            raise InputError(f"{path}: has {path.stat().st_size} bytes, not {size}. It was changed or cut short.")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}).") from error
    if found != sha256:
        raise InputError(f"{path}: its content does not match its digest. It was changed; fetch the bundle again.")


def _check_references(folder: Path, manifest: Manifest) -> None:
    """Graphs and files that are named are there, and every graph has the form that all engines fall back on."""
    path = folder / MANIFEST
    for name, graph in manifest.graphs.items():
        if "fp32" not in graph.forms:
            raise InputError(f"{path}: the graph {name} has no fp32 form.")
        for file in (file for files in graph.forms.values() for file in files):
            if file not in manifest.files:
                raise InputError(f"{path}: the graph {name} is made of {file}, which is not listed.")
    for joint, case in manifest.golden.items():
        if joint not in manifest.joints:
            raise InputError(f"{path}: has a golden case of the {joint}, and nothing else for it.")
        for file in (*case.images, case.labels):
            if file not in manifest.files:
                raise InputError(f"{path}: the golden case of the {joint} has {file}, which is not listed.")
    for joint, own in manifest.joints.items():
        named = [own.fusion, own.late_fusion]
        for plane in own.planes.values():
            named += [plane.segmentation_features, plane.diagnosis_features, plane.segmentation]
            named += [plane.pooling, plane.head]
            if plane.structures is not None and plane.structures not in manifest.files:
                raise InputError(f"{path}: the {joint} reads {plane.structures}, which is not listed.")
        for graph_name in named:
            if graph_name is not None and graph_name not in manifest.graphs:
                raise InputError(f"{path}: the {joint} uses the graph {graph_name!r}, which is not there.")
