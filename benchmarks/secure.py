"""Secure sums: a million parameters masked and unmasked, against the bare AES-256 keystreams that this takes.

The masks to take away are those of a round that was played with all its keys; what these cost a client has a line of its own.
One thread, in turns, so that what else the machine does hits both alike.
"""

import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from benchmarks.figures import Figure
from koinon.core.rng import generator
from koinon.secure import client, server
from koinon.secure.events import Begin, ClientEvent, Contribute, Elapsed, Heard, Open, Received, Say, Tell
from koinon.secure.mask import add_masks
from koinon.secure.messages import FromClient
from koinon.secure.opening import Opening
from koinon.secure.ring import Ring, Tally
from koinon.secure.secure_sum import SecureSum
from koinon.secure.shamir import combined, shares

LENGTH = 1_000_000
BLOCK = 1 << 16
CLIENTS = 100
MEBIBYTE = 1 << 20


def measure(folder: Path, quick: bool) -> list[Figure]:
    length, turns = (20_000, 2) if quick else (LENGTH, 9)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        figures = [masking(length, turns, neighbours, most) for neighbours, most in ((10, 3.0), (100, 2.5))]
        clients = CLIENTS // 5 if quick else CLIENTS
        return [*figures, *unmasking(length, max(2, turns // 3), clients), *sharing(turns), wire(length)]
    finally:
        torch.set_num_threads(threads)


def masking(length: int, turns: int, neighbours: int, most: float) -> Figure:
    """From the trained update to the bytes that leave: clipped, rounded, masked, packed."""
    ring = Ring(32, neighbours + 1, 1.0, length, tallies=(Tally(1e6), Tally(1e6)))
    vector, seeds = torch.randn(length, generator=generator(0, "benchmark")), drawn(neighbours + 1)
    half = len(seeds) // 2

    def masked() -> bytes:
        encoded = ring.encode(vector, generator(0, "rounding"), (1.0, 600.0))
        return ring.pack(add_masks(encoded, seeds[:half], seeds[half:]))

    taken, floor = in_turns(turns, masked, lambda: keystreams(seeds, 4 * length))
    what = f"{length:,} parameters, {neighbours} neighbours: round, mask, pack"
    return Figure(what, taken, "ms", floor, f"<= {most:.1f}x the keystreams", taken <= most * floor)


def unmasking(length: int, turns: int, clients: int) -> list[Figure]:
    """Masked updates added up and opened, from the revealed shares on; and what a client's keys took."""
    gone = clients // 10
    played = Played(SecureSum(clip=1.0), clients, gone)
    ring = played.host.scheme.ring(clients, length)
    updates: list[bytes] = []

    def opened() -> Opening:
        _, (effect,) = server.step(played.host, played.hall, Elapsed())
        assert isinstance(effect, Open)
        if not updates:  # one that holds all masks that are to be taken away, the others nothing
            masks = add_masks(ring.zeros(), effect.opening.minus, effect.opening.plus)
            updates.extend([ring.pack(masks), *[ring.pack(ring.zeros())] * (len(effect.opening.survivors) - 1)])
        total = ring.zeros()
        for update in updates:
            np.add(total, ring.unpack(update), out=total)
        ring.decode(effect.opening.apply(total), len(effect.opening.survivors))
        return effect.opening

    opening = opened()
    seeds = [*opening.plus, *opening.minus]
    taken, floor = in_turns(turns, opened, lambda: keystreams(seeds, 4 * length))
    what = f"{length:,} parameters, {clients} clients, {gone} silent, {len(seeds)} masks: recover, add up, unmask"
    neighbours = played.host.scheme.sizes(clients).neighbours
    keys = 1000 * statistics.median(played.seconds.values())
    return [
        Figure(what, taken, "ms", floor, "<= 3.0x the keystreams", taken <= 3 * floor),
        Figure(f"a client's keys, parcels and signatures, {neighbours} neighbours of {clients}", keys, "ms"),
    ]


class Played:
    """A round of the state machines up to its opening, with vectors of no length."""

    def __init__(self, scheme: SecureSum, clients: int, gone: int) -> None:
        identities = {f"{number:04d}": Ed25519PrivateKey.generate() for number in range(clients)}
        trusted = {name: identity.public_key().public_bytes_raw() for name, identity in identities.items()}
        self.host = server.Host("run", trusted, scheme, 0)
        self.hall = server.ServerState(1, tuple(identities))
        self.parties = {
            name: client.Party("run", name, identity.sign, trusted, scheme, 0) for name, identity in identities.items()
        }
        self.states = dict.fromkeys(identities, client.ClientState())
        self.seconds = dict.fromkeys(list(identities)[gone:], 0.0)
        said = deque(item for name in identities for item in self.hear(name, Begin(1)))
        while self.hall.phase != "opened":
            self.hall, effects = server.step(self.host, self.hall, Received(*said.popleft()) if said else Elapsed())
            for effect in effects:
                if isinstance(effect, Tell):
                    said += self.hear(effect.client, Heard(effect.message))

    def hear(self, name: str, event: ClientEvent) -> list[tuple[str, FromClient]]:
        began, said = time.perf_counter(), []
        self.states[name], effects = client.step(self.parties[name], self.states[name], event, os.urandom)
        for effect in effects:
            if isinstance(effect, Say):
                said.append((name, effect.message))
            elif name in self.seconds:
                said += self.hear(name, Contribute(effect.ring.encode(torch.zeros(0), generator(0, name), (1.0,))))
        if name in self.seconds:
            self.seconds[name] += time.perf_counter() - began
        return said


def sharing(turns: int) -> list[Figure]:
    threshold, points = CLIENTS // 2 + 1, range(1, CLIENTS + 1)
    seed = os.urandom(32)
    both, _ = in_turns(turns, lambda: [shares(seed, threshold, points, os.urandom) for _ in range(2)], lambda: None)
    held = dict(zip(points, shares(seed, threshold, points, os.urandom), strict=True))
    few = {point: held[point] for point in points[:threshold]}
    back, _ = in_turns(turns, lambda: combined(few), lambda: None)
    return [
        Figure(f"shares of both seeds for {CLIENTS} neighbours", both, "ms", None, "< 10 ms", both < 10),
        Figure(f"a seed from {threshold} shares, points as before", back, "ms"),
    ]


def wire(length: int) -> Figure:
    ring = Ring(16, 10, 1.0, length, tallies=(Tally(1e6), Tally(1e6)))
    size, plain = ring.wire_bytes / MEBIBYTE, 4 * length / MEBIBYTE
    return Figure(
        f"{length:,} parameters at 16 bits on the wire", size, "MiB", plain, "< 2.2 bytes each", size < 0.55 * plain
    )


def drawn(count: int) -> list[bytes]:
    return [os.urandom(32) for _ in range(count)]


def keystreams(seeds: Sequence[bytes], size: int) -> None:
    """The floor: as many bytes of keystream for each seed, into one buffer that stays in the cache."""
    zeros, buffer = bytes(BLOCK), bytearray(BLOCK)
    for seed in seeds:
        update_into = Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor().update_into
        for start in range(0, size, BLOCK):
            count = min(BLOCK, size - start)
            update_into(memoryview(zeros)[:count], memoryview(buffer)[:count])


def in_turns(turns: int, ours: Callable[[], object], floor: Callable[[], object]) -> tuple[float, float]:
    """Medians in milliseconds; the first turn warms up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(turns + 1):
        for run, each in zip((ours, floor), seconds, strict=True):
            began = time.perf_counter()
            run()
            each.append(time.perf_counter() - began)
    ours_ms, floor_ms = (1000 * statistics.median(each[1:]) for each in seconds)
    return ours_ms, floor_ms
