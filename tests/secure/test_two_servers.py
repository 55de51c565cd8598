"""Sums by two servers: exact for every pattern of silence, and neither server learns more, whatever it says."""

import dataclasses

import msgspec
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import koinon as kn
from koinon.core.errors import AdmissionError, ClientFailed, ProtocolViolation, Unavailable
from koinon.core.rng import generator
from koinon.secure import SecretShared
from koinon.secure.keys import KeyPair
from koinon.secure.two_servers import First, Roles, Second, contributed
from tests.secure.world import stream

SCHEME = SecretShared(clip=1.0)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), clients=st.integers(3, 20), bits=st.sampled_from((16, 24, 32)))
def test_the_sum_is_that_of_all_whom_both_servers_heard(data, clients, bits):
    scheme = dataclasses.replace(SCHEME, bits=bits, tallies=(kn.secure.Tally(100.0),))
    updates = torch.rand(clients, 40, generator=torch.Generator().manual_seed(clients)) * 2 - 1
    phases = {client: data.draw(st.sampled_from((None, None, "mask", "seed"))) for client in range(clients)}
    drop = {phase: [client for client in phases if phases[client] == phase] for phase in ("mask", "seed")}
    told = [[float(client)] for client in range(clients)]
    left = [client for client in range(clients) if phases[client] is None]
    if len(left) < 3:
        with pytest.raises(Unavailable, match=f"both servers have {len(left)} clients"):
            kn.secure.run_locally(scheme, updates, drop, tallies=told)
        with pytest.raises(Unavailable, match=f"both servers have {len(left)} clients"):
            kn.secure.ideal(scheme, updates, drop, tallies=told)
        return
    result, fast = (each(scheme, updates, drop, tallies=told) for each in (kn.secure.run_locally, kn.secure.ideal))
    assert result.survivors == tuple(left) and result.tallies == (sum(left),)
    assert (result.sum - updates[left].sum(0)).abs().max() <= len(left) * result.ring.resolution + 1e-5
    assert torch.equal(result.sum, fast.sum)
    assert 40 * result.ring.width < result.bytes_up < 40 * result.ring.width + 2000


class World:
    def __init__(self, clients=4, round=1, minimum=3):
        entropy = stream(0)
        self.ring = SCHEME.ring(clients, 50)
        self.identities = {f"n{n}": Ed25519PrivateKey.from_private_bytes(entropy(32)) for n in range(clients)}
        own = KeyPair.of(entropy(32))
        trusted = {name: key.public_key().public_bytes_raw() for name, key in self.identities.items()}
        self.roles = Roles("run", trusted, own.public, self.ring, minimum)
        self.first, self.second = First(self.roles, round), Second(self.roles, round, own)
        self.halves = {
            name: contributed(self.roles, round, name, key.sign, self.encoded(name), entropy)
            for name, key in self.identities.items()
        }

    def encoded(self, name):
        vector = torch.rand(50, generator=generator(0, "vectors", 0, name))
        return self.ring.encode(vector, generator(0, "rounding", 0, name), (1.0,))

    def heard(self, *names):
        for name in names or self.halves:
            self.first = self.first.heard(name, self.halves[name][0])
            self.second = self.second.heard(name, self.halves[name][1])
        return self


def test_the_second_server_answers_for_one_set_in_a_round():
    world = World().heard()
    proposal = world.first.proposal()
    second, names, masks = world.second.asked(proposal)
    assert names == tuple(world.halves)
    assert second.asked(proposal)[1:] == (names, masks), "the same again"
    fewer = {name: digest for name, digest in proposal.items() if name != "n0"}
    with pytest.raises(ProtocolViolation, match="asks a second time in round 1, for other clients"):
        second.asked(fewer)


def test_too_few_are_opened_by_neither():
    world = World().heard("n0", "n1")
    with pytest.raises(ProtocolViolation, match="have 2 clients' halves; the sum of fewer than 3"):
        world.second.asked(world.first.proposal())
    world.heard()
    with pytest.raises(ProtocolViolation, match="other clients"):
        world.first.opened(("n0", "n1"), bytes(world.ring.wire_bytes))
    with pytest.raises(ProtocolViolation, match="other clients"):
        world.first.opened(("n0", "n1", "n1"), bytes(world.ring.wire_bytes))
    with pytest.raises(ProtocolViolation, match="other clients"):
        world.first.opened(("n0", "n1", "zoe"), bytes(world.ring.wire_bytes))


def test_halves_that_do_not_belong_together_are_not_added_up():
    world = World().heard()
    other = contributed(world.roles, 1, "n0", world.identities["n0"].sign, world.encoded("n1"), stream(9))
    proposal = {**world.first.proposal(), "n0": other[1].masked}
    assert world.second.asked(proposal)[1] == ("n1", "n2", "n3")


@pytest.mark.parametrize("side", ["first", "second"])
def test_what_is_not_the_clients_own_of_this_round_is_refused(side):
    world = World().heard()
    server, place = getattr(world, side), ("first", "second").index(side)
    mine, theirs = world.halves["n0"][place], world.halves["n1"][place]
    with pytest.raises(ProtocolViolation, match="did not sign"):
        server.heard("n0", theirs)
    with pytest.raises(ProtocolViolation, match="nobody whom"):
        server.heard("zoe", mine)
    with pytest.raises(ProtocolViolation, match="of round 2; this is round 1"):
        server.heard("n0", msgspec.structs.replace(mine, round=2))
    second = contributed(world.roles, 1, "n0", world.identities["n0"].sign, world.encoded("n0"), stream(5))[place]
    with pytest.raises(ProtocolViolation, match="a second, different"):
        server.heard("n0", second)
    assert server.heard("n0", mine) == server


def test_a_seed_that_was_changed_or_moved_does_not_open():
    world = World()
    half, other = world.halves["n0"][1], world.halves["n1"][1]
    for changes in ({"sealed": other.sealed}, {"x25519": other.x25519}, {"ciphertext": other.ciphertext}):
        with pytest.raises(ProtocolViolation, match="does not open"):
            world.second.heard("n0", msgspec.structs.replace(half, **changes))
    with pytest.raises(ProtocolViolation, match="bytes where"):
        world.first.heard("n0", msgspec.structs.replace(world.halves["n0"][0], data=b"short"))


def test_a_wrong_mask_is_found_out():
    world = World().heard()
    _, names, masks = world.second.asked(world.first.proposal())
    wrong = bytes(byte ^ 1 for byte in masks)
    with pytest.raises(ProtocolViolation, match="did not cancel"):
        world.ring.decode(world.first.opened(names, wrong), len(names))
    assert world.ring.decode(world.first.opened(names, masks), len(names))[1][0] == pytest.approx(4.0)


def test_what_the_first_server_sees_is_uniform_and_fresh_every_time():
    world = World(clients=3)
    entropy = stream(3)
    made = [
        contributed(world.roles, 1, "n0", world.identities["n0"].sign, world.encoded("n0"), entropy)[0].data
        for _ in range(200)
    ]
    words = np.frombuffer(b"".join(made), "<u4")
    assert stats.kstest(words / 2**32, "uniform").pvalue > 1e-3
    assert len(set(made)) == 200


def test_what_cannot_work_is_refused():
    with pytest.raises(AdmissionError, match="two servers, not 3"):
        SecretShared(clip=1.0, servers=3)
    with pytest.raises(AdmissionError, match="hides nothing"):
        SecretShared(clip=1.0, minimum=1)
    with pytest.raises(AdmissionError, match="below minimum=3"):
        kn.secure.run_locally(SCHEME, torch.zeros(2, 3))
    with pytest.raises(AdmissionError, match="needs bits="):
        kn.secure.run_locally(SecretShared(clip=1.0, bits=8, step=0.01), torch.zeros(10, 3))
    with pytest.raises(AdmissionError, match="clients fall silent in mask, seed"):
        kn.secure.run_locally(SCHEME, torch.zeros(5, 3), {"agree": [1]})
    with pytest.raises(ClientFailed, match="not finite"):
        kn.secure.run_locally(SCHEME, torch.full((3, 3), torch.nan))
