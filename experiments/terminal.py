"""Tables as the terminal shows them, and numbers as people read them."""

import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from experiments import systems
from experiments.run_dir import Table

WIDEST_CELL = 24
"""Text in a table is folded beyond so many characters."""
BETWEEN_COLUMNS = 3
VERDICT_STYLES = {"holds": "bold green", "does not hold": "bold red", "undecided": "bold yellow"}


def format_number(value: float | int | str, digits: int = 4) -> str:
    """A number with so many significant digits, in plain notation where that stays short.

    Args:
        value: a number; text is returned as it is.
        digits: significant digits.

    Example:
        >>> [format_number(x) for x in (1234.5678, 0.5, 1e-7, 20000, "n/a")]
        ['1235', '0.5', '1e-07', '20000', 'n/a']
    """
    if isinstance(value, str | int):
        return str(value)
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    magnitude = _magnitude(abs(value))
    if not -4 < magnitude < 6:
        return f"{value:.{digits}g}"
    if magnitude >= digits - 1:
        return f"{value:.0f}"
    return f"{value:.{digits - 1 - magnitude}f}".rstrip("0").rstrip(".")


def format_estimate(claim: dict[str, Any]) -> str:
    """A measured claim as *estimate [low, high], n seeds*.

    Args:
        claim: an entry of "claims" in report.json.

    Example:
        >>> format_estimate({"estimate": 2.0, "low": 1.5, "high": 2.5, "values": [1, 2, 3]})
        '2.00 [1.50, 2.50], 3 seeds'
    """
    estimate, low, high, count = claim["estimate"], claim["low"], claim["high"], len(claim["values"])
    if low is None or high is None:
        return f"{format_number(estimate)}, {count} seed"
    size, spread = max(abs(estimate), abs(low), abs(high)), high - low
    # The interval's width shows two digits, three where the first is below 3; no number shows more than four.
    last = max(_magnitude(spread / 3) - 1 if spread > 0 else -math.inf, _magnitude(size) - 3)
    if 1e-3 <= size < 1e6:
        shown = [f"{value:.{max(0, -last)}f}" for value in (estimate, low, high)]
    else:
        digits = max(2, _magnitude(size) - last + 1)
        shown = [f"{value:.{digits}g}" for value in (estimate, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}], {count} seeds"


def print_table(console: Console, table: Table) -> None:
    """Prints a table of results, in parts one below the other if it is wider than the terminal.

    Args:
        console: where to.
        table: the table.
    """
    for part, columns in enumerate(_parts(table, console.width)):
        printed = RichTable(
            title="(continued)" if part else table.title,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        for index in columns:
            numbers = all(isinstance(row[index], float | int) for row in table.rows)
            justify = "right" if numbers else "left"
            printed.add_column(Text(table.columns[index]), justify=justify, overflow="fold")
        for row in table.rows:
            printed.add_row(*(Text(format_number(row[index])) for index in columns))
        console.print(printed)


def print_report(console: Console, report: dict[str, Any]) -> None:
    """Prints what a run found: its tables, its notes, and the verdicts last.

    Args:
        console: where to.
        report: what report.json holds.
    """
    for table in report["tables"]:
        print_table(console, Table(**table))
    for note in report["notes"]:
        console.print(Text(f"Note: {note}"))
    print_claims(console, report["claims"])


def print_claims(console: Console, claims: Sequence[dict[str, Any]]) -> None:
    """Prints the table *claim, paper, ours, verdict*.

    Args:
        console: where to.
        claims: "claims" of report.json.
    """
    printed = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    printed.add_column("claim", ratio=5, overflow="fold")
    printed.add_column("paper", ratio=4, overflow="fold")
    printed.add_column("ours", ratio=5, overflow="fold")
    printed.add_column("verdict", width=9)
    for index, claim in enumerate(claims):
        if index:
            printed.add_row()
        ours = Text(format_estimate(claim)).append(f"\nto hold: {claim['criterion']}", style="dim")
        verdict = Text(claim["verdict"], style=VERDICT_STYLES[claim["verdict"]])
        printed.add_row(Text(claim["sentence"]), Text(claim["paper"]), ours, verdict)
    console.print(printed)


def print_systems(console: Console) -> None:
    """Prints the table of the 18 systems.

    Args:
        console: where to.
    """
    printed = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    printed.add_column("system", min_width=13)
    printed.add_column("field", width=11)
    printed.add_column("module", no_wrap=True)
    printed.add_column("experiment", no_wrap=True)
    printed.add_column("status", no_wrap=True)
    for system in systems.SYSTEMS:
        planned = system.status == "planned"
        names = "\n".join(
            name if planned or name in system.available else f"{name} (planned)"
            for name in system.experiments
        )
        cells = (system.name, system.field, system.module, names)
        row = [Text(cell, style="dim" if planned else "") for cell in cells]
        printed.add_row(*row, Text(system.status, style="dim" if planned else "green"))
    console.print(printed)


def _parts(table: Table, width: int) -> list[list[int]]:
    """Which columns are printed beside each other; the first stands in every part.

    All are one part where the widest cells have room on two lines; else a cell has one line. Columns of the
    same name stay beside what is before them.
    """
    cells = [
        [format_number(row[index]) for row in table.rows] + [max(column.split(), key=len, default="")]
        for index, column in enumerate(table.columns)
    ]
    needed = [BETWEEN_COLUMNS + min(WIDEST_CELL, max(map(len, column))) for column in cells]
    folded = [BETWEEN_COLUMNS + min(WIDEST_CELL, max(map(_half, column))) for column in cells]
    if sum(folded) <= width:
        return [list(range(len(needed)))]
    together: list[list[int]] = []
    for index, column in enumerate(table.columns[1:], 1):
        if together and list(table.columns).count(column) > 1:
            together[-1].append(index)
        else:
            together.append([index])
    parts, room = [], 0
    for group in together:
        wide = sum(needed[index] for index in group)
        if wide > room or not parts:
            parts.append([0])
            room = width - needed[0]
        parts[-1] += group
        room -= wide
    return parts


def _half(text: str) -> int:
    """The least width that holds a text on two lines, broken between words."""
    words = text.split()
    breaks = range(1, max(2, len(words) + 1))
    return min(max(len(" ".join(words[:at])), len(" ".join(words[at:]))) for at in breaks)


def _magnitude(value: float) -> int:
    """The power of ten of the first digit."""
    return math.floor(math.log10(value)) if value > 0 else 0
