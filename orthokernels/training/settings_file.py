"""All settings of a command written out: a file with what each means, which ``--config`` reads as it is."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel

# Where each command's settings are defined; some need PyTorch.
_MODELS = {
    "pretrain": ("config", "PretrainConfig"),
    "segment": ("config_heads", "SegmentConfig"),
    "diagnose": ("config_heads", "DiagnoseConfig"),
    "evaluate": ("config_heads", "EvaluateConfig"),
    "sweep": ("config_heads", "SweepConfig"),
    "labels": ("config_heads", "LabelsConfig"),
    "demo": ("demo", "DemoConfig"),
}
COMMANDS = tuple(_MODELS)
_WIDTH = 100  # columns of a comment


def model_of(command: str) -> type[BaseModel]:
    """The settings of one of ``COMMANDS``."""
    module, name = _MODELS[command]
    found: type[BaseModel] = getattr(import_module(f"orthokernels.training.{module}"), name)
    return found


def written(config: BaseModel) -> str:
    """Settings as YAML, a comment above each; read again they are equal."""
    return "\n".join(_lines(config, "")).strip() + "\n"


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """What a model's docstring says of its settings (under "Attributes:"), by name, without markup.

    Python's option -OO leaves no docstrings, and so no meanings.
    """
    _, _, told = (inspect.getdoc(model) or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", "\n" + told):
        names, colon, meaning = entry.partition(":")
        if colon:
            found |= dict.fromkeys(re.split(r",\s*", names.strip()), " ".join(meaning.replace("``", "").split()))
    return found


def _lines(config: BaseModel, indent: str) -> Iterator[str]:
    told = meanings(type(config))
    for name, value in config:
        if not indent:
            yield ""
        about = [told.get(name) or _section(value), _choices(type(config).model_fields[name].annotation)]
        yield from _comment(" ".join(filter(None, about)), indent)
        yield from _setting(name, value, indent)


def _setting(name: str, value: Any, indent: str) -> Iterator[str]:
    below = indent + "  "
    if isinstance(value, BaseModel):
        yield f"{indent}{name}:"
        yield from _lines(value, below)
    elif isinstance(value, Mapping) and any(isinstance(own, BaseModel) for own in value.values()):
        yield f"{indent}{name}:"
        for key, own in value.items():
            yield from _setting(key, own, below)
    else:
        yield f"{indent}{name}: {_plain(value)}"


def _plain(value: Any) -> str:
    """A value as YAML in one line."""
    if isinstance(value, tuple):
        value = list(value)
    if not isinstance(value, (list, dict, str, int, float, type(None))):
        value = str(value)  # a path
    return yaml.safe_dump(value, default_flow_style=True, width=2**30).removesuffix("\n...\n").strip()


def _comment(about: str, indent: str) -> list[str]:
    about = re.sub(r"\bNone\b", "null", about[:1].upper() + about[1:])
    return textwrap.wrap(about, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _section(value: Any) -> str:
    """What a group of settings is, by its first line."""
    return (inspect.getdoc(type(value)) or "").partition("\n")[0] if isinstance(value, BaseModel) else ""


def _choices(annotation: Any, few: str = "One of") -> str:
    """The words that a setting, or each member of a list, is chosen from."""
    own = get_args(annotation)
    if get_origin(annotation) is Literal:
        return f"{few} {', '.join(own)}."
    return _choices(own[0], "Any of") if get_origin(annotation) is tuple and own[1:] == (...,) else ""
