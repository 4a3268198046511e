"""A table for the terminal: rich's where rich is, plain text where it is not, as on the machines that only measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Table:
    """Headings and rows of text.

    Attributes:
        headings: of the columns.
        title: above the table.
        caption: below it.
        right: names the columns of figures.
        rows: a cell for each column.
        styles: rich's style of each row; None for the plain one.
    """

    headings: Sequence[str]
    title: str = ""
    caption: str | None = None
    right: Sequence[str] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    styles: list[str | None] = field(default_factory=list)

    def add_row(self, *cells: str, style: str | None = None) -> None:
        self.rows.append(cells)
        self.styles.append(style)

    def __str__(self) -> str:
        lines = [tuple(self.headings), *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        told = [
            "  ".join(
                cell.rjust(width) if heading in self.right else cell.ljust(width)
                for heading, cell, width in zip(self.headings, cells, widths, strict=True)
            ).rstrip()
            for cells in lines
        ]
        told.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*([self.title] if self.title else []), *told, *([self.caption] if self.caption else [])])

    def __rich__(self) -> Any:
        from rich.markup import escape
        from rich.table import Table as Drawn

        made = Drawn(title=self.title or None, caption=self.caption, title_justify="left")
        for heading in self.headings:
            made.add_column(heading, justify="right" if heading in self.right else "left")
        for cells, style in zip(self.rows, self.styles, strict=True):
            made.add_row(*map(escape, cells), style=style)
        return made
