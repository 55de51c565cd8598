"""A server that lies. Each test names one lie; without the protection against it the test fails."""

from collections import deque
from dataclasses import replace as with_fields
from itertools import combinations

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from koinon.core.errors import ClientFailed, ProtocolViolation
from koinon.secure import client, keys, server
from koinon.secure.events import Begin, Contribute, Heard, Received
from koinon.secure.keys import KeyPair
from koinon.secure.messages import (
    Advert,
    Agreed,
    Agreement,
    Delivery,
    Entry,
    Invitation,
    Reveal,
    Survivors,
)
from koinon.secure.secure_sum import SecureSum
from tests.secure.world import SCHEME, World

ME, VICTIM = "n000", "n004"


def changed(message, **fields):
    return msgspec.structs.replace(message, **fields)


def signatures(world, survivors, signers):
    """What these clients would sign for such a set, were they asked."""
    signed = server.cohort(world.host, world.hall).to_agree(survivors)
    return {name: world.keys[name].sign(signed) for name in signers}


def agreement(world, survivors, receiver=ME):
    others = [name for name in survivors if name != receiver]
    return Agreement(world.round, signatures(world, survivors, others))


def refuses(world, message, name=ME, match=""):
    """The client refuses, and what it remembers is as before."""
    before = world.states[name]
    with pytest.raises(ProtocolViolation, match=match):
        world.hear(name, message)
    assert world.states[name] == before


def without(world, *gone):
    return tuple(name for name in world.names if name not in gone)


# The same node as survivor and as dropped.


def test_a_client_signs_one_survivor_set_only():
    world = World()
    told = world.until("agree")
    (said,) = world.hear(ME, told[ME])
    assert isinstance(said, Agreed)
    refuses(world, Survivors(1, without(world, VICTIM)), match="second, different survivor set")
    assert world.hear(ME, told[ME]) == [said]


def test_a_client_reveals_one_share_of_each_neighbour_only():
    """The two sets come one after the other, each with everybody's valid signatures."""
    world = World()
    told = world.until("agree")
    world.hear(ME, told[ME])
    reveals = world.hear(ME, agreement(world, world.names))
    fewer = without(world, VICTIM)
    for message in (Survivors(1, fewer), agreement(world, fewer)):
        try:
            reveals += world.hear(ME, message)
        except ProtocolViolation:
            continue
    assert all(isinstance(reveal, Reveal) for reveal in reveals)
    assert not {VICTIM} & set().union(*(reveal.mask_keys for reveal in reveals))
    for reveal in reveals:
        assert not reveal.self_masks.keys() & reveal.mask_keys.keys()


# Different survivor sets to different nodes.


@pytest.mark.parametrize("told_dropped", [1, 2, 3])
def test_different_survivor_sets_to_different_nodes_open_nothing(told_dropped):
    """The server shows everyone whatever signatures it has, and gets no threshold of both of the victim's secrets."""
    world = World(6, with_fields(SCHEME, corrupt=0.0))
    world.until("agree")
    other = without(world, VICTIM)
    deceived = other[:told_dropped]
    sets = {name: other if name in deceived else world.names for name in world.names}
    said = {name: world.hear(name, Survivors(1, sets[name]))[0].signature for name in world.names}
    seen = []
    for name in world.names:
        shown = {peer: said[peer] for peer in sets[name] if peer != name}
        same = {peer: signature for peer, signature in shown.items() if sets[peer] == sets[name]}
        for offered in (shown, same):
            try:
                seen += world.hear(name, Agreement(1, offered))
            except ProtocolViolation:
                continue
    threshold = world.scheme.sizes(6).threshold
    self_masks = sum(VICTIM in reveal.self_masks for reveal in seen)
    mask_keys = sum(VICTIM in reveal.mask_keys for reveal in seen)
    assert min(self_masks, mask_keys) == 0 or max(self_masks, mask_keys) < threshold
    assert mask_keys == 0


def test_signatures_over_another_set_do_not_count():
    world = World()
    told = world.until("agree")
    world.hear(ME, told[ME])
    other = without(world, VICTIM)
    refuses(world, Agreement(1, signatures(world, other, other[1:])), match="did not sign")


def test_a_threshold_of_neighbours_must_have_signed():
    world = World()
    told = world.until("agree")
    world.hear(ME, told[ME])
    few = signatures(world, world.names, world.names[1 : world.scheme.sizes(5).threshold])
    refuses(world, Agreement(1, few), match="signed the same survivors")


def test_the_server_cannot_sign_for_a_neighbour():
    world = World()
    told = world.until("agree")
    world.hear(ME, told[ME])
    forger = Ed25519PrivateKey.generate()
    signed = server.cohort(world.host, world.hall).to_agree(world.names)
    refuses(world, Agreement(1, {name: forger.sign(signed) for name in world.names[1:]}), match="did not sign")


def test_corrupt_clients_and_a_lying_server_never_have_a_threshold_of_both():
    """Whatever honest neighbours are told, for every split of them: the arithmetic of the threshold."""
    for clients in range(3, 13):
        for corrupt in range(clients // 3):
            sizes = SecureSum(clip=1.0, corrupt=corrupt / clients, dropout=0).sizes(clients)
            honest = sizes.neighbours - corrupt
            for one, other in combinations(range(honest + 1), 2):
                if one + other <= honest:
                    assert min(one, other) + corrupt < sizes.threshold


# Substituted public keys.


def mallorys(world, name, sign):
    channel, mask = KeyPair.of(b"c" * 32).public, KeyPair.of(b"m" * 32).public
    signature = sign(keys.to_sign("run", world.round, name, keys.keys_digest(channel, mask)))
    return Advert(world.round, channel, mask, signature)


def replaced(invitation, name, advert):
    """The invitation with another advert for a name, in both places."""
    entry = Entry(
        name,
        next(known.identity for known in invitation.cohort if known.name == name),
        keys.keys_digest(advert.channel, advert.mask),
        advert.signature,
    )
    cohort = tuple(entry if known.name == name else known for known in invitation.cohort)
    return changed(invitation, cohort=cohort, neighbours={**invitation.neighbours, name: advert})


def test_keys_that_the_neighbour_did_not_sign_are_refused():
    world = World()
    told = world.until("share")
    advert = mallorys(world, VICTIM, Ed25519PrivateKey.generate().sign)
    refuses(world, replaced(told[ME], VICTIM, advert), match="did not sign")


def test_keys_that_differ_from_the_signed_ones_are_refused():
    world = World()
    told = world.until("share")
    advert = mallorys(world, VICTIM, Ed25519PrivateKey.generate().sign)
    refuses(world, changed(told[ME], neighbours={**told[ME].neighbours, VICTIM: advert}), match="are not those")


def test_keys_of_somebody_unknown_are_refused():
    world = World()
    told = world.until("share")
    stranger = mallorys(world, "zoe", Ed25519PrivateKey.generate().sign)
    entry = Entry("zoe", bytes(32), keys.keys_digest(stranger.channel, stranger.mask), stranger.signature)
    more = changed(told[ME], cohort=(*told[ME].cohort, entry), neighbours={**told[ME].neighbours, "zoe": stranger})
    sizes = world.scheme.sizes(6)
    refuses(world, changed(more, threshold=sizes.threshold), match="nobody whom this node trusts")


def test_keys_that_were_signed_for_another_round_are_refused():
    old, world = World(round=1), World(round=2)
    before = old.until("share")[ME].neighbours[VICTIM]
    told = world.until("share")
    stale = changed(before, round=2)
    refuses(world, replaced(told[ME], VICTIM, stale), match="did not sign")


def test_keys_that_are_said_to_be_ones_own_are_refused():
    world = World()
    told = world.until("share")
    advert = mallorys(world, ME, world.keys[ME].sign)
    entry = Entry(ME, told[ME].cohort[0].identity, keys.keys_digest(advert.channel, advert.mask), advert.signature)
    cohort = (entry, *told[ME].cohort[1:])
    refuses(world, changed(told[ME], cohort=cohort), match="own keys")


def test_a_parcel_that_was_changed_on_its_way_is_refused():
    world = World()
    told = world.until("mask")
    parcels = told["n002"].parcels
    pairing = world.until("mask") or parcels[ME].pairing
    forged = {
        "ciphertext": changed(parcels[ME], ciphertext=parcels["n001"].ciphertext),
        "sealed": changed(parcels[ME], sealed=bytes(len(parcels[ME].sealed))),
        "another's": parcels["n001"],
        "pairing": changed(parcels[ME], pairing=changed(pairing, ciphertext=parcels["n001"].pairing.ciphertext)),
        "escrow": changed(parcels[ME], pairing=changed(pairing, escrow=bytes(48))),
    }
    for parcel in forged.values():
        refuses(world, Delivery(1, {**parcels, ME: parcel}), "n002", match="was not sealed")
    refuses(
        world, Delivery(1, {**parcels, ME: changed(parcels[ME], pairing=None)}), "n002", match="how to share a mask"
    )


def test_another_graph_than_the_keys_decide_is_refused():
    world = World(60, SecureSum(clip=1.0, corrupt=0.05, dropout=0.05), length=1)
    assert world.scheme.sizes(60).neighbours < 59
    told = world.until("share")
    far = next(name for name in world.names if name not in told[ME].neighbours and name != ME)
    near = dict(told[ME].neighbours)
    near.pop(min(near))
    near[far] = world.hall.adverts[far]
    refuses(world, changed(told[ME], neighbours=near), match="other neighbours")
    refuses(world, changed(told[ME], neighbours={}), match="other neighbours")


# A lowered threshold.


@pytest.mark.parametrize("by", [1, 2])
def test_a_lowered_threshold_is_refused(by):
    world = World(9)
    told = world.until("share")
    refuses(world, changed(told[ME], threshold=told[ME].threshold - by), match="threshold")


def test_too_few_neighbours_parcels_are_refused():
    world = World()
    parcels = world.until("mask")[ME].parcels
    few = dict(list(parcels.items())[: world.scheme.sizes(5).threshold - 1])
    refuses(world, Delivery(1, few), match="neighbours dealt shares")


def test_too_few_surviving_neighbours_are_refused():
    world = World(9)
    world.until("agree")
    few = world.names[: world.scheme.sizes(9).threshold]
    assert len(few) >= world.scheme.minimum
    refuses(world, Survivors(1, few), match="neighbours survived")


# A replayed round.


def test_an_earlier_round_is_never_begun_again():
    world = World()
    world.until("opened")
    world.client(ME, Begin(2))
    before = world.states[ME]
    with pytest.raises(ProtocolViolation, match="is over"):
        world.client(ME, Begin(1))
    assert world.states[ME] == before


def test_the_messages_of_an_earlier_round_are_refused():
    world = World()
    told = {phase: world.until(phase)[ME] for phase in ("share",)}
    for name, message in world.hall.adverts.items():
        assert name in world.names and isinstance(message, Advert)
    world.client(ME, Begin(2))
    refuses(world, told["share"], match="a message of round 1")


def test_a_round_is_not_played_again_with_another_cohort():
    """The server forgets round 1 and plays it again with fewer clients: the keys stay, so the first cohort does."""
    world = World()
    first = world.until("share")[ME]
    (said,) = world.hear(ME, first)
    (advert,) = world.client(ME, Begin(1))
    again = Invitation(1, first.cohort[:-1], {k: v for k, v in first.neighbours.items() if k != VICTIM}, 2)
    assert advert == world.hall.adverts[ME]
    refuses(world, again, match="second, different cohort")
    assert world.hear(ME, first) == [said]


def test_a_second_vector_is_not_masked_by_the_same_masks():
    world = World()
    told = world.until("mask")
    (first,) = world.hear(ME, told[ME])
    assert world.hear(ME, told[ME]) == [first]
    ring = server.cohort(world.host, world.hall).ring
    other = world.encoded("n001", ring)
    with pytest.raises(ClientFailed, match="used twice"):
        world.client(ME, Contribute(other))


def test_a_second_delivery_is_refused():
    """With one parcel fewer the sum of masks differs, and the difference of two masked updates is one mask."""
    world = World(6, with_fields(SCHEME, corrupt=0.0))
    told = world.until("mask")
    world.hear(ME, told[ME])
    fewer = {name: parcel for name, parcel in told[ME].parcels.items() if name != VICTIM}
    refuses(world, Delivery(1, fewer), match="second, different delivery")


# A cohort of one.


def test_the_sum_of_one_is_not_opened():
    world = World()
    world.until("agree")
    refuses(world, Survivors(1, (ME,)), match="a sum of 1 updates")


def test_the_sum_of_fewer_than_the_clients_own_minimum_is_not_opened():
    """A cohort whose threshold alone would allow it."""
    world = World(4, with_fields(SCHEME, minimum=4))
    world.until("agree")
    few = without(world, "n003")
    assert len(few) - 1 >= world.scheme.sizes(4).threshold
    refuses(world, Survivors(1, few), match="a sum of 3 updates")


def test_a_cohort_of_one_is_not_joined():
    world = World()
    told = world.until("share")[ME]
    refuses(world, Invitation(1, told.cohort[:1], {}, 1), match="a cohort of 1")


def test_a_client_does_not_help_to_open_a_sum_without_itself():
    world = World()
    world.until("agree")
    refuses(world, Survivors(1, without(world, ME)), match="did not survive")


@pytest.mark.parametrize(
    "names", [(ME, ME, "n001", "n002", "n003"), ("n001", ME, "n002", "n003"), (ME, "n001", "n002", "x")]
)
def test_a_survivor_set_that_is_none_is_refused(names):
    world = World()
    world.until("agree")
    refuses(world, Survivors(1, names), match="no sorted part")


# A second unmask with another set.


def test_after_its_shares_left_a_client_has_nothing_more_to_say():
    world = World()
    world.until("agree")
    (signed,) = world.hear(ME, Survivors(1, world.names))
    (reveal,) = world.hear(ME, agreement(world, world.names))
    fewer = without(world, VICTIM)
    refuses(world, Survivors(1, fewer), match="second, different survivor set")
    assert world.hear(ME, Survivors(1, world.names)) == [signed]
    assert world.hear(ME, agreement(world, fewer)) == [reveal]
    assert world.states[ME].round.secrets is None and world.states[ME].round.held == {}


def test_survivors_are_not_named_before_the_masked_update():
    world = World()
    told = world.until("share")
    refuses(world, Survivors(1, world.names), match="before the cohort")
    world.hear(ME, told[ME])
    refuses(world, Survivors(1, world.names), match="before this client's masked update")
    refuses(world, Agreement(1, {}), match="before there was a survivor set")


def test_survivors_are_not_named_between_the_delivery_and_the_vector():
    world = World()
    told = world.until("mask")
    state, _ = client.step(world.parties[ME], world.states[ME], Heard(told[ME]), world.entropy)
    world.states[ME] = state
    refuses(world, Survivors(1, world.names), match="before this client's masked update")


def test_a_neighbour_without_a_parcel_did_not_survive():
    """Its shares the client does not hold; it would sign for a set that it cannot help to open."""
    world = World(6, with_fields(SCHEME, corrupt=0.0))
    told = world.until("mask")
    fewer = {name: parcel for name, parcel in told[ME].parcels.items() if name != VICTIM}
    world.hear(ME, Delivery(1, fewer))
    refuses(world, Survivors(1, world.names), match="no parcel came")


def test_messages_before_a_round_are_refused():
    world = World()
    with pytest.raises(ProtocolViolation, match="no round"):
        world.hear(ME, Survivors(1, world.names))
    world.client(ME, Begin(1))
    with pytest.raises(ClientFailed, match="nobody wants"):
        world.client(ME, Contribute(np.zeros(1, dtype=np.uint32)))


def test_a_client_counts_on_its_own_group_whatever_the_server_says():
    """Neighbours of another group, and a survivor set that reaches into one."""
    scheme = SecureSum(clip=1.0, group_size=4)
    world = World(8, scheme)
    world.begin()
    world.hall = server.ServerState(1, world.names)
    for item in list(world.said):
        world.server(Received(*item))
    first, second = (server.begun(world.host, world.hall, group) for group in (0, 1))
    (tell, *_), (_, other_tells) = first[1], second
    name, invitation = tell.client, tell.message
    stranger = other_tells[0].client
    swapped = dict(invitation.neighbours)
    swapped.pop(min(swapped))
    refuses(
        world,
        changed(invitation, neighbours={**swapped, stranger: world.hall.adverts[stranger]}),
        name,
        "other neighbours",
    )
    world.hall, world.told, world.said = first[0], deque((one.client, one.message) for one in first[1]), deque()
    told = world.until("agree")
    refuses(world, Survivors(1, tuple(sorted({*told, stranger}))), name, "no sorted part")
    assert world.hear(name, told[name])
