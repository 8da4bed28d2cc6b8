"""The kit of every table that a command prints (needs rich)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_ENDLESS = 10_000  # columns that no table takes
_COLOURS = ("green", "red", "yellow")  # of a verdict, by exit status


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str | None = None,
    left: Sequence[int] = (0,),
    folded: Sequence[int] = (),
    dense: bool = False,
) -> Table:
    """A table with a line below its headers and no other.

    Args:
        headers: of each column, of one line or several. rows: of each, a text for every column.
        left: columns aligned left; the others are numbers, aligned right.
        folded: columns that are broken into lines where the terminal is narrow. The others keep
            their width: rich would cut the ends of names and figures off.
        dense: one blank between columns, and not three.
    """
    made = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0 if dense else 1),
        pad_edge=False,
        show_edge=False,
    )
    rows = [list(row) for row in rows]
    most = max(header.count("\n") for header in headers)
    for i, header in enumerate(headers):
        kept = [header] if i in folded else [header, *(row[i] for row in rows)]
        made.add_column(
            Text("\n" * (most - header.count("\n")) + header),
            justify="left" if i in left else "right",
            overflow="fold",
            no_wrap=i not in folded,
            min_width=max(cell_len(line) for text in kept for line in text.split("\n")),
        )
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def as_text(headers: Sequence[str], rows: Iterable[Sequence[str]], width: int = 200) -> str:
    """A dense table as text."""
    console = Console(file=io.StringIO(), width=width, markup=False, emoji=False)
    console.print(table(headers, rows, dense=True))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines)


def print_tables(console: Console, tables: Iterable[Table]) -> None:
    """Each below an empty line, and one after the last; lines that are too long are broken by the
    terminal."""
    for made in tables:
        console.print()
        least = console.measure(made, options=console.options.update_width(_ENDLESS)).minimum
        made.width = least if least > console.width else None
        console.print(made, crop=False)
    console.print()


def print_lines(console: Console, lines: Iterable[str]) -> None:
    """Lines as they are, broken by the terminal alone."""
    for line in lines:
        console.print(Text(line), soft_wrap=True, highlight=False)


def print_verdict(console: Console, verdict: Mapping[str, Any]) -> None:
    """The answer of a command that answers by its exit status: `word`, `status`, `sentence`."""
    text = Text(f"{verdict['word']} (exit status {verdict['status']})")
    text.stylize(f"bold {_COLOURS[verdict['status']]}")
    text.append(Text(f": {verdict['sentence']}", style="not bold default"))
    console.print(text, soft_wrap=True, highlight=False)
