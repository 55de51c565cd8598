"""A round of encrypted updates whose server the test is: every state goes through its bytes, every ciphertext can be changed."""

import hashlib
from collections import deque

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from koinon.core.rng import generator
from koinon.secure.encrypted import ckks, client, server
from koinon.secure.encrypted.events import Add, Added, Decrypt, Decrypted, Encrypt, Encrypted, KeysMade, MakeKeys
from koinon.secure.encrypted.messages import FromClient, FromServer
from koinon.secure.encrypted_sum import EncryptedSum
from koinon.secure.events import (
    Abort,
    Begin,
    Contribute,
    Elapsed,
    Heard,
    Keep,
    Open,
    Received,
    Refuse,
    Say,
    Stored,
    Tell,
    Want,
)
from koinon.secure.messages import decode, encode
from koinon.secure.party import Party
from tests.secure.world import stream

SCHEME = EncryptedSum(clip=1.0)


def digest(blocks):
    return hashlib.sha256(b"".join(blocks)).digest()


class World:
    def __init__(self, clients=7, scheme=SCHEME, length=8, round=1, seed=0, weights=None):
        self.entropy, self.scheme, self.round, self.length = stream(seed), scheme, round, length
        self.names = tuple(f"n{number:03d}" for number in range(clients))
        self.keys = {name: Ed25519PrivateKey.from_private_bytes(self.entropy(32)) for name in self.names}
        trusted = {name: key.public_key().public_bytes_raw() for name, key in self.keys.items()}
        self.parties = {name: Party("run", name, key.sign, trusted, scheme, length) for name, key in self.keys.items()}
        self.host = server.Host("run", trusted, scheme, length, weights or {})
        self.states = dict.fromkeys(self.names, client.ClientState())
        self.vectors = {
            name: torch.rand(length, generator=generator(seed, "updates", 0, name)) * 2 - 1 for name in self.names
        }
        self.hall = server.ServerState(round, self.names)
        self.updates, self.words, self.answers, self.totals = {}, {}, {}, {}
        self.opening, self.failed, self.refused = None, None, []
        self.told, self.said, self.silent = deque(), deque(), set()

    @property
    def circle(self):
        return server.circle(self.host, self.hall)

    def ordinary(self):
        """Who is in no committee."""
        return [name for name in self.names if name not in self.circle.committees]

    def hear(self, name, message):
        """What a client answers; the message and its state are written and read in between."""
        return self.client(name, Heard(decode(encode(message), FromServer, 1 << 24)))

    def client(self, name, event):
        state, effects = client.step(self.parties[name], self.states[name], event, self.entropy)
        self.states[name] = client.load(client.dump(state))
        answers = []
        for effect in effects:
            match effect:
                case Say(message):
                    answers.append(decode(encode(message), FromClient, 1 << 24))
                case Want(_, ring):
                    answers += self.client(name, Contribute(self.encoded(name, ring)))
                case MakeKeys(round):
                    answers += self.client(name, KeysMade(round, *ckks.keys()))
                case Encrypt(round, parameters, public, words):
                    self.words[name] = words
                    self.updates[name] = list(ckks.encrypted(parameters, public, words))
                    answers += self.client(name, Encrypted(round, digest(self.updates[name])))
                case Decrypt(round, parameters, secret, total, count):
                    words = ckks.decrypted(parameters, secret, self.totals[total], count)
                    answers += self.client(name, Decrypted(round, total, words))
        return answers

    def encoded(self, name, ring):
        return ring.encode(self.vectors[name], generator(0, "rounding", self.round, name), (1.0,))

    def server(self, event):
        state, effects = server.step(self.host, self.hall, event)
        self.hall = server.load(server.dump(state))
        for effect in effects:
            match effect:
                case Tell(name, message):
                    self.told.append((name, message))
                case Keep(name, data):
                    self.answers[name] = data
                case Add(parameters, weights):
                    names = sorted(weights)
                    blocks = ckks.added(
                        parameters, [self.updates[name] for name in names], [weights[name] for name in names]
                    )
                    self.said.append(Added(self.put(list(blocks))))
                case Refuse(name, reason):
                    self.refused.append((name, reason))
                case Abort(reason):
                    self.failed = reason
                case Open(opening):
                    self.opening = opening
        return effects

    def put(self, blocks):
        """What openers can fetch."""
        self.totals[digest(blocks)] = blocks
        return digest(blocks)

    def say(self, name, messages):
        for message in messages:
            self.said.append(Received(name, message))
            if hasattr(message, "update"):
                self.said.append(Stored(name, message.update))

    def until(self, phase, silent=None):
        """Play honestly until the server has told everybody of a phase; what it says there is not delivered.

        `silent` says who falls silent in which phase: names, or what gives them once the committees are known.
        """
        silent = silent or {}
        if self.hall.phase == "advertise" and not self.said:
            for name in self.names:
                if name not in silent.get("advertise", ()):
                    self.say(name, self.client(name, Begin(self.round)))
        while self.hall.phase != phase and self.failed is None:
            gone = silent.get(self.hall.phase, ())
            self.silent |= set(gone(self) if callable(gone) else gone)
            while self.told:
                name, message = self.told.popleft()
                if name not in self.silent:
                    self.say(name, self.hear(name, message))
            while self.said and self.hall.phase != phase:
                self.server(self.said.popleft())
            if not self.told and not self.said and self.hall.phase != phase and self.failed is None:
                self.server(Elapsed())
        told, self.told = dict(self.told), deque()
        return told

    def sum(self):
        """The opened sum."""
        total = self.opening.apply(self.answers[self.opening.opener], self.answers[self.opening.keeper])
        return self.opening.ring.decode(total, self.opening.total)[0]

    def exact(self, names):
        return sum(self.vectors[name].double() for name in names)
