"""The usual strategies, each a short function in the words of its paper.

All take `sample` (who takes part), `stages` (an update's way; the default weights by examples, `()` gives every
client an equal say), `codec`, `downlink` (a codec for what changes of the model; None: nodes are sent the model),
`secure` (how updates are added up so that the server learns only their sum; None: it sees each), `reducer`, and `server`: a callable from parameters to a `torch.optim.Optimizer`.
"""

import functools
from collections.abc import Sequence

import torch

from koinon.aggregate.mean import Mean
from koinon.aggregate.reducer import Reducer
from koinon.learn.corrections import Proximal
from koinon.secure.secure_sum import SecureSum
from koinon.server.optimizer import MakeServerOptimizer, ServerOptimizer
from koinon.server.sampling import Everyone, Sampler
from koinon.server.yogi import Yogi
from koinon.strategy.strategy import Strategy
from koinon.update.codec import Codec, Float32
from koinon.update.stage import Chain, Stage
from koinon.update.weight import Weight

_BY_EXAMPLES: tuple[Stage, ...] = (Weight(),)


def fedavg(
    sample: Sampler = Everyone(),
    stages: Sequence[Stage] = _BY_EXAMPLES,
    codec: Codec = Float32(),
    downlink: Codec | None = None,
    secure: SecureSum | None = None,
    reducer: Reducer = Mean(),
    server: MakeServerOptimizer = functools.partial(torch.optim.SGD, lr=1.0),
) -> Strategy:
    """FedAvg; with `server=functools.partial(torch.optim.SGD, lr=1.0, momentum=0.9)` it is FedAvgM.

    Source: McMahan et al., "Communication-efficient learning of deep networks from decentralized data" (2017).
    """
    return Strategy(
        "fedavg",
        sample,
        Chain(tuple(stages)),
        codec,
        reducer,
        ServerOptimizer(server),
        downlink=downlink,
        secure=secure,
    )


def diloco(
    sample: Sampler = Everyone(),
    stages: Sequence[Stage] = (),
    codec: Codec = Float32(),
    downlink: Codec | None = None,
    secure: SecureSum | None = None,
    reducer: Reducer = Mean(),
    server: MakeServerOptimizer = functools.partial(torch.optim.SGD, lr=0.7, momentum=0.9, nesterov=True),
) -> Strategy:
    """DiLoCo: many local steps, an equal say for every client, and Nesterov momentum on the server.

    It is meant for a learner of hundreds of local steps of AdamW, whose averages, other than in the paper, begin anew in
    every round.

    Source: Douillard et al., "DiLoCo: distributed low-communication training of language models" (2023), algorithm 1.
    """
    return Strategy(
        "diloco",
        sample,
        Chain(tuple(stages)),
        codec,
        reducer,
        ServerOptimizer(server),
        downlink=downlink,
        secure=secure,
    )


def fedprox(
    mu: float = 0.01,
    sample: Sampler = Everyone(),
    stages: Sequence[Stage] = _BY_EXAMPLES,
    codec: Codec = Float32(),
    downlink: Codec | None = None,
    secure: SecureSum | None = None,
    reducer: Reducer = Mean(),
    server: MakeServerOptimizer = functools.partial(torch.optim.SGD, lr=1.0),
) -> Strategy:
    """FedProx: FedAvg whose clients are held near the global model by mu/2 · |w - w_global|².

    Source: Li et al., "Federated optimization in heterogeneous networks" (2020).
    """
    chain = Chain(tuple(stages))
    return Strategy("fedprox", sample, chain, codec, reducer, ServerOptimizer(server), Proximal(mu), downlink, secure)


def fedadam(
    sample: Sampler = Everyone(),
    stages: Sequence[Stage] = _BY_EXAMPLES,
    codec: Codec = Float32(),
    downlink: Codec | None = None,
    secure: SecureSum | None = None,
    reducer: Reducer = Mean(),
    server: MakeServerOptimizer = functools.partial(torch.optim.Adam, lr=0.01, betas=(0.9, 0.99), eps=1e-3, fused=True),
) -> Strategy:
    """FedAdam: Adam on the server. PyTorch's Adam corrects the bias of its averages; the paper's does not.

    Source: Reddi et al., "Adaptive federated optimization" (2021), algorithm 2; tau is `eps`.
    """
    return Strategy(
        "fedadam",
        sample,
        Chain(tuple(stages)),
        codec,
        reducer,
        ServerOptimizer(server),
        downlink=downlink,
        secure=secure,
    )


def fedyogi(
    sample: Sampler = Everyone(),
    stages: Sequence[Stage] = _BY_EXAMPLES,
    codec: Codec = Float32(),
    downlink: Codec | None = None,
    secure: SecureSum | None = None,
    reducer: Reducer = Mean(),
    server: MakeServerOptimizer = functools.partial(Yogi, lr=0.01, betas=(0.9, 0.99), eps=1e-3),
) -> Strategy:
    """FedYogi: Yogi on the server.

    Source: Reddi et al., "Adaptive federated optimization" (2021), algorithm 2.
    """
    return Strategy(
        "fedyogi",
        sample,
        Chain(tuple(stages)),
        codec,
        reducer,
        ServerOptimizer(server),
        downlink=downlink,
        secure=secure,
    )


def fedadagrad(
    sample: Sampler = Everyone(),
    stages: Sequence[Stage] = _BY_EXAMPLES,
    codec: Codec = Float32(),
    downlink: Codec | None = None,
    secure: SecureSum | None = None,
    reducer: Reducer = Mean(),
    server: MakeServerOptimizer = functools.partial(torch.optim.Adagrad, lr=0.01, eps=1e-3),
) -> Strategy:
    """FedAdagrad: Adagrad on the server.

    Source: Reddi et al., "Adaptive federated optimization" (2021), algorithm 2.
    """
    return Strategy(
        "fedadagrad",
        sample,
        Chain(tuple(stages)),
        codec,
        reducer,
        ServerOptimizer(server),
        downlink=downlink,
        secure=secure,
    )
