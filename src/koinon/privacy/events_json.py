"""Events as JSON values and back, exactly: what a ledger keeps."""

from collections.abc import Mapping
from typing import Any, assert_never

from koinon.core.errors import AdmissionError, VerificationFailed
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
from koinon.privacy.releases import settle


def to_json(event: Event) -> dict[str, Any]:
    """A dictionary of JSON values; `from_json` gives the event back."""
    match event:
        case Gaussian(noise_multiplier):
            return {"kind": "gaussian", "noise_multiplier": noise_multiplier}
        case Laplace(noise_multiplier):
            return {"kind": "laplace", "noise_multiplier": noise_multiplier}
        case Skellam(noise_multiplier, steps, length):
            return {"kind": "skellam", "noise_multiplier": noise_multiplier, "steps": steps, "length": length}
        case PoissonSampled(rate, inner):
            return {"kind": "poisson-sampled", "rate": rate, "event": to_json(inner)}
        case FixedSampled(count, population, inner):
            return {"kind": "fixed-sampled", "count": count, "population": population, "event": to_json(inner)}
        case Repeated(inner, times):
            return {"kind": "repeated", "event": to_json(inner), "times": times}
        case Together(events):
            return {"kind": "together", "events": [to_json(inner) for inner in events]}
        case Unprotected(what):
            return {"kind": "unprotected", "what": what}
        case _:
            assert_never(event)


def from_json(data: object) -> Event:
    """The event that `to_json` wrote.

    Raises:
        VerificationFailed: if `data` is not what `to_json` writes for an event that can be accounted for.
    """
    try:
        event = _read(data)
        settle(event)
    except AdmissionError as error:
        raise VerificationFailed(f"the record of a release is damaged: {error}") from error
    except (OverflowError, RecursionError):
        raise _damaged("a number too large or events nested too deeply") from None
    return event


def _read(data: object) -> Event:
    match data:
        case {"kind": "gaussian", "noise_multiplier": noise_multiplier, **rest} if not rest:
            return Gaussian(_number(noise_multiplier))
        case {"kind": "laplace", "noise_multiplier": noise_multiplier, **rest} if not rest:
            return Laplace(_number(noise_multiplier))
        case {"kind": "skellam", "noise_multiplier": multiplier, "steps": steps, "length": length, **rest} if not rest:
            return Skellam(_number(multiplier), _number(steps), _count(length))
        case {"kind": "poisson-sampled", "rate": rate, "event": inner, **rest} if not rest:
            return PoissonSampled(_number(rate), _read(inner))
        case {"kind": "fixed-sampled", "count": count, "population": population, "event": inner, **rest} if not rest:
            return FixedSampled(_count(count), _count(population), _read(inner))
        case {"kind": "repeated", "event": inner, "times": times, **rest} if not rest:
            return Repeated(_read(inner), _count(times))
        case {"kind": "together", "events": list(events), **rest} if not rest:
            return Together(tuple(_read(inner) for inner in events))
        case {"kind": "unprotected", "what": str(what), **rest} if not rest:
            return Unprotected(what)
    kind = data.get("kind") if isinstance(data, Mapping) else None
    raise _damaged(f"{kind[:40]!r} with these fields" if isinstance(kind, str) else "something without a kind")


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _damaged(f"{type(value).__name__} in place of a number")
    return float(value)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _damaged(f"{type(value).__name__} in place of a count")
    if abs(value) >= 2**53:
        raise _damaged("a count of 2**53 or more")
    return value


def _damaged(found: str) -> VerificationFailed:
    return VerificationFailed(f"the record of a release is damaged: it holds {found}; restore it from a copy")
