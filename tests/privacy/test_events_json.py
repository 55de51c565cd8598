"""Events survive a ledger's text exactly, and no text but their own becomes an event."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon.core.errors import VerificationFailed
from koinon.privacy.events import FixedSampled, Gaussian, Laplace, PoissonSampled, Repeated, Together, Unprotected
from koinon.privacy.events_json import from_json, to_json

NOISE = st.floats(0, 1e300, exclude_min=True)
RATES = st.floats(0, 1, exclude_min=True)
GAUSSIAN = NOISE.map(Gaussian)
SAMPLED = st.one_of(
    st.builds(PoissonSampled, RATES, GAUSSIAN),
    st.builds(lambda spare, count, event: FixedSampled(count, count + spare, event),
              st.integers(0, 2**50), st.integers(1, 2**50), GAUSSIAN),
)  # fmt: skip
EVENTS = st.recursive(
    st.one_of(GAUSSIAN, NOISE.map(Laplace), SAMPLED, st.text().map(Unprotected)),
    lambda inner: st.one_of(
        st.builds(Repeated, inner, st.integers(0, 1000)), st.lists(inner, max_size=3).map(tuple).map(Together)
    ),
    max_leaves=6,
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
)
KINDS = ["gaussian", "laplace", "poisson-sampled", "fixed-sampled", "repeated", "together", "unprotected"]
FIELDS = ["noise_multiplier", "rate", "event", "count", "population", "times", "events", "what"]


@given(EVENTS)
def test_an_event_survives_the_text(event):
    assert from_json(json.loads(json.dumps(to_json(event)))) == event
    assert from_json(msgspec.json.decode(msgspec.json.encode(to_json(event)))) == event


@given(
    st.one_of(VALUES, st.fixed_dictionaries({"kind": st.sampled_from(KINDS)}, optional=dict.fromkeys(FIELDS, VALUES)))
)
def test_garbage_is_refused_or_means_itself(value):
    try:
        event = from_json(value)
    except VerificationFailed as refusal:
        assert "\n" not in str(refusal)
    else:
        assert to_json(event) == value


GOOD = {"kind": "gaussian", "noise_multiplier": 1.5}


@pytest.mark.parametrize("damaged", [
    {**GOOD, "kind": "gauss"},
    {**GOOD, "noise_multiplier": "1.5"},
    {**GOOD, "noise_multiplier": True},
    {**GOOD, "noise_multiplier": -1.5},
    {**GOOD, "noise_multiplier": float("nan")},
    {**GOOD, "noise_multiplier": 10**400},
    {**GOOD, "more": 1},
    {"kind": "gaussian"},
    {"kind": "repeated", "event": GOOD, "times": 1.0},
    {"kind": "repeated", "event": GOOD, "times": 10**5000},
    {"kind": "repeated", "event": None, "times": 1},
    {"kind": "poisson-sampled", "event": GOOD, "rate": 2},
    {"kind": "fixed-sampled", "event": GOOD, "count": 3, "population": 2},
    {"kind": "together", "events": GOOD},
    {"kind": 10**5000},
    [GOOD],
    None,
])  # fmt: skip
def test_damage_is_refused(damaged):
    with pytest.raises(VerificationFailed, match="the record of a release is damaged"):
        from_json(damaged)


def test_depth_is_no_crash():
    deep = GOOD
    for _ in range(100_000):
        deep = {"kind": "repeated", "event": deep, "times": 1}
    with pytest.raises(VerificationFailed, match="nested too deeply"):
        from_json(deep)
