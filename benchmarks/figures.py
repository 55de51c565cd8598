"""A measured number beside what it is held against, and the table of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        what: What was measured.
        value: The number.
        unit: Its unit.
        baseline: The same of the baseline, measured in the same run; None where there is none.
        target: What the number should be, in words; empty where nothing is asked for.
        met: Whether it is; None where nothing is asked for.
    """

    what: str
    value: float
    unit: str
    baseline: float | None = None
    target: str = ""
    met: bool | None = None


def table(figures: Mapping[str, Sequence[Figure]]) -> str:
    """All figures, by benchmark."""
    rows = [("", "measured", "baseline", "ratio", "target", "")]
    for name, lines in figures.items():
        rows.append((name, "", "", "", "", ""))
        rows.extend(_row(figure) for figure in lines)
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    return "\n".join(_line(row, widths) for row in rows)


def _row(figure: Figure) -> tuple[str, ...]:
    baseline = ratio = ""
    if figure.baseline is not None:
        baseline, ratio = _number(figure.baseline, figure.unit), f"{figure.value / figure.baseline:.2f}x"
    met = {True: "met", False: "missed", None: ""}[figure.met]
    return f"  {figure.what}", _number(figure.value, figure.unit), baseline, ratio, figure.target, met


def _number(value: float, unit: str) -> str:
    return f"{value:,.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f} {unit}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *numbers, target, met = row
    cells = [first.ljust(widths[0])]
    cells += [number.rjust(width) for number, width in zip(numbers, widths[1:4], strict=True)]
    return "  ".join((*cells, target.ljust(widths[4]), met)).rstrip()
