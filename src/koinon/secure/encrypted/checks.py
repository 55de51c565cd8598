"""What a client checks of what the server says about other clients."""

from typing import Literal

from koinon.core.errors import ProtocolViolation
from koinon.secure import keys
from koinon.secure.encrypted.circle import Circle, keys_digest, letter_digests, statement, to_greet
from koinon.secure.encrypted.messages import Gathering, Mandate, Proposal
from koinon.secure.encrypted.progress import Progress, circle_of, own_keys
from koinon.secure.encrypted_sum import EncryptedSum
from koinon.secure.party import Party


def check_mandate(
    party: Party[EncryptedSum], progress: Progress, circle: Circle, proposal: Proposal, message: Mandate
) -> None:
    """A quorum of survivors signed the proposal, and each survivor what it has sent.

    Raises:
        ProtocolViolation: if not.
    """
    if progress.keys is None or message.sent.keys() != proposal.survivors.keys():
        raise ProtocolViolation("a sum of others than the survivors")
    if not message.signatures.keys() <= proposal.survivors.keys():
        raise ProtocolViolation("signatures of clients that are no survivors")
    if len(message.signatures) < circle.quorum:
        raise ProtocolViolation(f"{len(message.signatures)} survivors signed, {circle.quorum} are needed")
    for name, signature in message.signatures.items():
        keys.verified(party.trusted, name, circle.to_agree(proposal), signature)
    for name, each in message.sent.items():
        if statement(each.update, each.letters) != proposal.survivors[name].sent:
            raise ProtocolViolation(f"what {name} is said to have sent is not what the survivors signed")
        if letter_digests({party.name: each.letter})[party.name] != each.letters.get(party.name):
            raise ProtocolViolation(f"the letter of {name} is not the one that {name} signed")
        signed = circle.to_send(name, progress.keys.public, each.update, each.letters)
        keys.verified(party.trusted, name, signed, each.signature)


def seeds(party: Party[EncryptedSum], progress: Progress, circle: Circle, mandate: Mandate) -> dict[bytes, int]:
    """The seeds of the masks that this client's committee takes away, each with its survivor's weight."""
    own, proposal, found = own_keys(progress), progress.proposal, {}
    assert proposal is not None
    committee: Literal["openers", "keepers"] = "openers" if party.name in circle.openers else "keepers"
    for name, each in mandate.sent.items():
        x25519, ciphertext, bound = each.letter.x25519, each.letter.ciphertext, circle.seed_letter(name, party.name)
        seed = keys.unsealed(own, x25519, ciphertext, bound, each.letter.sealed)
        found[circle.mask(seed, name, committee)] = proposal.survivors[name].weight
    return found


def told_circle(party: Party[EncryptedSum], progress: Progress, message: Gathering) -> Circle:
    """The cohort that the server names, checked once.

    Raises:
        ProtocolViolation: if it is not as it must be, or a second one.
        AdmissionError: if its size cannot work.
    """
    if progress.gathering is not None:
        if message != progress.gathering:
            raise ProtocolViolation(f"a second, different cohort for round {progress.number}")
        return circle_of(party, progress)
    party.check_size(message.cohort)
    circle = Circle.of(party.run, progress.number, party.scheme, party.length, message.cohort)
    if circle.digests.get(party.name) != keys_digest(progress.hello.keys):
        raise ProtocolViolation("the cohort lacks this client's own keys")
    party.check_signatures(message.cohort, lambda entry: to_greet(party.run, progress.number, entry.name, entry.keys))
    if message.committees.keys() != set(circle.committees):
        raise ProtocolViolation("the server names other committees than the cohort's keys decide")
    for name, public in message.committees.items():
        if keys_digest(public) != circle.digests[name]:
            raise ProtocolViolation(f"the keys said to be of {name} are not those that {name} signed")
    return circle
