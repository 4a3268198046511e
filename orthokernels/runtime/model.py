"""From a verified bundle to a ``StudyModel``, in the engine and form that are asked for or were tuned."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from orthokernels import __version__
from orthokernels.bundle.manifest import ENGINES_OF, WEIGHTS, Form, GraphEngine
from orthokernels.bundle.verify import Bundle
from orthokernels.errors import InputError
from orthokernels.runtime.graph_model import GraphModel
from orthokernels.runtime.sessions import ENGINES
from orthokernels.runtime.tuning import Choice, goes_together, tuned
from orthokernels.system import threads, versions

if TYPE_CHECKING:
    from orthokernels.models.study_model import StudyModel


def open_bundle(
    bundle: Bundle, joint: str, planes: Sequence[str], engine: str = "auto", form: Form | None = None
) -> StudyModel:
    """Load one joint of a verified bundle.

    Args:
        bundle: verified.
        joint: whose findings are scored.
        planes: those wanted.
        engine: "openvino", "onnxruntime", "native", or "auto": what ``bundle tune`` chose on this machine, else
            "native" in a bundle that has its weights, else the first of the others that is installed; in fp32. With
            another form, the first that runs it.
        form: of the graphs; None for what was tuned, else fp32. The native engine has fp32 alone.

    Raises:
        InputError: the bundle lacks the joint or the form, needs a newer version of the package or of the engine, or
            the engine can't run it.
    """
    if joint not in bundle.manifest.joints:
        known = ", ".join(bundle.manifest.joints)
        raise InputError(f"{bundle.folder}: has nothing for the {joint}; it has {known}.")
    _check_version(bundle, "orthokernels", __version__)
    choice = _choice(bundle, joint, engine, form)
    if choice.engine == "native":
        if not bundle.manifest.native:
            raise InputError(f"{bundle.folder}: has no weights for the native engine. Choose {' or '.join(ENGINES)}.")
        return _native(bundle, joint, planes)
    _check_version(bundle, choice.engine, versions().get(choice.engine, ""))
    return GraphModel(bundle, joint, planes, cast(GraphEngine, choice.engine), choice.form)


def _check_version(bundle: Bundle, package: str, installed: str) -> None:
    """Hold what is ``installed`` of a package against what the bundle needs; what has no version is let pass.

    That is the package where it is not installed, which is no older than what it made, and an engine under another
    name, as onnxruntime-gpu. An engine that is not there is told of where it is opened.
    """
    least, own = bundle.manifest.minimum_versions.get(package, ""), _release(installed)
    if own and _release(least) > own:
        raise InputError(
            f"{bundle.folder}: needs {package} {least} or newer, and this is {installed}. Upgrade {package}."
        )


def _release(version: str) -> list[int]:
    """The numbers that a version begins with, without zeros at the end: 0.2.0.dev1 is taken for 0.2."""
    numbers = [int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part]  # type: ignore[index]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers


def _choice(bundle: Bundle, joint: str, engine: str, form: Form | None) -> Choice:
    if engine not in ("auto", "native", *ENGINES):
        raise InputError(f"there is no engine {engine!r} for a bundle; choose {', '.join(ENGINES)}, native or auto.")
    if form is None and (found := tuned(bundle.digest, joint, engine)) is not None:
        return found
    form = form or "fp32"
    if form not in ("fp32", *bundle.manifest.forms):
        held = ", ".join(bundle.manifest.forms)
        raise InputError(f"{bundle.folder}: has no graph in {form}; its forms are {held}.")
    able = ENGINES_OF[form]
    if engine == "auto" and form == "fp32" and bundle.manifest.native:
        engine = "native"
    elif engine == "auto":
        engine = next((own for own in able if find_spec(own)), able[0])
    if not goes_together(engine, form):
        raise InputError(f"the {engine} engine does not run {form}; choose {' or '.join(able)}, or leave --form out.")
    return Choice(engine, form)


def _native(bundle: Bundle, joint: str, planes: Sequence[str]) -> StudyModel:
    from orthokernels.models.native.load import load_native

    for name in bundle.manifest.files:
        if name.startswith(f"{WEIGHTS}/"):
            bundle.unchanged(name)
    model = load_native(
        bundle.folder / WEIGHTS, joint, tuple(planes), threads=threads(),
        digest=bundle.manifest.joints[joint].weights_digest, guard=lambda name: bundle.unchanged(f"{WEIGHTS}/{name}"),
    )  # fmt: skip
    return replace(model, name=bundle.manifest.name, bundle=bundle.digest)
