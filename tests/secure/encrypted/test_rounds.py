"""A whole round gives the exact sum for every pattern of dropouts that leaves enough, and says why not otherwise."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import koinon as kn
from koinon.core.errors import AdmissionError, ClientFailed, ProtocolViolation, Unavailable
from koinon.core.rng import generator
from koinon.secure import EncryptedSum, SecureSum, Tally, ideal, run_locally
from koinon.secure.encrypted import client, server
from koinon.secure.encrypted.events import Added, Encrypted
from koinon.secure.events import Begin, Contribute, Elapsed, Heard, Received, Returned, Stored
from tests.secure.encrypted.world import SCHEME, World
from tests.secure.world import stream

PHASES = ("advertise", "deal", "mask", "agree", "open")


def updates(clients, length=7, seed=0):
    return torch.rand(clients, length, generator=generator(seed, "updates")) * 2 - 1


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 9), st.sampled_from([8, 12, 16, 24, 32]), st.data())
def test_every_pattern_of_silence(clients, bits, data):
    """The oracle counts from who speaks when, with the committees that the round's own keys have made."""
    scheme = dataclasses.replace(SCHEME, bits=bits)
    gone = data.draw(st.lists(st.integers(0, clients - 1), max_size=clients // 2, unique=True))
    when = {f"n{number:03d}": data.draw(st.sampled_from(PHASES)) for number in gone}
    world = World(clients, scheme, seed=clients)
    silent = {phase: {name for name, at in when.items() if at == phase} for phase in PHASES}
    world.until("opened", silent)

    def here(phase):
        return {name for name in world.names if PHASES.index(when.get(name, "open")) > PHASES.index(phase)} | {
            name for name in world.names if name not in when
        }

    advertised = here("advertise")
    if len(advertised) < scheme.fewest:
        assert f"{len(advertised)} of {clients} clients advertised" in world.failed
        return
    circle = world.circle
    committees = [set(circle.openers), set(circle.keepers)]
    enough = circle.dealer in here("deal")
    for phase in ("mask", "agree", "open"):
        left = here(phase) & advertised
        enough &= all(len(left & committee) >= scheme.openers for committee in committees)
        enough &= phase == "open" or len(left) >= circle.quorum
    assert (world.failed is None) is enough, world.failed
    if enough:
        survivors = sorted(here("mask"))
        assert world.opening.survivors == tuple(survivors)
        error = (world.sum().double() - world.exact(survivors)).abs().max()
        assert error <= len(survivors) * world.opening.ring.resolution + 1e-5
    else:
        assert any(character.isdigit() for character in world.failed)
    assert not world.refused


@settings(max_examples=20, deadline=None)
@given(st.integers(4, 8), st.sampled_from([8, 16, 32]), st.integers(1, 5), st.data())
def test_the_ideal_run_has_the_same_bits(clients, bits, mixing, data):
    scheme = EncryptedSum(clip=1.0, bits=bits, mixing=mixing, max_weight=2.0, spares=5)
    values, weights = updates(clients), [data.draw(st.sampled_from([0.0, 0.5, 2.0])) for _ in range(clients)]
    times = [data.draw(st.integers(1, mixing)) for _ in range(clients)]
    result, fast = (
        run(scheme, values, weights=weights, mixing=times, seed=clients, **extra)
        for run, extra in ((run_locally, {"entropy": stream(clients)}), (ideal, {}))
    )
    assert torch.equal(result.sum, fast.sum) and result.survivors == fast.survivors == tuple(range(clients))
    both = torch.tensor(weights, dtype=torch.float64) * torch.tensor(times)
    assert result.weight == fast.weight == pytest.approx(both.sum().item(), abs=1e-4)
    error = (result.sum.double() - (values.double() * both[:, None]).sum(0)).abs().max()
    assert error <= sum(times) * result.ring.resolution + 1e-5


def test_the_same_integers_as_by_masks():
    """With the same ring, the sum has the bits that SecureSum's has."""
    values, drop = updates(8, 3000), {"mask": [7]}
    by_masks = ideal(SecureSum(clip=1.0), values, drop, seed=3)
    assert torch.equal(ideal(EncryptedSum(clip=1.0, spares=0), values, drop, seed=3).sum, by_masks.sum)
    encrypted = run_locally(EncryptedSum(clip=1.0), values, seed=3, entropy=stream(3))
    assert torch.equal(encrypted.sum, ideal(SecureSum(clip=1.0), values, seed=3).sum)


def test_weights_and_tallies_travel_with_the_sum():
    scheme = EncryptedSum(clip=1.0, bits=16, max_weight=50.0, tallies=(Tally(1e6), Tally(100.0, 1e-3)))
    values, weights = updates(6), [1.0, 50.0, 0.0, 12.5, 3.0, 7.0]
    tallies = [(1000.0 * number, -0.5 * number) for number in range(6)]
    for run in (run_locally, ideal):
        result = run(scheme, values, weights=weights, tallies=tallies)
        assert result.weight == pytest.approx(73.5, abs=1e-4)
        assert result.tallies == pytest.approx((15_000.0, -7.5))


def test_a_round_says_what_it_sends():
    result = run_locally(EncryptedSum(clip=1.0), torch.zeros(4, 100_000), entropy=stream(0))
    assert 8.0 < result.bytes_up / 400_000 < 11, "the update at 8.1 times, an answer at once, a key for the dealer"


def test_too_few_are_told():
    for run in (run_locally, ideal):
        with pytest.raises(Unavailable, match=r"[13] clients? advertise|3 of 6 clients advertised"):
            run(SCHEME, updates(6), {"advertise": [0, 1, 2]})
        with pytest.raises(Unavailable, match=r"\d+ of 6 clients .*needed"):
            run(SCHEME, updates(6), {"mask": [0, 1, 2]})
        with pytest.raises(Unavailable, match="make the round's key"):
            run(SCHEME, updates(6), {"deal": range(6)})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip": 0.0}, "clip"),
        ({"bits": 33}, "bits"),
        ({"minimum": 1}, "hides nothing"),
        ({"openers": 1}, "openers >= 2"),
        ({"spares": -1}, "spares >= 0"),
        ({"mixing": 0}, "mixing=0"),
        ({"corrupt": 1.0}, "corrupt"),
        ({"max_weight": 0.0}, "max_weight"),
        ({"step": 1e-3, "bits": 8}, "needs bits="),
        ({"minimum": 600}, "would reach"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(fields, message):
    with pytest.raises(AdmissionError, match=message):
        EncryptedSum(**{"clip": 1.0, **fields})


def test_a_cohort_that_cannot_work_is_refused():
    with pytest.raises(AdmissionError, match="two committees of openers=2 need 4"):
        EncryptedSum(clip=1.0).admit(3)
    with pytest.raises(AdmissionError, match="lower corrupt"):
        EncryptedSum(clip=1.0, corrupt=0.95).admit(10)
    with pytest.raises(AdmissionError, match="no phase 'share'"):
        run_locally(SCHEME, updates(4), {"share": [1]})
    with pytest.raises(AdmissionError, match="mixing, which is 1"):
        run_locally(SCHEME, updates(4), mixing=[1, 1, 2, 1])
    with pytest.raises(AdmissionError, match="mixing=1"):
        World(4, weights={"n000": 2})
    with pytest.raises(ClientFailed, match="not finite"):
        run_locally(SCHEME, torch.full((4, 3), torch.nan))


@pytest.mark.parametrize(("clients", "corrupt"), [(4, 0.1), (10, 0.1), (11, 0.3), (30, 0.0), (100, 0.2)])
def test_two_sets_cannot_both_be_signed(clients, corrupt):
    """All honest clients sign one, the corrupt ones both."""
    quorum = EncryptedSum(clip=1.0, corrupt=corrupt).quorum(clients)
    liars = -(-int(corrupt * clients * 1000) // 1000)
    assert 2 * (quorum - liars) > clients - liars


def test_it_is_public():
    assert kn.EncryptedSum is EncryptedSum is kn.secure.EncryptedSum


# Restarts: World writes and reads every state between two steps. Here things happen twice, late, or not at all.


def test_everything_that_comes_twice_is_answered_by_the_same_bytes():
    world = World(6)
    for phase in ("deal", "mask", "agree", "open"):
        told = world.until(phase)
        for name, message in told.items():
            first = world.hear(name, message)
            assert world.hear(name, message) == first, phase
            world.say(name, first)
    world.until("opened")
    assert (world.sum().double() - world.exact(world.names)).abs().max() < 1e-5
    assert isinstance(world.server(Elapsed())[0].opening, type(world.opening))


def test_a_client_that_returns_is_told_again():
    world = World(6)
    for phase in ("deal", "mask", "agree", "open"):
        told = world.until(phase)
        for name, message in told.items():
            assert [effect.message for effect in world.server(Returned(name))] == [message]
        world.told.clear()
        for name, message in told.items():
            world.say(name, world.hear(name, message))
        assert world.server(Returned("nobody")) == ()
    world.until("opened")
    assert world.opening.survivors == world.names


def test_who_says_again_what_it_sends_is_not_told_again():
    """Else the two would go on for ever, as long as the ciphertexts are not there."""
    world = World(6)
    told = world.until("mask")
    (sent,) = world.hear("n000", told["n000"])
    world.server(Received("n000", sent))
    assert world.server(Returned("n000")) != ()
    assert world.server(Received("n000", sent)) == ()


def test_ciphertexts_may_come_before_what_is_said_of_them():
    world = World(6)
    told = world.until("mask")
    for name, message in told.items():
        (sent,) = world.hear(name, message)
        world.server(Stored(name, sent.update))
        world.server(Received(name, sent))
    assert world.hall.phase == "agree"


def test_other_ciphertexts_than_were_signed_do_not_count():
    for order in (1, -1):
        world = World(6)
        told = world.until("mask")
        (sent,) = world.hear("n000", told["n000"])
        for event in (Received("n000", sent), Stored("n000", bytes(32)))[::order]:
            world.server(event)
        assert world.refused == [("n000", "the encrypted update is not the one that was signed")]
        assert "n000" in server.awaited(world.host, world.hall)


def test_a_second_vector_is_not_encrypted_in_a_round():
    world = World(6)
    told = world.until("mask")
    world.hear("n000", told["n000"])
    with pytest.raises(ClientFailed, match="nobody wants"):
        world.client("n000", Encrypted(1, bytes(32)))
    world = World(6)
    world.hear("n000", world.until("mask")["n000"])
    before = world.states["n000"]
    assert before.round.encoded is not None and before.round.sent is not None
    with pytest.raises(ClientFailed, match="nobody wants a vector"):
        world.client("n000", Contribute(world.circle.ring.zeros()))


def test_a_client_killed_before_its_ciphertexts_were_durable_encrypts_the_same_vector_only():
    world = World(6)
    told = world.until("mask")
    party, entropy = world.parties["n000"], world.entropy
    state, (want,) = client.step(party, world.states["n000"], Heard(told["n000"]), entropy)
    encoded = world.encoded("n000", want.ring)
    killed, (job,) = client.step(party, state, Contribute(encoded), entropy)
    _, (again,) = client.step(party, client.load(client.dump(killed)), Contribute(encoded), entropy)
    assert (again.words == job.words).all()
    with pytest.raises(ClientFailed, match="second, different vector"):
        client.step(party, killed, Contribute(want.ring.zeros()), entropy)


def test_secrets_are_forgotten_when_they_are_not_needed_any_more():
    world = World(7)
    world.until("agree")
    for name in world.names:
        progress = world.states[name].round
        assert progress.seeds is None
        assert (progress.channel is None) is (name not in world.circle.committees)
        assert (progress.secret is None) is (name not in world.circle.openers)


def test_an_attempt_that_failed_is_tried_again_until_somebody_signed():
    world = World(6)
    world.until("agree", {"mask": ("n000", "n001", "n002", "n003")})
    assert world.failed is not None
    world.client("n005", Begin(2, 1))
    again = World(6)
    told = again.until("agree")
    again.hear("n000", told["n000"])
    with pytest.raises(ProtocolViolation, match="signed a survivor set for its update 1 already"):
        again.client("n000", Begin(2, 1))
    again.client("n000", Begin(2, 2))


def test_a_sum_that_comes_late_is_not_wanted():
    world = World(6)
    world.until("agree")
    assert world.server(Added(bytes(32))) == ()
    assert world.hall.phase == "agree"
