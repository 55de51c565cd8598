"""Who can learn what in a federation: said plainly, from the definition alone."""

from dataclasses import dataclass

from koinon.federation import Federation


@dataclass(frozen=True)
class Explanation:
    """What a federation gives away and what it guards against.

    Attributes:
        learns: Pairs (who, what they can learn).
        facts: Pairs (what, value) of guarantees and costs.
        epsilon: The privacy loss after the planned rounds; None when nothing is differentially private.
        tolerated_liars: How many of a round's clients may lie.
        bytes_up: Bytes that a node sends in a round, None when they depend on the update.
        bytes_down: Bytes that a node is sent in a round.
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


def explain(federation: Federation) -> Explanation:
    """Explain a definition."""
    spec, strategy = federation.spec, federation.strategy
    length = federation.learner.layout.length
    up, down = strategy.codec.size(length), 4 * length
    server = (
        "each node's update of every round it takes part in, in clear: from it, examples can be reconstructed or their "
        "membership tested; its number of examples, its training metrics"
    )
    if federation.evaluation.federated:
        server += " and its metrics on held-out data"
    learns = (
        ("the network", "who speaks with whom, when, and how many bytes; nothing of their content (TLS 1.3)"),
        ("the server", server),
        ("another node", "the global model of every round, and the size of its cohort; no other node's update"),
        ("whoever holds the final model", "what the model remembers of the training data; nothing bounds it"),
        ("a node's own disk", "the global model, its own update until it is acknowledged"),
    )
    bound = "none" if spec.l2_bound is None else f"{spec.l2_bound:g} (L2), which a dishonest node can ignore"
    weight = "none" if spec.weight_bound is None else f"{spec.weight_bound:g}"
    facts = (
        ("definition", federation.digest),
        ("strategy", f"{strategy.name}, {federation.rounds} rounds"),
        ("differential privacy", "none: epsilon is unbounded"),
        ("secure aggregation", "none: the server sees each update" if spec.visible else "the server sees only sums"),
        ("liars tolerated", f"0: {type(strategy.reducer).__name__} follows any one of them anywhere"),
        ("bound on an update", bound),
        ("bound on a node's weight", weight),
        ("bytes from a node, a round", "depends on the update" if up is None else f"{up:,} and framing"),
        ("bytes to a node, a round", f"{down:,} and framing"),
        ("assumed", "the server follows the protocol; nodes' and the server's private keys are private"),
    )
    return Explanation(learns, facts, None, 0, up, down)
