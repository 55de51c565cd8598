"""What a person sees while a run goes on: a live view in a terminal or notebook, otherwise a line per round."""

import importlib.util
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import IO, Literal, Protocol, TypeAlias

from rich import progress as bars
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from koinon.core.types import ClientId, canonical
from koinon.durable.history import Outcome, RoundRecord, RunInfo, Values
from koinon.view import figures
from koinon.view.log import log

SHOWN_CLIENTS = 20
"""Clients in the live table; the others are counted below it."""

SHOWN_NOTES = 4
"""Last notes in the live view."""

PATIENCE_S = 30.0
"""Least seconds between two lines that say what is waited for, where lines stay."""

SHOWN_METRICS = 6
"""Metrics in a line."""

REFRESHES_PER_SECOND = 8

State: TypeAlias = Literal["training"] | Outcome

_TRAINING, _FEDERATED, _CENTRAL = range(3)
"""Where metrics come from; of two, the live view shows the greater."""

_STYLES: Mapping[State, str] = {
    "failed": "red",
    "refused": "yellow",
    "declined": "magenta",
    "absent": "dim",
    "training": "cyan",
    "accepted": "green",
}
"""State -> style, in the order in which clients are chosen for a table that cannot show all."""


class Progress(Protocol):
    """Told by the runtimes what happens; every call is cheap and none may fail the run."""

    def following(self, info: RunInfo) -> AbstractContextManager[None]:
        """Show the run for as long as the context lasts; everything else is called inside it."""

    def opened(self, round: int, cohort: Sequence[ClientId]) -> None:
        """A round was opened and these clients were asked."""

    def replied(self, round: int, client: ClientId, outcome: Outcome, reason: str = "") -> None:
        """A client's part in the round ended."""

    def evaluated(self, round: int, metrics: Values) -> None:
        """Clients judged the model after a round, which is known when they answer in the next one."""

    def closed(self, record: RoundRecord) -> None:
        """A round was closed."""

    def waiting(self, what: str) -> None:
        """What holds the run up at present, in one line; empty when nothing does."""

    def note(self, text: str) -> None:
        """Something that a person should know, in one line."""


def progress_for(console: Console | None = None) -> Progress:
    """A live view where there is something that can show it, otherwise a line per round.

    Args:
        console: Where to show it; standard error when None, so that standard output stays free for results.
    """
    console = console or Console(stderr=True)
    if console.is_jupyter:
        # Without ipywidgets rich cannot redraw a notebook's cell; it would warn at every refresh instead.
        return LiveProgress(console) if importlib.util.find_spec("ipywidgets") else PlainProgress(sys.stdout)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveProgress(console)
    return PlainProgress(console.file)


class Callback:
    """Told by a run what happens; what is of no interest is left as it is here, and does nothing.

    Give yours to `kn.simulate(callbacks=[…])`. Calls come from the process that runs the rounds, which waits for them.
    """

    def following(self, info: RunInfo) -> AbstractContextManager[None]:
        """What lasts as long as the run does: it is entered before, and left however the run ends."""
        return nullcontext()

    def opened(self, round: int, cohort: Sequence[ClientId]) -> None:
        """A round was opened and these clients were asked."""

    def replied(self, round: int, client: ClientId, outcome: Outcome, reason: str = "") -> None:
        """A client's part in the round ended."""

    def evaluated(self, round: int, metrics: Values) -> None:
        """Clients judged the model after a round, which is known when they answer in the next one."""

    def closed(self, record: RoundRecord) -> None:
        """A round was closed; the record is on the disk."""

    def waiting(self, what: str) -> None:
        """What holds the run up at present, in one line; empty when nothing does."""

    def note(self, text: str) -> None:
        """Something that a person should know, in one line."""


class Quiet(Callback):
    """Shows nothing."""


class PlainProgress:
    """One short line per round and per note.

    Args:
        stream: Where to; standard error, as it is at each line, when None.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream
        self._rounds = 0
        self._evaluated = ""
        self._waiting = ""
        self._told_at = -math.inf

    @contextmanager
    def following(self, info: RunInfo) -> Iterator[None]:
        """Say what begins."""
        self._rounds = info.rounds
        self.note(f"run {info.id}: {info.app}, {figures.count(info.rounds)} rounds")
        yield

    def opened(self, round: int, cohort: Sequence[ClientId]) -> None:
        """Nothing: a round is told when it is closed."""

    def replied(self, round: int, client: ClientId, outcome: Outcome, reason: str = "") -> None:
        """Nothing: a round is told when it is closed."""

    def evaluated(self, round: int, metrics: Values) -> None:
        """Nothing yet: it goes into the next round's line."""
        self._evaluated = f"{', '.join(_pairs(metrics))} after round {round}"

    def closed(self, record: RoundRecord) -> None:
        """`round 3/30: 4 of 5 accepted, accuracy 0.912, 1.20 s`."""
        outcomes = Counter(part.outcome for part in record.participants)
        accepted = f"{outcomes['accepted']} of {outcomes.total()} accepted"
        metrics = ", ".join(_pairs(record.metrics)) or self._evaluated or ", ".join(_pairs(record.training))
        parts = [accepted, *([metrics] if metrics else []), figures.duration(record.seconds)]
        self.note(f"round {record.round}/{self._rounds}: {', '.join(parts)}")

    def waiting(self, what: str) -> None:
        """What has changed, once in a while."""
        now = time.monotonic()
        if what and what != self._waiting and now - self._told_at >= PATIENCE_S:
            self._waiting, self._told_at = what, now
            self.note(f"waiting for {what}")

    def note(self, text: str) -> None:
        """The text as one line."""
        print(figures.line(text, 400), file=self._stream or sys.stderr, flush=True)


class LoggedProgress(Callback):
    """Every event as a log line, for programs that read the log."""

    def __init__(self) -> None:
        self._waiting = ""

    def opened(self, round: int, cohort: Sequence[ClientId]) -> None:
        """`round 3 opened: 4 nodes`."""
        log("round {round} opened: {nodes} nodes", round=round, nodes=len(cohort), cohort=list(cohort))

    def replied(self, round: int, client: ClientId, outcome: Outcome, reason: str = "") -> None:
        """`round 3: cleveland accepted`."""
        log("round {round}: {node} {outcome}", round=round, node=client, outcome=outcome, reason=reason)

    def closed(self, record: RoundRecord) -> None:
        """`round 3 closed`."""
        log("round {round} closed", round=record.round, digest=record.digest, metrics=dict(record.metrics))

    def waiting(self, what: str) -> None:
        """What has changed."""
        if what and what != self._waiting:
            log("waiting for {what}", what=what)
        self._waiting = what

    def note(self, text: str) -> None:
        """The text."""
        log("{text}", text=text)


class LiveProgress:
    """A view that rich redraws several times a second, however fast the rounds are.

    Events only change a few values; rich's own thread reads them when it redraws.

    Args:
        console: Where to show it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._bar = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=None),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TextColumn("eta"),
            bars.TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
            expand=True,
        )
        self._task = self._bar.add_task("", start=False, total=None)
        self._round = 0
        self._clients: dict[ClientId, tuple[State, str]] = {}
        self._measured: tuple[int, int, Values] = (0, 0, {})
        self._waiting = ""
        self._notes: list[str] = []

    @contextmanager
    def following(self, info: RunInfo) -> Iterator[None]:
        """Redraw until the context ends; the last picture stays."""
        self._bar.update(self._task, total=info.rounds, description=f"{figures.line(info.id)} ")
        self._bar.start_task(self._task)
        with Live(self, console=self._console, refresh_per_second=REFRESHES_PER_SECOND) as live:
            try:
                yield
            finally:
                self.waiting("")
                live.refresh()  # in a notebook rich itself does not draw the end

    def opened(self, round: int, cohort: Sequence[ClientId]) -> None:
        """Everyone in the cohort is training."""
        with self._lock:
            self._round = round
            self._clients = dict.fromkeys(cohort, ("training", ""))
        # A resumed run opens past rounds that this process has not seen; they are done.
        self._bar.update(self._task, completed=round - 1)

    def replied(self, round: int, client: ClientId, outcome: Outcome, reason: str = "") -> None:
        """The client's new state."""
        with self._lock:
            self._clients[client] = (outcome, reason)

    def evaluated(self, round: int, metrics: Values) -> None:
        """The latest metrics, unless the server has a test set of its own."""
        self._measure(_FEDERATED, round, metrics)

    def closed(self, record: RoundRecord) -> None:
        """The round's outcomes and the latest metrics."""
        with self._lock:
            self._round = record.round
            self._clients = {part.client: (part.outcome, part.reason) for part in record.participants}
        self._measure(_CENTRAL if record.metrics else _TRAINING, record.round, record.metrics or record.training)
        self._bar.update(self._task, completed=record.round)

    def waiting(self, what: str) -> None:
        """The latest, for as long as it lasts."""
        with self._lock:
            self._waiting = what

    def note(self, text: str) -> None:
        """The text, until later notes push it out."""
        with self._lock:
            self._notes = [*self._notes, text][-SHOWN_NOTES:]

    def __rich__(self) -> RenderableType:
        """The present picture."""
        with self._lock:
            clients, notes, round = dict(self._clients), list(self._notes), self._round
            waiting, (_, measured, metrics) = self._waiting, self._measured
        parts: list[RenderableType] = [self._bar]
        if metrics:
            parts.append(Text.assemble(("  ".join(_pairs(metrics)), "bold"), (f"  after round {measured}", "dim")))
        parts.extend([Text(), _heading(round, clients), _client_table(clients)])
        parts.extend(Text(f"· {figures.line(text)}", style="dim", overflow="ellipsis", no_wrap=True) for text in notes)
        if waiting:
            parts.append(Text(f"waiting for {figures.line(waiting)}", overflow="ellipsis", no_wrap=True))
        return Group(*parts)

    def _measure(self, rank: int, round: int, metrics: Values) -> None:
        with self._lock:
            if metrics and rank >= self._measured[0]:
                self._measured = (rank, round, metrics)


def _heading(round: int, clients: Mapping[ClientId, tuple[State, str]]) -> Text:
    if not round:
        return Text("waiting for the first round")
    counts = Counter(state for state, _ in clients.values())
    return Text(
        ", ".join(
            [f"round {round}", *(f"{figures.count(counts[state])} {state}" for state in _STYLES if counts[state])]
        )
    )


def _client_table(clients: Mapping[ClientId, tuple[State, str]]) -> Table:
    """The clients that most need looking at, in canonical order, and a count of the others."""
    order = list(_STYLES)
    ordered = canonical(clients)
    named = canonical(sorted(ordered, key=lambda client: order.index(clients[client][0]))[:SHOWN_CLIENTS])
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=32)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", style="dim")
    for client in named:
        state, reason = clients[client]
        table.add_row(Text(figures.line(client, 64)), Text(state, style=_STYLES[state]), Text(figures.line(reason)))
    if len(named) < len(clients):
        table.add_row(Text(f"and {figures.count(len(clients) - len(named))} more", style="dim"))
    return table


def _pairs(values: Values) -> list[str]:
    return [f"{figures.line(name, 40)} {figures.value(value)}" for name, value in list(values.items())[:SHOWN_METRICS]]
