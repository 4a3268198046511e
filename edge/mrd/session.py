"""One scanner's connection: images in, the same images back, then labels, a word on them, and the end.

Whatever fails, the scanner's own images go back to it first. Labels and findings come only of what went right.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from orthokernels.edge.config import Disk, Mrd
from orthokernels.edge.mrd.messages import (
    ACQUISITION,
    CLOSE,
    CONFIG_FILE,
    CONFIG_TEXT,
    HEADER,
    IMAGE,
    Image,
    Message,
    MrdError,
    Stream,
    encode_image,
)
from orthokernels.edge.mrd.model import InlineModel, NoLabelsError
from orthokernels.edge.mrd.originals import Originals
from orthokernels.edge.mrd.scan import Scan, read_scan
from orthokernels.edge.mrd.volumes import VolumeFile, free_series, label_images, write_volumes

from orthokernels.errors import InputError
from orthokernels.tasks import PLANES, RESEARCH_NOTICE

LOG = logging.getLogger("orthokernels.edge.mrd")


@dataclass(frozen=True)
class Configuration:
    """What goes back beside the scanner's own images."""

    labels: bool
    findings: bool


# By the names that a scanner may ask for; nothing is ever loaded by a name.
CONFIGURATIONS = {
    "orthokernels": Configuration(labels=True, findings=True),
    "segmentation": Configuration(labels=True, findings=False),
    "findings": Configuration(labels=False, findings=True),
    "originals": Configuration(labels=False, findings=False),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a connection: images that went back, images that were made, and why there were none."""

    returned: int
    made: int
    reason: str | None


class Session:
    """One connection. ``run`` returns when all that can be answered was answered."""

    def __init__(self, stream: Stream, model: InlineModel, folder: Path, disk: Disk, mrd: Mrd) -> None:
        self._stream = stream
        self._model = model
        self._folder = folder
        self._disk = disk
        self._most_images = mrd.limits.images_per_connection
        self._inline_seconds = mrd.inline_seconds
        self._configuration: Configuration | None = None
        self._unknown = False
        self._scan = Scan()
        self._readouts = 0
        self._through: str | None = None  # why images go straight back instead of being kept
        self._passed = 0

    def run(self) -> Outcome:
        """Talk to the scanner until there is nothing more to say.

        Raises:
            OSError: the scanner is gone; it could not be answered.
        """
        with Originals(self._folder, self._disk) as originals:
            reason = self._guarded(self._collect, originals)
            until = time.monotonic() + self._inline_seconds
            if self._through is None:
                originals.send(self._stream)
            made: list[Any] = []
            told: list[str] = []
            if reason is None and (self._wanted.labels or self._wanted.findings):
                reason = self._guarded(self._evaluate, originals, until, made, told)
            for image in made:
                self._stream.send(IMAGE, *encode_image(*image))
            for line in told if reason is None else [f"No result: {reason}."]:
                self._stream.send_text(f"orthokernels: {line}")
            self._stream.send(CLOSE)
            return Outcome(len(originals.headers) + self._passed, len(made), reason)

    @property
    def _wanted(self) -> Configuration:
        assert self._configuration is not None
        return self._configuration

    def _guarded(self, work: Any, *arguments: Any) -> str | None:
        """Why a step failed, without a full stop; nothing that happens in it may cost the scanner its images."""
        try:
            work(*arguments)
        except (MrdError, NoLabelsError, InputError) as error:
            return str(error).rstrip(".")
        except Exception:
            LOG.exception("a scanner's images could not be evaluated")
            return "a fault of the appliance's own; its log says more"
        return None

    def _collect(self, originals: Originals) -> None:
        """Take everything up to the scanner's last message.

        Raises:
            MrdError: it does not end well, or nothing in it can be evaluated.
        """
        while True:
            message = self._stream.receive()
            if message is None:
                raise MrdError("the connection was closed without a closing message")
            if isinstance(message, Image):
                self._keep(originals, message)
            elif message.number == CLOSE:
                break
            else:
                self._note(message)
        if self._through is not None:
            raise MrdError(self._through)
        if self._readouts and not originals.headers:
            raise MrdError(
                f"{self._readouts} readouts of raw data came and no image; this appliance reads images, so let the "
                "scanner reconstruct first"
            )
        if not originals.headers:
            raise MrdError("no image came")
        if self._configuration is None:
            known = ", ".join(CONFIGURATIONS)
            what = "the configuration is not known here" if self._unknown else "no configuration was named"
            raise MrdError(f"{what}; choose from {known}")

    def _keep(self, originals: Originals, image: Image) -> None:
        if self._through is None:
            try:
                if len(originals.headers) < self._most_images:
                    originals.keep(image)
                    return
                self._through = f"more than {self._most_images} images came"
            except OSError as error:
                LOG.error("a scanner's images can't be kept and go straight back: %s", error)
                self._through = "there was no room to keep the images"
            originals.send(self._stream)
        self._stream.send(IMAGE, image.message)
        self._passed += 1

    def _note(self, message: Message) -> None:
        if message.number == CONFIG_FILE:
            self._choose(message.content.decode("ascii", "replace").strip())
        elif message.number == CONFIG_TEXT:
            if name := _named_in(message.content):
                self._choose(name)
        elif message.number == HEADER:
            try:
                self._scan = read_scan(message.content)
            except ValueError as error:
                LOG.warning("%s; contrast and body part are taken as unknown", error)
        elif message.number == ACQUISITION:
            self._readouts += 1

    def _choose(self, name: str) -> None:
        self._configuration = CONFIGURATIONS.get(name)
        self._unknown = self._configuration is None

    def _evaluate(self, originals: Originals, until: float, made: list[Any], told: list[str]) -> None:
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            folder, out = Path(name), Path(name, "out")
            out.mkdir()
            volumes = write_volumes(originals, self._scan, folder, self._most_images)
            answer = self._model.label([volume.path for volume in volumes], out, until)
            if self._wanted.labels:
                made += list(_images(answer, {volume.path.name: volume for volume in volumes}, out, originals))
        told += [RESEARCH_NOTICE, *map(str, answer["findings"] if self._wanted.findings else ())]
        told += map(str, answer["remarks"])


def _named_in(text: bytes) -> str | None:
    """The configuration that a text of parameters names, as consoles with their own choices send it."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return None
    parameters = told.get("parameters") if isinstance(told, dict) else None
    name = parameters.get("config") if isinstance(parameters, dict) else None
    return name if isinstance(name, str) and name else None


def _images(
    answer: dict[str, Any], volumes: dict[str, VolumeFile], out: Path, originals: Originals
) -> Iterator[tuple[Any, str, np.ndarray]]:
    """What goes back of each plane that was labelled: a series of its own."""
    series = free_series(originals.headers)
    for plane, source in answer["planes"].items():
        if plane not in PLANES:  # the process has read what came from outside
            raise ValueError("it labelled a plane that there is not")
        labels = np.load(out / f"{plane}.npy", allow_pickle=False)
        yield from label_images(
            volumes[source], labels, originals.headers, next(series), f"orthokernels {plane} segmentation"
        )
