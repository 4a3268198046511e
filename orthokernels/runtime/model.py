"""From a verified bundle to a ``StudyModel``, in the engine and form that are asked for or were tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from orthokernels.bundle.manifest import WEIGHTS, Form
from orthokernels.bundle.verify import Bundle
from orthokernels.errors import InputError
from orthokernels.runtime.graph_model import GraphModel
from orthokernels.runtime.sessions import ENGINES, GraphEngine
from orthokernels.runtime.tuning import Choice, tuned
from orthokernels.system import threads

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
            "native" in a bundle that has its weights, else the first of the others that is installed; in fp32.
        form: of the graphs; None for what was tuned, else fp32. The native engine has fp32 alone.

    Raises:
        InputError: the bundle lacks the joint, or the engine can't run it.
    """
    if joint not in bundle.manifest.joints:
        known = ", ".join(bundle.manifest.joints)
        raise InputError(f"{bundle.folder}: has nothing for the {joint}; it has {known}.")
    choice = _choice(bundle, joint, engine, form)
    if choice.engine == "native":
        if not bundle.manifest.native:
            raise InputError(f"{bundle.folder}: has no weights for the native engine. Choose {' or '.join(ENGINES)}.")
        return _native(bundle, joint, planes)
    return GraphModel(bundle, joint, planes, cast(GraphEngine, choice.engine), choice.form)


def _choice(bundle: Bundle, joint: str, engine: str, form: Form | None) -> Choice:
    if engine not in ("auto", "native", *ENGINES):
        raise InputError(f"there is no engine {engine!r} for a bundle; choose {', '.join(ENGINES)}, native or auto.")
    if form is None and (found := tuned(bundle.digest, joint, engine)) is not None:
        return found
    if engine == "auto":
        engine = "native" if bundle.manifest.native else next((own for own in ENGINES if find_spec(own)), ENGINES[0])
    if engine == "native" and form not in (None, "fp32"):
        raise InputError(f"the native engine computes in fp32, not in {form}.")
    return Choice(engine, form or "fp32")


def _native(bundle: Bundle, joint: str, planes: Sequence[str]) -> StudyModel:
    from orthokernels.models.native.load import load_native

    digest = bundle.manifest.joints[joint].weights_digest
    model = load_native(bundle.folder / WEIGHTS, joint, tuple(planes), threads=threads(), digest=digest)
    return replace(model, name=bundle.manifest.name, bundle=bundle.digest)
