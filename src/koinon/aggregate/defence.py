"""A defence that learns which robust rule suits: among rules that bear liars, and never the plain mean."""

import math
from dataclasses import dataclass

import torch

from koinon.aggregate.detect import scores
from koinon.aggregate.geometry import Geometry, geometry
from koinon.aggregate.reducer import Contextual, Memory, Round, Rows, reduced
from koinon.aggregate.rule import ContextualRule, Rule
from koinon.core.errors import AdmissionError
from koinon.core.types import Spec, Vector

SITUATIONS = ("calm, alike", "calm, unlike", "threat, alike", "threat, unlike")
"""Whether updates stand out, and whether the others point the same way."""

_UNUSUAL = 5.0
"""The score from which an update stands out; as in `Quarantine`."""

_ALIKE = 0.3
"""The median cosine between updates from which clients are taken to be alike."""


@dataclass(frozen=True, eq=False)
class AdaptiveDefence(ContextualRule):
    """In each situation the rule that has done best there, by the server's own held-out data.

    A contextual bandit without chance: a rule's worth is the mean cosine between what it made and the server's own update,
    plus what is not known of it yet; the rule in charge gives way only after some rounds, and only to one that is better by a
    margin. What was done, and why, stands in every round's record.

    Source: Auer, Cesa-Bianchi, Fischer, "Finite-time analysis of the multiarmed bandit problem" (2002), for the bound.

    Attributes:
        rules: At least two, each of which bears liars.
        root: The server's data, as in `FLTrust`.
        patience: Rounds that a rule stays in charge at least, >= 1.
        margin: By which another must be better, >= 0.
        curiosity: What is not known counts so much, >= 0.

    Raises:
        AdmissionError: if there are fewer than two rules, or one bears no liar.
    """

    rules: tuple[Rule, ...]
    root: object
    patience: int = 3
    margin: float = 0.02
    curiosity: float = 0.1

    def __post_init__(self) -> None:
        if len(self.rules) < 2:
            raise AdmissionError("AdaptiveDefence chooses among rules; give at least two")
        for rule in self.rules:
            if not isinstance(rule, Rule) or rule.tolerates(1000) < 1:
                raise AdmissionError(
                    f"{type(rule).__name__} bears no liar; AdaptiveDefence moves among robust rules only"
                )
        if self.patience < 1 or self.margin < 0 or self.curiosity < 0:
            raise AdmissionError("AdaptiveDefence needs patience >= 1, margin and curiosity >= 0; leave them out")

    @property
    def least(self) -> int:
        """Of the rule that needs most."""
        return max(rule.least for rule in self.rules)

    def tolerates(self, updates: int) -> int:
        """What the weakest rule bears."""
        return min(rule.tolerates(updates) for rule in self.rules)

    def admit(self, spec: Spec) -> None:
        """As every rule."""
        for rule in self.rules:
            rule.admit(spec)

    def start(self, length: int) -> Memory:
        """The first rule in charge, and nothing known."""
        table = torch.zeros(len(SITUATIONS), len(self.rules), dtype=torch.float64)
        memory = {"tried": table, "worth": table.clone(), "state": torch.tensor([0.0, 0.0, 0.0, 0.0])}
        for place, rule in enumerate(self.rules):
            inner = rule.start(length) if isinstance(rule, Contextual) else {}
            memory |= {f"{place}.{name}": tensor for name, tensor in inner.items()}
        return memory

    def reduce_round(self, memory: Memory, rows: Rows, round: Round) -> tuple[Memory, Vector]:
        """Choose, reduce, and learn from what came of it."""
        self.check(len(rows.weights))
        if round.root is None:
            raise ValueError("AdaptiveDefence needs the server's own update; call it in a federation")
        situation = _situation(geometry(rows))
        chosen, held = self._chosen(memory, situation)
        prefix = f"{chosen}."
        inner: Memory = {
            name.removeprefix(prefix): tensor for name, tensor in memory.items() if name.startswith(prefix)
        }
        inner, total = reduced(self.rules[chosen], inner, rows, round)
        reward = _cosine(total, round.root)
        tried, worth = memory["tried"].clone(), memory["worth"].clone()
        tried[situation, chosen] += 1
        worth[situation, chosen] += (reward - worth[situation, chosen]) / tried[situation, chosen]
        state = torch.tensor([float(chosen), float(held), float(situation), reward])
        after = {**memory, "tried": tried, "worth": worth, "state": state}
        return after | {prefix + name: tensor for name, tensor in inner.items()}, total

    def note(self, memory: Memory) -> str:
        """What was done in the last round, and why."""
        chosen, held, situation, reward = memory["state"].tolist()
        rule, where = type(self.rules[int(chosen)]).__name__, SITUATIONS[int(situation)]
        tried, worth = (memory[name][int(situation), int(chosen)].item() for name in ("tried", "worth"))
        moved = "moved to" if held == 1 else "stayed with"
        return f"{moved} {rule} ({where}): reward {reward:.3f}, {worth:.3f} on average of {tried:.0f} rounds there"

    def _chosen(self, memory: Memory, situation: int) -> tuple[int, int]:
        """The rule in charge, and for how many rounds it has been, this one included."""
        before, held = int(memory["state"][0]), int(memory["state"][1])
        if 0 < held < self.patience:
            return before, held + 1
        tried, worth = memory["tried"][situation], memory["worth"][situation]
        if bool((tried == 0).any()):
            best = int((tried == 0).nonzero()[0])
        else:
            bound = worth + self.curiosity * (math.log(float(tried.sum()) + 1) / tried).sqrt()
            best = int(bound.argmax())
            if float(bound[best]) < float(bound[before]) + self.margin:
                best = before
        return (best, held + 1) if best == before and held > 0 else (best, 1)


def _situation(found: Geometry) -> int:
    threat = bool((scores(found) >= _UNUSUAL).any())
    count = len(found.products) - 1
    across = found.cosines[torch.triu(torch.ones(count, count, dtype=torch.bool), 1)]
    unlike = len(across) > 0 and float(across.median()) < _ALIKE
    return 2 * threat + unlike


def _cosine(one: Vector, other: Vector) -> float:
    lengths = float(one.double().norm()) * float(other.double().norm())
    return float(one.double() @ other.double()) / lengths if lengths > 0 else 0.0
