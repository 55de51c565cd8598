"""Small charts as inline SVG. Colours come from the page's style sheet, so they follow light and dark."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from koinon.view.markup import Html, element

Point: TypeAlias = tuple[float, float]
"""A round and a finite value."""

WIDTH, HEIGHT = 320, 150
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 22
SPARK_WIDTH, SPARK_HEIGHT = 96, 24
TONES = ("score", "loss", "cost")


def line_chart(label: str, points: Sequence[Point], tone: str = "score") -> Html:
    """A curve over rounds with labelled axes and its end marked.

    Args:
        label: The text alternative.
        points: At least one, by ascending round.
        tone: Class that gives the curve its colour.
    """
    marks = ticks(min(y for _, y in points), max(y for _, y in points))
    x = _scale(points[0][0], points[-1][0], LEFT, WIDTH - RIGHT)
    y = _scale(marks[0], marks[-1], HEIGHT - BOTTOM, TOP)
    end = points[-1]
    return _figure(
        label,
        *_axis(marks, y, "{:.6g}".format),
        *_rounds(points[0][0], end[0], x),
        element("polyline", points=_path(thin(points, 150), x, y), class_=f"curve {tone}"),
        element("circle", cx=_place(x(end[0])), cy=_place(y(end[1])), r=3.5, class_=f"end {tone}"),
    )


def frontier_chart(
    label: str, curves: Sequence[tuple[str, Sequence[Point]]], dots: Sequence[Point] = (), level: float | None = None
) -> Html:
    """Curves of a value over epsilon, on a logarithmic axis.

    Args:
        label: The text alternative.
        curves: At most three: a name, and points (epsilon > 0, value) by ascending epsilon.
        dots: Single points besides.
        level: Where a dashed line crosses, if it does: the value without noise.
    """
    points = [point for _, curve in curves for point in curve] + list(dots)
    heights = [height for _, height in points] + ([] if level is None else [level])
    marks = ticks(min(heights), max(heights))
    budgets = sorted({epsilon for epsilon, _ in points})
    across = _scale(math.log(budgets[0]), math.log(budgets[-1]), LEFT + 8, WIDTH - RIGHT - 8)
    y = _scale(marks[0], marks[-1], HEIGHT - BOTTOM, TOP)

    def x(epsilon: float) -> float:
        return across(math.log(epsilon))

    parts = [
        *_axis(marks, y, "{:.6g}".format),
        *(_text(x(each), HEIGHT - 6, f"{each:g}", "middle") for each in budgets),
    ]
    if level is not None:
        height = _place(y(level))
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=height, y2=height, class_="level"))
    parts += [element("circle", cx=_place(x(e)), cy=_place(y(v)), r=2, class_="dot") for e, v in dots]
    for tone, (name, curve) in zip(TONES, curves, strict=False):
        parts.append(element("polyline", points=_path(curve, x, y), class_=f"curve {tone}"))
        ends = (element("circle", cx=_place(x(e)), cy=_place(y(v)), r=3, class_=f"end {tone}") for e, v in curve)
        parts.append(element("g", element("title", name), *ends))
    return _figure(label, *parts)


def bar_chart(label: str, bars: Sequence[Point], show: Callable[[float], str], tone: str = "cost") -> Html:
    """Bars from zero over rounds.

    Args:
        label: The text alternative.
        bars: At least one, each a first round and a value >= 0, evenly spaced.
        show: A value as text, for the axis.
        tone: Class that gives the bars their colour.
    """
    marks = ticks(0.0, max(value for _, value in bars))
    slot = (WIDTH - LEFT - RIGHT) / max(len(bars), 12)
    y = _scale(marks[0], marks[-1], HEIGHT - BOTTOM, TOP)

    def x(place: float) -> float:
        return LEFT + slot * place

    rectangles = (
        element(
            "rect",
            x=_place(x(place + 0.12)),
            y=_place(y(value)),
            width=_place(slot * 0.76),
            height=_place(y(0.0) - y(value)),
        )
        for place, (_, value) in enumerate(bars)
    )
    last = len(bars) - 1
    names = [_text(x(place + 0.5), HEIGHT - 6, f"{bars[place][0]:.0f}", "middle") for place in sorted({0, last})]
    return _figure(label, *_axis(marks, y, show), element("g", *rectangles, class_=tone), *names)


def sparkline(label: str, points: Sequence[Point], low: float, high: float, tone: str = "score") -> Html:
    """A curve the size of a word. `low` and `high` are common to all that stand in one column."""
    x = _scale(points[0][0], points[-1][0], 3, SPARK_WIDTH - 4)
    y = _scale(low, high, SPARK_HEIGHT - 4, 4)
    end = points[-1]
    return element(
        "svg",
        element("polyline", points=_path(thin(points, 24), x, y), class_=f"curve {tone}"),
        element("circle", cx=_place(x(end[0])), cy=_place(y(end[1])), r=2.2, class_=f"end {tone}"),
        viewBox=f"0 0 {SPARK_WIDTH} {SPARK_HEIGHT}",
        class_="spark",
        role="img",
        aria_label=label,
    )


def ticks(low: float, high: float) -> list[float]:
    """Two to six round numbers, evenly spaced, the first <= `low` and the last >= `high`."""
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-300):
        spread = abs(high) * 0.05 or 1.0
        low, high = (low, high + spread) if low == 0 else (low - spread, high + spread)
    rough = (high - low) / 3
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def thin(points: Sequence[Point], bins: int) -> list[Point]:
    """At most `2 * bins` of the points, the ends and every bin's lowest and highest among them."""
    if len(points) <= 2 * bins:
        return list(points)
    ends = {0, len(points) - 1}
    kept = set(ends)
    for place in range(bins - 1):
        start, stop = (edge * len(points) // (bins - 1) for edge in (place, place + 1))
        kept.add(min(range(start, stop), key=lambda index: points[index][1]))
        kept.add(max(range(start, stop), key=lambda index: points[index][1]))
    return [points[index] for index in sorted(kept)]


def binned(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` means of equally many neighbours (the last of what is left), each at its first round."""
    width = max(1, math.ceil(len(points) / most))
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return [(group[0][0], sum(value for _, value in group) / len(group)) for group in groups]


def _figure(label: str, *parts: Html) -> Html:
    return element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)


def _axis(marks: Iterable[float], y: Callable[[float], float], show: Callable[[float], str]) -> Iterable[Html]:
    for mark in marks:
        height = _place(y(mark))
        yield element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=height, y2=height, class_="rule")
        yield _text(LEFT - 6, y(mark) + 3.5, show(mark), "end")


def _rounds(first: float, last: float, x: Callable[[float], float]) -> Iterable[Html]:
    middle = round((first + last) / 2)
    between = [middle] if last - first >= 4 else []
    for number in sorted({first, *between, last}):
        anchor = "middle" if number < last or first == last else "end"
        yield _text(x(number) + (4 if anchor == "end" else 0), HEIGHT - 6, f"{number:.0f}", anchor)


def _text(x: float, y: float, text: str, anchor: str) -> Html:
    return element("text", text, x=_place(x), y=_place(y), text_anchor=anchor)


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    """From [low, high] to [start, stop]; to the middle when there is nothing to spread."""
    if high == low:
        return lambda _: (start + stop) / 2
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def _path(points: Iterable[Point], x: Callable[[float], float], y: Callable[[float], float]) -> str:
    return " ".join(f"{_place(x(across))},{_place(y(up))}" for across, up in points)


def _place(coordinate: float) -> str:
    return f"{coordinate:.1f}".removesuffix(".0")
