"""What a tree of events comes to: how often each kind of release happens, in an order of its own.

Both accountants read this, so that nesting, checks and the rules of composition are in one place.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, assert_never

from koinon.core.errors import AdmissionError
from koinon.privacy.events import (
    Event,
    FixedSampled,
    Gaussian,
    Laplace,
    PoissonSampled,
    Repeated,
    Skellam,
    Together,
    Unprotected,
)

Neighbours: TypeAlias = Literal["add-remove", "replace-one"]
"""Which two populations must be hard to tell apart: one unit more or less, or one unit exchanged for another."""

Sampling: TypeAlias = Literal["poisson", "fixed", "none"]
"""How a round's cohort is drawn: each unit by its own coin, so many of all, or everyone."""

# Gaussian noise below this gives epsilon > 10,000, Laplace noise > 250; there the accountants' floats overflow.
_NO_NOISE = 4e-3
_MOST_TIMES = 2**53


@dataclass(frozen=True, slots=True, order=True)
class Release:
    """One release of one sum.

    Attributes:
        law: Of the noise, or "unprotected".
        noise_multiplier: As in the events; 0 if unprotected.
        sampling: How the units that contribute were chosen.
        rate: A unit's chance to contribute, in (0, 1]; 1 without sampling.
        steps: Of Skellam noise, as in the event.
        length: Of Skellam noise, as in the event.
    """

    law: Literal["gaussian", "laplace", "skellam", "unprotected"]
    noise_multiplier: float
    sampling: Sampling = "none"
    rate: float = 1.0
    steps: float = 0.0
    length: int = 0


Tally: TypeAlias = tuple[tuple[Release, int], ...]
"""Each kind of release, and how often (> 0) it happens; sorted, so that the order of events changes no bit."""


def settle(event: Event) -> Tally:
    """The releases of a tree of events; Gaussian noise without sampling comes as one release with the same loss.

    Raises:
        AdmissionError: if a number is out of its range, or one sample serves releases that cannot be accounted for
            together.
    """
    counts: Counter[Release] = Counter()
    for release, times in _releases(event, 1):
        counts[release] += times
    if any(times >= _MOST_TIMES for times in counts.values()):
        raise AdmissionError(f"a release cannot happen {max(counts.values())} times; give fewer")
    plain = {release: times for release, times in counts.items() if _plain(release) and times}
    rest = {release: times for release, times in counts.items() if not _plain(release) and times}
    return tuple(sorted([*rest.items(), *_merged(plain)]))


def unprotected(tally: Tally) -> bool:
    """Whether some release has no noise."""
    return any(release.law == "unprotected" for release, _ in tally)


def relative(tally: Tally, neighbours: Neighbours) -> Tally:
    """The same releases with noise relative to what `neighbours` differ by, instead of one unit's contribution."""
    moves = 1 if neighbours == "add-remove" else 2
    return tuple(
        (replace(each, noise_multiplier=each.noise_multiplier / moves, steps=each.steps * moves), n)
        for each, n in tally
    )


def check(tally: Tally, delta: float, neighbours: Neighbours) -> None:
    """Refuse a question that has no answer.

    Raises:
        AdmissionError: if `delta` is not in (0, 1), `neighbours` is not known, or a cohort of fixed size meets add-remove.
    """
    if not 0 < delta < 1:
        raise AdmissionError(f"delta is {delta}, but must lie between 0 and 1; less than 1 / population is usual")
    if neighbours not in ("add-remove", "replace-one"):
        raise AdmissionError(f"{neighbours!r} are no neighbours; choose 'add-remove' or 'replace-one'")
    if neighbours == "add-remove" and any(release.sampling == "fixed" for release, _ in tally):
        raise AdmissionError(
            "cohorts of fixed size cannot be accounted for under add-remove; "
            "ask for neighbours='replace-one', or sample by Poisson"
        )


def _releases(event: Event, times: int) -> Iterator[tuple[Release, int]]:
    match event:
        case Gaussian():
            yield _noisy("gaussian", event.noise_multiplier), times
        case Laplace():
            yield _noisy("laplace", event.noise_multiplier), times
        case Skellam():
            if not (1 <= event.steps < math.inf and event.length >= 1):
                raise AdmissionError(
                    f"Skellam noise on vectors of length {event.length} and norm {event.steps:g} steps cannot be accounted for; take "
                    "finer steps"
                )
            noisy = _noisy("skellam", event.noise_multiplier)
            yield noisy if noisy.law == "unprotected" else replace(noisy, steps=event.steps, length=event.length), times
        case Unprotected():
            yield Release("unprotected", 0.0), times
        case Repeated():
            if not 0 <= event.times < _MOST_TIMES:
                raise AdmissionError(f"a release cannot happen {event.times} times; count from 0")
            yield from _releases(event.event, times * event.times)
        case Together():
            for part in event.events:
                yield from _releases(part, times)
        case PoissonSampled():
            if not 0 < event.rate <= 1:
                raise AdmissionError(f"a sampling rate of {event.rate} is not in (0, 1]; cohort / population is usual")
            yield from _sampled("poisson", event.rate, event.event, times)
        case FixedSampled():
            if not 1 <= event.count <= event.population:
                raise AdmissionError(
                    f"{event.count} of {event.population} cannot be sampled; "
                    "take a count of at least 1 and at most the population"
                )
            yield from _sampled("fixed", event.count / event.population, event.event, times)
        case _:
            assert_never(event)


def _noisy(law: Literal["gaussian", "laplace", "skellam"], noise_multiplier: float) -> Release:
    if not 0 < noise_multiplier < math.inf:
        raise AdmissionError(f"a noise multiplier of {noise_multiplier} is not a positive number; 0.5 to 10 is usual")
    return Release(law, noise_multiplier) if noise_multiplier >= _NO_NOISE else Release("unprotected", 0.0)


def _sampled(sampling: Sampling, rate: float, event: Event, times: int) -> Iterator[tuple[Release, int]]:
    """What one sample serves: by adaptive composition, several Gaussian releases are one."""
    inner = settle(event)
    if rate == 1 or unprotected(inner):
        yield from ((release, times * count) for release, count in inner)
    elif inner:
        release, count = inner[0]
        if release.law == "skellam":
            raise AdmissionError(
                "Skellam noise on samples cannot be accounted for; let everyone take part, or a fixed number"
            )
        if len(inner) > 1 or count > 1 or release.sampling != "none":
            raise AdmissionError(
                "one sample can serve several Gaussian releases or one Laplace release, and is not sampled again; "
                "draw a sample of its own for each"
            )
        yield replace(release, sampling=sampling, rate=rate), times


def _plain(release: Release) -> bool:
    return release.law == "gaussian" and release.sampling == "none"


def _merged(plain: dict[Release, int]) -> list[tuple[Release, int]]:
    """Gaussians about the same units add up in 1 / noise_multiplier²."""
    if not plain:
        return []
    inverse = math.hypot(*sorted(math.sqrt(times) / release.noise_multiplier for release, times in plain.items()))
    return [(Release("gaussian", 1 / inverse), 1)]
