"""A round whose server the test is: every state goes through its bytes, and every message can be read and changed."""

import hashlib
from collections import deque

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from koinon.core.rng import generator
from koinon.secure import client, server
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
    Returned,
    Say,
    Tell,
    Want,
)
from koinon.secure.party import Party
from koinon.secure.secure_sum import SecureSum

SCHEME = SecureSum(clip=1.0, dropout=0.1)


def stream(seed):
    """Entropy that is the same in every run."""
    count = 0

    def entropy(length):
        nonlocal count
        count += 1
        return hashlib.shake_256(f"{seed}/{count}".encode()).digest(length)

    return entropy


class World:
    def __init__(self, clients=5, scheme=SCHEME, length=8, round=1, seed=0):
        self.entropy, self.scheme, self.round, self.length = stream(seed), scheme, round, length
        self.names = tuple(f"n{number:03d}" for number in range(clients))
        keys = {name: Ed25519PrivateKey.from_private_bytes(self.entropy(32)) for name in self.names}
        self.keys = keys
        trusted = {name: key.public_key().public_bytes_raw() for name, key in keys.items()}
        self.parties = {name: Party("run", name, key.sign, trusted, scheme, length) for name, key in keys.items()}
        self.host = server.Host("run", trusted, scheme, length)
        self.states = dict.fromkeys(self.names, client.ClientState())
        self.vectors = {
            name: torch.rand(length, generator=generator(seed, "updates", 0, name)) * 2 - 1 for name in self.names
        }
        self.hall = server.ServerState(round, self.names)
        self.kept, self.opening, self.failed, self.refused = {}, None, None, []
        self.told, self.said = deque(), deque()

    def begin(self, silent=()):
        for name in self.names:
            if name not in silent:
                self.said.extend((name, message) for message in self.client(name, Begin(self.round)))

    def hear(self, name, message):
        """What a client answers; its state is written and read in between."""
        return self.client(name, Heard(message))

    def client(self, name, event):
        state, effects = client.step(self.parties[name], self.states[name], event, self.entropy)
        self.states[name] = client.load(client.dump(state))
        answers = []
        for effect in effects:
            match effect:
                case Say(message):
                    answers.append(message)
                case Want(_, ring):
                    answers += self.client(name, Contribute(self.encoded(name, ring)))
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
                    self.kept[name] = data
                case Refuse(name, reason):
                    self.refused.append((name, reason))
                case Abort(reason):
                    self.failed = reason
                case Open(opening):
                    self.opening = opening
        return effects

    def until(self, phase, silent=None):
        """Play honestly until the server has told everybody of a phase; what it says there is not delivered."""
        silent = silent or {}
        if self.hall.phase == "advertise" and not self.said:
            self.begin(silent.get("advertise", ()))
        gone = set()
        while self.hall.phase != phase and self.failed is None:
            while self.told:
                name, message = self.told.popleft()
                if name not in gone | set(silent.get(self.hall.phase, ())):
                    self.said.extend((name, answer) for answer in self.hear(name, message))
            gone |= set(silent.get(self.hall.phase, ()))
            while self.said:
                self.server(Received(*self.said.popleft()))
            if not self.told and self.hall.phase != phase and self.failed is None:
                self.server(Elapsed())
        told, self.told = dict(self.told), deque()
        return told

    def sum(self):
        """The opened sum."""
        ring = server.cohort(self.host, self.hall).ring
        total = ring.zeros()
        for name in self.opening.survivors:
            np.add(total, ring.unpack(self.kept[name]), out=total)
        return ring.decode(self.opening.apply(total), len(self.opening.survivors))[0]

    def exact(self, names):
        return sum(self.vectors[name].double() for name in names)


__all__ = ["SCHEME", "Returned", "World", "stream"]
