"""What runs have spent of people's privacy: a noisy release is written down before it leaves."""

from collections.abc import Iterable
from typing import Any

import msgspec

from koinon.privacy.accountant import Guarantee, Unit, spent
from koinon.privacy.events import Repeated, Together
from koinon.privacy.events_json import from_json, to_json
from koinon.privacy.releases import Neighbours
from koinon.strategy.protection import PLACES, Place, Protection


class Release(msgspec.Struct, frozen=True):
    """One noisy release, or the same `times` times.

    Attributes:
        place: Who added the noise.
        unit: Whose data it protects as a whole.
        neighbours: What is compared.
        event: What was released, as JSON.
        times: How often.
    """

    place: Place
    unit: Unit
    neighbours: Neighbours
    event: dict[str, Any]
    times: int = 1

    @classmethod
    def of(cls, protection: Protection, times: int = 1) -> "Release":
        """The same release so many times."""
        return cls(protection.place, protection.unit, protection.neighbours, to_json(protection.event), times)

    @classmethod
    def in_round(cls, protections: Iterable[Protection], round: int) -> tuple["Release", ...]:
        """What a round adds to those before it."""
        return tuple(cls.of(each) for each in protections if each.times(round) > each.times(round - 1))


def guarantees(releases: Iterable[Release], delta: float) -> dict[Place, Guarantee]:
    """What the releases come to together, for each place where noise is added; exact, not added up.

    Raises:
        VerificationFailed: if an event is not one that Koinon writes.
    """
    every = list(releases)
    found: dict[Place, Guarantee] = {}
    for place in PLACES:
        same = [release for release in every if release.place == place]
        if not same:
            continue
        parts = [
            Repeated(from_json(event), sum(release.times for release in same if release.event == event))
            for event in _distinct(same)
        ]
        neighbours: Neighbours = (
            "replace-one" if any(release.neighbours == "replace-one" for release in same) else "add-remove"
        )
        found[place] = spent(Together(tuple(parts)), delta, neighbours, same[0].unit)
    return found


def _distinct(releases: Iterable[Release]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for release in releases:
        if release.event not in found:
            found.append(release.event)
    return found
