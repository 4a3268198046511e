"""Patient data beside the images, without PyTorch: what is known of a patient, and as which columns a fusion reads it.

Age, height and weight go in as standard scores of the training rows (missing ones as 0), sex and patient type as
one-hot rows of "0", "1" and unknown, the event that led to the scan as a class with a learned vector, unknown included.
What "0" and "1" stand for is the training table's own business, as in the published one.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from orthokernels.errors import InputError
from orthokernels.models.weights_folder import Card, first_line

NUMBERS = ("age", "height", "weight")
CLASSES = ("0", "1", "UNK")  # of sex and patient type
UNKNOWN = CLASSES[-1]
MODULE = "late_fusion"  # its name on a card

_LARGEST_FILE = 64 * 1024  # bytes; a patient takes about a hundred
_FAR = 6.0  # standard scores: no patient, but a height in metres where training had centimetres

Array = NDArray[np.float32]


def _digit(value: Any) -> Any:
    """0 and 1 as JSON's numbers, or as text; true and false are neither."""
    return str(value) if type(value) is int else value


Class = Annotated[Literal["0", "1"] | None, BeforeValidator(_digit)]


class Patient(BaseModel):
    """What is known of a patient; None where it is not.

    Attributes:
        age: in years.
        height, weight: in the units of the table that the fusion was trained with.
        sex, patient_type: "0" or "1", as in that table.
        event: what led to the scan, in that table's words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    age: Annotated[float, Field(ge=0, le=130, strict=True)] | None = None
    height: Annotated[float, Field(gt=0, le=1000, strict=True)] | None = None
    weight: Annotated[float, Field(gt=0, le=1000, strict=True)] | None = None
    sex: Class = None
    patient_type: Class = None
    event: Annotated[str, Field(min_length=1, max_length=200)] | None = None

    def known(self) -> tuple[str, ...]:
        """Names of what is known, never the values: results tell no more than that."""
        return tuple(name for name, value in self if value is not None)


def read_patient(path: Path) -> Patient:
    """A patient from a JSON file, such as {"age": 41, "sex": 1, "event": "fall"}.

    Raises:
        InputError: there is no such file, or it does not describe a patient.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
            raise InputError(f"--patient {path}: is not a regular file. Give a JSON file.")
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise InputError(f"--patient {path}: can't be read ({error.strerror}). Give a JSON file.") from error
    if len(content) > _LARGEST_FILE:
        raise InputError(f"--patient {path}: is larger than {_LARGEST_FILE // 1024} KiB, so it is not one patient.")
    try:
        found = Patient.model_validate_json(content.removeprefix(codecs.BOM_UTF8))
    except ValidationError as error:
        raise InputError(f"--patient {path}: {_fault(error)}") from error
    if not found.known():
        raise InputError(f"--patient {path}: says nothing of the patient. Give {', '.join(Patient.model_fields)}.")
    return found


def _fault(error: ValidationError) -> str:
    """The first fault, in a sentence that says where and what is allowed."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"][:1])
    if first["type"] == "extra_forbidden":
        return f"has no use for {name!r}; it may hold {', '.join(Patient.model_fields)}."
    if not name:
        return f"is no JSON object of {', '.join(Patient.model_fields)} ({first['msg']})."
    return f"{name} is {first['input']!r}; {first['msg'][0].lower()}{first['msg'][1:]}, or leave it out where unknown."


@dataclass(frozen=True)
class PatientColumns:
    """A patient as a late fusion reads it.

    Attributes:
        continuous: standard scores of age, height and weight, [3]; missing ones 0.
        sex, patient_type: one-hot, [3].
        event: class of the event.
    """

    continuous: Array
    sex: Array
    patient_type: Array
    event: int


@dataclass(frozen=True)
class Encoding:
    """How patients become columns, fixed by the training rows: means and deviations of numbers, and the known events.

    ``events`` ends with the class of an event that training did not meet.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    events: tuple[str, ...]

    def columns(self, patient: Patient) -> PatientColumns:
        event = UNKNOWN if patient.event is None else patient.event
        return PatientColumns(
            np.array([0.0 if score is None else score for score in self._scores(patient)], np.float32),
            _one_hot(patient.sex),
            _one_hot(patient.patient_type),
            self.events.index(event) if event in self.events else len(self.events) - 1,
        )

    def encode(self, rows: Sequence[Mapping[str, str]]) -> tuple[Array, Array, Array, NDArray[np.int64]]:
        """Rows of a table, empty cells unknown: [rows, 3] each, and the events' classes [rows]."""
        every = [self.columns(_patient_of(row)) for row in rows]
        return (
            np.stack([own.continuous for own in every]),
            np.stack([own.sex for own in every]),
            np.stack([own.patient_type for own in every]),
            np.array([own.event for own in every], np.int64),
        )

    def oddities(self, patient: Patient) -> Iterator[str]:
        """What training did not meet, in a sentence each."""
        for name, score, mean in zip(NUMBERS, self._scores(patient), self.mean, strict=True):
            if score is not None and abs(score) > _FAR:
                yield (
                    f"the patient's {name} lies {abs(score):.0f} deviations from training's mean of {mean:.4g}: "
                    "is it in the unit of the training table?"
                )
        if patient.event is not None and patient.event not in self.events:
            yield "the event was not among training's, so it counts as unknown"

    def told(self) -> dict[str, Any]:
        """As plain values, for a card."""
        return asdict(self)

    def _scores(self, patient: Patient) -> tuple[float | None, ...]:
        given = (getattr(patient, name) for name in NUMBERS)
        return tuple(
            None if value is None else (value - mean) / deviation
            for value, mean, deviation in zip(given, self.mean, self.deviation, strict=True)
        )


def _patient_of(row: Mapping[str, str]) -> Patient:
    """A table's row; its numbers were checked when it was read, and may be any."""
    numbers = {name: float(row[name]) if row[name] else None for name in NUMBERS}
    classes = {name: row[name] if row[name] in CLASSES[:-1] else None for name in ("sex", "patient_type")}
    return Patient.model_construct(**numbers, **classes, event=row["event"] or None)  # type: ignore[arg-type]


def _one_hot(cell: str | None) -> Array:
    row = np.zeros(len(CLASSES), np.float32)
    row[CLASSES.index(UNKNOWN if cell is None else cell)] = 1
    return row


class _Told(BaseModel):
    """``Encoding.told`` as a card keeps it."""

    model_config = ConfigDict(extra="forbid")

    mean: tuple[float, float, float]
    deviation: tuple[
        Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]
    ]  # fmt: skip
    events: Annotated[tuple[str, ...], Field(min_length=1)]


@dataclass(frozen=True)
class LateFusionCard:
    """What is known of a late fusion beside its tensors.

    Attributes:
        encoding: of patients.
        width: of the planes' vectors side by side.
        thresholds: probability from which a label counts as present, where it is not 0.5.
    """

    encoding: Encoding
    width: int
    thresholds: Mapping[str, float]

    @classmethod
    def of(cls, card: Card) -> LateFusionCard:
        """From the card of a weights folder.

        Raises:
            ValueError: the card does not say how patients are encoded, or not for this module.
        """
        try:
            told = _Told.model_validate_json(card.origin.get("encoding", "{}"))
            thresholds = {key: float(own) for key, own in json.loads(card.origin.get("thresholds", "{}")).items()}
        except (ValidationError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"origin: no encoding of patients ({first_line(error)})") from None
        for name, count in (("continuous", len(NUMBERS)), ("sexes", len(CLASSES)), ("patient_types", len(CLASSES))):
            if card.arguments.get(name, count) != count:
                raise ValueError(f"{name} is {card.arguments[name]}, and patients have {count}")
        if len(told.events) != card.arguments.get("events", 20):
            raise ValueError(f"origin: {len(told.events)} events, which its arguments do not say")
        if not all(map(math.isfinite, (*told.mean, *told.deviation, *thresholds.values()))):
            raise ValueError("origin: holds a number that is not finite")
        width = int(card.arguments.get("mri_width", 1536))
        return cls(Encoding(told.mean, told.deviation, told.events), width, thresholds)

    def told(self) -> dict[str, str]:
        """As a card's ``origin`` holds it."""
        return {"encoding": json.dumps(self.encoding.told()), "thresholds": json.dumps(dict(self.thresholds))}
