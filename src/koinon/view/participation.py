"""The report's sections on who took part: a grid of outcomes, the reasons given, and totals by client."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from koinon.core.types import ClientId, canonical
from koinon.durable.history import Outcome, Participation, RoundRecord
from koinon.view import figures
from koinon.view.markup import Html, element, table

SHOWN_CLIENTS = 100
"""Clients that a grid or a table names; totals always cover all."""

GRID_COLUMNS = 50
"""Columns of the grid; more rounds than that share a column."""

REASONS = 40
"""Reasons that are listed."""

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
MEANINGS: Mapping[Outcome, tuple[str, str]] = {
    "accepted": ("•", "its update is in the model"),
    "refused": ("R", "the server refused its update"),
    "declined": ("D", "its owner’s policy declined the task"),
    "failed": ("F", "its training failed"),
    "absent": ("–", "it was asked and did not answer in time"),
}
"""Outcome -> the sign that stands for it beside its colour, and what it means."""


@dataclass
class Totals:
    """What adds up over rounds."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    examples: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0

    def add(self, part: Participation) -> None:
        """One more part in a round."""
        self.outcomes[part.outcome] += 1
        self.examples += part.examples
        self.bytes_up += part.bytes_up
        self.bytes_down += part.bytes_down
        self.seconds += part.seconds

    def cells(self) -> list[str]:
        """Asked, each outcome, examples, bytes up and down, seconds."""
        counts = [figures.count(self.outcomes[outcome]) if self.outcomes[outcome] else "–" for outcome in OUTCOMES]
        traffic = [figures.size(self.bytes_up), figures.size(self.bytes_down), figures.duration(self.seconds)]
        return [figures.count(self.outcomes.total()), *counts, figures.count(self.examples), *traffic]


def suspicion_section(history: Sequence[RoundRecord]) -> Iterable[Html]:
    """Whom a rule that watches for liars suspects, and how often it left them out; nothing where none watches."""
    last: dict[ClientId, Mapping[str, float]] = {}
    left_out: Counter[ClientId] = Counter()
    for record in history:
        last.update(record.suspicion)
        left_out.update(client for client, known in record.suspicion.items() if known.get("left_out"))
    if not last:
        return
    ranked = sorted(last, key=lambda client: (-last[client]["suspicion"], len(client), client))[:SHOWN_CLIENTS]
    rows = [
        (
            name(client),
            figures.value(last[client]["suspicion"]),
            figures.value(last[client]["score"]),
            figures.count(left_out[client]) if left_out[client] else "–",
        )
        for client in ranked
    ]
    note = (
        "Suspicion adds up over rounds and fades; a client is left out while it is high, and comes back. An honest client "
        "whose data are unlike the others’ can be suspected as well."
    )
    yield element(
        "section",
        element("h2", "Who is suspected"),
        element("p", note, class_="note"),
        table("After each client’s last round", ("Client", "Suspicion", "Last score", "Rounds left out"), rows),
    )


def totals(history: Iterable[RoundRecord]) -> dict[ClientId, Totals]:
    """Every client that was ever asked, and its totals."""
    found: dict[ClientId, Totals] = defaultdict(Totals)
    for record in history:
        for part in record.participants:
            found[part.client].add(part)
    return dict(found)


def shown(clients: Mapping[ClientId, Totals]) -> list[ClientId]:
    """The clients to name: all, or those with most that went wrong, then those asked most often."""

    def rank(client: ClientId) -> tuple[int, int]:
        counts = clients[client].outcomes
        return counts["accepted"] - counts.total(), -counts.total()

    return canonical(sorted(canonical(clients), key=rank)[:SHOWN_CLIENTS])


def section(history: Sequence[RoundRecord]) -> Html:
    """The grid, its legend and the reasons."""
    clients = totals(history)
    named = shown(clients)
    width = max(1, math.ceil(len(history) / GRID_COLUMNS))
    columns = [history[start : start + width] for start in range(0, len(history), width)]
    notes = ["Rows are clients, columns are rounds; an empty cell means that the client was not asked."]
    if width > 1:
        notes.append(
            f"Each column stands for {width} rounds and shows the most frequent outcome in them; "
            "a corner in another colour marks the next most frequent."
        )
    if len(named) < len(clients):
        notes.append(
            f"{len(named)} of {figures.count(len(clients))} clients are shown: "
            "those with most that went wrong, then those asked most often."
        )
    return element(
        "section",
        element("h2", "Who took part"),
        element("p", " ".join(notes), class_="note"),
        _legend(clients),
        _grid(named, columns),
        *_reasons(history),
    )


def totals_table(history: Sequence[RoundRecord]) -> Html:
    """Totals by client; the last row covers all, also those that are not named."""
    clients = totals(history)
    named = shown(clients)
    everyone = Totals()
    for record in history:
        for part in record.participants:
            everyone.add(part)
    caption = "Totals by client"
    if len(named) < len(clients):
        caption += f" ({len(named)} of {figures.count(len(clients))})"
    return table(
        caption,
        ("Client", "Asked", *map(str.capitalize, OUTCOMES), "Examples", "Sent", "Received", "Training"),
        ((name(client), *clients[client].cells()) for client in named),
        [(f"All {figures.count(len(clients))}", *everyone.cells())],
    )


def name(client: ClientId) -> Html:
    """A client's name, cut by the style sheet where it is long and whole in the title."""
    text = figures.line(client, 64)
    return element("span", text, class_="name", title=text)


def _legend(clients: Mapping[ClientId, Totals]) -> Html:
    counts = sum((total.outcomes for total in clients.values()), Counter[Outcome]())
    entries = (
        element(
            "li",
            element("span", MEANINGS[outcome][0], class_=f"cell {outcome}"),
            element("span", element("b", outcome.capitalize()), f" {figures.count(counts[outcome])}× "),
            element("span", MEANINGS[outcome][1], class_="meaning"),
        )
        for outcome in OUTCOMES
        if counts[outcome]
    )
    return element("ul", *entries, class_="legend")


def _grid(named: Sequence[ClientId], columns: Sequence[Sequence[RoundRecord]]) -> Html:
    """A table with a sign in every cell."""
    cells: dict[ClientId, list[Counter[Outcome]]] = {client: [Counter() for _ in columns] for client in named}
    for place, column in enumerate(columns):
        for record in column:
            for part in record.participants:
                if part.client in cells:
                    cells[part.client][place][part.outcome] += 1
    heads = (element("th", element("span", str(column[0].round)), scope="col") for column in columns)
    rows = (element("tr", element("th", name(client), scope="row"), *map(_cell, cells[client])) for client in named)
    head = element("thead", element("tr", element("th", "Client", scope="col"), *heads))
    return element("div", element("table", head, element("tbody", *rows), class_="grid"), class_="wide")


def _cell(counts: Counter[Outcome]) -> Html:
    if not counts:
        return element("td")
    outcome, *others = [each for each, _ in counts.most_common(2)]
    return element("td", MEANINGS[outcome][0], class_=" ".join([outcome, *(f"mixed with-{each}" for each in others)]))


def _reasons(history: Iterable[RoundRecord]) -> list[Html]:
    """A table of what was said when a client's part did not count, the most frequent first."""
    found: dict[tuple[Outcome, str], list[tuple[int, ClientId]]] = defaultdict(list)
    for record in history:
        for part in record.participants:
            if part.outcome != "accepted":
                found[part.outcome, figures.line(part.reason) or "no reason given"].append((record.round, part.client))
    if not found:
        return []
    ranked = sorted(found.items(), key=lambda item: -len(item[1]))
    rows = (
        (
            element("span", element("span", MEANINGS[outcome][0], class_=f"cell {outcome}"), outcome.capitalize()),
            reason,
            _some(canonical({client for _, client in where}), 4),
            ranges([number for number, _ in where]),
        )
        for (outcome, reason), where in ranked[:REASONS]
    )
    caption = "Why a part did not count"
    if len(ranked) > REASONS:
        caption += f" (the {REASONS} most frequent of {figures.count(len(ranked))} reasons)"
    return [table(caption, ("Outcome", "Reason", "Clients", "Rounds"), rows, kind="prose")]


def _some(clients: Sequence[ClientId], most: int) -> str:
    named = ", ".join(figures.line(client, 64) for client in clients[:most])
    return named if len(clients) <= most else f"{named} and {figures.count(len(clients) - most)} more"


def ranges(numbers: Iterable[int], most: int = 6) -> str:
    """Ascending numbers with runs drawn together: `1–3, 7`; at most `most` runs are written out."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    written = [f"{first}–{last}" if last > first else str(first) for first, last in runs[:most]]
    return ", ".join(written) + (" …" if len(runs) > most else "")
