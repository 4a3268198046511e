"""A bundle's model card, for people: Markdown, and the same as one HTML page."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from markdown_it import MarkdownIt

from orthokernels import tasks
from orthokernels.bundle.manifest import Joint, Manifest

MARKDOWN, PAGE = "MODEL_CARD.md", "MODEL_CARD.html"

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border: 1px solid color-mix(in srgb, currentColor 25%, transparent); padding: .25rem .6rem; text-align: left; }
code { overflow-wrap: anywhere; }
"""


def write_card(folder: Path, manifest: Manifest) -> None:
    """Write both files into the bundle's folder."""
    text = card(manifest)
    (folder / MARKDOWN).write_text(text, encoding="utf-8")
    (folder / PAGE).write_text(_page(f"Model card: {manifest.name}", text), encoding="utf-8")


def card(manifest: Manifest) -> str:
    """The card as Markdown."""
    parts = [f"# Model card: {_plain(manifest.name)}", f"**{tasks.RESEARCH_NOTICE}**"]
    if not manifest.trained:
        parts.append(f"**{tasks.UNTRAINED_NOTICE}**")
    if manifest.notice:
        parts.append(_plain(manifest.notice))
    parts += ["## Intended use", _plain(manifest.intended_use), "## Limits", _bullets(manifest.limits)]
    parts += ["## What it is", _facts(manifest)]
    for joint, own in manifest.joints.items():
        parts += [f"## Findings of the {joint}", _findings(own)]
    if manifest.structures:
        parts += ["## Structures", _structures(manifest)]
    parts += ["## Forms", _forms(manifest)]
    if manifest.metrics:
        parts += ["### What each form reaches", _metrics(manifest)]
    if manifest.refused:
        refused = (f"{own.form}: {own.reason}" for own in manifest.refused)
        parts += ["### Forms that were left out", _bullets(refused)]
    return "\n\n".join(parts) + "\n"


def _facts(manifest: Manifest) -> str:
    rows = [
        ("made with", f"orthokernels {manifest.version}"),
        ("origin", _plain(manifest.origin)),
        ("licence of the weights", _plain(manifest.licence)),
        ("input", f"slabs of {manifest.depth} slices of {manifest.size} x {manifest.size} pixels"),
        ("needs at least", ", ".join(f"{name} {version}" for name, version in manifest.minimum_versions.items())),
        *((f"known studies, {joint}", _known(own)) for joint, own in manifest.joints.items()),
        *((f"digest, {joint}", f"`{own.weights_digest}`") for joint, own in manifest.joints.items()),
    ]
    return _table(("", ""), rows)


def _known(joint: Joint) -> str:
    """Of which studies it is known what they look like, to tell those that are unlike them."""
    found = {plane: own.known for plane, own in joint.planes.items() if own.known is not None}
    told = (f"{plane} {known.studies} {known.source}" for plane, known in found.items())
    return ", ".join(told) or "none: a study unlike those of the training is not told from others"


def _findings(joint: Joint) -> str:
    fused = f"Planes are fused by {joint.fusion_name}." if joint.fusion_name else "Planes are not fused."
    rows = [
        (own.key, _plain(own.name), f"{own.threshold:.2f}", _code(own.code.scheme, own.code.value) if own.code else "")
        for own in joint.findings
    ]
    return fused + "\n\n" + _table(("label", "finding", "present from", "code"), rows)


def _structures(manifest: Manifest) -> str:
    planes = list(manifest.structures)
    rows = {own.index: own for plane in planes for own in manifest.structures[plane]}
    table = [
        (str(own.index), _plain(own.name), _code(own.code.scheme, own.code.value) if own.code else "")
        for own in rows.values()
    ]
    return f"In the planes {', '.join(planes)}.\n\n" + _table(("value", "structure", "code"), table)


def _code(scheme: str, value: str) -> str:
    return f"{scheme} {value}"


def _forms(manifest: Manifest) -> str:
    forms = dict.fromkeys(form for graph in manifest.graphs.values() for form in graph.forms)
    counts = {form: sum(form in graph.forms for graph in manifest.graphs.values()) for form in forms}
    return _table(("form", "graphs"), [(form, f"{count} of {len(manifest.graphs)}") for form, count in counts.items()])


def _metrics(manifest: Manifest) -> str:
    rows = [
        (own.task, own.metric, own.form, f"{own.value:.4f}", f"{own.fp32:.4f}", str(own.studies))
        for own in manifest.metrics
    ]
    told = "The studies are digital phantoms: the figures say what a form loses, and nothing of patients."
    if any(own.metric.startswith("patient_data_") for own in manifest.metrics):
        told += " Patient data are drawn at random, the same for every form."
    return f"{told}\n\n" + _table(("task", "metric", "form", "value", "fp32", "studies"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_plain(line)}" for line in lines)


def _plain(text: str) -> str:
    """Text that came with the weights, without what Markdown or HTML would read as their own."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("`", "'").replace("\n", " ")


def _page(title: str, text: str) -> str:
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body>\n{body}</body></html>\n'
    )
