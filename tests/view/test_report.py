import itertools
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon.core.errors import AdmissionError, Unavailable
from koinon.durable.history import Participation, RoundRecord, RunInfo
from koinon.view import charts, figures, participation, report

INFO = RunInfo(
    id="brave-otter",
    app="hospitals.py",
    definition="9f3c" * 16,
    rounds=12,
    seed=41,
    parameters=12_961,
    created="2030-01-02T03:04:05Z",
    status="finished",
    runtime="network",
)
NAMES = ("basel", "bern", "genève")


class Page(HTMLParser):
    """What the page holds; fails on a tag that is not closed, or closed twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if "td" in self.open or "th" in self.open:
            self.cells[-1] += data

    def classes(self) -> Counter:
        return Counter(attributes.get("class") for tag, attributes in self.tags if tag == "td")


def run(rounds: int, clients: tuple[str, ...] = NAMES) -> list[RoundRecord]:
    """A run in which every client was accepted in every round, with known figures."""
    history = []
    for number in range(1, rounds + 1):
        parts = tuple(Participation(client, "accepted", "", 10, 10.0, 0.5, 1000, 2000) for client in clients)
        by_client = {client: {"accuracy": 0.5 + number / 10_000 + place / 1000} for place, client in enumerate(clients)}
        metrics = {"loss": 1 / number, "accuracy": 1 - 0.5 / number}
        history.append(
            RoundRecord(number, f"{number:064x}", 1.5, parts, {"train_loss": 2 / number}, metrics, {}, by_client)
        )
    return history


@pytest.mark.parametrize("rounds", [0, 1, 2, 12, 137])
def test_every_page_is_well_formed_and_asks_for_nothing_outside_itself(rounds: int) -> None:
    text = report.render(INFO, run(rounds), [report.Comparison("AUROC", ("together",), (("federated", (0.9,)),))])
    page = Page(text)
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    used = {tag for tag, _ in page.tags}
    assert used.isdisjoint({"script", "link", "img", "iframe", "object", "base", "form"})
    assert not any(key.startswith("on") or key in ("src", "href", "style") for _, attrs in page.tags for key in attrs)
    assert all(attrs.get("aria-label") and attrs.get("role") == "img" for tag, attrs in page.tags if tag == "svg")


def test_the_page_says_what_the_run_is() -> None:
    text = Page(report.render(INFO, run(12))).text
    for figure in (
        "brave-otter",
        "finished",
        "hospitals.py",
        "9f3c9f3c9f3c",
        "12,961",
        "41",
        "12 of 12",
        "36.0 kB",
        "72.0 kB",
        "18.0 s",
    ):
        assert figure in text
    assert f'title="{INFO.definition}"' in report.render(INFO, run(12))
    assert "No round has closed yet" in Page(report.render(INFO, [])).text


def test_every_client_and_every_round_has_its_figures() -> None:
    cells = Page(report.render(INFO, run(12))).cells
    for place, client in enumerate(NAMES):
        assert client in cells
        assert figures.value(0.5 + 12 / 10_000 + place / 1000) in cells
    for number in range(1, 13):
        assert str(number) in cells
        assert figures.value(1 / number) in cells and figures.value(1 - 0.5 / number) in cells


@settings(max_examples=25)
@given(st.text(max_size=60))
def test_text_from_outside_never_becomes_markup(text: str) -> None:
    hostile = f"<script>alert(1)</script>\"'&{text}"
    part = Participation(hostile, "failed", hostile)
    record = RoundRecord(
        1, hostile, 1.0, (part,), {hostile: 1.0}, {hostile: 0.5}, {hostile: 0.4}, {hostile: {hostile: 1}}
    )
    info = RunInfo(hostile, hostile, hostile, 1, 0, 1, hostile, "running", "simulation")
    comparison = report.Comparison(hostile, (hostile,), ((hostile, (None,)),), hostile)
    plain = RunInfo("x", "x", "x", 1, 0, 1, "x", "running", "simulation")
    harmless = RoundRecord(
        1, "x", 1.0, (Participation("x", "failed", "x"),), {"x": 1.0}, {"x": 0.5}, {"x": 0.4}, {"x": {"x": 1}}
    )
    expected = report.render(plain, [harmless], [report.Comparison("x", ("x",), (("x", (None,)),), "x")])
    assert skeleton(report.render(info, [record], [comparison])) == skeleton(expected)


def skeleton(text: str) -> list[tuple[str, list[str]]]:
    """Every tag with the names of its attributes."""
    return [(tag, list(attributes)) for tag, attributes in Page(text).tags]


def test_the_grid_shows_each_outcome_by_a_class_and_by_a_sign() -> None:
    parts = tuple(Participation(outcome, outcome, f"because {outcome}") for outcome in participation.OUTCOMES)
    page = Page(report.render(INFO, [RoundRecord(1, "", 1.0, parts), RoundRecord(2, "", 1.0, parts[:1])]))
    classes = page.classes()
    assert [classes[outcome] for outcome in participation.OUTCOMES] == [2, 1, 1, 1, 1]
    signs = {sign for sign, _ in participation.MEANINGS.values()}
    assert len(signs) == 5 and signs <= set(page.cells)
    for outcome in participation.OUTCOMES[1:]:
        assert f"because {outcome}" in page.cells
    assert "because accepted" not in page.text


def test_rounds_that_share_a_column_show_the_most_frequent_outcome_and_mark_the_next() -> None:
    outcomes = ("accepted", "accepted", "failed")
    history = [RoundRecord(n, "", 1.0, (Participation("a", outcomes[n % 3]),)) for n in range(1, 151)]
    assert Page(report.render(INFO, history)).classes()["accepted mixed with-failed"] == participation.GRID_COLUMNS


def test_a_long_run_of_many_clients_stays_small_and_names_those_in_trouble() -> None:
    clients = tuple(str(number) for number in range(100))
    text = report.render(INFO, run(1000, clients))
    assert len(text.encode()) < 2_000_000
    many = [
        RoundRecord(
            1, "", 1.0, tuple(Participation(str(n), "failed" if n == 4999 else "accepted") for n in range(5000))
        )
    ]
    named = participation.shown(participation.totals(many))
    assert len(named) == participation.SHOWN_CLIENTS and "4999" in named
    page = Page(report.render(INFO, many))
    assert "All 5,000" in page.cells and "4,999" in page.cells


def test_a_reason_is_told_once_with_its_clients_and_rounds() -> None:
    history = [
        RoundRecord(n, "", 1.0, (Participation("a", "absent", "late"), Participation("b", "absent", "late")))
        for n in (1, 2, 3, 7)
    ]
    cells = Page(report.render(INFO, history)).cells
    place = cells.index("late")
    assert cells[place + 1 : place + 3] == ["a, b", "1–3, 7"]
    endless = [RoundRecord(n, "", 1.0, (Participation("a", "failed", f"{n} " + "x" * 3000),)) for n in range(500)]
    text = report.render(INFO, endless)
    assert "x" * 100 in text and "x" * 300 not in text and "499 xxx" not in text


def test_a_hostile_metric_cannot_break_the_page() -> None:
    values = [math.nan, math.inf, -math.inf, 1.7e308, -1.7e308, 5e-324, 0.0, -1e299, 1e299]
    history = [RoundRecord(n, "", 1.0, (), {}, {"m": v}, {}, {"a": {"m": v}}) for n, v in enumerate(values, start=1)]
    text = report.render(INFO, history)
    assert 'points="' in text
    assert not re.search(r'(points|x|y|cx|cy)="[^"]*(nan|inf)', text)


def test_losses_and_scores_are_told_apart_and_the_last_value_stands_beside_the_name() -> None:
    assert [report.tone(name) for name in ("loss", "train_loss", "RMSE", "accuracy", "auroc", "r2")] == ["loss"] * 3 + [
        "score"
    ] * 3
    text = Page(report.render(INFO, run(12))).text
    assert text.index("accuracy0.958 after round 12") < text.index("loss0.083 after round 12")


def test_a_comparison_is_shown_and_a_ragged_one_refused() -> None:
    comparison = report.Comparison(
        "Accuracy", ("bern", "all"), (("federated", (0.9, 0.8)), ("bern alone", (0.7, None))), "Held out."
    )
    page = Page(report.render(INFO, run(1), [comparison]))
    place = page.cells.index("bern alone")
    assert page.cells[place : place + 3] == ["bern alone", "0.700", "–"]
    assert "Held out." in page.text
    with pytest.raises(AdmissionError, match="bern alone has 1 values for 2 columns"):
        report.Comparison("Accuracy", ("bern", "all"), (("bern alone", (0.7,)),))


def test_writing_leaves_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    report.write(path, INFO, run(2))
    assert path.read_text(encoding="utf-8") == report.render(INFO, run(2))
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(Unavailable, match=r"cannot write .*report\.html"):
        report.write(tmp_path / "missing" / "report.html", INFO, [])


def coordinates(svg: str) -> list[tuple[float, float]]:
    drawn = re.search(r'points="([^"]*)"', svg)
    assert drawn is not None
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in drawn[1].split())]


def test_a_rising_curve_rises_and_ends_where_its_scale_says() -> None:
    points = coordinates(charts.line_chart("rising", [(n, n / 10) for n in range(11)]))
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(points))
    assert points[0] == (charts.LEFT, charts.HEIGHT - charts.BOTTOM)
    assert points[-1][0] == charts.WIDTH - charts.RIGHT
    assert charts.ticks(0.0, 1.0)[-1] == 1.0 and points[-1][1] == charts.TOP


def test_bars_are_as_high_as_their_values() -> None:
    svg = charts.bar_chart("bars", [(1, 0.0), (2, 30.0), (3, 60.0)], figures.size)
    feet = [
        float(y) + float(height) for y, height in re.findall(r' y="([\d.]+)" width="[\d.]+" height="([\d.]+)"', svg)
    ]
    assert feet == [charts.HEIGHT - charts.BOTTOM] * 3
    heights = [float(height) for height in re.findall(r'height="([\d.]+)"', svg)]
    assert heights == [
        0.0,
        (charts.HEIGHT - charts.TOP - charts.BOTTOM) / 2,
        charts.HEIGHT - charts.TOP - charts.BOTTOM,
    ]


FINITE = st.floats(-1e299, 1e299)


@given(FINITE, FINITE)
def test_ticks_enclose_the_values_and_are_few(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    marks = charts.ticks(low, high)
    slack = 1e-6 * (marks[-1] - marks[0])
    assert 2 <= len(marks) <= 6
    assert marks[0] - slack <= low and high <= marks[-1] + slack


@given(st.lists(FINITE, min_size=25, max_size=100), st.integers(3, 12))
def test_thinning_keeps_the_ends_and_the_extremes(values: list[float], bins: int) -> None:
    points = [(float(n), value) for n, value in enumerate(values)]
    kept = charts.thin(points, bins)
    assert len(kept) <= 2 * bins and kept == sorted(kept) and set(kept) <= set(points)
    assert kept[0] == points[0] and kept[-1] == points[-1]
    assert min(values) in [v for _, v in kept] and max(values) in [v for _, v in kept]


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=300), st.integers(1, 60))
def test_bars_that_share_rounds_keep_the_total(values: list[float], most: int) -> None:
    width = math.ceil(len(values) / most)
    bars = charts.binned([(float(n), value) for n, value in enumerate(values)], most)
    assert len(bars) <= most
    widths = [min(width, len(values) - start) for start in range(0, len(values), width)]
    assert sum(w * v for w, (_, v) in zip(widths, bars, strict=True)) == pytest.approx(sum(values))


@given(st.sets(st.integers(1, 60)))
def test_ranges_name_exactly_the_numbers(numbers: set[int]) -> None:
    named: set[int] = set()
    for part in filter(None, participation.ranges(numbers, most=60).split(", ")):
        first, _, last = part.partition("–")
        named |= set(range(int(first), int(last or first) + 1))
    assert named == numbers


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (figures.size(0), "0 B"),
        (figures.size(999), "999 B"),
        (figures.size(1000), "1.00 kB"),
        (figures.size(12_345_678), "12.3 MB"),
        (figures.size(999_600), "1.00 MB"),
        (figures.duration(0.416), "0.42 s"),
        (figures.duration(59.96), "1 min 00 s"),
        (figures.duration(7500), "2 h 05 min"),
        (figures.value(0.91534), "0.915"),
        (figures.value(0.00012345), "0.000123"),
        (figures.value(math.nan), "–"),
        (figures.line("a\x1b[31m\nb\u202e"), "a [31m b"),
        (figures.line("x" * 500, 10), "x" * 9 + "…"),
    ],
)
def test_figures_read_as_a_person_writes_them(shown: str, expected: str) -> None:
    assert shown == expected
