"""Who can learn what in a federation: said plainly, from the definition alone."""

from collections.abc import Mapping
from dataclasses import dataclass

from koinon.aggregate.mean import Mean
from koinon.aggregate.rule import Rule
from koinon.core.errors import PolicyRefused
from koinon.durable.spending import Release
from koinon.federation import Federation
from koinon.learn.learner import Keeping
from koinon.privacy.accountant import Guarantee
from koinon.run import explain_sums
from koinon.run.policy import Policy
from koinon.strategy.protection import Place


@dataclass(frozen=True)
class Explanation:
    """What a federation gives away and what it guards against.

    Attributes:
        learns: Pairs (who, what they can learn).
        facts: Pairs (what, value) of guarantees and costs.
        epsilon: The privacy loss after the planned rounds; None when nothing is differentially private.
        tolerated_liars: How many of a round's clients may lie.
        bytes_up: Bytes that a node sends in a round, None when they depend on the update.
        bytes_down: Bytes that a node is sent in a round, if it holds no earlier model that helps.
    """

    learns: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    epsilon: float | None
    tolerated_liars: int
    bytes_up: int | None
    bytes_down: int

    def summary(self) -> dict[str, object]:
        """The explanation in one JSON object."""
        return {
            "learns": dict(self.learns),
            "facts": dict(self.facts),
            "epsilon": self.epsilon,
            "tolerated_liars": self.tolerated_liars,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
        }


def explain(federation: Federation, policy: Policy | None = None) -> Explanation:
    """Explain a definition.

    Args:
        federation: The definition.
        policy: A node's, to be told what it says of the planned rounds; None for none.
    """
    spec, strategy = federation.spec, federation.strategy
    layout, secure = federation.learner.layout, strategy.scheme
    up, down = strategy.codec.size(layout), 4 * layout.length
    if secure is not None:
        up = explain_sums.bytes_up(federation, secure, explain_sums.nodes(federation))
    spent = {
        protection.place: protection.after(federation.planned, federation.delta)
        for protection in federation.protections
        if federation.delta is not None
    }
    learns = (
        ("the network", "who speaks with whom, when, and how many bytes; nothing of their content (TLS 1.3)"),
        ("the server", _server(federation, spent)),
        ("another node", _models(f"the global model of every round, and {_known(federation)} its cohort", spent)),
        ("whoever holds the final model", _models("what the model remembers of the training data", spent)),
        ("a node's own disk", _disk(federation)),
    )
    bound = "none"
    if spec.tally is not None:
        bound = "the clip norm of the round, which follows the updates and which the server enforces"
    elif spec.l2_bound is not None:
        held = (
            "which the server enforces"
            if spec.central_noise and secure is None
            else "which a dishonest node can ignore"
        )
        bound = f"{spec.l2_bound:g} (L2), {held}"
    weight = "none" if spec.weight_bound is None else f"{spec.weight_bound:g}"
    rounds = f"{federation.planned} rounds"
    if federation.planned < federation.rounds:
        rounds += f" of {federation.rounds}: more would exceed the budget"
    if (apart := strategy.asynchrony) is not None:
        rounds += f" without waiting, each of {apart.buffer} updates, {apart.concurrency} clients at a time; in simulation only"
    facts = (
        ("definition", federation.digest),
        ("strategy", f"{strategy.name}, {rounds}"),
        *_privacy(spent),
        ("secure aggregation", _secure(federation)),
        ("liars tolerated", _liars(federation)[1]),
        ("bound on an update", bound),
        ("bound on a node's weight", weight),
        ("bytes from a node, a round", _up(federation)),
        ("bytes to a node, a round", _down(federation)),
        ("assumed", _assumed(federation, spent)),
        *((("the owner's policy", _verdict(federation, policy)),) if policy is not None else ()),
    )
    epsilon = next((guarantee.epsilon for guarantee in spent.values()), None)
    return Explanation(learns, facts, epsilon, _liars(federation)[0], up, down)


def _known(federation: Federation) -> str:
    return "the size of" if federation.strategy.secure is None else "who is in"


def _secure(federation: Federation) -> str:
    """Whether the server sees updates or sums."""
    return explain_sums.promised(federation) or "none: the server sees each update"


def _disk(federation: Federation) -> str:
    """What lies on a node's disk."""
    kept = "the global model, its own update until it is acknowledged"
    if federation.strategy.secure is not None:
        kept += ", its keys of the open round's secure sum"
    strategy, layout = federation.strategy, federation.learner.layout
    if strategy.codec.init(layout):
        kept += ", what its codec remembers of earlier updates"
    if strategy.remembering is not None:
        held = sum(tensor.nbytes for tensor in strategy.remembering.init(layout).values())
        kept += f", {held:,} bytes that local training remembers of earlier rounds"
    if isinstance(federation.learner, Keeping) and federation.learner.keeps:
        kept += f", {federation.learner.keeps:,} bytes that its learner keeps from round to round"
    return kept


def _up(federation: Federation) -> str:
    """What a node sends in a round."""
    if (secure := federation.strategy.scheme) is not None:
        count = explain_sums.nodes(federation)
        sent = explain_sums.bytes_up(federation, secure, count)
        return f"{sent:,} and framing among {count} nodes: the masked update, keys, shares"
    codec, layout = federation.strategy.codec, federation.learner.layout
    size = codec.size(layout)
    return (
        f"at most {codec.most(layout):,} and framing; fewer as the update allows"
        if size is None
        else f"{size:,} and framing"
    )


def _down(federation: Federation) -> str:
    """What a node is sent in a round."""
    downlink, layout = federation.strategy.downlink, federation.learner.layout
    whole = f"{4 * layout.length:,} and framing"
    if downlink is None:
        return whole
    return f"{whole}, or at most {downlink.most(layout):,} for each round since the model that it holds"


_NOISE: Mapping[Place, str] = {
    "server": "noise by the server on every sum",
    "sum": "noise by all clients within the secure sum",
    "client": "noise by every client on its own update",
    "record": "noise by every client on its records' gradients",
}


def _liars(federation: Federation) -> tuple[int, str]:
    """How many of a round's clients may lie, and in words; of cohorts whose size nobody knows, the least there can be."""
    reducer, cohort = federation.strategy.reducer, federation.spec.cohort
    secure = federation.strategy.scheme
    groups = None if secure is None or secure.group_size is None else secure.groups(explain_sums.nodes(federation))
    name = type(reducer).__name__
    if not isinstance(reducer, Rule):
        follows = "follows any one of them anywhere" if isinstance(reducer, Mean) else "promises nothing about liars"
        return 0, f"0: {name} {follows}"
    if groups is not None:
        tolerated = reducer.tolerates(len(groups))
        return tolerated, f"{tolerated} of {len(groups)} groups: {name}; one liar spoils its group"
    updates = reducer.least if cohort is None else int(cohort)
    tolerated = reducer.tolerates(updates)
    return tolerated, f"{tolerated} of {updates} updates: {name}, which needs at least {reducer.least}"


def _server(federation: Federation, spent: Mapping[Place, Guarantee]) -> str:
    """What the server sees of a node."""
    if (secure := federation.strategy.scheme) is not None:
        own = spent.get("client") or spent.get("record") or spent.get("sum")
        within = f". With the nodes' own noise in it: {own}" if own is not None else ""
        return explain_sums.seen(federation, secure) + within
    if "client" in spent or "record" in spent:
        guarantee = spent.get("client") or spent["record"]
        return f"each node's update of every round it takes part in, with the node's own noise in it: {guarantee}"
    seen = (
        "each node's update of every round it takes part in, in clear: from it, examples can be reconstructed or their "
        "membership tested"
    )
    if "server" in spent:
        return f"{seen}; nothing else of its data. Noise comes after the sum and does not protect from the server"
    beside = sorted({slot.name.partition(".")[0] for slot in federation.learner.layout.slots if slot.beside})
    if beside:
        seen += f"; beside it its {', '.join(beside)}"
    seen += "; its number of examples, its training metrics"
    return f"{seen} and its metrics on held-out data" if federation.evaluation.federated else seen


def _models(what: str, spent: Mapping[Place, Guarantee]) -> str:
    """What those see who are given models."""
    if not spent:
        return f"{what}; no other node's update" if "cohort" in what else f"{what}; nothing bounds it"
    return f"{what}, within {'; and within '.join(str(guarantee) for guarantee in spent.values())}"


def _privacy(spent: Mapping[Place, Guarantee]) -> tuple[tuple[str, str], ...]:
    if not spent:
        return (("differential privacy", "none: epsilon is unbounded"),)
    return tuple(("differential privacy", f"{_NOISE[place]}: {guarantee}") for place, guarantee in spent.items())


def _verdict(federation: Federation, policy: Policy) -> str:
    """What an owner's policy says of a node that has spent nothing before."""
    try:
        policy.check_join(federation, federation.planned)
        rounds = federation.planned
        policy.check_spent(Release.of(each, each.times(rounds)) for each in federation.protections)
    except PolicyRefused as refusal:
        return f"refuses. {refusal}"
    return "allows every planned round to a node that has spent nothing before"


def _assumed(federation: Federation, spent: Mapping[Place, Guarantee]) -> str:
    secure = federation.strategy.secure
    assumed = ["nodes' and the server's private keys are private"]
    if secure is None or secure.server == "curious":
        assumed.insert(0, "the server follows the protocol")
    if secure is not None:
        assumed.append(
            "nodes know whom they add up with: by their owners' lists (peers), or else as the server introduced them"
        )
    if "server" in spent:
        assumed.append("the server adds the noise, and its disk and memory are its own")
        if spent["server"].sampling == "poisson":
            assumed.append("nobody but the server learns who took part in a round")
    if "sum" in spent and secure is not None:
        count = explain_sums.nodes(federation)
        honest = secure.honest(count)
        assumed.append(
            f"of any {secure.minimum} of {count} nodes whose sum is opened, {honest} add their noise and tell nobody"
        )
    if (separation := federation.strategy.separation) > 1:
        assumed.append(f"no node takes part more than once in {separation} rounds, to which server and nodes see")
    return "; ".join(assumed)
