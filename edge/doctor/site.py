"""What the appliance stands on: the files that it was given, the disk, the clock, its ports, and the bundle."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from orthokernels.edge import audit
from orthokernels.edge.config import Config, Tls, WebDestination
from orthokernels.edge.database import NAME
from orthokernels.edge.doctor.look import Look
from orthokernels.edge.receive.intake import no_room
from orthokernels.edge.selfcheck import clock_faults, disk_faults

from orthokernels.bundle.golden import golden_study
from orthokernels.bundle.verify import verify
from orthokernels.errors import InputError

_SOON_DAYS = 30


def is_running(config: Config) -> bool:
    """Whether an appliance runs on this data folder: it holds a lock there as long as it lives."""
    try:
        descriptor = os.open(config.appliance.data / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def look_at_files(file: Path, config: Config) -> Iterator[Look]:
    """Who may read and write what was configured: the configuration itself, keys, tokens."""
    yield _permissions("configuration", file, forbidden=stat.S_IWGRP | stat.S_IWOTH, remedy=f"chmod 640 {file}")
    secret = stat.S_IRWXO | stat.S_IWGRP
    for what, path in _secrets(config):
        yield _permissions(what, path, forbidden=secret, remedy=f"chmod 640 {path}")
    for name, tls in _all_tls(config):
        if tls.key is not None:
            yield _permissions(f"TLS key, {name}", tls.key, forbidden=secret, remedy=f"chmod 640 {tls.key}")
        if tls.certificate is not None:
            yield _certificate(f"TLS certificate, {name}", tls.certificate)


def _secrets(config: Config) -> Iterator[tuple[str, Path]]:
    """Files with a token or a password."""
    named = [("token of the page", config.page.token_file)]
    for peer in config.stow.peers if config.stow is not None else ():
        named.append((f"token of {peer.name}", peer.token_file))
    for destination in config.destinations:
        if isinstance(destination, WebDestination):
            named.append((f"token for {destination.name}", destination.token_file))
            named.append((f"password for {destination.name}", destination.password_file))
    yield from ((what, path) for what, path in named if path is not None)


def _all_tls(config: Config) -> Iterator[tuple[str, Tls]]:
    if config.receive.tls is not None:
        yield "receive", config.receive.tls
    if config.stow is not None and config.stow.tls is not None:
        yield "stow", config.stow.tls
    if config.page.tls is not None:
        yield "page", config.page.tls
    for destination in config.destinations:
        if destination.tls is not None:
            yield destination.name, destination.tls


def _permissions(what: str, path: Path, *, forbidden: int, remedy: str) -> Look:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        return Look(what, "failed", f"{path}: {error.strerror}", "Correct the path, or put the file there.")
    if not os.access(path, os.R_OK):
        return Look(what, "failed", f"{path}: can't be read by this user", "Give the service's user the right to.")
    if mode & forbidden:
        return Look(what, "failed", f"{path}: others may do too much with it (mode {mode:o})", remedy)
    return Look(what, "ok", f"{path}, mode {mode:o}")


def _certificate(what: str, path: Path) -> Look:
    from cryptography import x509

    try:
        ends = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        return Look(what, "failed", f"{path}: can't be read ({error})", "Give a certificate as PEM.")
    left = (ends - datetime.now(UTC)).days
    if left < 0:
        return Look(what, "failed", f"{path}: ended on {ends:%Y-%m-%d}", "Renew it; peers refuse it.")
    if left < _SOON_DAYS:
        return Look(what, "note", f"{path}: ends on {ends:%Y-%m-%d}, in {left} days", "Renew it before that.")
    return Look(what, "ok", f"{path}, until {ends:%Y-%m-%d}")


def look_at_disk(config: Config) -> Iterator[Look]:
    """The data folder: who may enter, whether it can be written, and how much room there is."""
    data = config.appliance.data
    if not data.is_dir():
        above = next(parent for parent in data.parents if parent.exists())
        writable = os.access(above, os.W_OK | os.X_OK)
        told = f"{data}: is not there yet" + ("" if writable else f", and {above} can't be written by this user")
        yield Look("data folder", "note" if writable else "failed", told, "The service makes it when it first starts.")
        yield _room(above, config)
        return
    mode, owner = stat.S_IMODE(data.stat().st_mode), data.stat().st_uid
    if mode & 0o077:
        yield Look("data folder", "failed", f"{data}: others may enter (mode {mode:o})", f"chmod 700 {data}")
    elif owner != os.geteuid():
        told = f"{data}: belongs to user {owner}, not to the one that asks ({os.geteuid()})"
        yield Look("data folder", "note", told, "Call the doctor as the service's user: sudo -u ...")
    else:
        yield Look("data folder", "ok", f"{data}, for its owner alone")
    faults = list(disk_faults(data))
    seen = "; ".join(faults) or "a file was written, synced and read back"
    yield Look("disk", "failed" if faults else "ok", seen, "Look at the disk, and at who owns the folder.")
    yield _room(data, config)


def _room(folder: Path, config: Config) -> Look:
    """Whether the disk that a folder is on has room for images."""
    usage = shutil.disk_usage(folder)
    free = f"{usage.free / 1e9:.1f} GB free of {usage.total / 1e9:.1f}"
    refuses = no_room(folder, config.disk)
    remedy = "Free some, lower disk.keep_free_bytes, or raise disk.refuse_above."
    return Look("room", "failed" if refuses else "ok", f"{free}; {refuses}" if refuses else free, remedy)


def look_at_watched_folder(config: Config) -> Iterator[Look]:
    """Whether files can be moved out of the watched folder: it can be read, and a file made in it and removed.

    A service may be denied what this user is not, so the remedy names the usual reason.
    """
    if config.watch is None:
        return
    folder = config.watch.folder
    remedy = "Give the service's user the right to, and name it in the unit: ReadWritePaths (ProtectSystem=strict)."
    try:
        for _ in folder.iterdir():
            break
        with tempfile.NamedTemporaryFile(dir=folder, prefix="."):  # such names are not taken in
            pass
    except OSError as error:
        yield Look("watched folder", "failed", f"{folder}: can't be emptied ({error.strerror})", remedy)
        return
    yield Look("watched folder", "ok", f"{folder} can be emptied")


def look_at_clock(config: Config) -> Look:
    """Whether the time can be true, by what was recorded before."""
    faults = list(clock_faults(_last_recorded(config.appliance.data / NAME)))
    now = f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}"
    return Look("clock", "failed" if faults else "ok", "; ".join(faults) or now, "Set it, and keep it by NTP.")


def _last_recorded(database: Path) -> str | None:
    try:
        if not database.is_file():
            return None
        connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
        try:
            return audit.last_recorded(connection)
        finally:
            connection.close()
    except (sqlite3.Error, PermissionError):  # the looks at the folder tell whose it is
        return None


def look_at_ports(config: Config) -> Iterator[Look]:
    """Whether the appliance could listen where it is to; for one that does not run."""
    yield _port("DICOM port", config.receive.host, config.receive.port)
    yield _port("page's port", config.page.host, config.page.port)
    if config.stow is not None:
        yield _port("DICOMweb port", config.stow.host, config.stow.port)
    if config.mrd is not None:
        yield _port("MRD port", config.mrd.host, config.mrd.port)


def _port(what: str, host: str, port: int) -> Look:
    place = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        remedy = {
            errno.EADDRINUSE: "Stop what listens there, or choose another port.",
            errno.EACCES: "Choose a port from 1024 on, or give the service CAP_NET_BIND_SERVICE.",
            errno.EADDRNOTAVAIL: "Give an address of this machine, or 0.0.0.0.",
        }.get(error.errno or 0, "Correct host and port.")
        return Look(what, "failed", f"{place}: {error.strerror}", remedy)
    return Look(what, "ok", f"{place} is free")


def look_at_bundle(config: Config) -> Iterator[Look]:
    """Whether the bundle is what its manifest says, for this joint, and whether the service could change it."""
    remedy = "Make one: orthokernels export bundle, or fetch it again."
    if config.work.bundle is None:
        yield Look("bundle", "failed", "work.bundle names none, so there is no model", remedy)
        return
    try:
        found = verify(config.work.bundle, key=config.work.bundle_key)
    except InputError as error:
        yield Look("bundle", "failed", str(error), remedy)
        return
    joint = config.results.joint
    if joint not in found.manifest.joints:
        yield Look("bundle", "failed", f"{found.folder}: has nothing for the {joint}", remedy)
        return
    signed = f"signed by {found.signer[:16]}" if found.signer else "not signed"
    yield Look("bundle", "ok", f"{found.manifest.name}, {found.digest[:16]}, {signed}, every file as its manifest says")
    if not golden_study(found, joint):
        seen = f"it carries none for the {joint}, so nobody can try the model"
        yield Look("golden case", "failed", seen, "Export the bundle again with this version.")
    if os.access(found.folder, os.W_OK) and os.geteuid() != 0:
        yield Look(
            "bundle's folder", "note", "this user can write it", "Let another user own it: the model can't change then."
        )
