"""The OpenRecon label, schema 1.1.0, of an appliance as it is configured.

The scanner's maker keeps the schema itself in a kit that may not be passed on; ``schema.json`` says the same in our
words, as far as published labels and their limits tell, and is stricter in what is known to be refused at a scanner.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
from orthokernels.edge.config import Config

from orthokernels import __version__, tasks
from orthokernels.errors import InputError

SCHEMA = Path(__file__).with_name("schema.json")

# Under this name the label lies in the container image, its JSON in base 64.
IMAGE_LABEL = "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"

_PORT = 9002  # MRD's customary one
_MEGABYTE = 2**20
_NAME = "orthokernels"


def openrecon_label(config: Config, *, port: int = _PORT, vendor: str = _NAME, address: str = "") -> dict[str, Any]:
    """The label of this configuration; its parameters show what is configured.

    Args:
        config: results, memory and workers are taken from it.
        port: on which the MRD server listens inside the container.
        vendor: who packages it, letters and digits.
        address: the packager's, for the regulatory part.

    Raises:
        InputError: something given is not allowed in a label.
    """
    label = {
        "general": _general(config, vendor, address),
        "reconstruction": {
            "transfer_protocol": {"protocol": "ISMRMRD", "version": "1.4.1"},
            "port": port,
            "emitter": "image",
            "injector": "image",
            "can_process_adjustment_data": False,
            "can_use_gpu": False,
            "min_count_required_gpus": 0,
            "min_required_gpu_memory": 0,
            "min_required_memory": math.ceil(config.work.memory_bytes * config.work.workers / _MEGABYTE),
            "min_count_required_cpu_cores": 2 * config.work.workers,
            "content_qualification_type": "RESEARCH",
        },
        "parameters": _parameters(config),
    }
    check(label)
    return label


def check(label: dict[str, Any]) -> None:
    """Hold a label against the schema, and what a schema can't say: identifiers differ, defaults are among the values.

    Raises:
        InputError: the first thing that is wrong.
    """
    validator = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    for error in validator.iter_errors(label):
        where = ".".join(str(part) for part in error.absolute_path)
        raise InputError(f"OpenRecon label: {where or 'the whole'}: {error.message}.")
    names = [parameter["id"] for parameter in label["parameters"]]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"OpenRecon label: two parameters have the id {name!r}.")
    for parameter in label["parameters"]:
        values = [value["id"] for value in parameter.get("values", ())]
        if values and parameter["default"] not in values:
            raise InputError(f"OpenRecon label: {parameter['id']}: the default is none of its values.")
        if parameter["type"] == "int" and not parameter["minimum"] <= parameter["default"] <= parameter["maximum"]:
            raise InputError(f"OpenRecon label: {parameter['id']}: the default is outside its range.")


def _general(config: Config, vendor: str, address: str) -> dict[str, Any]:
    joint = config.results.joint
    return {
        "name": {"en": _NAME},
        "version": __version__,
        "vendor": vendor,
        "information": {"en": f"Segments the {joint} and scores its findings. {tasks.RESEARCH_NOTICE}"},
        "id": _NAME,
        "regulatory_information": {
            "device_trade_name": _NAME,
            "production_identifier": __version__,
            "manufacturer_address": address,
            "made_in": "",
            "manufacture_date": "",
            "material_number": f"{_NAME}_{__version__}",
            # Research software is no device: it bears neither trade item number nor unique device identifier.
            "gtin": "",
            "udi": "",
            "safety_advices": tasks.RESEARCH_NOTICE,
            "special_operating_instructions": "Original images are always sent back, label maps as further series.",
            "additional_relevant_information": "Not a medical device.",
        },
    }


def _parameters(config: Config) -> list[dict[str, Any]]:
    """Choices of one value: the console shows how the appliance is set, which its configuration alone can change."""
    results = config.results
    slices = {"full": "all", "published": "the centre 16"}[results.preparation]
    return [
        _choice("config", "Task", _NAME, _NAME, "What the server does with the images"),
        _choice("joint", "Joint", results.joint, results.joint.capitalize(), "Which joint it was set up for"),
        _choice("planes", "Planes", "".join(results.planes), ", ".join(results.planes), "Which planes are evaluated"),
        _choice("slices", "Slices", results.preparation, slices, "Which slices are evaluated"),
        _choice("seed", "Seed", str(results.seed), str(results.seed), "Of the noise that features are computed with"),
    ]


def _choice(name: str, label: str, value: str, told: str, information: str) -> dict[str, Any]:
    return {
        "type": "choice",
        "id": name,
        "label": {"en": label},
        "values": [{"id": value, "name": {"en": told}}],
        "default": value,
        "information": {"en": information},
    }
