"""What a run gives away, measured from outside: a lower bound on epsilon that holds whatever the code claims to do.

A fair coin decides of each of many canaries whether it takes part in the run. Somebody who sees only what the run
released guesses the coins. Privacy bounds how often such guesses are right, so guesses that are right more often refute
it: a bound above the claimed epsilon is a bug, in the noise, the clipping or the accounting. A bound below it proves
nothing.

The coin adds or removes a canary, so the bound is on epsilon between add-remove neighbours.

Source: Steinke, Nasr & Jagielski, "Privacy auditing with one (1) training run" (2023).
"""

from dataclasses import dataclass

import numpy as np
import torch

from koinon.core.errors import AdmissionError

_CERTAIN = 40.0
"""An epsilon at which the chance to be right is 1 in float64, so that any guesses are likely enough."""

_HALVINGS = 40


@dataclass(frozen=True, slots=True)
class Audit:
    """What the guesses of one run came to.

    Attributes:
        epsilon: The lower bound; 0 when nothing was shown.
        guessed: How many canaries were guessed.
        correct: How many of them rightly.
    """

    epsilon: float
    guessed: int
    correct: int


def lower_bound(guessed: int, correct: int, canaries: int, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that the guesses refute; 0 when they refute none.

    With probability `confidence` at least it is below the epsilon of what was audited.

    Source: Steinke et al., Theorem 5.2 and appendix D.

    Args:
        guessed: How many coins were guessed, decided before anything was seen.
        correct: How many of the guesses were right.
        canaries: How many coins were thrown, those that nobody guessed included: any may be given away by `delta`.
        delta: Of the guarantee, in [0, 1).
        confidence: In (0, 1).

    Raises:
        AdmissionError: if a number is out of its range.
    """
    if not 0 <= correct <= guessed <= canaries:
        raise AdmissionError(
            f"{correct} right of {guessed} guesses on {canaries} canaries do not count; give 0 <= correct <= guessed <= canaries"
        )
    if not 0 <= delta < 1:
        raise AdmissionError(f"delta is {delta}, but must be from 0 to below 1; give that of the claimed guarantee")
    if not 0 < confidence < 1:
        raise AdmissionError(f"confidence is {confidence}, but must lie between 0 and 1; 0.95 is usual")
    # Each of the bounds that `_chance` takes the largest of rises with epsilon, or rises beyond 1 and falls back to it:
    # what is refuted lies on one side.
    refuted, open_ = 0.0, _CERTAIN
    for _ in range(_HALVINGS):
        middle = (refuted + open_) / 2
        if _chance(guessed, correct, canaries, middle, delta) < 1 - confidence:
            refuted = middle
        else:
            open_ = middle
    return refuted


def audited(
    included: torch.Tensor, scores: torch.Tensor, guesses: int, delta: float, confidence: float = 0.95
) -> Audit:
    """Guess that the canaries of the highest scores were included and those of the lowest were not, half of each.

    Args:
        included: How each coin fell; bool `[m]`.
        scores: How much each canary looks included, computed without a look at `included`; real `[m]`.
        guesses: How many to guess, 0 to m; of an odd number, one more is guessed included. The fewer, the surer
            they are, and the less their number shows. Fix it before any score is seen: the best of several audits
            does not have this confidence.
        delta: Of the guarantee, in [0, 1).
        confidence: Of the bound, in (0, 1).

    Raises:
        AdmissionError: if the tensors do not fit each other, a score is NaN, or a number is out of its range.
    """
    if included.dim() != 1 or included.dtype != torch.bool or included.shape != scores.shape:
        raise AdmissionError(
            f"inclusions {included.dtype} {list(included.shape)} and scores {list(scores.shape)} do not fit; "
            "give one bool and one score per canary"
        )
    if scores.isnan().any():
        raise AdmissionError("a score is NaN and has no place among the others; give every canary a number")
    canaries = len(scores)
    if not 0 <= guesses <= canaries:
        raise AdmissionError(f"{canaries} canaries allow 0 to {canaries} guesses, not {guesses}")
    ranked = included[scores.argsort(stable=True)]  # ties by place, which tells nothing of the coin
    lowest = guesses // 2
    highest = guesses - lowest
    correct = int((~ranked[:lowest]).sum() + ranked[canaries - highest :].sum())
    return Audit(lower_bound(guesses, correct, canaries, delta, confidence), guesses, correct)


def _chance(guessed: int, correct: int, canaries: int, epsilon: float, delta: float) -> float:
    """At most how likely so many correct guesses, or more, are under (epsilon, delta); may exceed 1.

    Without delta, a guess is right no more often than randomized response tells the truth. Delta may give i canaries
    away, at a price in proportion to i, which pays where the guesses would fall short by no more than i.
    """
    from scipy.special import expit
    from scipy.stats import binom  # half a second to import, and no run needs it

    truthful = expit(epsilon)
    enough = float(binom.sf(correct - 1, guessed, truthful))
    short_by = binom.pmf(np.arange(correct)[::-1], guessed, truthful).cumsum()
    best = float((short_by / np.arange(1, correct + 1)).max(initial=0.0))
    return enough + 2 * canaries * delta * best
