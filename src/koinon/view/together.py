"""A view and callbacks, told of one run; what is wrong with a callback does not end the run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from types import TracebackType

from koinon.core.types import ClientId
from koinon.durable.history import Outcome, RoundRecord, RunInfo, Values
from koinon.view.progress import Progress


class Together:
    """A view of a run, and callbacks beside it.

    A callback that cannot begin ends the run before its first round. One that fails later is told no more, and the view says so:
    hours of training are worth more than their plot.

    Args:
        view: What shows the run.
        callbacks: What else is told.
    """

    def __init__(self, view: Progress, callbacks: Sequence[Progress]) -> None:
        self._view = view
        self._callbacks = list(callbacks)

    @contextmanager
    def following(self, info: RunInfo) -> Iterator[None]:
        """For as long as the run lasts, all of them."""
        with self._view.following(info), ExitStack() as stack:
            for callback in self._callbacks:
                context = callback.following(info)
                context.__enter__()
                stack.push(partial(self._left, callback, context))
            yield

    def opened(self, round: int, cohort: Sequence[ClientId]) -> None:
        """A round was opened."""
        self._view.opened(round, cohort)
        self._tell(lambda callback: callback.opened(round, cohort))

    def replied(self, round: int, client: ClientId, outcome: Outcome, reason: str = "") -> None:
        """A client's part ended."""
        self._view.replied(round, client, outcome, reason)
        self._tell(lambda callback: callback.replied(round, client, outcome, reason))

    def evaluated(self, round: int, metrics: Values) -> None:
        """Clients judged a model."""
        self._view.evaluated(round, metrics)
        self._tell(lambda callback: callback.evaluated(round, metrics))

    def closed(self, record: RoundRecord) -> None:
        """A round was closed."""
        self._view.closed(record)
        self._tell(lambda callback: callback.closed(record))

    def waiting(self, what: str) -> None:
        """What holds the run up."""
        self._view.waiting(what)
        self._tell(lambda callback: callback.waiting(what))

    def note(self, text: str) -> None:
        """A line for a person."""
        self._view.note(text)
        self._tell(lambda callback: callback.note(text))

    def _tell(self, what: Callable[[Progress], None]) -> None:
        for callback in tuple(self._callbacks):
            try:
                what(callback)
            except Exception as error:
                self._failed(callback, error)

    def _left(
        self,
        callback: Progress,
        context: AbstractContextManager[None],
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """End a callback's context, which is told how the run ended and cannot change it."""
        try:
            context.__exit__(kind, error, traceback)
        except Exception as failure:
            if failure is not error and callback in self._callbacks:
                self._failed(callback, failure)
        return False

    def _failed(self, callback: Progress, error: Exception) -> None:
        self._callbacks.remove(callback)
        self._view.note(f"the callback {type(callback).__name__} failed and is told no more: {error!r}")
