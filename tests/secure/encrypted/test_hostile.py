"""A server that lies, and clients that do. Each test names one lie; without the protection against it the test fails."""

from dataclasses import replace as with_fields

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from scipy import stats

from koinon.core.errors import AdmissionError, ClientFailed, ProtocolViolation
from koinon.secure import keys as letters
from koinon.secure.encrypted import ckks, client
from koinon.secure.encrypted.circle import Circle, keys_digest, letter_digests, sent_digest, to_greet
from koinon.secure.encrypted.events import Decrypted, KeysMade
from koinon.secure.encrypted.messages import Answer, Forwarded, Gathering, Keys, Mandate, Proposal, Proposed, SeedLetter
from koinon.secure.encrypted.opening import from_bytes, masks, to_bytes
from koinon.secure.events import Begin, Heard, Keep, Received
from koinon.secure.keys import KeyPair
from koinon.secure.messages import Entry
from tests.secure.encrypted.world import SCHEME, World


def changed(message, **fields):
    return msgspec.structs.replace(message, **fields)


def refuses(world, name, message, match):
    """The client refuses, and what it remembers is as before."""
    before = world.states[name]
    with pytest.raises(ProtocolViolation, match=match):
        world.hear(name, message)
    assert world.states[name] == before


def entry(world, name, public, key=None, identity=None):
    """As `name` would be introduced with these keys."""
    digest = keys_digest(public)
    key = key or world.keys[name]
    return Entry(
        name,
        identity or world.host.trusted[name],
        digest,
        key.sign(to_greet("run", world.round, name, digest)),
    )


def gathering(world, entries):
    """A gathering of these, whose committees' keys are those of the hellos."""
    entries = tuple(sorted(entries, key=lambda each: each.name))
    circle = Circle.of("run", world.round, world.scheme, world.length, entries)
    return circle, Gathering(world.round, entries, {name: world.hall.hellos[name].keys for name in circle.committees})


def introduced(world, names):
    """Honest entries of these clients only."""
    return [entry(world, name, world.hall.hellos[name].keys) for name in names]


# The cohort and the key.


def test_a_key_that_the_dealer_did_not_sign_is_refused():
    world = World()
    told = world.until("mask")
    own, _ = ckks.keys()
    for name, message in told.items():
        refuses(world, name, changed(message, public=own), match="did not sign")
        forged = world.keys[world.ordinary()[0]].sign(world.circle.to_deal(own))
        refuses(world, name, changed(message, public=own, signature=forged), match="did not sign")


def test_a_key_of_another_round_or_cohort_is_refused():
    world = World(7, seed=0)
    told = world.until("mask")
    other = World(7, seed=0, round=2)
    earlier = other.until("mask")
    name = world.ordinary()[0]
    dealt = other.hall.dealt
    if other.circle.dealer == world.circle.dealer:
        refuses(world, name, changed(told[name], public=dealt.public, signature=dealt.signature), match="did not sign")
    refuses(world, name, changed(earlier[name], round=1), match="lacks this client's own keys|did not sign")


def test_a_second_key_is_refused_even_if_the_dealer_signed_both():
    world = World()
    told = world.until("mask")
    name, dealer = world.ordinary()[0], world.circle.dealer
    world.hear(name, told[name])
    second, _ = ckks.keys()
    signature = world.keys[dealer].sign(world.circle.to_deal(second))
    refuses(world, name, changed(told[name], public=second, signature=signature), match="second, different key")
    refuses(world, dealer, changed(told[dealer], public=second, signature=signature), match="it made another one")


def test_the_letter_with_the_key_is_for_one_opener_and_of_the_dealer():
    world = World()
    told = world.until("mask")
    first, second = world.circle.openers[1:3]
    refuses(world, first, changed(told[first], letter=told[second].letter), match="does not open")
    refuses(world, first, changed(told[first], letter=None), match="no key came")
    outside = world.ordinary()[0]
    refuses(
        world, outside, changed(told[outside], letter=told[first].letter), match="does not open$|that does not open"
    )


def test_the_server_never_has_the_key_nor_a_seed():
    """Nothing that any client says holds a secret in clear."""
    world = World()
    said = []
    for phase in ("deal", "mask", "agree", "open"):
        for name, message in world.until(phase).items():
            answers = world.hear(name, message)
            said += [msgspec.msgpack.encode(answer) for answer in answers]
            world.say(name, answers)
    secret = world.states[world.circle.dealer].round.secret
    heap = b"".join(said)
    assert secret is not None and not any(secret[at : at + 32] in heap for at in range(0, len(secret), 4096))


@pytest.mark.parametrize("few", [1, 2, 3])
def test_a_cohort_that_is_too_small_is_refused(few):
    world = World()
    told = world.until("mask")
    name = world.names[0]
    entries = introduced(world, world.names[:few])
    small = Gathering(1, tuple(entries), told[name].gathering.committees)
    before = world.states[name]
    with pytest.raises((AdmissionError, ProtocolViolation), match=r"a cohort of|a round of 3 clients"):
        world.hear(name, changed(told[name], gathering=small))
    assert world.states[name] == before


@pytest.mark.parametrize("where", ["gathering", "keys"])
def test_a_second_cohort_is_refused(where):
    world = World()
    world.until("deal")
    dealer = world.circle.dealer
    world.hear(dealer, gathering(world, introduced(world, world.names))[1])
    fewer, other = gathering(world, introduced(world, [name for name in world.names if name != "n003"]))
    message = other if where == "gathering" else Keys(1, other, bytes(131072), bytes(64))
    refuses(world, dealer, message, match="second, different cohort")
    assert fewer.digests.keys() != world.circle.digests.keys()


def test_invented_and_substituted_clients_are_refused():
    world = World()
    told = world.until("mask")
    name = world.names[0]
    stranger, public = Ed25519PrivateKey.generate(), KeyPair.of(bytes(32)).public
    raw = stranger.public_key().public_bytes_raw()
    others = introduced(world, world.names[:-1])

    def offered(odd):
        entries = tuple(sorted([*others, odd], key=lambda each: each.name))
        return changed(told[name], gathering=changed(told[name].gathering, cohort=entries))

    refuses(world, name, offered(entry(world, "zoe", public, stranger, raw)), match="nobody whom this node trusts")
    refuses(world, name, offered(entry(world, "n006", public, stranger, raw)), match="another identity")
    refuses(world, name, offered(entry(world, "n006", public, stranger)), match="did not sign")


def test_keys_of_the_servers_own_for_a_committee_are_refused():
    world = World()
    told = world.until("mask")
    name = world.ordinary()[0]
    victim = world.circle.keepers[0]
    own = {**told[name].gathering.committees, victim: KeyPair.of(bytes(32)).public}
    refuses(
        world,
        name,
        changed(told[name], gathering=changed(told[name].gathering, committees=own)),
        match="not those that",
    )
    fewer = {other: public for other, public in own.items() if other != victim}
    refuses(
        world, name, changed(told[name], gathering=changed(told[name].gathering, committees=fewer)), match="committees"
    )


def test_nobody_but_the_dealer_makes_a_key():
    world = World()
    told = world.until("deal")
    (message,) = told.values()
    assert list(told) == [world.circle.dealer]
    refuses(world, world.circle.keepers[0], message, match="is to make it")


# The survivor set.


def proposal(world, names=None, **odd):
    rows = {name: Proposed(odd.get(name, sent_digest(world.hall.sent[name]))) for name in names or world.hall.survivors}
    return Proposal(1, rows)


def test_a_client_signs_one_survivor_set_only():
    world = World()
    told = world.until("agree")
    for name in world.names:
        (said,) = world.hear(name, told[name])
        fewer = proposal(world, [name, *[other for other in world.names if other != name][:5]])
        refuses(world, name, fewer, match="second, different survivor set")
        assert world.hear(name, told[name]) == [said]


def test_a_set_that_is_too_small_or_not_ones_own_is_not_signed():
    world = World()
    world.until("agree")
    quorum = world.circle.quorum
    refuses(world, "n000", proposal(world, world.names[: quorum - 1]), match=f"{quorum} or more of 7")
    refuses(world, "n000", proposal(world, world.names[1:]), match="did not survive")
    refuses(world, "n000", proposal(world, n000=bytes(32)), match="another update")
    stranger = changed(proposal(world), survivors={**proposal(world).survivors, "zoe": Proposed(bytes(32))})
    refuses(world, "n000", stranger, match="no part of the cohort")
    heavy = {**proposal(world).survivors, "n001": Proposed(sent_digest(world.hall.sent["n001"]), 2)}
    refuses(world, "n000", changed(proposal(world), survivors=heavy), match="multiplied by 2; this client accepts 1")


def test_a_set_before_ones_own_update_is_not_signed():
    world = World()
    world.until("mask")
    refuses(world, "n000", Proposal(1, {"n000": Proposed(bytes(32))}), match="before the cohort|before this client")


def mandated(world):
    """Everybody has signed; what each of the committees would be told."""
    return world.until("open")


def test_a_committee_answers_only_what_a_quorum_signed():
    world = World()
    for name, message in mandated(world).items():
        few = dict(list(message.signatures.items())[:-1])
        refuses(world, name, changed(message, signatures=few), match="survivors signed, 5 are needed")
        victim = next(iter(message.signatures))
        odd = {**message.signatures, victim: world.keys["n000"].sign(b"something else")}
        refuses(world, name, changed(message, signatures=odd), match="did not sign")


def test_different_sets_to_different_clients_open_nothing():
    """However the server divides the clients between two sets, of at most one it gets a quorum of signatures."""
    for told_fewer in range(1, 7):
        world = World(7, with_fields(SCHEME, corrupt=0.0))
        world.until("agree")
        victim = world.ordinary()[-1]
        both = {True: proposal(world, [name for name in world.names if name != victim]), False: proposal(world)}
        fewer = [name for name in world.names if name != victim][:told_fewer]
        signed = {True: {}, False: {}}
        for name in world.names:
            signed[name in fewer][name] = world.hear(name, both[name in fewer])[0].signature
        answers = {True: 0, False: 0}
        world.put(total := list(ckks.added(world.circle.parameters, [world.updates[n] for n in world.names], [1] * 7)))
        for less, chosen in both.items():
            for name in world.circle.committees:
                sent = {other: forwarded(world, other, name) for other in chosen.survivors}
                digest = world.put(total) if name in world.circle.openers else None
                try:
                    answers[less] += len(world.hear(name, Mandate(1, signed[less], sent, digest)))
                except ProtocolViolation:
                    continue
        assert 0 in answers.values(), told_fewer


def forwarded(world, name, receiver, **odd):
    sent = world.hall.sent[name]
    each = Forwarded(sent.update, letter_digests(sent.letters), sent.letters[receiver], sent.signature)
    return changed(each, **odd)


def test_a_seed_of_the_servers_own_is_not_put_into_the_masks_sum():
    """With a seed that it knows in place of the victim's, the server would learn the sum of the others."""
    world = World()
    told = mandated(world)
    keeper, victim = world.circle.keepers[0], world.ordinary()[0]
    own = KeyPair.of(bytes(32))
    bound = world.circle.seed_letter(victim, keeper)
    letter = SeedLetter(own.public.x25519, *letters.letter(own, world.hall.hellos[keeper].keys, bound, bytes(32)))
    message = told[keeper]
    odd = {**message.sent, victim: changed(message.sent[victim], letter=letter)}
    refuses(world, keeper, changed(message, sent=odd), match="not the one that")
    digests = {**message.sent[victim].letters, keeper: letter_digests({keeper: letter})[keeper]}
    odd[victim] = changed(odd[victim], letters=digests)
    refuses(world, keeper, changed(message, sent=odd), match="not what the survivors signed")


def test_what_a_survivor_did_not_sign_itself_is_refused_even_if_the_others_did():
    """Survivors sign digests of what others have sent, and cannot know them; the committees look at each one's own signature."""
    world = World()
    world.until("agree")
    keeper, victim = world.circle.keepers[0], world.ordinary()[0]
    own = KeyPair.of(bytes(32))
    bound = world.circle.seed_letter(victim, keeper)
    letter = SeedLetter(own.public.x25519, *letters.letter(own, world.hall.hellos[keeper].keys, bound, bytes(32)))
    true = world.hall.sent[victim]
    odd = changed(true, letters={**true.letters, keeper: letter})
    lying = proposal(world, **{victim: sent_digest(odd)})
    signed = {name: world.hear(name, lying)[0].signature for name in world.names if name != victim}
    world.hall.sent[victim] = odd
    sent = {name: forwarded(world, name, keeper) for name in world.names}
    refuses(world, keeper, Mandate(1, signed, sent, None), match=f"{victim} did not sign")


def test_a_committee_answers_for_one_sum_in_a_round():
    world = World()
    told = mandated(world)
    for name, message in told.items():
        first = world.hear(name, message)
        assert len(first) == 1 and isinstance(first[0], Answer)
        other = changed(message, total=bytes(32)) if message.total else changed(message, total=None, signatures={})
        refuses(world, name, other, match="second, different sum")
        assert world.hear(name, message) == first


def test_who_is_in_no_committee_opens_nothing():
    world = World()
    told = mandated(world)
    message = told[world.circle.keepers[0]]
    refuses(world, world.ordinary()[0], message, match="in no committee")
    refuses(world, world.circle.openers[0], message, match="the sum's digest")
    refuses(world, world.circle.keepers[0], changed(message, total=bytes(32)), match="the sum's digest")


def test_an_earlier_round_is_not_opened_again():
    world = World()
    told = mandated(world)
    keeper = world.circle.keepers[0]
    world.client(keeper, Begin(2))
    refuses(world, keeper, told[keeper], match="a message of round 1; this client is in round 2")
    refuses_begin = world.states[keeper]
    with pytest.raises(ProtocolViolation, match="round 1 is over"):
        world.client(keeper, Begin(1))
    assert world.states[keeper] == refuses_begin


# What an answer says.


def opened_by(world, told, opener, blocks):
    """What an opener answers to these ciphertexts in place of the sum."""
    (answer,) = world.hear(opener, changed(told[opener], total=world.put(blocks)))
    return from_bytes(world.circle.packing, answer.data)


def uniform(words):
    return stats.kstest(words / 2**32, "uniform").pvalue


def test_a_single_update_in_place_of_the_sum_stays_masked():
    """The server hands an opener one client's ciphertexts as the sum, and has the keepers' masks' sum: it reads noise."""
    world = World(7, length=4000)
    told = mandated(world)
    victim, opener, keeper = world.ordinary()[0], world.circle.openers[0], world.circle.keepers[0]
    answer = opened_by(world, told, opener, world.updates[victim])
    (kept,) = world.hear(keeper, told[keeper])
    keepers = from_bytes(world.circle.packing, kept.data)
    exact = world.circle.packing.pack(world.encoded(victim, world.circle.ring))
    for read in (answer, answer - keepers, answer + keepers, answer - exact, answer - keepers - exact):
        assert uniform(read) > 1e-4


def test_a_keeper_that_works_for_a_lying_server_does_not_help_it_to_read_one_update():
    """It knows every client's mask for keepers; the mask for openers is still there."""
    world = World(7, length=4000)
    told = mandated(world)
    victim, opener, keeper = world.ordinary()[0], world.circle.openers[0], world.circle.keepers[0]
    answer = opened_by(world, told, opener, world.updates[victim])
    world.hear(keeper, told[keeper])
    state = world.states[keeper].round
    own, letter = KeyPair.of(state.channel), told[keeper].sent[victim].letter
    bound = world.circle.seed_letter(victim, keeper)
    seed = letters.unsealed(own, letter.x25519, letter.ciphertext, bound, letter.sealed)
    known = masks(world.circle.packing, {world.circle.mask(seed, victim, "keepers"): 1})
    exact = world.circle.packing.pack(world.encoded(victim, world.circle.ring))
    assert uniform(answer - known - exact) > 1e-4
    assert (world.words[victim] - known != exact).any()


def test_an_opener_that_works_for_the_server_reads_masked_updates_only():
    """It has the key, and takes its committee's masks away; the keepers' are still there, and they tell only their sum."""
    world = World(7, length=4000)
    told = mandated(world)
    victim, opener = world.ordinary()[0], world.circle.openers[0]
    world.hear(opener, told[opener])
    state = world.states[opener].round
    circle = world.circle
    words = ckks.decrypted(circle.parameters, state.secret, world.updates[victim], circle.packing.count)
    assert np.array_equal(words, world.words[victim]), "the key opens every update"
    own, letter = KeyPair.of(state.channel), told[opener].sent[victim].letter
    seed = letters.unsealed(own, letter.x25519, letter.ciphertext, circle.seed_letter(victim, opener), letter.sealed)
    left = words - masks(circle.packing, {circle.mask(seed, victim, "openers"): 1})
    exact = circle.packing.pack(world.encoded(victim, circle.ring))
    assert uniform(left) > 1e-4 and uniform(left - exact) > 1e-4


def test_an_opener_and_a_keeper_together_with_the_server_read_every_update():
    """What is said not to hold does not: this is the limit, and the documents state it."""
    world = World(7, length=100)
    told = mandated(world)
    victim, circle = world.ordinary()[0], world.circle
    words = world.words[victim]
    for name, committee in ((circle.openers[1], "openers"), (circle.keepers[1], "keepers")):
        world.hear(name, told[name])
        own, letter = KeyPair.of(world.states[name].round.channel), told[name].sent[victim].letter
        seed = letters.unsealed(own, letter.x25519, letter.ciphertext, circle.seed_letter(victim, name), letter.sealed)
        words = words - masks(circle.packing, {circle.mask(seed, victim, committee): 1})
    assert np.array_equal(words, circle.packing.pack(world.encoded(victim, circle.ring)))


def test_what_the_server_is_told_is_uniform_but_for_the_sum():
    world = World(7, length=4000)
    told = mandated(world)
    opener, keeper = world.circle.openers[0], world.circle.keepers[0]
    answers = [from_bytes(world.circle.packing, world.hear(name, told[name])[0].data) for name in (opener, keeper)]
    assert all(uniform(answer) > 1e-4 for answer in answers)
    total = world.circle.packing.unpack(answers[0] - answers[1])
    vector, _ = world.circle.ring.decode(total, 7)
    assert (vector.double() - world.exact(world.names)).abs().max() < 1e-4


def test_ciphertexts_that_ask_for_the_key_end_an_openers_part():
    world = World()
    told = mandated(world)
    opener = world.circle.openers[0]
    asking = bytes(32768) + (2**50).to_bytes(8, "little") * 4096
    with pytest.raises(ProtocolViolation, match="no sum of updates"):
        world.hear(opener, changed(told[opener], total=world.put([asking])))
    other = changed(told[opener], total=world.put(world.updates["n000"]))
    refuses(world, opener, other, match="second, different sum")


# Clients that lie.


@pytest.mark.parametrize("side", ["openers", "keepers"])
def test_a_lying_answer_is_found_out(side):
    """The check zeros are left alone, so that only the comparison can find it."""
    world = World()
    told = mandated(world)
    liar = getattr(world.circle, side)[1]
    for name, message in told.items():
        (answer,) = world.hear(name, message)
        if name == liar:
            words = from_bytes(world.circle.packing, answer.data)
            words[0] += np.uint32(1)
            answer = changed(answer, data=to_bytes(words))
        world.say(name, [answer])
    world.until("opened")
    assert world.failed is not None and f"the {side} " in world.failed and "do not say the same" in world.failed
    assert world.opening is None


def test_an_answer_of_another_length_is_refused():
    world = World()
    told = mandated(world)
    keeper = world.circle.keepers[0]
    (answer,) = world.hear(keeper, told[keeper])
    effects = world.server(Received(keeper, changed(answer, data=answer.data[:-4])))
    assert not any(isinstance(effect, Keep) for effect in effects)
    assert "bytes where" in world.refused[-1][1]


def test_a_dealer_whose_keys_do_not_fit_each_other_spoils_the_round_and_no_more():
    world = World()
    told = world.until("deal")
    ((dealer, message),) = told.items()
    party, entropy = world.parties[dealer], world.entropy
    state, _ = client.step(party, world.states[dealer], Heard(message), entropy)
    public, _ = ckks.keys()
    _, secret = ckks.keys()
    state, (said,) = client.step(party, state, KeysMade(1, public, secret), entropy)
    world.states[dealer] = state
    world.say(dealer, [said.message])
    told = mandated(world)
    for name in world.circle.openers:
        with pytest.raises(ProtocolViolation, match="no sum of updates"):
            world.hear(name, told[name])


def test_what_a_client_sends_must_be_its_own_and_for_both_committees():
    world = World()
    told = world.until("mask")
    (sent,) = world.hear("n000", told["n000"])
    (other,) = world.hear("n001", told["n001"])
    few = dict(list(sent.letters.items())[:-1])
    for odd, reason in ((other, "did not sign"), (changed(sent, letters=few), "both committees")):
        world.server(Received("n000", odd))
        assert reason in world.refused[-1][1]
    assert "n000" not in world.hall.sent


def test_a_dealt_key_must_be_signed_and_for_all_openers():
    world = World()
    told = world.until("deal")
    ((dealer, message),) = told.items()
    (dealt,) = world.hear(dealer, message)
    for odd, reason in (
        (changed(dealt, signature=bytes(64)), "did not sign"),
        (changed(dealt, letters={}), "all openers"),
    ):
        world.server(Received(dealer, odd))
        assert reason in world.refused[-1][1]
    world.server(Received("n000" if dealer != "n000" else "n001", dealt))
    assert "not expected" in world.refused[-1][1] and world.hall.dealt is None


def test_a_decryption_that_nobody_asked_for_is_not_answered():
    world = World()
    mandated(world)
    opener = world.circle.openers[0]
    with pytest.raises(ClientFailed, match="nobody wants this sum"):
        world.client(opener, Decrypted(1, bytes(32), np.zeros(3, np.uint32)))
