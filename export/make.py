"""Every graph of weights in every form, in one folder, with a record of each and what quantising them cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnx
from orthokernels.export.chain import record_inputs
from orthokernels.export.examples import SeriesExample
from orthokernels.export.forms import in_half, weighted_nodes, with_int8_weights
from orthokernels.export.graphs import Plan
from orthokernels.export.judge import Judge
from orthokernels.export.onnx_file import save, write_onnx
from orthokernels.export.quantise import LARGEST_SHARE, Quantised, write_int8, write_int8_qdq

from orthokernels.bundle.manifest import Form, Graph
from orthokernels.models.study_model import Array
from orthokernels.runtime.sessions import Session, open_graph

# Of what a graph is given, this much is kept to calibrate with: as many calls as fit, and 24 at most.
CALIBRATION_CALLS, CALIBRATION_BYTES = 24, 1 << 30

Tell = Callable[[str, int, int], None]


@dataclass
class Made:
    """The graphs' records by name, their files relative to the folder, and what became of each in INT8."""

    graphs: dict[str, Graph] = field(default_factory=dict)
    quantised: list[Quantised] = field(default_factory=list)


def make_graphs(
    plan: Plan,
    folder: Path,
    facts: Callable[[str], Mapping[str, str]],
    *,
    forms: Sequence[Form] = ("fp32",),
    calibration: Mapping[str, Sequence[SeriesExample]] | None = None,
    validation: Mapping[str, Sequence[SeriesExample]] | None = None,
    largest: float = LARGEST_SHARE,
    tell: Tell = lambda what, done, total: None,
) -> Made:
    """Write the graphs of a plan.

    Args:
        plan: what to write.
        folder: that gets graphs/NAME.FORM.onnx, or .xml and .bin.
        facts: of a graph by its name, written into its ONNX files.
        forms: besides "fp32", which is always made. A graph without convolutions or linear layers has that alone.
        calibration, validation: prepared series by joint; "int8" and "int8_qdq" need both.
        largest: share of what may be lost that one graph may use up.
        tell: called with each step.

    Raises:
        InputError: a graph does not fit one file.
        ValueError: a form in INT8 without series to calibrate with and to judge by.
    """
    if {"int8", "int8_qdq"} & set(forms) and not (calibration and validation):
        raise ValueError("INT8 needs series to calibrate with and to judge by")
    (folder / "graphs").mkdir(parents=True, exist_ok=True)
    made = Made()
    for number, (name, source) in enumerate(plan.graphs.items()):
        tell(f"{name}: fp32", number, len(plan.graphs))
        write_onnx(source, folder / file_of(name, "fp32"), facts(name))
        made.graphs[name] = Graph(
            inputs={tensor: ["batch", *sides] for tensor, sides in source.inputs.items()},
            outputs={tensor: ["batch", *sides] for tensor, sides in source.outputs.items()},
            forms={"fp32": [file_of(name, "fp32")]},
        )
        _write_dataless(name, folder, forms, made)
    if calibration and validation:
        _write_calibrated(plan, folder, forms, made, calibration, validation, largest, tell)
    return made


def file_of(name: str, form: Form) -> str:
    """The model file of a graph, relative to the folder."""
    return f"graphs/{name}.{form}.{'xml' if form == 'int8' else 'onnx'}"


def _write_dataless(name: str, folder: Path, forms: Sequence[Form], made: Made) -> None:
    model = onnx.load(folder / file_of(name, "fp32"))
    if not weighted_nodes(model):
        return
    for form, change in (("fp16", in_half), ("int8_weights", with_int8_weights)):
        if form in forms:
            save(change(model), folder / file_of(name, form))  # type: ignore[arg-type]
            made.graphs[name].forms[form] = [file_of(name, form)]  # type: ignore[index,arg-type]


def _write_calibrated(
    plan: Plan, folder: Path, forms: Sequence[Form], made: Made, calibration: Mapping[str, Sequence[SeriesExample]],
    validation: Mapping[str, Sequence[SeriesExample]], largest: float, tell: Tell,
) -> None:  # fmt: skip
    """INT8 of every graph that the studies go through."""
    sessions = {name: open_graph(folder / file_of(name, "fp32"), "openvino") for name in plan.graphs}
    judge = Judge(plan, sessions, validation)
    tell("calibration: fp32", 0, len(plan.graphs))
    inputs = record_inputs(plan, sessions, calibration, most=CALIBRATION_CALLS)
    for number, name in enumerate(plan.graphs):
        fp32 = folder / file_of(name, "fp32")
        layers = len(weighted_nodes(onnx.load(fp32)))
        if not layers:
            continue
        tell(f"{name}: INT8", number, len(plan.graphs))
        if not inputs[name]:
            reason = "the studies to calibrate with do not go through it"
            made.quantised += [
                Quantised(name, form, layers, refused=reason) for form in ("int8", "int8_qdq") if form in forms
            ]
            continue
        _write_int8_forms(name, folder, forms, made, _fitting(inputs.pop(name)), partial(judge.used, name), largest)


def _write_int8_forms(
    name: str, folder: Path, forms: Sequence[Form], made: Made, inputs: Sequence[Mapping[str, Array]],
    used: Callable[[Session], float], largest: float,
) -> None:  # fmt: skip
    fp32, form = folder / file_of(name, "fp32"), made.graphs[name].forms
    path = folder / file_of(name, "int8")
    found = write_int8(name, fp32, path, inputs, used, largest=largest)
    if "int8" in forms:
        made.quantised.append(found)
    if "int8" in forms and not found.refused:
        form["int8"] = [file_of(name, "int8"), file_of(name, "int8").replace(".xml", ".bin")]
    elif not found.refused:
        path.unlink()
        path.with_suffix(".bin").unlink()
    if "int8_qdq" in forms:
        portable = folder / file_of(name, "int8_qdq")
        qdq = write_int8_qdq(name, fp32, portable, inputs, used, in_float=found.in_float, largest=largest)
        made.quantised.append(qdq)
        if not qdq.refused:
            form["int8_qdq"] = [file_of(name, "int8_qdq")]


def _fitting(inputs: list[dict[str, Array]]) -> list[dict[str, Array]]:
    """As many as are worth keeping in memory, and one at least."""
    each = sum(own.nbytes for own in inputs[0].values())
    return inputs[: max(1, CALIBRATION_BYTES // each)]
