"""The forms of a bundle's graphs beside fp32, written from their fp32 files, and what quantising each cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx
from orthokernels.export.chain import record_inputs
from orthokernels.export.examples import SeriesExample
from orthokernels.export.forms import in_half, weighted_nodes, with_int8_weights
from orthokernels.export.graphs import Plan
from orthokernels.export.judge import Judge
from orthokernels.export.known import Vectors, inputs_of_vectors
from orthokernels.export.onnx_file import save
from orthokernels.export.quantise import Quantised, write_int8, write_int8_of_vectors, write_int8_qdq

from orthokernels.bundle.manifest import Form
from orthokernels.models.study_model import Array
from orthokernels.progress import Progress
from orthokernels.runtime.sessions import Session, open_graph

# Of what a graph is given, this much is kept to calibrate with: as many calls as fit, and 24 at most.
CALIBRATION_CALLS, CALIBRATION_BYTES = 24, 1 << 30

# Told of a form that was written: the graph, the form, its files, the model file first.
Add = Callable[[str, Form, Sequence[Path]], None]

# Kinds of graphs whose inputs are vectors and logits, with no volume in sight.
READ_VECTORS = ("head", "fusion", "late_fusion")

Examples = Mapping[str, Sequence[SeriesExample]]  # by joint


def write_dataless_forms(plan: Plan, graphs: Path, forms: Sequence[Form], add: Add) -> None:
    """Half precision of every graph that has convolutions or linear layers; weight-only INT8 but of heads.

    Args:
        plan: of the graphs.
        graphs: the folder with NAME.fp32.onnx, which gets NAME.FORM.onnx.
        forms: those wanted; other names than "fp16" and "int8_weights" are not this function's.
        add: told of each.
    """
    for name in plan.graphs:
        model = onnx.load(graphs / f"{name}.fp32.onnx")
        if not weighted_nodes(model):
            continue
        # One byte for each weight of a head saves a few kilobytes and costs as much as a whole form may lose.
        changes = (_IN_HALF,) if plan.graphs[name].kind in READ_VECTORS else (_IN_HALF, _INT8_WEIGHTS)
        for form, change in changes:
            if form in forms:
                path = graphs / f"{name}.{form}.onnx"
                save(change(model), path)
                add(name, form, [path])


_Change = tuple[Form, Callable[[onnx.ModelProto], onnx.ModelProto]]
_IN_HALF: _Change = ("fp16", in_half)
_INT8_WEIGHTS: _Change = ("int8_weights", with_int8_weights)


def calibration_inputs(
    plan: Plan, sessions: Mapping[str, Session], calibration: Examples, known: Vectors
) -> dict[str, list[dict[str, Array]]]:  # fmt: skip
    """What each graph is given when studies go through.

    Args:
        sessions: of every graph in fp32.
        calibration: prepared series to calibrate with.
        known: fp32's vectors of these and of more studies, to calibrate what reads vectors.
    """
    found = record_inputs(plan, sessions, calibration, most=CALIBRATION_CALLS, most_bytes=CALIBRATION_BYTES)
    return found | inputs_of_vectors(plan, sessions, known)


def fp32_sessions(plan: Plan, graphs: Path) -> dict[str, Session]:
    """Every graph in fp32, by name."""
    return {name: open_graph(graphs / f"{name}.fp32.onnx", "openvino") for name in plan.graphs}


@dataclass(frozen=True)
class Calibrator:
    """Writes INT8 of every graph that studies go through.

    Attributes:
        plan: of the graphs.
        graphs: the folder with NAME.fp32.onnx, which gets NAME.int8.xml and .bin, and NAME.int8_qdq.onnx.
        inputs: what each graph is given when studies go through, to calibrate with; used up by ``write``.
        judge: says what a graph in INT8 loses; None where there is nothing to lose, and everything is kept.
    """

    plan: Plan
    graphs: Path
    inputs: dict[str, list[dict[str, Array]]]
    judge: Judge | None

    def write(
        self, forms: Sequence[Form], add: Add, tell: Progress = lambda what, done, total: None
    ) -> list[Quantised]:  # fmt: skip
        """Write "int8" and "int8_qdq", where they are among ``forms``; what became of each graph.

        "int8_qdq" leaves in float32 what "int8" had to, so that is made first in either case.
        """
        plan, made = self.plan, []
        for number, name in enumerate(plan.graphs):
            tell("Quantising graphs", number, len(plan.graphs))
            layers, inputs = len(weighted_nodes(onnx.load(self._fp32(name)))), self.inputs.pop(name)
            if layers and inputs:
                found = self._write_graph(name, forms, inputs, partial(self._used, name), add)
            elif layers:
                reason = "the studies to calibrate with do not go through it"
                found = [Quantised(name, form, layers, refused=reason) for form in ("int8", "int8_qdq")]
            else:
                found = []
            made += [own for own in found if own.form in forms]
        return made

    def _used(self, name: str, session: Session) -> float:
        return 0.0 if self.judge is None else self.judge.used(name, session)

    def _fp32(self, name: str) -> Path:
        return self.graphs / f"{name}.fp32.onnx"

    def _write_graph(
        self, name: str, forms: Sequence[Form], inputs: Sequence[Mapping[str, Array]],
        used: Callable[[Session], float], add: Add,
    ) -> list[Quantised]:  # fmt: skip
        if self.plan.graphs[name].kind in READ_VECTORS:
            return self._write_head(name, forms, inputs, used, add)
        path, portable = self.graphs / f"{name}.int8.xml", self.graphs / f"{name}.int8_qdq.onnx"
        beside = path.with_suffix(".bin")
        own = write_int8(name, self._fp32(name), path, inputs, used)
        if not own.refused and "int8" in forms:
            add(name, "int8", [path, beside])
        elif not own.refused:
            path.unlink()
            beside.unlink()
        if "int8_qdq" not in forms:
            return [own]
        other = write_int8_qdq(name, self._fp32(name), portable, inputs, used, like=own)
        if not other.refused:
            add(name, "int8_qdq", [portable])
        return [own, other]

    def _write_head(
        self, name: str, forms: Sequence[Form], inputs: Sequence[Mapping[str, Array]],
        used: Callable[[Session], float], add: Add,
    ) -> list[Quantised]:  # fmt: skip
        """Of a graph that reads vectors."""
        of: dict[Form, str] = {"int8": "int8.xml", "int8_qdq": "int8_qdq.onnx"}
        paths = {form: self.graphs / f"{name}.{ending}" for form, ending in of.items() if form in forms}
        made = write_int8_of_vectors(name, self._fp32(name), paths, inputs, used)
        for own in made:
            path = paths[own.form]
            if not own.refused:
                add(name, own.form, [path, path.with_suffix(".bin")] if own.form == "int8" else [path])
        return made
