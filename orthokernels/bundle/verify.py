"""Whether a folder is the bundle that its manifest describes: every file there, unchanged, and nothing else.

What is checked, in this order: the manifest's schema; the signature; names (no absolute path, no "..", no link);
missing, extra and changed files; what the graphs refer to; what they are named for; the ops they use. The first thing
wrong ends it.

Every file is read through at each verification, by all processors. What the graphs may do follows from their content
alone, so whoever verifies one bundle often may remember it by the manifest's digest, which names every byte.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from orthokernels import __version__
from orthokernels.bundle.graph_files import IR_OPS, ONNX_OPS, REVISION, check_graph
from orthokernels.bundle.manifest import MANIFEST, SCHEMA, SIGNATURE, File, Manifest, PlaneGraphs
from orthokernels.bundle.roles import check_roles
from orthokernels.bundle.signature import check_signature
from orthokernels.errors import InputError
from orthokernels.folders import add_to_table, cache_folder, read_table
from orthokernels.system import threads

# Read and hashed at once: between two pieces a thread asks for the interpreter, which may be busy elsewhere.
_PIECE = 16 << 20
_MANIFEST_LIMIT = 16 << 20  # bytes; a real one has some tens of thousands


Stamp = tuple[int, int, int, int]


@dataclass(frozen=True)
class Bundle:
    """A bundle that was verified.

    Attributes:
        folder: where it lies.
        manifest: what it says.
        digest: SHA-256 of the manifest, by which a result names its bundle.
        signer: the public key that signed it, in hexadecimal, where one did.
        stamps: of each file as it was read through: inode, bytes, and when content and inode were changed last.
    """

    folder: Path
    manifest: Manifest
    digest: str
    signer: str | None
    stamps: Mapping[str, Stamp] = field(default_factory=dict, compare=False)

    def unchanged(self, name: str) -> Path:
        """The path of a file that is to be opened long after the verification, perhaps: read through again if touched.

        Raises:
            InputError: it is not what the manifest says any more.
        """
        path = self.folder / name
        if name not in self.stamps or not path.is_file() or _stamp(path.stat()) != self.stamps[name]:
            file = self.manifest.files[name]
            _check_content(self.folder, name, file.sha256, file.bytes)
        return path


def verify(folder: Path | str, *, key: Path | None = None, remember: bool = False) -> Bundle:
    """Check a bundle; nothing of it is run.

    Args:
        folder: of the bundle.
        key: the public key (PEM) that must have signed it; without one, a signature need only be valid.
        remember: in the user's cache that this bundle's graphs were read, and do not read them again.

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
    stamps = _check_contents(folder, manifest)
    _check_references(folder, manifest)
    check_roles(folder / MANIFEST, manifest)
    digest = hashlib.sha256(content).hexdigest()
    if not (remember and _were_read(digest)):
        for graph in manifest.graphs.values():
            for files in graph.forms.values():
                check_graph(folder, files)
        if remember:
            add_to_table(_read_graphs(), digest, _rules())
    return Bundle(folder, manifest, digest, signer, stamps)


class Verification:
    """A verification that goes on while other things are done: importing, say, or reading a study.

    Args:
        folder, key: as of ``verify``, which remembers.
    """

    def __init__(self, folder: Path | str, *, key: Path | None = None) -> None:
        pool = ThreadPoolExecutor(1)
        self._found = pool.submit(verify, folder, key=key, remember=True)
        pool.shutdown(wait=False)

    def result(self) -> Bundle:
        """The bundle, once it is verified; raises as ``verify``."""
        return self._found.result()


def _were_read(digest: str) -> bool:
    return read_table(_read_graphs()).get(digest) == _rules()


def _read_graphs() -> Path:
    """The table of bundles whose graphs were found to do nothing but what they may, and by which rules."""
    return cache_folder() / "bundles" / "graphs.json"


def _rules() -> str:
    ops = " ".join(sorted(ONNX_OPS) + sorted(IR_OPS))
    return f"{__version__} {REVISION} {hashlib.sha256(ops.encode()).hexdigest()}"


def _manifest_bytes(folder: Path) -> bytes:
    path = folder / MANIFEST
    if path.is_symlink():
        raise InputError(f"{path}: is a symbolic link. A bundle holds files only.")
    if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
        raise InputError(f"{path}: is not a regular file.")
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
        yield from ([] if joint.patient_data is None else [joint.patient_data])
        for plane in joint.planes.values():
            yield from _tables(plane)
    for case in manifest.golden.values():
        yield from (*case.images, case.labels)


def _tables(plane: PlaneGraphs) -> list[str]:
    """The files of a plane that are no graphs."""
    return [
        file for file in (plane.structures, plane.known.file if plane.known is not None else None) if file is not None
    ]


def _check_name(folder: Path, name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or "\\" in name or ":" in name or "\0" in name:
        raise InputError(f"{folder / MANIFEST}: {name!r} is not a path inside the folder.")
    if ".." in path.parts or not name or path.as_posix() != name:
        raise InputError(f"{folder / MANIFEST}: {name!r} leaves the folder or is not written plainly.")


def _check_listing(folder: Path, manifest: Manifest) -> None:
    """The folder's files are the manifest's."""

    def unreadable(error: OSError) -> None:
        raise InputError(f"{error.filename}: can't be read ({error.strerror}). Fetch the bundle again.") from error

    found = set()
    needed = {parent.as_posix() for name in manifest.files for parent in PurePosixPath(name).parents}
    empty = []
    for place, folders, files in os.walk(folder, onerror=unreadable):
        for name in (*folders, *files):
            path = Path(place, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise InputError(f"{folder}: {relative} is a symbolic link. A bundle holds files only.")
            if name in files:
                if not path.is_file():
                    raise InputError(f"{folder}: {relative} is not a regular file.")
                found.add(relative)
            elif relative not in needed:
                empty.append(relative)
    found -= {MANIFEST, SIGNATURE}
    for name in sorted(manifest.files.keys() - found):
        raise InputError(f"{folder}: {name} is missing. Fetch the bundle again.")
    for name in sorted(found - manifest.files.keys()):
        raise InputError(f"{folder}: {name} is not in {MANIFEST}. Remove it, or fetch the bundle again.")
    if empty:  # told last: what lies in a folder says more than the folder
        raise InputError(
            f"{folder}: the folder {min(empty)} holds no file of {MANIFEST}. Remove it, or fetch the bundle again."
        )


def _check_contents(folder: Path, manifest: Manifest) -> dict[str, Stamp]:
    """Each file against its digest; of several that are wrong the first is told. Hashing needs no Python meanwhile."""

    def check(item: tuple[str, File]) -> Stamp:
        name, file = item
        return _check_content(folder, name, file.sha256, file.bytes)

    with ThreadPoolExecutor(threads()) as pool:
        found = [pool.submit(check, item) for item in manifest.files.items()]
        try:
            return {name: future.result() for name, future in zip(manifest.files, found, strict=True)}
        finally:
            pool.shutdown(cancel_futures=True)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _check_content(folder: Path, name: str, sha256: str, size: int) -> Stamp:
    """The file's stamp from before it was read: what is written meanwhile will not bear it."""
    path = folder / name
    try:
        if path.stat().st_size != size:
            raise InputError(f"{path}: has {path.stat().st_size} bytes, not {size}. It was changed or cut short.")
        with path.open("rb", buffering=0) as file:
            stamp = _stamp(os.fstat(file.fileno()))
            found = _sha256(file, min(size, _PIECE))
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}).") from error
    if found != sha256:
        raise InputError(f"{path}: its content does not match its digest. It was changed; fetch the bundle again.")
    return stamp


def _sha256(file: FileIO, piece_size: int) -> str:
    sha, piece = hashlib.sha256(), memoryview(bytearray(piece_size))
    while count := file.readinto(piece):
        sha.update(piece[:count])
    return sha.hexdigest()


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
        if own.patient_data is not None and own.patient_data not in manifest.files:
            raise InputError(f"{path}: the {joint} reads {own.patient_data}, which is not listed.")
        for plane in own.planes.values():
            named += [plane.segmentation_features, plane.diagnosis_features, plane.segmentation]
            named += [plane.pooling, plane.head]
            for file in _tables(plane):
                if file not in manifest.files:
                    raise InputError(f"{path}: the {joint} reads {file}, which is not listed.")
        for graph_name in named:
            if graph_name is not None and graph_name not in manifest.graphs:
                raise InputError(f"{path}: the {joint} uses the graph {graph_name!r}, which is not there.")
