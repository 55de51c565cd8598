"""Whatever a node sends, the server says in one line what is wrong, and the others come to the right model."""

import asyncio
import contextlib
import hashlib
import math
from dataclasses import replace

import msgspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from koinon.core.errors import KoinonError
from koinon.core.statistics import Ranking, Ratio
from koinon.protocol.events import Joined, Received, Tick
from koinon.protocol.messages import (
    CHUNK_BYTES,
    Accepted,
    Blob,
    Chunk,
    Continue,
    Declined,
    Delivered,
    Finished,
    Goodbye,
    Heartbeat,
    Leave,
    Offer,
    Ready,
    Refused,
    Task,
)
from koinon.protocol.session import LONGEST_TICK_S, step
from koinon.protocol.state import SessionState, Terms

THREE = {"minimum_nodes": 3, "quorum": 0.6}
LIMIT = 120.0


def values(count, **odd):
    """Bytes of an update of zeros, with odd ones at the end."""
    vector = torch.zeros(count, dtype=odd.get("dtype", torch.float32))
    vector[-1] = odd.get("last", 0.0)
    return vector.numpy().tobytes()


class Hostile:
    """A node that does as it should, but for one act in the first round that it is asked for.

    Attributes:
        heard: Every word of refusal, in order.
    """

    def __init__(self, room, act):
        self.room = room
        self.act = act
        self.identity = room.enrol("2")
        self.length = room.app.federation.learner.layout.length
        self.heard = []
        self.acted = False
        self.there = asyncio.Event()

    async def live(self):
        while True:
            try:
                if await self._visit():
                    return
            except KoinonError as error:
                self.heard.append(str(error))

    async def _visit(self):
        connection, answer = await self.room.connect(self.identity)
        assert not isinstance(answer, Goodbye), answer
        await connection.send(Ready())
        self.there.set()
        while True:
            message = await connection.receive()
            match message:
                case Task() if not self.acted:
                    self.acted = True
                    await self.act(self, connection, message)
                case Task():
                    await connection.send(Declined(message.round, ""))
                case Refused():
                    self.heard.append(message.reason)
                case Finished():
                    await connection.send(Leave("done"))
                case Goodbye():
                    self.heard.append(message.reason)
                    await connection.close()
                    return message.final

    async def offer(self, connection, data, **changes):
        """Offer an update of these bytes; what it is said to be may be changed."""
        changes.setdefault("round", 1)
        changes.setdefault("update", Blob(hashlib.sha256(data).hexdigest(), len(data)))
        offer = msgspec.structs.replace(Offer(1, changes["update"], 1.0, 1, {}, 0.0), **changes)
        await connection.send(offer)
        return offer.update

    async def upload(self, connection, data, *chunks, **changes):
        """Offer, and when the server is ready send these pieces instead of the right ones."""
        update = await self.offer(connection, data, **changes)
        while not isinstance(message := await connection.receive(), Continue):
            assert isinstance(message, Chunk), message  # of the model
        for offset, piece in chunks or [(0, data)]:
            await connection.send(Chunk(update.digest, offset, piece))


async def wrong_shape(me, connection, task):
    await me.offer(connection, values(3))


async def wrong_dtype(me, connection, task):
    await me.offer(connection, values(me.length, dtype=torch.float64))


async def nan(me, connection, task):
    await me.upload(connection, values(me.length, last=float("nan")))


async def infinite(me, connection, task):
    await me.upload(connection, values(me.length, last=float("-inf")))


async def wrong_digest(me, connection, task):
    await me.upload(connection, values(me.length), (0, values(me.length, last=1.0)))


async def wrong_offset(me, connection, task):
    data = values(me.length)
    await me.upload(connection, data, (4, data[4:]))


async def same_piece_twice(me, connection, task):
    data = values(me.length)
    await me.upload(connection, data, (0, data[:8]), (0, data[:8]))


async def too_many_bytes(me, connection, task):
    data = values(me.length)
    await me.upload(connection, data, (0, data + b"more"))


async def no_bytes(me, connection, task):
    await me.upload(connection, values(me.length), (0, b""))


async def chunk_out_of_nowhere(me, connection, task):
    await connection.send(Chunk("0" * 64, 0, b"data"))


async def another_round(me, connection, task):
    await me.offer(connection, values(me.length), round=7)
    await connection.send(Declined(1, ""))


async def a_round_that_is_over(me, connection, task):
    await me.offer(connection, values(me.length), round=0)
    await connection.send(Declined(1, ""))


async def two_updates(me, connection, task):
    await me.offer(connection, values(me.length))
    await me.offer(connection, values(me.length, last=1.0))


async def too_large_to_be_true(me, connection, task):
    await me.offer(connection, b"", update=Blob("0" * 64, 2**52))


async def ready_again(me, connection, task):
    await connection.send(Ready())


async def what_only_a_server_says(me, connection, task):
    await connection.send(Accepted(1))


async def infinite_weight(me, connection, task):
    await me.offer(connection, values(me.length), weight=float("inf"))


async def nan_weight(me, connection, task):
    await me.offer(connection, values(me.length), weight=float("nan"))


async def uneven_ranking(me, connection, task):
    ranking = Ranking((1,), (1,))
    msgspec.structs.force_setattr(ranking, "positives", ())
    await me.offer(connection, values(me.length), metrics={"auroc": ranking})


async def delivered_too_early(me, connection, task):
    await connection.send(Delivered(task.model.digest, {}))
    await connection.send(Declined(1, ""))


async def replayed(me, connection, task):
    frame = bytes(connection._channel.seal(Heartbeat()))
    await connection._pipe.send(frame)
    await connection._pipe.send(frame)


async def out_of_order(me, connection, task):
    first, second = (bytes(connection._channel.seal(Heartbeat())) for _ in range(2))
    await connection._pipe.send(second)
    await connection._pipe.send(first)


async def of_another_conversation(me, connection, task):
    other, _ = await me.room.connect(me.room.enrol("3"))
    await connection._pipe.send(bytes(other._channel.seal(Heartbeat())))
    await other.close()


async def truncated(me, connection, task):
    await connection._pipe.send(bytes(connection._channel.seal(Heartbeat()))[:-1])


async def nothing_at_all(me, connection, task):
    await connection._pipe.send(b"")


async def oversized(me, connection, task):
    await connection._pipe.send(bytes(2 * CHUNK_BYTES))


async def text(me, connection, task):
    await connection._pipe._socket._websocket.send("let me in")


ACTS = [
    (wrong_shape, "the update has 12 bytes, a model of this definition has 60"),
    (wrong_dtype, "the update has 120 bytes, a model of this definition has 60"),
    (nan, "the update holds NaN or infinite values"),
    (infinite, "the update holds NaN or infinite values"),
    (wrong_digest, "the update's bytes do not have the offered digest"),
    (wrong_offset, "2 sends bytes from 4, 0 would be next"),
    (same_piece_twice, "2 sends bytes from 0, 8 would be next"),
    (too_many_bytes, "2 sends more bytes than it offered, or none"),
    (no_bytes, "2 sends more bytes than it offered, or none"),
    (chunk_out_of_nowhere, "2 sends a chunk of an update that was not expected"),
    (another_round, "round 7 is not open; the server is at round 1"),
    (a_round_that_is_over, "round 0 is not open; the server is at round 1"),
    (two_updates, "a second, different update for the same round"),
    (too_large_to_be_true, f"the update has {2**52} bytes, a model of this definition has 60"),
    (ready_again, "Ready was not expected here"),
    (what_only_a_server_says, "the peer sent a malformed message: Invalid value 'Accepted'"),
    (infinite_weight, "the peer sent a malformed message: Expected `float` < 1e+18 - at `$.weight`"),
    (nan_weight, "the peer sent a malformed message: Expected `float` >= 0.0 - at `$.weight`"),
    (uneven_ranking, "the peer sent a malformed message: a ranking needs as many bins"),
    (delivered_too_early, "until next time"),  # nothing happened: it was heard to the end
    (replayed, "the peer replayed message 1; the next is 2"),
    (out_of_order, "the peer skipped messages: 2 came, the next is 1"),
    (of_another_conversation, "the peer's signature does not match its key and what it sent"),
    (truncated, "the peer's signature does not match its key and what it sent"),
    (nothing_at_all, "the peer sent a frame of 0 bytes"),
    (oversized, "code 1009"),
    (text, "the peer sent text, but messages are binary"),
]


@pytest.mark.parametrize(("act", "words"), ACTS, ids=[act.__name__ for act, _ in ACTS])
def test_a_bad_message_is_named_and_the_others_go_on(room, play, undisturbed, app, act, words):
    async def scene():
        async with room(**THREE) as host:
            bad = Hostile(host, act)
            async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as everyone:
                everyone.create_task(bad.live())
                for name in ("0", "1"):
                    everyone.create_task(host.node(host.enrol(name), name).run())
            assert await host.end() == undisturbed(app("small"), 2).digests
            assert bad.acted
            assert any(words in line for line in bad.heard), bad.heard
            first = host.store.history()[0].participants
            assert {part.client: part.outcome for part in first} == {"0": "accepted", "1": "accepted"} | {
                "2": "refused" if act in REFUSED else "declined"
            }

    play(scene())


REFUSED = {wrong_shape, wrong_dtype, nan, infinite, wrong_digest, two_updates, too_large_to_be_true}

LIES = [
    {"train_loss": Ratio(math.nan, 1.0), "loss": Ratio(math.inf, 1.0)},
    {"train_loss": Ratio(1.0, 0.0), "loss": Ratio(-1.0, 0.0)},
    {"train_loss": Ranking((1,), (2,)), "loss": Ranking((1,), (2,)), "accuracy": Ranking((), ())},
    {"train_loss": Ranking((2**62,) * 9, (-1,) * 9), "loss": Ranking((2**63,), (2**63,))},
]


class Liar:
    """A learner whose updates are right and whose metrics are not."""

    def __init__(self, learner, lie):
        self._learner = learner
        self._lie = lie

    def __getattr__(self, name):
        return getattr(self._learner, name)

    def train(self, *args):
        return replace(self._learner.train(*args), metrics=self._lie)


@pytest.mark.parametrize("lie", LIES, ids=["not finite", "of nothing", "of another kind", "overflowing"])
def test_metrics_that_make_no_sense_spoil_neither_the_run_nor_its_history(room, play, undisturbed, app, lie):
    async def scene():
        async with room(minimum_nodes=3) as host:
            nodes = [host.node(host.enrol(name), name) for name in ("0", "1", "2")]
            honest = nodes[2]._federation
            nodes[2]._federation = replace(honest, learner=Liar(honest.learner, lie))
            nodes[2]._federation.__dict__["digest"] = honest.digest
            async with asyncio.timeout(LIMIT):
                await asyncio.gather(*(node.run() for node in nodes))
            assert await host.end() == undisturbed(app("small"), 3).digests
            for record in host.store.history():
                assert record.metrics["accuracy"] >= 0
                assert record.by_client["1"]["accuracy"] >= 0
                assert record.training.keys() >= {"loss"}

    play(scene())


def test_random_bytes_at_every_door_leave_the_run_alone(room, play, undisturbed, app):
    """Frames cut, doubled, swapped, flipped or invented, before and after a valid handshake."""
    loop = asyncio.new_event_loop()
    run = loop.run_until_complete
    host = room(minimum_nodes=2)
    run(host.__aenter__())
    known = host.enrol("3")

    async def honest(name):
        return asyncio.create_task(host.node(host.enrol(name), name).run())

    early = run(honest("0"))

    async def attack(how, data, place):
        connection, answer = await host.connect(known)
        if isinstance(answer, Goodbye):  # the one before it is just being cut
            return await connection.close()
        sealed = bytearray(connection._channel.seal(Chunk("0" * 64, place, data)))
        match how:
            case "flipped":
                sealed[place % len(sealed)] ^= 1 + place % 255
            case "cut":
                sealed = sealed[: place % len(sealed)]
            case "invented":
                sealed = data
            case "doubled":
                await connection._pipe.send(bytes(connection._channel.seal(Ready())))
        with contextlib.suppress(KoinonError):
            for _ in range(2):
                await connection._pipe.send(bytes(sealed))
            while True:
                assert not isinstance(await connection.receive(), Accepted)
        return await connection.close()

    async def knock(data, place):
        for secure in (None, host.node(known, "2")._address.context):
            _, writer = await asyncio.open_connection("127.0.0.1", host.port, ssl=secure)
            writer.write(data + bytes(place % 5))
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            writer.transport.abort()

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
    @given(
        st.sampled_from(["flipped", "cut", "invented", "doubled", "knock"]),
        st.binary(max_size=300),
        st.integers(0, 2**20),
    )
    def flood(how, data, place):
        run(asyncio.wait_for(knock(data, place) if how == "knock" else attack(how, data, place), LIMIT))
        assert not early.done()

    flood()

    async def the_others_finish():
        async with asyncio.timeout(LIMIT):
            await asyncio.gather(early, await honest("1"))
        assert await host.end() == undisturbed(app("small"), 2).digests

    run(the_others_finish())
    run(host.__aexit__(None, None, None))
    loop.close()


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=40))
def test_a_clock_that_jumps_costs_nobody_more_than_a_tick(clock):
    """Neither a silence nor a deadline comes nearer by more than one tick can take, and no time comes back."""
    model = Blob("0" * 64, 4)
    terms = Terms(rounds=1, draw=lambda _, nodes: nodes, minimum_nodes=2, deadline_s=LONGEST_TICK_S * 41)
    state = SessionState(model)
    for event in (Tick(0.0), Joined("a", Ready()), Joined("b", Ready())):
        state, _ = step(terms, state, event)
    for world in clock:
        before = state.now
        state, effects = step(terms, state, Tick(world))
        assert before <= state.now <= before + LONGEST_TICK_S
        assert effects == ()  # nobody is cut, no round is closed
        for node in ("a", "b"):
            state, _ = step(terms, state, Received(node, Heartbeat()))
    assert state.round.missing == ("a", "b")
    assert state.present == ["a", "b"]
