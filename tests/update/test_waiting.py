"""Updates that wait, layers that have their turn, and codecs that are chosen by the link."""

import functools

import pytest
import torch
from torch import nn

import koinon as kn
from koinon.core.layout import Layout
from koinon.core.rng import generator
from koinon.core.types import Spec
from koinon.server.optimizer import ServerOptimizer
from koinon.update.codec import InMemory, Shared
from koinon.update.fitted import Link, fitted

NETWORK = nn.Sequential(nn.Linear(10, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3))
LAYOUT = Layout.of(NETWORK)


def rounds(codec, vectors, layout=LAYOUT):
    """(bytes, what is decoded) of each round's vector in turn."""
    state, made = codec.init(layout), []
    for round, vector in enumerate(vectors, start=1):
        known = Shared(layout, 0, round)
        state, data = codec.encode(state, vector, known, generator(0, "encode", round))
        made.append((bytes(data), codec.decode(InMemory(data), known, 0, layout.length)))
    return made


def normal(round):
    return torch.randn(LAYOUT.length, generator=generator(3, "vector", round))


def test_nothing_that_waits_is_lost():
    vectors = [normal(round) for round in range(1, 41)]
    made = rounds(kn.Lazy(kn.Float32(), patience=3.0, most_skipped=5), vectors)
    waited = [len(data) == 1 for data, _ in made]
    assert 0 < sum(waited) < len(waited)
    last = max(place for place, waits in enumerate(waited) if not waits)
    assert torch.allclose(sum(vectors[: last + 1]), sum(decoded for _, decoded in made), atol=1e-4)


def test_while_it_waits_a_client_sends_one_byte_and_counts_as_zeros():
    (first, decoded), *_ = rounds(kn.Lazy(kn.Float32()), [normal(1)])
    assert first == b"\0"
    assert not decoded.any()


def test_updates_that_point_the_same_way_wait_less_than_noise():
    steady, noise = [normal(1)] * 60, [normal(round) for round in range(60)]
    lazy = kn.Lazy(kn.Float32(), patience=4.0, most_skipped=100)
    spoke = [sum(len(data) > 1 for data, _ in rounds(lazy, vectors)) for vectors in (steady, noise)]
    assert spoke[0] == 15, "every fourth"
    assert 2 <= spoke[1] <= 5, "about every sixteenth"


def test_nobody_waits_longer_than_allowed():
    lengths = [len(data) for data, _ in rounds(kn.Lazy(kn.Float32(), 1e6, most_skipped=3), [normal(1)] * 12)]
    assert [length > 1 for length in lengths] == [False, False, False, True] * 3


def test_a_lazy_client_may_have_error_feedback_and_not_the_other_way_round():
    made = rounds(kn.Lazy(kn.ErrorFeedback(kn.TopK(0.5))), [normal(1)] * 40)
    total = sum(decoded for _, decoded in made)
    assert (total - 40 * normal(1)).norm() < 4 * normal(1).norm()
    with pytest.raises(kn.AdmissionError, match=r"write Lazy\(ErrorFeedback"):
        kn.ErrorFeedback(kn.Lazy(kn.TopK(0.5)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: kn.Lazy(kn.Lazy(kn.Float32())), "keep one"),
        (lambda: kn.Lazy(kn.Float32(), patience=0.5), "patience of at least one"),
        (lambda: kn.Lazy(kn.Float32(), patience=float("nan")), "patience of at least one"),
        (lambda: kn.Lazy(kn.Float32(), most_skipped=0), "at least one round"),
        (lambda: kn.Lazy(kn.TopK(0.1)) >> kn.Quantize(4), r"write Lazy\(TopK"),
        (lambda: kn.TopK(0.1) >> kn.Lazy(kn.Quantize(4)), r"write Lazy\(TopK\(…\) >> Quantize"),
        (lambda: kn.Layers(1), "at least two parts"),
        (lambda: kn.TopK(0.1) >> kn.Layers(2), r"write Layers\(2\) >> TopK"),
        (lambda: kn.Fitted((kn.Eden(1),), seconds=1.0), "from two to 256"),
        (lambda: kn.Fitted((kn.Eden(2), kn.Eden(1))), "give one"),
        (lambda: kn.Fitted((kn.Eden(2), kn.Eden(1)), seconds=0.0), "seconds > 0"),
        (lambda: kn.Fitted((kn.Eden(2), kn.Eden(1)), most_bytes=0), "most_bytes >= 1"),
        (lambda: kn.Fitted((kn.Eden(2), kn.ErrorFeedback(kn.TopK(0.1))), seconds=1.0), r"ErrorFeedback\(Fitted"),
        (lambda: kn.TopK(0.1) >> kn.Fitted((kn.Eden(2), kn.Eden(1)), seconds=1.0), "in each choice"),
    ],
)
def test_what_cannot_work_is_refused_with_the_cure(make, words):
    with pytest.raises(kn.AdmissionError, match=words):
        make()


@pytest.mark.parametrize("codec", [kn.Lazy(kn.Quantize(8)), kn.Fitted((kn.Zstd(), kn.Eden(1)), seconds=1.0)], ids=str)
def test_beside_the_servers_noise_what_would_tell_of_values_is_refused(codec):
    with pytest.raises(kn.AdmissionError, match="noise"):
        codec.admit(Spec(l2_bound=1.0, central_noise=True))


def test_every_layer_has_its_turn_and_nothing_else_is_sent():
    given = normal(1)
    turns = [decoded != 0 for _, decoded in rounds(kn.Layers(3), [given] * 3)]
    assert torch.equal(sum(turn.int() for turn in turns), torch.ones(LAYOUT.length, dtype=torch.int64))
    for turn, (data, decoded) in zip(turns, rounds(kn.Layers(3), [given] * 3), strict=True):
        assert len(data) == 4 * int(turn.sum())
        assert torch.equal(decoded[turn], given[turn])
    for slot in LAYOUT.slots:
        layer = [other for other in LAYOUT.slots if other.name.split(".")[0] == slot.name.split(".")[0]]
        sent = [all(bool(turn[each.start : each.stop].all()) for each in layer) for turn in turns]
        assert sent.count(True) == 1, "a layer's weight and bias go together"


def test_parts_are_as_equal_as_layers_allow_and_no_more_than_there_are_layers():
    sizes = {len(data) for data, _ in rounds(kn.Layers(2), [normal(1)] * 2)}
    assert sizes == {4 * 1230, 4 * (10 * 40 + 40 + 30 * 3 + 3)}
    assert len({data for data, _ in rounds(kn.Layers(50), [normal(1)] * 6)}) == 3
    assert kn.Layers(2).size(LAYOUT) is None
    assert kn.Layers(2).most(LAYOUT) == 4 * 1230


def test_with_feedback_a_layer_sends_in_its_turn_what_gathered():
    made = rounds(kn.ErrorFeedback(kn.Layers(3)), [normal(1)] * 7)
    for before, after in zip(made[:3], made[3:6], strict=True):
        turn = before[1] != 0
        assert torch.allclose(after[1][turn], 3 * normal(1)[turn], rtol=1e-5)


CHOICES = (kn.Quantize(8), kn.Quantize(4), kn.Eden(1))


@pytest.mark.parametrize(
    ("link", "place"),
    [
        (None, 2),
        (Link(1e6, 0.0), 0),
        (Link(1e6, 0.9999), 2),
        (Link(1e6, 2.0), 2),
        (Link(1 + kn.Quantize(8).most(LAYOUT), 0.0), 0),
        (Link(kn.Quantize(8).most(LAYOUT), 0.0), 1),
        (Link(2 + 2 * kn.Quantize(4).most(LAYOUT), 0.5), 1),
        (Link(1.0, 0.0), 2),
    ],
)
def test_a_node_takes_the_first_codec_that_its_link_can_take(link, place):
    codec = kn.Fitted(CHOICES, seconds=1.0)
    ((data, decoded),) = rounds(fitted(codec, link), [normal(1)])
    assert data[0] == place
    known = Shared(LAYOUT, 0, 1)
    assert torch.equal(decoded, codec.decode(InMemory(data), known, 0, LAYOUT.length)), "as the server decodes it"
    assert torch.equal(decoded, CHOICES[place].decode(InMemory(data[1:]), known, 0, LAYOUT.length))


def test_a_budget_holds_whatever_the_link():
    most = 1 + kn.Quantize(4).most(LAYOUT)
    for link in (None, Link(1e9, 0.0)):
        ((data, _),) = rounds(fitted(kn.Fitted(CHOICES, most_bytes=most), link), [normal(1)])
        assert len(data) <= most
        assert data[0] == 1


def test_feedback_goes_on_over_changing_choices():
    """What one choice left out, the next one finds in the memory."""
    codec = kn.ErrorFeedback(kn.Fitted((kn.TopK(0.5), kn.TopK(0.1)), seconds=1.0))
    state, total = codec.init(LAYOUT), torch.zeros(LAYOUT.length)
    for round in range(1, 61):
        known, link = Shared(LAYOUT, 0, round), Link(1e9 if round % 2 else 1.0, 0.0)
        state, data = fitted(codec, link).encode(state, normal(1), known, generator(0, "encode", round))
        total += codec.decode(InMemory(data), known, 0, LAYOUT.length)
        assert data[4] == (0 if round % 2 else 1), "after the four bytes of the scale"
    assert torch.allclose(total + state["left"], 60 * normal(1), atol=1e-3)
    assert state["left"].norm() < 15 * normal(1).norm()


def test_a_choices_memory_is_its_own():
    codec = kn.Fitted((kn.LowRank(2), kn.LowRank(1)), seconds=1.0)
    first = codec.init(LAYOUT)
    after, _ = fitted(codec, Link(1e9, 0.0)).encode(first, normal(1), Shared(LAYOUT), generator(0, "encode"))
    changed = {name.split(".")[0] for name in first if not torch.equal(first[name], after[name])}
    assert changed == {"0"}


def test_diloco_is_nesterov_momentum_on_the_mean_of_equal_clients():
    """Algorithm 1: v <- 0.9 v + g, w <- w - 0.7 (g + 0.9 v), with g minus the mean update."""
    strategy = kn.diloco()
    assert strategy.stages.stages == ()
    server, model, velocity = ServerOptimizer(strategy.server.make), torch.zeros(5), torch.zeros(5)
    state, expected = server.init(5), torch.zeros(5)
    for round in range(1, 6):
        update = torch.randn(5, generator=generator(0, "update", round))
        state, model = server.step(state, model, update.clone())
        velocity = 0.9 * velocity - update
        expected = expected - 0.7 * (-update + 0.9 * velocity)
        assert torch.allclose(model, expected, atol=1e-6)


def test_diloco_takes_another_outer_optimizer():
    assert kn.diloco(server=functools.partial(torch.optim.SGD, lr=1.0)).name == "diloco"
