"""Fusions of the planes and of patient data, in NumPy: ``models.orthodiffusion.fusion`` and ``.patient_data``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from orthokernels.models.native.layers import EPS, Array, State, check_arguments, check_shapes, linear, linear_shapes

Shapes = dict[str, tuple[int, ...]]
# Planes' vectors [3, width], or logits [3, labels], to logits [labels] and the planes' shares [3, labels] or None.
Fusion = Callable[[Array], tuple[Array, Array | None]]

_PLANES = 3


def make_fusion(kind: str, state: State, arguments: Mapping[str, Any]) -> Fusion:
    """A fusion by its name on a card.

    Raises:
        ValueError: unknown arguments, or tensors that do not fit them.
    """
    check_arguments(arguments, _ARGUMENTS[kind])
    given = {**_DEFAULTS, **arguments}
    check_shapes(state, _gate_shapes(given) if kind == "gating" else _vector_shapes(kind, given))
    if kind == "gating":
        return _gating(state)
    head = _head(state, "net" if kind == "simple_concat" else "head.net", hidden=given["hidden"])
    if kind == "simple_concat":
        return lambda planes: (head(planes.reshape(1, -1))[0], None)
    projections = [linear(state, f"fusion.proj{n}") for n in (1, 2, 3)]

    def projected(planes: Array) -> Array:
        return np.concatenate([own(row[None]) for own, row in zip(projections, planes, strict=True)])

    if kind == "linear_add":
        return lambda planes: (head(projected(planes).sum(axis=0, keepdims=True))[0], None)
    if kind == "linear_concat":
        return lambda planes: (head(projected(planes).reshape(1, -1))[0], None)
    attend = _cross_attention(state, int(given["out_width"]))
    return lambda planes: (head(attend(projected(planes)).reshape(1, -1))[0], None)


_DEFAULTS: dict[str, Any] = {
    "width": 512, "labels": 8, "out_width": 512, "heads": 4, "hidden": False, "planes": _PLANES, "stacking": False,
}  # fmt: skip

_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "simple_concat": ("width", "labels", "hidden"),
    "linear_concat": ("width", "labels", "out_width", "hidden"),
    "linear_add": ("width", "labels", "out_width", "hidden"),
    "crossattn": ("width", "labels", "out_width", "heads", "hidden"),
    "gating": ("labels", "planes", "hidden", "stacking", "dropout"),
}
FUSIONS = tuple(_ARGUMENTS)

_GATE_HIDDEN, _META_HIDDEN = 32, 128


def _head_shapes(name: str, width: int, labels: int, hidden: bool) -> Shapes:
    if not hidden:
        return linear_shapes(name, width, labels)
    return {**linear_shapes(f"{name}.0", width, width // 2), **linear_shapes(f"{name}.3", width // 2, labels)}


def _vector_shapes(kind: str, given: Mapping[str, Any]) -> Shapes:
    width, labels, out_width = (int(given[name]) for name in ("width", "labels", "out_width"))
    if kind == "simple_concat":
        return _head_shapes("net", _PLANES * width, labels, given["hidden"])
    shapes = _head_shapes("head.net", out_width * (1 if kind == "linear_add" else _PLANES), labels, given["hidden"])
    for n in (1, 2, 3):
        shapes |= linear_shapes(f"fusion.proj{n}", width, out_width)
    if kind == "crossattn":
        for pair in _PAIRS:
            shapes[f"fusion.{pair}.in_proj_weight"] = (3 * out_width, out_width)
            shapes[f"fusion.{pair}.in_proj_bias"] = (3 * out_width,)
            shapes |= linear_shapes(f"fusion.{pair}.out_proj", out_width, out_width)
        shapes |= {"fusion.norm.weight": (out_width,), "fusion.norm.bias": (out_width,)}
    return shapes


def _gate_shapes(given: Mapping[str, Any]) -> Shapes:
    labels, planes = int(given["labels"]), int(given["planes"])
    hidden = int(given["hidden"] or _GATE_HIDDEN)
    shapes = {**linear_shapes("gate.net.0", planes, hidden), **linear_shapes("gate.net.3", hidden, planes)}
    if given["stacking"]:
        shapes |= {**linear_shapes("meta.0", labels, _META_HIDDEN), **linear_shapes("meta.3", _META_HIDDEN, labels)}
    return shapes


def _head(state: State, name: str, *, hidden: bool) -> Callable[[Array], Array]:
    """One linear layer, or two with ReLU between them; dropout is training's."""
    if not hidden:
        return linear(state, name)
    first, last = linear(state, f"{name}.0"), linear(state, f"{name}.3")
    return lambda rows: last(np.maximum(first(rows), 0))


_PAIRS = ("cross12", "cross23", "cross31")  # each plane attends to the next round the circle


def _cross_attention(state: State, width: int) -> Callable[[Array], Array]:
    """Each plane with the next one's value added; a softmax over one key is 1, so that attention is two linear maps."""
    values = [
        linear({"v.weight": state[f"fusion.{pair}.in_proj_weight"][2 * width :],
                "v.bias": state[f"fusion.{pair}.in_proj_bias"][2 * width :]}, "v")
        for pair in _PAIRS
    ]  # fmt: skip
    outs = [linear(state, f"fusion.{pair}.out_proj") for pair in _PAIRS]

    def attend(planes: Array) -> Array:
        following = np.roll(planes, -1, axis=0)
        added = [out(value(row[None])) for value, out, row in zip(values, outs, following, strict=True)]
        return _layer_norm(planes + np.concatenate(added), state, "fusion.norm")

    return attend


def _layer_norm(rows: Array, state: State, name: str) -> Array:
    centred = rows - rows.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=1, keepdims=True) + np.float32(EPS))
    found: Array = centred / spread * state[f"{name}.weight"] + state[f"{name}.bias"]
    return found


def _gating(state: State) -> Fusion:
    gate = _head(state, "gate.net", hidden=True)
    meta = _head(state, "meta", hidden=True) if "meta.0.weight" in state else None

    def fuse(logits: Array) -> tuple[Array, Array | None]:
        shares = _softmax(gate(np.ascontiguousarray(logits.T))).T
        mixed = (shares * logits).sum(axis=0)
        return (mixed if meta is None else meta(mixed[None])[0]), shares

    return fuse


def _softmax(rows: Array) -> Array:
    e = np.exp(rows - rows.max(axis=1, keepdims=True))
    found: Array = e / e.sum(axis=1, keepdims=True)
    return found


_LATE = {
    "mri_width": 1536, "labels": 8, "continuous": 3, "sexes": 3, "patient_types": 3, "events": 20, "event_width": 8,
    "hidden": 64,
}  # fmt: skip


def check_late_fusion(state: State, arguments: Mapping[str, Any]) -> None:
    """Whether tensors are a ``LateFusion``'s.

    Raises:
        ValueError: unknown arguments, or tensors that do not fit them.
    """
    check_arguments(arguments, (*_LATE, "dropout"))
    given = {name: int(arguments.get(name, default)) for name, default in _LATE.items()}
    columns = given["continuous"] + given["sexes"] + given["patient_types"] + given["event_width"]
    hidden, labels = given["hidden"], given["labels"]
    shapes = {
        "event_embed.weight": (given["events"], given["event_width"]), "alpha_param": (labels,),
        "tab_proj.2.weight": (hidden,), "tab_proj.2.bias": (hidden,),
        **linear_shapes("mri_head", given["mri_width"], labels), **linear_shapes("tab_proj.0", columns, hidden),
        **linear_shapes("tab_head", hidden, labels),
    }  # fmt: skip
    check_shapes(state, shapes)


def late_fusion(
    state: State, mri: Array, continuous: Array, sex: Array, patient_type: Array, event: int
) -> dict[str, Array]:
    """A study's logits with the patient's data: ``models.orthodiffusion.patient_data.LateFusion``.

    Args:
        state: its tensors.
        mri: the planes' fused vector, [width].
        continuous: standardised age, height and weight, missing ones 0.
        sex, patient_type: one-hot.
        event: class of the event that led to the scan.

    Returns:
        ``fused``, ``mri`` and ``tabular`` logits [labels], and ``alpha`` [labels], the MRI's share.
    """
    columns = np.concatenate([continuous, sex, patient_type, state["event_embed.weight"][event]]).astype(np.float32)
    hidden = np.maximum(linear(state, "tab_proj.0")(columns[None]), 0)
    tabular = linear(state, "tab_head")(_layer_norm(hidden, state, "tab_proj.2"))[0]
    own = linear(state, "mri_head")(mri[None])[0]
    alpha = 1 / (1 + np.exp(-state["alpha_param"]))
    return {"fused": alpha * own + (1 - alpha) * tabular, "mri": own, "tabular": tabular, "alpha": alpha}
