"""A client's side of a sum of encrypted updates, as a pure state machine; these rules hold whatever the server says.

Rules:
    - rounds go up, and one that was begun is never begun again with other keys;
    - a cohort counts when every client in it is trusted and signed its keys for this round; committees and quorum are the
      client's own computation;
    - the key counts that the dealer signed for just this cohort, and no second one;
    - one vector is encrypted in a round: a second, different one would use the masks twice;
    - one proposal is signed for an update, however often it is tried to add it up; it names what the client itself has sent, at
      least a quorum and `minimum` clients, and no weight above `mixing`;
    - a committee's member answers for one sum in a round, of the proposal that it signed itself, after a quorum signed the same
      and each survivor what it has sent; an opener's answer wears the keepers' masks, and the key is never said;
    - what is received again is answered by the same bytes again.

The caller makes `dump(state)` durable before any effect leaves or is begun. A message that breaks the protocol raises
`ProtocolViolation` and changes nothing.
"""

import hashlib
from typing import TypeAlias, assert_never

import msgspec

from koinon.core.errors import ClientFailed, ProtocolViolation
from koinon.secure import keys
from koinon.secure.encrypted.checks import check_mandate, seeds, told_circle
from koinon.secure.encrypted.circle import keys_digest, letter_digests, statement, to_greet
from koinon.secure.encrypted.events import (
    ClientEffect,
    ClientEvent,
    Decrypt,
    Decrypted,
    Encrypt,
    Encrypted,
    KeysMade,
    MakeKeys,
)
from koinon.secure.encrypted.messages import (
    Answer,
    Dealt,
    Gathering,
    Hello,
    Keys,
    Mandate,
    Proposal,
    SecretLetter,
    SeedLetter,
    Sent,
)
from koinon.secure.encrypted.opening import masks, to_bytes
from koinon.secure.encrypted.parameters import SECRET_BYTES
from koinon.secure.encrypted.progress import ClientState, Progress, circle_of, dump, load, own_keys
from koinon.secure.encrypted_sum import EncryptedSum
from koinon.secure.events import Begin, Contribute, Heard, Say, Want
from koinon.secure.keys import KeyPair
from koinon.secure.mask import Words, add_masks
from koinon.secure.messages import Agreed
from koinon.secure.party import Party
from koinon.secure.shamir import SEED_BYTES, Entropy

__all__ = ["ClientState", "dump", "load", "step"]

Step: TypeAlias = tuple[ClientState, tuple[ClientEffect, ...]]


def step(party: Party[EncryptedSum], state: ClientState, event: ClientEvent, entropy: Entropy) -> Step:
    """What happens next.

    Raises:
        ProtocolViolation: if the server, or another client, asks for what the rules forbid.
        AdmissionError: if the cohort's size cannot work.
        ClientFailed: if a second vector is contributed to a round, or a job is done that nobody asked for.
    """
    match event:
        case Begin(round, update):
            return _begun(party, state, round, round if update is None else update, entropy)
        case Heard(message):
            progress = _current(state, message.round)
            match message:
                case Gathering():
                    return _gathered(party, progress, message)
                case Keys():
                    return _given_keys(party, progress, message)
                case Proposal():
                    return _proposed(party, progress, message)
                case Mandate():
                    return _mandated(party, progress, message)
                case _:
                    assert_never(message)
        case KeysMade(round, public, secret):
            return _made_keys(party, _current(state, round), public, secret)
        case Contribute(encoded):
            return _contributed(party, state, encoded)
        case Encrypted(round, digest):
            return _encrypted(party, _current(state, round), digest)
        case Decrypted(round):
            return _decrypted(party, _current(state, round), event)
        case _:
            assert_never(event)


def _begun(party: Party[EncryptedSum], state: ClientState, round: int, update: int, entropy: Entropy) -> Step:
    before = state.round
    if before is not None and round == before.number:
        return state, (Say(before.hello),)
    if before is not None and round < before.number:
        raise ProtocolViolation(f"round {round} is over: this client has begun round {before.number}")
    if before is not None and before.update == update and before.agreed is not None:
        raise ProtocolViolation(
            f"this client has signed a survivor set for its update {update} already, in round {before.number}"
        )
    channel, both = entropy(SEED_BYTES), (entropy(SEED_BYTES), entropy(SEED_BYTES))
    public = KeyPair.of(channel).public
    hello = Hello(round, public, party.sign(to_greet(party.run, round, party.name, keys_digest(public))))
    return ClientState(Progress(round, update, channel, both, hello)), (Say(hello),)


def _gathered(party: Party[EncryptedSum], progress: Progress, message: Gathering) -> Step:
    circle = told_circle(party, progress, message)
    if circle.dealer != party.name:
        raise ProtocolViolation(f"the server asks this client for the round's key; {circle.dealer} is to make it")
    if progress.dealt is not None:
        return ClientState(progress), (Say(progress.dealt),)
    return _next(progress, gathering=message), (MakeKeys(progress.number),)


def _made_keys(party: Party[EncryptedSum], progress: Progress, public: bytes, secret: bytes) -> Step:
    if progress.dealt is not None:
        return ClientState(progress), (Say(progress.dealt),)
    if progress.gathering is None:
        raise ClientFailed("nobody wants keys of CKKS now")
    circle, own, letters = circle_of(party, progress), own_keys(progress), {}
    for name in circle.openers:
        if name != party.name:
            bound = circle.secret_letter(name, public)
            ciphertext, sealed = keys.letter(own, progress.gathering.committees[name], bound, secret)
            letters[name] = SecretLetter(own.public.x25519, ciphertext, sealed)
    dealt = Dealt(progress.number, public, letters, party.sign(circle.to_deal(public)))
    return _next(progress, dealt=dealt, secret=secret), (Say(dealt),)


def _given_keys(party: Party[EncryptedSum], progress: Progress, message: Keys) -> Step:
    if progress.keys is not None:
        if message != progress.keys:
            raise ProtocolViolation(f"a second, different key for round {progress.number}")
        return ClientState(progress), (
            Want(progress.number, circle_of(party, progress).ring) if progress.sent is None else Say(progress.sent),
        )
    circle = told_circle(party, progress, message.gathering)
    keys.verified(party.trusted, circle.dealer, circle.to_deal(message.public), message.signature)
    if progress.dealt is not None and progress.dealt.public != message.public:
        raise ProtocolViolation("the key is said to be this client's, and it made another one")
    secret, letter = progress.secret, message.letter
    if party.name in circle.openers and party.name != circle.dealer:
        if letter is None:
            raise ProtocolViolation("this client opens, and no key came for it")
        bound = circle.secret_letter(party.name, message.public)
        secret = keys.unsealed(own_keys(progress), letter.x25519, letter.ciphertext, bound, letter.sealed)
        if len(secret) != SECRET_BYTES:
            raise ProtocolViolation(f"the letter from {circle.dealer} holds no key")
    elif letter is not None:
        raise ProtocolViolation("a letter with the key came for a client that does not open")
    after = _next(progress, gathering=message.gathering, keys=message, secret=secret)
    return after, (Want(progress.number, circle.ring),)


def _contributed(party: Party[EncryptedSum], state: ClientState, encoded: Words) -> Step:
    progress = state.round
    if progress is None or progress.keys is None or progress.seeds is None:
        raise ClientFailed("nobody wants a vector for a secure sum now")
    circle = circle_of(party, progress)
    digest = hashlib.sha256(circle.ring.pack(encoded)).digest()
    if progress.encoded not in (None, digest):
        raise ClientFailed(f"a second, different vector for round {progress.number}: its masks would be used twice")
    openers, keepers = progress.seeds
    worn = [circle.mask(openers, party.name, "openers"), circle.mask(keepers, party.name, "keepers")]
    words = circle.packing.pack(encoded)
    add_masks(words, worn, [])
    job = Encrypt(progress.number, circle.parameters, progress.keys.public, words)
    return _next(progress, encoded=digest), (job,)


def _encrypted(party: Party[EncryptedSum], progress: Progress, digest: bytes) -> Step:
    if progress.sent is not None and progress.sent.update == digest:
        return ClientState(progress), (Say(progress.sent),)
    if progress.keys is None or progress.encoded is None or progress.seeds is None or progress.gathering is None:
        raise ClientFailed("nobody wants an encrypted update now")
    circle, own, letters = circle_of(party, progress), own_keys(progress), {}
    for name in circle.committees:
        seed = progress.seeds[0 if name in circle.openers else 1]
        receiver, bound = progress.gathering.committees[name], circle.seed_letter(party.name, name)
        letters[name] = SeedLetter(own.public.x25519, *keys.letter(own, receiver, bound, seed))
    signed = circle.to_send(party.name, progress.keys.public, digest, letter_digests(letters))
    sent = Sent(progress.number, digest, letters, party.sign(signed))
    channel = progress.channel if party.name in circle.committees else None
    return _next(progress, sent=sent, seeds=None, channel=channel), (Say(sent),)


def _proposed(party: Party[EncryptedSum], progress: Progress, message: Proposal) -> Step:
    if progress.agreed is not None:
        if message != progress.proposal:
            raise ProtocolViolation(f"a second, different survivor set for round {progress.number}")
        return ClientState(progress), (Say(progress.agreed),)
    circle, sent = circle_of(party, progress), progress.sent
    if sent is None:
        raise ProtocolViolation("the server names survivors before this client's encrypted update")
    if not message.survivors.keys() <= circle.digests.keys():
        raise ProtocolViolation("the survivors are no part of the cohort")
    own = message.survivors.get(party.name)
    if own is None:
        raise ProtocolViolation("the server says that this client did not survive, and asks it to help")
    if own.sent != statement(sent.update, letter_digests(sent.letters)):
        raise ProtocolViolation("the server names another update than this client has sent")
    if len(message.survivors) < circle.quorum:
        raise ProtocolViolation(
            f"a sum of {len(message.survivors)} updates; this client helps with {circle.quorum} or more of {len(circle.digests)}"
        )
    heaviest = max(row.weight for row in message.survivors.values())
    if heaviest > party.scheme.mixing:
        raise ProtocolViolation(f"an update is multiplied by {heaviest}; this client accepts {party.scheme.mixing}")
    agreed = Agreed(progress.number, party.sign(circle.to_agree(message)))
    return _next(progress, proposal=message, agreed=agreed), (Say(agreed),)


def _mandated(party: Party[EncryptedSum], progress: Progress, message: Mandate) -> Step:
    circle, proposal = circle_of(party, progress), progress.proposal
    if proposal is None:
        raise ProtocolViolation("the server asks for a sum before there was a survivor set")
    if party.name not in circle.committees:
        raise ProtocolViolation("the server asks this client to open, and it is in no committee")
    if progress.mandate not in (None, message):
        raise ProtocolViolation(f"a second, different sum for round {progress.number}")
    if (message.total is not None) is not (party.name in circle.openers):
        raise ProtocolViolation("the sum's digest is for openers, and for every one")
    check_mandate(party, progress, circle, proposal, message)
    after = _next(progress, mandate=message)
    if message.total is not None:
        if progress.secret is None:
            raise ProtocolViolation("this client has no key of the round")
        count = circle.packing.count
        return after, (Decrypt(progress.number, circle.parameters, progress.secret, message.total, count),)
    return after, (
        Say(Answer(progress.number, to_bytes(masks(circle.packing, seeds(party, progress, circle, message))))),
    )


def _decrypted(party: Party[EncryptedSum], progress: Progress, event: Decrypted) -> Step:
    mandate = progress.mandate
    if mandate is None or mandate.total != event.digest:
        raise ClientFailed("nobody wants this sum opened")
    circle = circle_of(party, progress)
    words = event.words - masks(circle.packing, seeds(party, progress, circle, mandate))
    return ClientState(progress), (Say(Answer(progress.number, to_bytes(words))),)


def _current(state: ClientState, round: int) -> Progress:
    if state.round is None or state.round.number != round:
        at = "no round" if state.round is None else f"round {state.round.number}"
        raise ProtocolViolation(f"a message of round {round}; this client is in {at}")
    return state.round


def _next(progress: Progress, **changes: object) -> ClientState:
    return ClientState(msgspec.structs.replace(progress, **changes))
