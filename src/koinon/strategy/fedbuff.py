"""FedBuff and FedAsync: the server waits for nobody."""

import functools
from collections.abc import Sequence

import torch

from koinon.aggregate.mean import Mean
from koinon.aggregate.reducer import Reducer
from koinon.core.errors import AdmissionError
from koinon.server.optimizer import MakeServerOptimizer, ServerOptimizer
from koinon.server.sampling import Uniform
from koinon.strategy.asynchrony import Buffered, Mixed
from koinon.strategy.strategy import Strategy
from koinon.update.codec import Codec, Float32
from koinon.update.stage import Chain, Stage


def fedbuff(
    buffer: int = 10,
    concurrency: int = 100,
    exponent: float = 0.5,
    stages: Sequence[Stage] = (),
    codec: Codec = Float32(),
    reducer: Reducer = Mean(),
    server: MakeServerOptimizer = functools.partial(torch.optim.SGD, lr=1.0),
) -> Strategy:
    """FedBuff: clients train all the time, and the model changes whenever `buffer` updates are in.

    Noise of the server is reckoned with as in rounds of `buffer` clients whom everybody knows. It runs in simulation, which needs
    a clock: `kn.simulate(..., clock=kn.Clock(devices=...))`.

    Source: Nguyen et al., "Federated learning with buffered asynchronous aggregation" (2022), algorithm 1.

    Args:
        buffer: Updates that change the model together, K in the paper, >= 1.
        concurrency: Clients that train at a time, >= 1.
        exponent: An update that is stale by t steps counts (1 + t)^-exponent times; >= 0.
    """
    chain, asynchrony = Chain(tuple(stages)), Buffered(buffer, concurrency, exponent)
    sample, made = Uniform(buffer), ServerOptimizer(server)
    return Strategy("fedbuff", sample, chain, codec, reducer, made, asynchrony=asynchrony)


def fedasync(
    concurrency: int = 100,
    mixing: float = 0.6,
    exponent: float = 0.5,
    stages: Sequence[Stage] = (),
    codec: Codec = Float32(),
) -> Strategy:
    """FedAsync: the model moves by a share of the way to every client's model, as it comes. In simulation, as `fedbuff`.

    Source: Xie et al., "Asynchronous federated optimization" (2019), algorithm 1 with polynomial staleness.

    Args:
        concurrency: Clients that train at a time, >= 1.
        mixing: That share for a model that is not stale, alpha in the paper, in (0, 1].
        exponent: a in the paper: one that is stale by t steps has (1 + t)^-a of the share; >= 0.
    """
    if not 0 < mixing <= 1:
        raise AdmissionError(f"fedasync mixes in a share in (0, 1], not mixing={mixing}")
    server, asynchrony = functools.partial(torch.optim.SGD, lr=mixing), Mixed(concurrency, exponent)
    chain = Chain(tuple(stages))
    return Strategy("fedasync", Uniform(1), chain, codec, server=ServerOptimizer(server), asynchrony=asynchrony)
