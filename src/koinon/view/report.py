"""A run as one HTML page that a person reads."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from koinon.core.errors import AdmissionError
from koinon.core.types import ClientId, canonical
from koinon.durable.history import RoundRecord, RunInfo, Values
from koinon.durable.spending import guarantees
from koinon.view import charts, figures, participation
from koinon.view.charts import Point
from koinon.view.markup import Html, element, join, table
from koinon.view.page import page, write_page

SHOWN_ROUNDS = 1000
"""Rounds in the table of numbers; of a longer run, the last ones."""

SHOWN_METRICS = 24
"""Charts in one group, and metrics in a table."""

BARS = 60
"""Bars in a chart; more rounds than that share a bar."""

_LOSS_LIKE = ("loss", "error", "mse", "mae", "nll", "perplexity", "entropy", "brier")


@dataclass(frozen=True)
class Comparison:
    """One metric of several models, side by side: federated, each owner alone, all data pooled.

    Attributes:
        title: What is compared, e.g. `"Accuracy"`.
        columns: What the models were tested on.
        rows: A model's name and its value per column; None where there is none.
        note: How the numbers were got, for the reader.

    Raises:
        AdmissionError: if a row has not one value per column.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for name, values in self.rows:
            if len(values) != len(self.columns):
                raise AdmissionError(
                    f"{self.title}: {name} has {len(values)} values for {len(self.columns)} columns; "
                    "give one per column, None where there is none"
                )


def write(path: Path, info: RunInfo, history: Sequence[RoundRecord], comparisons: Sequence[Comparison] = ()) -> None:
    """Write the page; whoever reads `path` meanwhile sees the old page or the new one, whole.

    Raises:
        Unavailable: if the file cannot be written.
    """
    write_page(path, render(info, history, comparisons))


def render(info: RunInfo, history: Sequence[RoundRecord], comparisons: Sequence[Comparison] = ()) -> str:
    """The page.

    Args:
        info: What the run is.
        history: Its closed rounds, in order; may be empty.
        comparisons: Tables to set beside the learning curves.
    """
    title = f"{figures.line(info.id)} · {figures.line(info.app)}"
    return page(title, _sections(info, history, comparisons))


def _sections(info: RunInfo, history: Sequence[RoundRecord], comparisons: Sequence[Comparison]) -> Iterable[Html]:
    yield _header(info, history)
    if not history:
        yield element("p", "No round has closed yet: there is nothing more to show.", class_="empty")
        return
    yield from _learning(history)
    if comparisons:
        yield element("section", element("h2", "Side by side"), *map(_comparison, comparisons))
    yield from _by_client(history)
    yield participation.section(history)
    yield from participation.suspicion_section(history)
    yield _cost(history)
    yield _rounds(history)
    yield element("footer", f"Written by Koinon from the stored history of run {figures.line(info.id)}.")


def _header(info: RunInfo, history: Sequence[RoundRecord]) -> Html:
    clients = len({part.client for record in history for part in record.participants})
    digest = history[-1].digest if history else ""
    figure = (
        ("Rounds", f"{figures.count(len(history))} of {figures.count(info.rounds)}"),
        ("Clients", figures.count(clients)),
        ("Model parameters", figures.count(info.parameters)),
        ("Sent by clients", figures.size(sum(record.bytes_up for record in history))),
        ("Sent to clients", figures.size(sum(record.bytes_down for record in history))),
        ("Time", figures.duration(sum(record.seconds for record in history))),
    )
    facts = (
        ("App", figures.line(info.app)),
        ("Runtime", info.runtime),
        ("Begun", figures.line(info.created)),
        ("Seed", str(info.seed)),
        ("Definition", _short(info.definition)),
        ("Model digest", _short(digest) if digest else "–"),
        ("Differential privacy", _privacy(info, history)),
        ("Secure sum", _secure(info)),
    )
    return element(
        "header",
        element("p", "Koinon run report", class_="eyebrow"),
        element("h1", figures.line(info.id), " ", element("span", info.status, class_=f"status {info.status}")),
        element("dl", *(_entry(*pair) for pair in figure), class_="figures"),
        element("dl", *(_entry(*pair) for pair in facts), class_="facts"),
    )


def _privacy(info: RunInfo, history: Sequence[RoundRecord]) -> str:
    """What the run has spent, with unit and assumptions."""
    if info.delta is None:
        return "none"
    spent = guarantees((release for record in history for release in record.releases), info.delta)
    seeded = "; its noise follows from the seed and protects nobody" if info.runtime == "simulation" else ""
    return "; ".join(f"noise by the {place}: {guarantee}" for place, guarantee in spent.items()) + seeded


def _secure(info: RunInfo) -> str:
    """What it hides, in this run."""
    if not info.secure:
        return "none: the server saw each update"
    simulated = "; simulated without its masks, so nothing was hidden" if info.runtime == "simulation" else ""
    return f"{info.secure}{simulated}"


def _entry(name: str, text: str) -> Html:
    return element("div", element("dt", name), element("dd", text))


def _short(digest: str) -> Html:
    return element("code", digest[:12], title=digest)


def _learning(history: Sequence[RoundRecord]) -> Iterable[Html]:
    """The curves: of the model, of the model on the clients' data where that differs, and of local training."""
    metrics, federated = [record.metrics for record in history], [record.federated for record in history]
    where = "held-out data of all clients together" if metrics == federated else "server’s test set"
    groups = (
        ("Learning curve", f"The model after each round, on the {where}.", metrics),
        ("On the clients’ own held-out data", "Merged over all clients.", federated),
        ("During local training", "Over the clients that were accepted.", [record.training for record in history]),
    )
    seen: list[Sequence[Values]] = []
    for title, note, course in groups:
        curves = [curve for metric in _names(course) if (curve := _curve(metric, course, history))]
        if curves and course not in seen:
            yield element(
                "section",
                element("h2", title),
                element("p", note, class_="note"),
                element("div", *curves, class_="charts"),
            )
        seen.append(course)


def _curve(metric: str, course: Sequence[Values], history: Sequence[RoundRecord]) -> Html | None:
    points = _points(metric, course, history)
    if not points:
        return None
    (first, start), (last, end) = points[0], points[-1]
    label = f"{metric} by round: {figures.value(start)} after round {first:.0f}, {figures.value(end)} after {last:.0f}"
    return _panel(metric, figures.value(end), f"after round {last:.0f}", charts.line_chart(label, points, tone(metric)))


def _panel(title: str, value: str, remark: str, chart: Html) -> Html:
    caption = element(
        "figcaption",
        element("span", figures.line(title, 48), class_="metric"),
        element("span", element("b", value), f" {remark}"),
    )
    return element("figure", caption, chart)


def _names(course: Iterable[Values]) -> list[str]:
    """Every metric of the course, scores before losses, otherwise in order of appearance."""
    found = dict.fromkeys(metric for values in course for metric in values)
    return sorted(found, key=tone, reverse=True)[:SHOWN_METRICS]


def tone(metric: str) -> str:
    """`"loss"` where less is better, as the name tells, otherwise `"score"`."""
    return "loss" if any(part in metric.lower() for part in _LOSS_LIKE) else "score"


def _points(metric: str, course: Sequence[Values], history: Sequence[RoundRecord]) -> list[Point]:
    """The metric's values that a chart can hold; a hostile client may claim any float."""
    pairs = (
        (float(record.round), values.get(metric, math.nan)) for record, values in zip(history, course, strict=True)
    )
    return [(number, value) for number, value in pairs if abs(value) < 1e300]


def _comparison(comparison: Comparison) -> Html:
    shown = (
        (name, *("–" if value is None else figures.value(value) for value in values))
        for name, values in comparison.rows
    )
    note = [element("p", comparison.note, class_="note")] if comparison.note else []
    return join([table(comparison.title, ("Model", *comparison.columns), shown, kind="numbers even"), *note])


def _by_client(history: Sequence[RoundRecord]) -> Iterable[Html]:
    """The last evaluation client by client, each value with its course."""
    evaluated = [record for record in history if record.by_client]
    if not evaluated:
        return
    last = evaluated[-1]
    clients = canonical(last.by_client)
    named = clients[: participation.SHOWN_CLIENTS]
    metrics = _names(last.by_client.values())
    columns = [_column(metric, named, evaluated) for metric in metrics]
    rows = [(participation.name(client), *cells) for client, *cells in zip(named, *columns, strict=True)]
    foot = [
        (
            title,
            *(_summary(summarise, [last.by_client[client].get(metric) for client in clients]) for metric in metrics),
        )
        for title, summarise in (("Lowest", min), ("Median", median), ("Highest", max))
    ]
    caption = f"After round {last.round}"
    if len(named) < len(clients):
        caption += f": the first {len(named)} of {figures.count(len(clients))} clients; the last rows cover all"
    yield element(
        "section",
        element("h2", "Client by client"),
        element(
            "p", "The model on each client’s own held-out data. Curves of a column share one scale.", class_="note"
        ),
        table(
            caption, ("Client", *(figures.line(metric, 48) for metric in metrics)), rows, foot, kind="numbers charted"
        ),
    )


def _column(metric: str, named: Sequence[ClientId], evaluated: Sequence[RoundRecord]) -> list[Html]:
    courses = [
        _points(metric, [record.by_client.get(client, {}) for record in evaluated], evaluated) for client in named
    ]
    heights = [value for points in courses for _, value in points]
    cells = []
    for client, points in zip(named, courses, strict=True):
        final = element("span", figures.value(evaluated[-1].by_client[client].get(metric, math.nan)))
        label = f"{metric} of {client} over {len(points)} rounds"
        curve = charts.sparkline(label, points, min(heights), max(heights), tone(metric)) if len(points) > 1 else Html()
        cells.append(join([curve, final]))
    return cells


def _summary(summarise: Callable[[list[float]], float], values: Iterable[float | None]) -> str:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return figures.value(summarise(finite)) if finite else "–"


def _cost(history: Sequence[RoundRecord]) -> Html:
    """Bytes and seconds by round, and totals by client."""
    courses = (
        ("Sent by clients", figures.size, [float(record.bytes_up) for record in history]),
        ("Sent to clients", figures.size, [float(record.bytes_down) for record in history]),
        ("Time", figures.duration, [record.seconds for record in history]),
    )
    panels = []
    for title, show, values in courses:
        points = [(float(record.round), value) for record, value in zip(history, values, strict=True)]
        bars = charts.binned(points, BARS)
        mean = show(sum(values) / len(values))
        chart = charts.bar_chart(f"{title} by round: {mean} on average", bars, show)
        panels.append(_panel(title, show(sum(values)), "in total", chart))
    return element(
        "section",
        element("h2", "Traffic and time"),
        element("p", _bar_note(len(history)), class_="note"),
        element("div", *panels, class_="charts"),
        participation.totals_table(history),
    )


def _bar_note(rounds: int) -> str:
    width = math.ceil(rounds / BARS)
    return "By round." if width == 1 else f"By round; each bar is the mean of {width} rounds."


def _rounds(history: Sequence[RoundRecord]) -> Html:
    """All rounds in numbers: what the charts show, for those who read or copy numbers."""
    metrics = _names(record.metrics for record in history)
    last = history[-SHOWN_ROUNDS:]
    rows = (
        (
            str(record.round),
            f"{sum(part.outcome == 'accepted' for part in record.participants)} of {len(record.participants)}",
            figures.size(record.bytes_up),
            figures.size(record.bytes_down),
            figures.duration(record.seconds),
            *(figures.value(record.metrics[metric]) if metric in record.metrics else "–" for metric in metrics),
        )
        for record in last
    )
    columns = ("Round", "Accepted", "Sent by clients", "Sent to clients", "Time")
    return element(
        "section",
        element("h2", "Round by round"),
        element(
            "details",
            element("summary", f"Rounds {last[0].round} to {last[-1].round} in numbers"),
            table("", (*columns, *(figures.line(metric, 48) for metric in metrics)), rows),
        ),
    )
