"""A parity check as JSON, as a table in Markdown, and as one page with plots that needs nothing beside it."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from orthokernels.export.gate import LARGEST_AUROC_LOSS, LARGEST_STRUCTURE_LOSS, LEAST_MEAN_DICE
from orthokernels.export.parity import FEW, REFERENCE

from orthokernels.errors import InputError
from orthokernels.system import versions
from orthokernels.tasks import RESEARCH_NOTICE

Result = Mapping[str, Any]


def write_parity(result: Result, out: Path, option: str = "--out") -> None:
    """parity.json, then what is made of it, parity.md and parity.html. JSON has no infinity; null stands for it.

    Args:
        out: folder for them.
        option: that named it.

    Raises:
        InputError: ``out`` can not be written.
    """
    record = {**result, "versions": versions()}
    texts: dict[str, Callable[[], str]] = {
        "parity.json": lambda: json.dumps(finite(record), indent=1, allow_nan=False) + "\n",
        "parity.md": lambda: markdown(result),
        "parity.html": lambda: page(record),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, make in texts.items():
            text = make()
            with tempfile.NamedTemporaryFile("w", dir=out, prefix=".writing-", delete=False, encoding="utf-8") as file:
                file.write(text)
            os.chmod(file.name, 0o644)
            os.replace(file.name, out / name)
    except OSError as error:
        raise InputError(f"{option} {out}: can't be written ({error.strerror}). Choose another place.") from error


def finite(record: Any) -> Any:
    """A record with None for every number that is not finite."""
    if isinstance(record, Mapping):
        return {key: finite(own) for key, own in record.items()}
    if isinstance(record, list | tuple):
        return [finite(own) for own in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record


def rows_of(result: Result) -> Iterator[dict[str, Any]]:
    """A row of the summary for each joint and contender; figures that could not be had are None."""
    for joint, contenders in result["joints"].items():
        fp32 = contenders[REFERENCE]
        for name, own in contenders.items():
            dice, of = own.get("mean_dice"), fp32.get("mean_dice")
            yield {
                "joint": joint,
                "contender": name,
                "studies": own["studies"],
                "relative error": max((e["relative"] for e in own["errors"].values()), default=None),
                "nine tenths": max((e["nine_tenths"] for e in own["errors"].values()), default=None),
                "largest error": max((e["largest"] for e in own["errors"].values()), default=None),
                "mean Dice": dice,
                "of fp32": dice / of if dice and of else None,
                "worst structure": _worst(_flat(own.get("dice", {})), _flat(fp32.get("dice", {}))),
                "macro AUROC": own.get("macro_auroc"),
                "worst finding": _worst(own.get("auroc", {}), fp32.get("auroc", {})),
                "calibration error": own.get("ece"),
            }


def scorer_rows(result: Result) -> Iterator[dict[str, Any]]:
    """A row for each joint, contender and head or fusion that scores findings by itself; earlier checks have none."""
    for joint, contenders in result["joints"].items():
        for name, own in contenders.items():
            for scorer, figures in own.get("scored_by", {}).items():
                fp32 = contenders[REFERENCE]["scored_by"][scorer]
                yield {
                    "joint": joint, "contender": name, "scored by": scorer, "macro AUROC": figures["macro_auroc"],
                    "worst finding": _worst(figures["auroc"], fp32["auroc"]), "calibration error": figures["ece"],
                }  # fmt: skip


def share_rows(result: Result) -> Iterator[dict[str, Any]]:
    """A row for each joint, contender and plane with its mean share in every label; earlier checks have none."""
    for joint, contenders in result["joints"].items():
        for name, own in contenders.items():
            for plane, shares in own.get("gate_shares", {}).items():
                told = ", ".join(
                    f"{label} {'-' if share is None else f'{share:.4f}'}" for label, share in shares.items()
                )
                yield {"joint": joint, "contender": name, "plane": plane, "mean share": told}


def _flat(dice: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    return {f"{plane} {name}".replace("_", " "): value for plane, own in dice.items() for name, value in own.items()}


def _worst(own: Mapping[str, float | None], fp32: Mapping[str, float | None]) -> float | None:
    """The change of what lost most, or gained least."""
    return min((change for change in _changes(own, fp32).values()), default=None)


def _changes(own: Mapping[str, float | None], fp32: Mapping[str, float | None]) -> dict[str, float]:
    return {
        name: value - of for name, of in fp32.items() if of is not None and (value := own.get(name)) is not None
    }  # fmt: skip


_FORMATS = {
    "relative error": ".1e", "nine tenths": ".1e", "largest error": ".1e", "mean Dice": ".4f", "of fp32": ".3%",
    "worst structure": "+.4f",
    "macro AUROC": ".4f", "worst finding": "+.4f", "calibration error": ".4f",
}  # fmt: skip


def shown(column: str, value: Any) -> str:
    """A cell in words."""
    if value is None:
        return "-"
    return format(value, _FORMATS[column]) if column in _FORMATS else str(value)


def markdown(result: Result) -> str:
    """The summary, and each form's verdict."""
    lines = _table(list(rows_of(result)))
    if result.get("slabs"):
        looked_at = "The first slab" if result["slabs"] == 1 else f"The first {result['slabs']} slabs"
        lines += ["", f"{looked_at} of each series alone: errors, and no Dice."]
    verdicts = [f"- {form}: {verdict_of(own)}" for form, own in result["forms"].items()]
    for rows in (scorer_rows(result), share_rows(result)):
        lines += ["", *table] if (table := _table(list(rows))) else []
    floats = [f"- {graph}: {told}" for graph, told in in_float(result).items()]
    return "\n".join([*lines, "", *verdicts, "", *_table(list(size_rows(result))), "", *floats, ""])


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines in Markdown; none where there are no rows."""
    if not rows:
        return []
    head = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return [*head, *("| " + " | ".join(shown(column, own) for column, own in row.items()) + " |" for row in rows)]


def size_rows(result: Result) -> Iterator[dict[str, str]]:
    """Each form's graphs, and how large they are beside the same graphs in fp32."""
    for form, own in result.get("sizes", {}).items():
        layers = [
            (made["layers"], 0 if made["refused"] else made["layers"] - len(made["in_float"]))
            for made in result.get("quantised", ())
            if made["form"] == form
        ]
        yield {
            "form": form,
            "graphs": str(own["graphs"]),
            "layers in INT8": f"{sum(n for _, n in layers)} of {sum(n for n, _ in layers)}" if layers else "-",
            "MB": f"{own['bytes'] / 1e6:.2f}",
            "the same in fp32, MB": f"{own['fp32'] / 1e6:.2f}",
            "times smaller": f"{own['fp32'] / own['bytes']:.2f}",
        }


def in_float(result: Result) -> dict[str, str]:
    """Graphs that INT8 does not cover whole, and why."""
    found = {}
    for own in result.get("quantised", ()):
        name = f"{own['graph']}, {own['form']}"
        if own["refused"]:
            found[name] = f"in fp32: {own['refused']}"
        elif own["in_float"]:
            reasons = "; ".join(dict.fromkeys(own["in_float"].values()))
            found[name] = f"{len(own['in_float'])} of {own['layers']} layers in float: {reasons}"
    return found


def verdict_of(own: Mapping[str, Any]) -> str:
    """A form's verdict in words."""
    if not own.get("judged", True) and own["admitted"]:
        errors = ", ".join(f"{what} uses up {share:.2f} of its bound" for what, share in own["used"].items())
        return f"not judged but by its errors{f': {errors}' if errors else ''}"
    return "admitted" if own["admitted"] else "not admitted: " + "; ".join(own["reasons"])


def page(result: Result) -> str:
    """One HTML page, pictures inside, no script."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("parity.html").render(
        result=result, rows=list(rows_of(result)), shown=shown, verdict_of=verdict_of, notice=RESEARCH_NOTICE,
        scorers=list(scorer_rows(result)), shares=list(share_rows(result)), sizes=list(size_rows(result)),
        in_float=in_float(result), pictures=_pictures(result), least_mean_dice=LEAST_MEAN_DICE,
        structure=LARGEST_STRUCTURE_LOSS, auroc=LARGEST_AUROC_LOSS,
    )  # fmt: skip


def _pictures(result: Result) -> dict[str, str]:
    """Plots by their captions, PNG in base64: changes of Dice and AUROC, and calibration errors."""
    found = {}
    for joint, contenders in result["joints"].items():
        fp32 = contenders[REFERENCE]
        forms = {name: own for name, own in contenders.items() if name not in (REFERENCE, FEW)}
        if "dice" in fp32:
            changes = {name: _changes(_flat(own["dice"]), _flat(fp32["dice"])) for name, own in forms.items()}
            caption = f"{joint}: change of each structure's Dice against the reference"
            found[caption] = _dots(changes, -LARGEST_STRUCTURE_LOSS, "Dice, form minus reference")
        if "auroc" in fp32:
            changes = {name: _changes(own["auroc"], fp32["auroc"]) for name, own in forms.items()}
            caption = f"{joint}: change of each finding's AUROC against the reference"
            found[caption] = _dots(changes, -LARGEST_AUROC_LOSS, "AUROC, form minus reference")
            found[f"{joint}: calibration error of each finding"] = _bars({REFERENCE: fp32, **forms})
    return found


def _dots(changes: Mapping[str, Mapping[str, float]], limit: float, label: str) -> str:
    names = list(next(iter(changes.values()), {}))
    figure = Figure(figsize=(9, 1.4 + 0.24 * len(names)), layout="constrained")
    axes: Axes = figure.add_subplot()
    axes.axvline(limit, color="crimson", linestyle="--", linewidth=1, label="limit")
    axes.axvline(0, color="grey", linewidth=0.8)
    for place, (contender, own) in enumerate(changes.items()):
        offset = (place - (len(changes) - 1) / 2) * 0.13
        places = [n + offset for n in range(len(names))]
        axes.scatter([own.get(name, float("nan")) for name in names], places, s=14, label=contender)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    return _png(figure, axes)


def _bars(contenders: Mapping[str, Any]) -> str:
    keys = list(contenders[REFERENCE]["calibration_error"])
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes: Axes = figure.add_subplot()
    width = 0.8 / len(contenders)
    for place, (name, own) in enumerate(contenders.items()):
        left = [n - 0.4 + (place + 0.5) * width for n in range(len(keys))]
        heights = [float("nan") if (error := own["calibration_error"][key]) is None else error for key in keys]
        axes.bar(left, heights, width, label=name)
    axes.set_xticks(range(len(keys)), keys, rotation=20)
    axes.set_ylabel("calibration error")
    return _png(figure, axes)


def _png(figure: Figure, axes: Axes) -> str:
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    content = io.BytesIO()
    figure.savefig(content, dpi=110, format="png")
    return base64.b64encode(content.getvalue()).decode()
