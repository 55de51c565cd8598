"""What a federation is worth to its owners: its model beside each owner's alone, and beside one of all data pooled.

Only where all data can be had in one place, as in a study or a simulation.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from koinon.core.errors import AdmissionError
from koinon.core.noise import Noise
from koinon.core.statistics import Metrics, merge, values
from koinon.core.types import ClientId, Vector
from koinon.data.dataset import DataSet, Samples
from koinon.data.population import Population
from koinon.durable.history import Values
from koinon.evaluate.evaluation import Evaluation, on_client
from koinon.federation import Federation
from koinon.learn.learner import Learner
from koinon.run.work import ClientState, EncodedRows, advance, aggregated, first_state, held, shared, train
from koinon.update.codec import InMemory
from koinon.update.noise import Local, OnSum
from koinon.update.stage import Chain
from koinon.view.report import Comparison

TOGETHER = "together"
"""Column of all owners' test parts as one test set."""


def rivals(federation: Federation, population: Population, seed: int = 0) -> dict[str, Vector]:
    """The models without a federation, each from the same definition: the same start, rounds and local epochs.

    Without noise and secure sum: nobody needs them alone.

    Raises:
        AdmissionError: if an owner's train part is not `Samples`, which can be pooled.
        ClientFailed: if a training fails.
    """
    federation = unprotected(federation)
    models = {f"{owner} alone": _trained(federation, owner, population[owner], seed) for owner in population.ids}
    return {**models, "all data pooled": _trained(federation, "pooled", _pooled(population), seed)}


def unprotected(federation: Federation) -> Federation:
    """The definition of somebody who has nothing to hide from himself: without noise, budget and secure sum."""
    strategy = federation.strategy
    stages = tuple(stage for stage in strategy.stages.stages if not isinstance(stage, OnSum | Local))
    plain = replace(strategy, stages=Chain(stages), secure=None)
    return replace(federation, strategy=plain, evaluation=Evaluation(federated=False), budget=None)


def compare(learner: Learner, models: Mapping[str, Vector], population: Population) -> list[Comparison]:
    """Every model on each owner's test part and on all of them together, one table per metric.

    The last column comes from merged statistics, as in a federation's own evaluation, not from a mean of values.

    Args:
        learner: Evaluates.
        models: A model's name and its vector.
        population: The owners; those without a test part are left out.
    """
    owners = [owner for owner in population.ids if population[owner].test is not None]
    measured = {name: _measured(learner, model, population, owners) for name, model in models.items()}
    metrics = dict.fromkeys(metric for columns in measured.values() for values in columns for metric in values)
    return [
        Comparison(
            metric,
            (*owners, TOGETHER),
            tuple((name, tuple(values.get(metric) for values in columns)) for name, columns in measured.items()),
        )
        for metric in metrics
    ]


def _measured(learner: Learner, model: Vector, population: Population, owners: list[ClientId]) -> list[Values]:
    """The metrics' values for each owner, then for all together."""
    parts: list[Metrics] = [on_client(learner, model, population[owner], {}) for owner in owners]
    return [values(part) for part in (*parts, merge(parts))]


def _pooled(population: Population) -> DataSet:
    parts = [population[owner].train for owner in population.ids]
    samples = [part for part in parts if isinstance(part, Samples)]
    if len(samples) < len(parts):
        raise AdmissionError("data can be pooled only where every owner's is kn.Samples")
    inputs, targets = torch.cat([part.inputs for part in samples]), torch.cat([part.targets for part in samples])
    return DataSet(Samples(inputs, targets))


def _trained(federation: Federation, owner: ClientId, data: DataSet, seed: int) -> Vector:
    """The last model of a federation of one."""
    strategy, server = federation.strategy, first_state(federation, seed)
    state: ClientState = {}
    noise = Noise.seeded(seed)
    for round in range(1, federation.planned + 1):
        told, known = strategy.stages.tell(server.stages), shared(federation, seed, round)
        local = train(federation, seed, noise, round, owner, server.model, data, state, told)
        rows = EncodedRows(strategy.codec, [InMemory(local.encoded)], [local.weight], known)
        server, total = aggregated(federation, seed, round, server, [owner], held(federation, rows))
        server, _ = advance(federation, seed, noise, round, server, total, rows.weights)
        state = local.state
    return server.model
