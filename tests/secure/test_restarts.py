"""Crashes, repetitions and silence: in every phase, of every client and of the server."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koinon.core.errors import VerificationFailed
from koinon.secure import client, groups, server
from koinon.secure.events import Begin, Elapsed, Keep, Open, Received, Refuse, Returned, Tell
from koinon.secure.messages import Advert, Delivery, Masked, Reveal, encode
from koinon.secure.secure_sum import SecureSum
from tests.secure.world import World

ANSWERED = ("share", "mask", "agree", "unmask")


def opened(world):
    """The world's sum is right."""
    survivors = world.opening.survivors
    assert (world.sum().double() - world.exact(survivors)).abs().max() < 1e-6
    return survivors


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 5), st.data())
def test_any_order_and_any_repetition_give_the_same_answers(clients, data):
    """Messages come in any order and again and again; equal messages get equal bytes, and the sum is right."""
    world = World(clients)
    world.begin()
    answers, past, repeats = {}, [], 0
    while world.opening is None:
        choices = [("said", at) for at in range(len(world.said))] + [("told", at) for at in range(len(world.told))]
        if past and repeats < 12 and data.draw(st.booleans()):
            repeats += 1
            kind, item = data.draw(st.sampled_from(past))
        else:
            kind, at = data.draw(st.sampled_from(choices))
            queue = world.said if kind == "said" else world.told
            item = queue[at]
            del queue[at]
            past.append((kind, item))
        if kind == "said":
            before = len(world.refused)
            world.server(Received(*item))
            assert len(world.refused) == before
        else:
            said = tuple(encode(answer) for answer in told_again(world, *item))
            if said:
                assert answers.setdefault((item[0], encode(item[1])), said) == said
    assert opened(world) == world.names


def told_again(world, name, message):
    """What a client says to a message; once its shares have left, it keeps silent about the delivery."""
    progress = world.states[name].round
    if progress.secrets is None and isinstance(message, Delivery):
        return ()
    said = world.hear(name, message)
    world.said.extend((name, answer) for answer in said)
    return said


@pytest.mark.parametrize("phase", ANSWERED)
@pytest.mark.parametrize("written", [True, False])
def test_a_client_that_crashes_in_any_phase_goes_on(phase, written):
    """Before its state was written, nothing has left; after that, it answers as it would have."""
    world = World()
    told = world.until(phase)
    name = "n002"
    before = world.states[name]
    said = world.hear(name, told[name])
    if not written:
        world.states[name] = before
    world.server(Returned(name))
    ((again, message),) = world.told
    assert (again, encode(message)) == (name, encode(told[name]))
    world.told.clear()
    answer = world.hear(name, message)
    assert not written or [encode(one) for one in answer] == [encode(one) for one in said]
    world.told.extend((other, message) for other, message in told.items() if other != name)
    world.said.extend((name, one) for one in answer)
    world.until("opened")
    assert opened(world) == world.names


def test_a_client_that_crashes_after_its_advert_says_the_same_again():
    world = World()
    (first,) = world.client("n001", Begin(1))
    assert world.client("n001", Begin(1)) == [first]


@pytest.mark.parametrize("phase", ANSWERED)
def test_a_server_that_crashes_in_any_phase_goes_on(phase):
    """What it told is lost; those who come back are told again."""
    world = World()
    told = world.until(phase)
    world.hall = server.load(server.dump(world.hall))
    for name in world.names:
        world.server(Returned(name))
    assert {name: encode(message) for name, message in world.told} == {n: encode(m) for n, m in told.items()}
    world.until("opened")
    assert opened(world) == world.names


def test_an_opened_sum_is_opened_again():
    world = World()
    world.until("opened")
    first = world.opening
    world.server(Elapsed())
    assert world.opening == first
    (refusal,) = world.server(Received("n001", msgspec.structs.replace(world.hall.reveals["n001"], self_masks={})))
    assert isinstance(refusal, Refuse)


@pytest.mark.parametrize("phase", ["share", "mask", "agree", "unmask"])
def test_a_straggler_is_not_waited_for_and_comes_too_late(phase):
    world = World(6)
    told = world.until(phase)
    late = world.hear("n003", told.pop("n003"))
    world.told.extend(told.items())
    survivors = world.until("opened") or opened(world)
    assert ("n003" in survivors) == (phase in ("agree", "unmask"))
    (effect,) = world.server(Received("n003", late[0]))
    assert isinstance(effect, Refuse)
    assert "n003" not in world.kept or "n003" in survivors


def test_a_late_masked_update_is_not_kept():
    """It would be in nobody's sum, and the mask key of its sender is about to be revealed."""
    world = World(6)
    told = world.until("mask")
    late = world.hear("n003", told.pop("n003"))
    world.told.extend(told.items())
    world.until("agree")
    effects = world.server(Received("n003", late[0]))
    assert not any(isinstance(effect, Keep) for effect in effects)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91\x01", b"\x81\xa5round\x01", bytes(100)])
def test_a_damaged_state_is_refused(data):
    for load in (client.load, server.load):
        with pytest.raises(VerificationFailed):
            load(data)


# What the server does not take from clients.


def refused(world, name, message, match):
    before = world.hall
    (effect,) = world.server(Received(name, message))
    assert isinstance(effect, Refuse) and match in effect.reason
    assert world.hall == before


def test_keys_without_a_signature_are_not_taken():
    world = World()
    (advert,) = world.client("n001", Begin(1))
    refused(world, "n001", msgspec.structs.replace(advert, signature=bytes(64)), "did not sign")
    refused(world, "n002", advert, "did not sign")
    refused(world, "zoe", advert, "not expected")
    refused(world, "n001", msgspec.structs.replace(advert, round=2), "not open")


def test_what_comes_too_early_or_differs_is_not_taken():
    world = World()
    told = world.until("share")
    (shares,) = world.hear("n001", told["n001"])
    fewer = dict(list(shares.parcels.items())[1:])
    refused(world, "n001", msgspec.structs.replace(shares, parcels=fewer), "to all of them")
    unpaired = {name: msgspec.structs.replace(parcel, pairing=None) for name, parcel in shares.parcels.items()}
    refused(world, "n001", msgspec.structs.replace(shares, parcels=unpaired), "share a mask")
    refused(world, "n001", Masked(1, b""), "counts in the phase")
    world.server(Received("n001", shares))
    refused(world, "n001", msgspec.structs.replace(shares, commitment=bytes(32)), "second, different Shares")
    assert isinstance(world.hall.adverts["n001"], Advert)


def test_a_masked_update_of_another_size_is_not_taken():
    world = World()
    told = world.until("mask")
    (masked,) = world.hear("n001", told["n001"])
    refused(world, "n001", msgspec.structs.replace(masked, data=masked.data + b"\0"), "were expected")


def test_a_false_signature_is_not_passed_on():
    world = World()
    told = world.until("agree")
    (agreed,) = world.hear("n001", told["n001"])
    refused(world, "n002", agreed, "did not sign")


def test_shares_of_the_wrong_kind_are_not_taken():
    world = World()
    told = world.until("unmask", {"mask": ["n004"]})
    (reveal,) = world.hear("n001", told["n001"])
    swapped = Reveal(1, reveal.mask_keys, reveal.self_masks)
    refused(world, "n001", swapped, "self-mask's if it survived")


@pytest.mark.parametrize(
    ("field", "dealer"), [("self_masks", "n000"), ("mask_keys", "n001"), ("mask_keys", "n005")], ids=str
)
def test_a_false_share_is_noticed_and_its_dealer_named(field, dealer):
    """A wrong sum would be worse than none; with the last one by name no escrow shows it."""
    world = World(6)
    told = world.until("unmask", {"mask": [dealer]} if field == "mask_keys" else {})
    for name, message in told.items():
        (reveal,) = world.hear(name, message)
        if name == "n002":
            false = {**getattr(reveal, field), dealer: b"\1" + bytes(32)}
            reveal = msgspec.structs.replace(reveal, **{field: false})
        world.said.append((name, reveal))
    world.until("opened")
    assert world.opening is None and dealer in world.failed


def test_silence_ends_in_how_many_answered_and_are_needed():
    world = World(6)
    effects = ()
    for _ in range(3):
        effects = world.server(Elapsed())
    assert effects == ()
    assert world.failed.startswith("0 of 6 clients advertised keys")
    assert world.hall.phase == "aborted"


def test_a_client_with_too_few_neighbours_is_left_out_before_anybody_masks():
    """n005's neighbours all fall silent; the others go on without it."""
    world = World(60, SecureSum(clip=1.0, corrupt=0.02, dropout=0.02, server="curious"), length=2)
    world.until("share")
    near = sorted(server.cohort(world.host, world.hall).neighbours("n005"))
    sizes = world.scheme.sizes(60)
    gone = near[: sizes.neighbours - sizes.threshold + 1]
    for name in world.names:
        if name not in gone:
            (shares,) = world.hear(name, messages_for(world, name))
            world.server(Received(name, shares))
    world.server(Elapsed())
    assert world.hall.phase == "mask" and "n005" not in world.hall.shares
    assert len(world.hall.shares) >= 60 - len(gone) - 2
    told = {name for name, _ in world.told}
    assert "n005" not in told and told == world.hall.shares.keys()


def messages_for(world, name):
    (effect,) = world.server(Returned(name))
    assert isinstance(effect, Tell)
    world.told.clear()
    return effect.message


def test_a_server_of_groups_goes_on_after_a_crash_in_every_step():
    world = World(8, SecureSum(clip=1.0, group_size=4))
    hall = groups.HallState(server.ServerState(1, world.names))
    world.begin()
    openings = []
    while not hall.over:
        hall, effects = groups.step(world.host, groups.load(groups.dump(hall)), Received(*world.said.popleft()))
        for effect in effects:
            if isinstance(effect, Tell):
                world.said.extend((effect.client, answer) for answer in world.hear(effect.client, effect.message))
            if isinstance(effect, Open):
                openings.append(effect)
    assert sorted(name for effect in openings for name in effect.opening.survivors) == list(world.names)
    _, again = groups.step(world.host, hall, Elapsed())
    assert set(again) == set(openings)
    _, (refusal,) = groups.step(world.host, hall, Received("zoe", hall.groups[0].reveals[min(hall.groups[0].reveals)]))
    assert isinstance(refusal, Refuse)
    with pytest.raises(VerificationFailed):
        groups.load(b"x")
