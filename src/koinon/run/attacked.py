"""Liars in a simulation: some clients of a population, who know each other and what the honest ones send."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from koinon.aggregate.reducer import Matrix
from koinon.attack.attack import Attack, Known, Rule
from koinon.core.errors import AdmissionError, ClientFailed
from koinon.core.rng import generator
from koinon.core.types import ClientId, Vector, finite
from koinon.data.dataset import DataSet
from koinon.data.population import Population
from koinon.federation import Federation
from koinon.run.engine import Engine, InProcess, MakeEngine
from koinon.run.work import ClientState, Local, shared
from koinon.update.codec import InMemory, Shared
from koinon.update.stage import Told


@dataclass(frozen=True)
class Attacked:
    """An engine for `kn.simulate` in which some clients lie; the last ones of the population.

    Attributes:
        attack: What they do.
        liars: How many of the population, >= 0.
        within: Makes the engine that trains all of them, before any lies.

    Raises:
        AdmissionError: if there are fewer than 0.
    """

    attack: Attack
    liars: int
    within: MakeEngine = InProcess

    def __post_init__(self) -> None:
        if self.liars < 0:
            raise AdmissionError(f"there cannot be {self.liars} liars; give 0 or more")

    def __call__(self, federation: Federation, population: Population, seed: int) -> Engine:
        """The engine.

        Raises:
            AdmissionError: if all clients would lie.
        """
        if self.liars >= len(population):
            raise AdmissionError(
                f"of {len(population)} clients at least one must be honest, and {self.liars} are to lie"
            )
        first = len(population) - self.liars
        liars = frozenset(population.ids[first:])
        poisoned = Population(population.ids, _Poisoned(self.attack, population, seed, liars))
        return _Attacked(self.attack, federation, seed, liars, self.within(federation, poisoned, seed))


@dataclass(frozen=True)
class _Poisoned:
    """Client -> the data that it trains on: a liar's as the attack has it."""

    attack: Attack
    population: Population
    seed: int
    liars: frozenset[ClientId]

    def __call__(self, client: ClientId) -> DataSet:
        data = self.population[client]
        return self.attack.poisoned(data, generator(self.seed, "poison", 0, client)) if client in self.liars else data

    def size(self, client: ClientId) -> int | None:
        return self.population.size(client)


@dataclass(frozen=True)
class _Attacked:
    attack: Attack
    federation: Federation
    seed: int
    liars: frozenset[ClientId]
    engine: Engine

    def train(
        self, round: int, cohort: Sequence[ClientId], model: Vector, states: Mapping[ClientId, ClientState], told: Told
    ) -> Iterator[tuple[ClientId, Local | ClientFailed]]:
        """The honest are trained first; then the liars make up what they send."""
        made: dict[ClientId, Local | ClientFailed] = {
            client: replace(local, encoded=bytes(local.encoded)) if isinstance(local, Local) else local
            for client, local in self.engine.train(round, cohort, model, states, told)
        }
        yield from {**made, **self._lies(round, made)}.items()

    def close(self) -> None:
        """End the engine that trains."""
        self.engine.close()

    def _lies(self, round: int, made: Mapping[ClientId, Local | ClientFailed]) -> dict[ClientId, Local | ClientFailed]:
        sent = {client: local for client, local in made.items() if isinstance(local, Local)}
        known = shared(self.federation, self.seed, round)
        honest = [_decoded(self.federation, known, local) for name, local in sent.items() if name not in self.liars]
        lying = {client: local for client, local in sent.items() if client in self.liars}
        if not honest or not lying:
            return {}
        own = torch.stack([_decoded(self.federation, known, local) for local in lying.values()])
        rng = generator(self.seed, "attack", round)
        lies = self.attack.lies(Known(torch.stack(honest), own, rule_of(self.federation), round, rng))
        return {
            client: _sent(self.federation, self.seed, round, client, local, lie)
            if finite(lie)
            else ClientFailed(f"the update of round {round} is not finite")
            for (client, local), lie in zip(lying.items(), lies, strict=True)
        }


def lied(federation: Federation, seed: int, round: int, client: ClientId, local: Local, attack: Attack) -> Local:
    """What a liar on a network sends in place of what it made; it knows nobody's update but its own."""
    own = _decoded(federation, shared(federation, seed, round), local)[None]
    known = Known(own, own, rule_of(federation), round, generator(seed, "attack", round, client))
    return _sent(federation, seed, round, client, local, attack.lies(known)[0])


def rule_of(federation: Federation) -> Rule:
    """The federation's rule as liars know it: without its memory, and its draws those of a first round."""
    reducer = federation.strategy.reducer
    return lambda updates: reducer.reduce(Matrix(updates, [1.0] * len(updates)))


def _decoded(federation: Federation, known: Shared, local: Local) -> Vector:
    return federation.strategy.codec.decode(InMemory(local.encoded), known, 0, known.length)


def _sent(federation: Federation, seed: int, round: int, client: ClientId, local: Local, lie: Vector) -> Local:
    codec, known = federation.strategy.codec, shared(federation, seed, round)
    rng = generator(seed, "codec", round, client)
    _, encoded = codec.encode(codec.init(known.layout), lie.contiguous(), known, rng)  # a liar remembers nothing
    return replace(local, encoded=encoded)
