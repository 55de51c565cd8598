"""A simulation that stops where a client fails, with a debugger at hand."""

import pdb
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from koinon.core.errors import ClientFailed
from koinon.core.types import ClientId, Vector
from koinon.data.population import Population
from koinon.federation import Federation
from koinon.run.engine import Engine, InProcess, MakeEngine
from koinon.run.work import ClientState, Local
from koinon.update.stage import Told


@dataclass(frozen=True)
class Debugged:
    """An engine for `kn.simulate`: when a client fails, its traceback is told and `pdb` begins where the error was raised.

    Everything is trained in this process. When the debugger is left by `q` or `c`, the run goes on as it would have.

    Attributes:
        within: Makes the engine that trains.
    """

    within: MakeEngine = InProcess

    def __call__(self, federation: Federation, population: Population, seed: int) -> Engine:
        """The engine."""
        return _Debugged(self.within(federation, population, seed))


@dataclass(frozen=True)
class _Debugged:
    within: Engine

    def train(
        self, round: int, cohort: Sequence[ClientId], model: Vector, states: Mapping[ClientId, ClientState], told: Told
    ) -> Iterator[tuple[ClientId, Local | ClientFailed]]:
        """As `Engine.train`."""
        waiting = list(cohort)
        try:
            for client, result in self.within.train(round, cohort, model, states, told):
                waiting.remove(client)
                if isinstance(result, ClientFailed):
                    _look(f"client {client} failed in round {round}", result)
                yield client, result
        except Exception as error:
            _look(f"training ended in round {round}, at client {waiting[0] if waiting else cohort[-1]}", error)
            raise

    def close(self) -> None:
        """As `Engine.close`."""
        self.within.close()


def _look(what: str, error: BaseException) -> None:
    """Tell the traceback, and look at the frame in which it all began."""
    traceback.print_exception(error)
    print(f"{what}; `q` goes on, `up` and `down` move, `p NAME` prints", file=sys.stderr)
    while error.__cause__ is not None:
        error = error.__cause__
    pdb.post_mortem(error.__traceback__)
