"""``edge demo``: the appliance on loopback, a phantom pushed by dcmtk's storescu, what came out, and where to look.

dcmtk stands for scanner and archive. Everything lies in one folder, which is made anew.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pydicom
from orthokernels.edge.config import Config, load
from orthokernels.edge.dcmtk import program
from orthokernels.edge.doctor.checkup import ask_page
from orthokernels.edge.doctor.study import new_study
from orthokernels.edge.objects.setting import NOTICE
from orthokernels.edge.status import open_store
from orthokernels.edge.store import Job
from pydicom.uid import UID

from orthokernels.bundle.golden import golden_study
from orthokernels.bundle.verify import verify
from orthokernels.errors import InputError

_FILE, _LOG = "appliance.toml", "appliance.log"
_READY_SECONDS, _STUDY_SECONDS, _STOP_SECONDS = 300.0, 600.0, 30.0
_ENDS = ("sent", "committed", "rejected", "dead")
_NO_DELAY = {**os.environ, "TCP_NODELAY": "1"}  # dcmtk's switch of Nagle's algorithm

_SETTINGS = """\
[appliance]
data = "{folder}/data"

[receive]
port = {dicom}

[[receive.peers]]
ae_title = "SCANNER"
hosts = ["127.0.0.1/32"]

[disk]
keep_free_bytes = 0
refuse_above = 1.0
clean_above = 1.0

[work]
bundle = "{bundle}"

[[destinations]]
name = "archive"
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {archive}

[page]
port = {page}
"""


def show(bundle: Path, folder: Path, *, keep: bool) -> None:
    """Show the whole loop.

    Args:
        bundle: with the golden study of a knee.
        folder: where everything goes; an earlier demo there is removed.
        keep: go on until Ctrl-C.

    Raises:
        InputError: dcmtk is not installed, the folder holds something else, or the loop does not get through.
    """
    for tool in ("storescu", "storescp"):
        program(tool)  # before anything is made
    images = golden_study(verify(bundle), "knee")
    if not images:
        raise InputError(f"{bundle}: carries no study of a knee. Export it again.")
    config = _prepare(bundle, folder)
    study = _write_study(images, folder / "study")
    with _archive(config, folder / "archive"), _appliance(folder) as appliance:
        _wait_ready(config, appliance, folder)
        _push(config, study)
        job = _follow(config, appliance)
        _show(job, config, folder)
        if keep:
            print("It runs until Ctrl-C.")
            _until_interrupted(appliance)


def _prepare(bundle: Path, folder: Path) -> Config:
    if folder.exists() and any(folder.iterdir()) and not (folder / _FILE).is_file():
        raise InputError(f"--out {folder}: holds something else than a demo. Name a new or an empty folder.")
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("data", "study", "archive"):
        (folder / name).mkdir(parents=True, mode=0o700)
    dicom, archive, page = _free_port(11112), _free_port(11113), _free_port(8080)
    file = folder / _FILE
    settings = _SETTINGS.format(
        folder=folder.absolute(), bundle=bundle.absolute(), dicom=dicom, archive=archive, page=page
    )
    file.write_text(settings, encoding="utf-8")
    return load(file)


def _free_port(wanted: int) -> int:
    """The customary port where it is free, else any."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise InputError("no port is free on 127.0.0.1.")


def _write_study(images: list[Path], folder: Path) -> list[Path]:
    files = []
    for number, image in enumerate(new_study(images), 1):
        files.append(folder / f"{number:04d}.dcm")
        image.save_as(files[-1], enforce_file_format=True)
    return files


@contextmanager
def _archive(config: Config, folder: Path) -> Iterator[None]:
    destination = config.destinations[0]
    command = [program("storescp"), "-aet", destination.ae_title, "-od", str(folder), "-uf", str(destination.port)]
    with _running(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_NO_DELAY)):
        yield


@contextmanager
def _appliance(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "orthokernels.cli", "edge", "serve", "--config", str(folder / _FILE)]
    with (folder / _LOG).open("wb") as log, _running(subprocess.Popen(command, stderr=log)) as process:
        yield process


@contextmanager
def _running(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(config: Config, appliance: subprocess.Popen[bytes], folder: Path) -> None:
    print("Starting the appliance: its model is loaded and tried on its golden case ...", flush=True)

    def ready() -> bool:
        if appliance.poll() is not None:
            raise InputError(f"the appliance ended; {folder / _LOG} says why.")
        return ask_page(config, "readyz")[0] == 200

    if not _within(_READY_SECONDS, ready):
        raise InputError(f"the appliance was not ready within {_READY_SECONDS:g} s: {ask_page(config, 'readyz')[1]}")


def _push(config: Config, study: list[Path]) -> None:
    command = [
        program("storescu"), "-aet", "SCANNER", "-aec", config.appliance.ae_title, "127.0.0.1",
        str(config.receive.port), *map(str, study),
    ]  # fmt: skip
    print(f"Pushing {len(study)} images: {' '.join(command[:7])} {study[0].parent}/*.dcm", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_NO_DELAY)
    if done.returncode != 0:
        raise InputError(f"storescu failed: {done.stderr.strip()[-500:]}")


def _follow(config: Config, appliance: subprocess.Popen[bytes]) -> Job:
    """Tell each state that the study passes through."""
    store, started, told = open_store(config), time.monotonic(), ""

    def ended() -> bool:
        nonlocal told
        for job in store.jobs(limit=1):
            state = ": ".join(filter(None, (job.state, job.progress)))
            if state != told:
                told = state
                print(f"{time.monotonic() - started:6.1f} s  {state}", flush=True)
            return job.state in _ENDS
        return False

    try:
        if not _within(_STUDY_SECONDS, lambda: appliance.poll() is not None or ended()):
            raise InputError(f"the study did not come out within {_STUDY_SECONDS:g} s.")
        return store.jobs(limit=1)[0]
    finally:
        store.database.close()


def _show(job: Job, config: Config, folder: Path) -> None:
    print(f"The study is {job.state}" + (f": {job.reason}" if job.reason else ""))
    print(f"What the archive has now, in {folder / 'archive'}:")
    for path in sorted((folder / "archive").iterdir()):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        kind = UID(header.SOPClassUID).name.removesuffix(" Storage")
        description = str(header.get("SeriesDescription", "")).removesuffix(f" - {NOTICE}")
        print(f"  {path.stat().st_size / 1e3:9.1f} kB  {kind}: {description}")
    print(f"Each says: {NOTICE}")
    print(f"Page:           http://127.0.0.1:{config.page.port}/")
    print(f"Configuration:  {folder / _FILE}")
    print(f"Log:            {folder / _LOG}")
    print(f"Look at it all: orthokernels edge doctor --config {folder / _FILE}", flush=True)


def _until_interrupted(appliance: subprocess.Popen[bytes]) -> None:
    try:
        appliance.wait()
    except KeyboardInterrupt:
        print()


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True
