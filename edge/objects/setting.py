"""What every object of one result shares: patient, study, moment, side, software, and identifiers that repeat."""

from __future__ import annotations

import datetime
import hashlib
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from highdicom import UID, AlgorithmIdentificationSequence
from highdicom.sr import AlgorithmIdentification
from orthokernels.edge.forms import Form
from orthokernels.edge.objects.codes import private_scheme
from orthokernels.edge.objects.sources import moment, read_sources
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

from orthokernels import __version__

NOTICE = "RESEARCH - NOT FOR DIAGNOSTIC USE"
MANUFACTURER = "orthokernels"

# Numbers of our series within a study; scanners count from 1 and stay far below.
SERIES_NUMBERS = {"sagittal": 9901, "coronal": 9902, "axial": 9903, "report": 9910, "pictures": 9920}


@dataclass(frozen=True)
class Setting:
    """The study that objects are written for.

    Attributes:
        sources: cleaned headers of the study's images by path; see ``read_sources``. The first speaks for the patient.
        model_digest, configuration_digest: hexadecimal digests of what computed the result and of how it was set.
        created: the moment that the objects bear.
        joint: "knee", "ankle" or "shoulder".
        side: "L", "R", or "" where it is not known.
    """

    sources: Mapping[Path, Dataset]
    model_digest: str
    configuration_digest: str
    created: datetime.datetime
    joint: str
    side: str

    @property
    def first(self) -> Dataset:
        return next(iter(self.sources.values()))

    @property
    def body_part(self) -> str:
        return self.first.get("BodyPartExamined") or self.joint.upper()

    def uid(self, *names: str) -> UID:
        """An identifier under 2.25 (UUIDs), derived from the images, what computed the result, and what it names.

        The same study, model, configuration and version of this package give the same identifiers, so a repeat gives
        the same object and an archive keeps one.
        """
        images = sorted({header.SOPInstanceUID for header in self.sources.values()})
        return _uid(*images, self.model_digest, self.configuration_digest, __version__, *names)

    def device_uid(self) -> UID:
        """What observed: this version of the package with this model, whatever the study."""
        return _uid("device", MANUFACTURER, __version__, self.model_digest)

    def object(
        self, kind: str, series: str, *, number: int = 1, description: str, form: Form | None = None
    ) -> dict[str, Any]:
        """Arguments that all of highdicom's objects take. ``kind`` names the instance, ``series`` its series.

        What goes with label maps, by ``form``, stands in series of its own: two archives may come together.
        """
        apart = ("label map",) if form == "label map" else ()
        day, time = self.day_and_time
        return {
            "series_instance_uid": self.uid("series", series, *apart),
            "series_number": SERIES_NUMBERS[series],
            "sop_instance_uid": self.uid("instance", kind, *apart),
            "instance_number": number,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": MANUFACTURER,
            "software_versions": __version__,
            "device_serial_number": self.model_digest[:16],
            "series_description": f"{description} - {NOTICE}",
            "series_date": day,
            "series_time": time,
            "content_date": day,
            "content_time": time,
            "coding_schemes": [private_scheme()],
            "transfer_syntax_uid": ExplicitVRLittleEndian,
        }

    @property
    def day_and_time(self) -> tuple[str, str]:
        """The moment as DICOM writes it."""
        return f"{self.created:%Y%m%d}", f"{self.created:%H%M%S}"

    def settle_moment(self, made: Dataset) -> None:
        """Replace the moment of writing, which highdicom sets, by the result's own."""
        made.InstanceCreationDate, made.InstanceCreationTime = self.day_and_time
        for equipment in made.get("ContributingEquipmentSequence", ()):
            equipment.ContributionDateTime = "".join(self.day_and_time)

    def algorithm_parameters(self) -> dict[str, str]:
        return {"model SHA-256": self.model_digest, "configuration SHA-256": self.configuration_digest}

    def algorithm(self) -> AlgorithmIdentificationSequence:
        """Who segmented, for segments."""
        return AlgorithmIdentificationSequence(
            MANUFACTURER,
            codes.cid7162.ArtificialIntelligence,
            __version__,
            source=MANUFACTURER,
            parameters=self.algorithm_parameters(),
        )

    def report_algorithm(self) -> AlgorithmIdentification:
        """Who measured, for reports."""
        return AlgorithmIdentification(
            MANUFACTURER,
            __version__,
            parameters=[f"{name}: {value}" for name, value in self.algorithm_parameters().items()],
            family=codes.cid7162.ArtificialIntelligence,
            manufacturer=MANUFACTURER,
        )


def _uid(*parts: str) -> UID:
    digest = hashlib.sha256("\n".join(parts).encode()).digest()
    return UID(f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}")


def make_setting(
    paths: Sequence[Path],
    *,
    model_digest: str,
    configuration_digest: str,
    joint: str,
    side: str | None,
    created: datetime.datetime | None,
    received: datetime.datetime | None,
    used: Collection[Path] = (),
) -> Setting:
    """Read the sources' headers, and fix what the objects of one result share.

    The moment is ``created``; where it is None, see ``moment``. ``used`` are the files (resolved) that the result was
    made from: one of them speaks for the patient.

    Raises:
        InputError: see ``read_sources`` and ``moment``.
    """
    sources = read_sources(paths, used)
    created = created or moment(list(sources.values()), received)
    known = side if side in ("L", "R") else ""
    return Setting(sources, model_digest, configuration_digest, created, joint, known)
