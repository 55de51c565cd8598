"""An update's way: what each stage promises, how stages compose, and that a stranger's stage fits."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import koinon as kn
from koinon.core.layout import Layout
from koinon.core.noise import Noise
from koinon.core.rng import generator
from koinon.core.types import Cohort, Spec, Update
from koinon.update.clip import Clip
from koinon.update.stage import Chain, Context, OnClient
from koinon.update.weight import Weight

LAYOUT = Layout.of(torch.nn.Linear(3, 2))
CONTEXT = Context(1, Spec(), LAYOUT, torch.Generator, Noise.seeded(0))
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def updates(values):
    return Update.of(torch.tensor(values, dtype=torch.float32), examples=7)


@given(st.lists(NUMBERS, min_size=1, max_size=40), st.floats(1e-3, 1e3))
def test_clip_never_exceeds_its_norm(values, norm):
    _, clipped = Clip(norm).on_client({}, updates(values), CONTEXT)
    assert torch.linalg.vector_norm(clipped.delta.double()) <= norm * (1 + 1e-6)


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=8))
def test_clip_leaves_short_updates_as_they_are(values):
    update = updates(values)
    _, clipped = Clip(10.0).on_client({}, update, CONTEXT)
    assert torch.equal(clipped.delta, update.delta)


def test_clip_keeps_the_direction_and_does_not_change_what_it_was_given():
    update = updates([3.0, 4.0])
    _, clipped = Clip(1.0).on_client({}, update, CONTEXT)
    assert torch.allclose(clipped.delta, torch.tensor([0.6, 0.8]))
    assert torch.equal(update.delta, torch.tensor([3.0, 4.0]))


def test_clip_of_a_batch_equals_clip_of_each():
    deltas = torch.randn(5, 9, generator=generator(1, "deltas")) * 3
    batch = Update(deltas, torch.ones(5, dtype=torch.float64), torch.ones(5, dtype=torch.int64))
    _, clipped = Clip(2.0).on_client({}, batch, CONTEXT)
    for row, delta in zip(clipped.delta, deltas, strict=True):
        assert torch.equal(row, Clip(2.0).on_client({}, Update.of(delta, 1), CONTEXT)[1].delta)


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan"), float("inf")])
def test_clip_refuses_a_norm_that_bounds_nothing(norm):
    with pytest.raises(kn.AdmissionError, match="positive finite norm"):
        Clip(norm)


def test_weight_is_the_number_of_examples_up_to_its_bound():
    assert Weight().on_client({}, updates([1.0]), CONTEXT)[1].weight == 7
    assert Weight(at_most=5).on_client({}, updates([1.0]), CONTEXT)[1].weight == 5
    assert updates([1.0]).weight == 1, "without the stage all count alike"


def test_specs_say_what_is_known():
    assert Chain((Weight(at_most=5), Clip(2.0))).admit(Spec()) == Spec(l2_bound=2.0, weight_bound=5, weighted=True)
    assert Chain((Clip(1.0), Clip(2.0))).admit(Spec()).l2_bound == 1.0


def test_weighting_twice_is_refused():
    with pytest.raises(kn.AdmissionError, match="keep one Weight"):
        kn.fedavg(stages=(Weight(), Weight()))


@dataclass(frozen=True)
class ErrorFeedback(OnClient):
    """A stranger's stage: sends only the signs' mean, remembers what it left out, and doubles the aggregate."""

    def admit(self, spec):
        if spec.l2_bound is not None:
            raise kn.AdmissionError("ErrorFeedback undoes a clip; put Clip after it")
        return spec

    def init(self, layout):
        return {"left": torch.zeros(layout.length), "seen": torch.zeros(())}

    def on_client(self, state, update, context):
        wanted = update.delta + state["left"]
        sent = wanted.sign() * wanted.abs().mean()
        return {"left": wanted - sent, "seen": state["seen"] + 1}, replace(update, delta=sent)

    def on_server(self, state, total, cohort, context):
        return {**state, "seen": state["seen"] + cohort.size}, total.mul_(2)


def test_a_strangers_stage_fits_without_touching_the_chain():
    chain = Chain((ErrorFeedback(), Clip(100.0)))
    assert chain.admit(Spec()).l2_bound == 100.0
    client = chain.init(LAYOUT)
    first = torch.arange(8, dtype=torch.float32)
    client, sent = chain.on_client(client, Update.of(first, 1), CONTEXT)
    assert set(client) == {"0.left", "0.seen"}
    assert torch.allclose(client["0.left"], first - sent.delta)
    client, _ = chain.on_client(client, Update.of(first, 1), CONTEXT)
    assert client["0.seen"] == 2
    server, total = chain.on_server(chain.init(LAYOUT), torch.ones(8), Cohort(1, 3, 3.0), CONTEXT)
    assert server["0.seen"] == 3
    assert torch.equal(total, torch.full((8,), 2.0))


def test_a_stage_that_does_not_fit_is_refused_when_the_federation_is_built():
    with pytest.raises(kn.AdmissionError, match="put Clip after it"):
        kn.fedavg(stages=(Clip(1.0), ErrorFeedback()))


def test_the_server_undoes_stages_in_reverse_order():
    seen = []

    @dataclass(frozen=True)
    class Note(OnClient):
        name: str

        def admit(self, spec):
            return spec

        def on_client(self, state, update, context):
            seen.append(f"client {self.name}")
            return state, update

        def on_server(self, state, total, cohort, context):
            seen.append(f"server {self.name}")
            return state, total

    chain = Chain((Note("a"), Note("b")))
    chain.on_client({}, updates([1.0]), CONTEXT)
    chain.on_server({}, torch.ones(1), Cohort(1, 1, 1.0), CONTEXT)
    assert seen == ["client a", "client b", "server b", "server a"]
