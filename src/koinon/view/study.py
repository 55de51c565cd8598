"""Studies of privacy as pages and pictures: what was found, and what it rests on."""

from collections.abc import Sequence
from pathlib import Path

from koinon.view import charts, figures, picture
from koinon.view.charts import Point
from koinon.view.markup import Html, element, join, table
from koinon.view.page import heading, page

Curve = tuple[str, Sequence[Point]]
"""A name, and points (epsilon, value) by ascending epsilon."""


def study_page(
    eyebrow: str,
    title: str,
    facts: Sequence[tuple[str, str]],
    drawing: tuple[str, Sequence[Curve], Sequence[Point], float | None],
    tables: Sequence[Html],
    remarks: Sequence[str],
) -> str:
    """A page of one chart, its tables and what must be known beside them.

    Args:
        eyebrow: What kind of study it is.
        title: Of what.
        facts: Settings, by name.
        drawing: Metric, curves, single points, and the value without noise, for `charts.frontier_chart`.
        tables: Below the chart.
        remarks: Paragraphs at the end.
    """
    metric, curves, dots, level = drawing
    curves = [curve for curve in curves if curve[1]]
    sections = [heading(eyebrow, title, *facts)]
    if curves:
        label = f"{metric} by epsilon: " + "; ".join(_spoken(*curve) for curve in curves)
        chart = charts.frontier_chart(label, curves, dots, level)
        note = f"{metric} over epsilon, on a logarithmic axis." + (
            " Dashed: without noise." if level is not None else ""
        )
        sections.append(
            element(
                "section",
                element("h2", "Frontier"),
                _keys(curves),
                element("p", note, class_="note"),
                element("figure", chart, class_="frontier"),
            )
        )
    sections += [element("section", each) for each in tables]
    sections.append(element("section", *(element("p", remark) for remark in remarks)))
    return page(f"{figures.line(title)} · {eyebrow}", sections)


def numbers(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table of a study."""
    return table(caption, columns, rows, kind="prose")


def code(text: str) -> Html:
    """Lines to be copied."""
    return element("pre", element("code", text))


def draw(
    path: Path, metric: str, curves: Sequence[Curve], dots: Sequence[Point] = (), level: float | None = None
) -> None:
    """The same chart as a picture; its format follows from the file's name: PNG, SVG or PDF.

    Raises:
        Unavailable: if matplotlib is not installed, or the file cannot be written.
    """
    figure, axes = picture.blank()
    if level is not None:
        axes.axhline(level, linestyle="--", color="0.5", linewidth=1, label="without noise")
    if dots:
        axes.scatter([x for x, _ in dots], [y for _, y in dots], s=12, color="0.7", label="trials")
    for name, points in curves:
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
    axes.set_xscale("log", base=2)
    ticks = sorted({x for _, points in curves for x, _ in points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel("epsilon")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    axes.legend()
    picture.save(figure, path)


def _keys(curves: Sequence[Curve]) -> Html:
    keys = (
        element("li", element("span", "● ", class_=f"key {tone}"), name)
        for tone, (name, _) in zip(charts.TONES, curves, strict=False)
    )
    return element("ul", join(keys), class_="legend")


def _spoken(name: str, points: Sequence[Point]) -> str:
    return f"{name} " + ", ".join(f"{figures.value(value)} at {epsilon:g}" for epsilon, value in points)
