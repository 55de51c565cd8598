"""Who may come in, who is sent away, and what each is told."""

import asyncio
import shlex

import pytest

from koinon.cli import enroll
from koinon.core.errors import PolicyRefused, ProtocolViolation
from koinon.durable import roster
from koinon.durable.roster import Roster
from koinon.protocol import session
from koinon.protocol.messages import Goodbye, Ready, Task, Welcome
from koinon.run.policy import Policy
from koinon.wire.identity import Identity, key_text

LIMIT = 60.0


async def enters(host, identity):
    """Come until let in; the words of those who did not let in, before."""
    heard = []
    async with asyncio.timeout(LIMIT):
        while True:
            connection, answer = await host.connect(identity)
            if isinstance(answer, Welcome):
                await connection.close()
                return heard
            heard.append(answer.reason)
            await asyncio.sleep(0.1)


def test_a_node_that_stopped_reading_is_cut_and_let_in_again(room, play, monkeypatch):
    monkeypatch.setattr(session, "PROBE_S", 0.5)

    async def scene():
        async with room("heavy", minimum_nodes=1, silence_s=1000.0) as host:
            identity = host.enrol("0")
            frozen, _ = await host.connect(identity)
            await frozen.send(Ready())
            await asyncio.sleep(0.5)  # for the model to fill every buffer on its way
            (refusal, *_) = await enters(host, identity)
            assert refusal == "0 is connected already; if this is not you, have its identity revoked"
            frozen._pipe._socket._websocket.transport.abort()
        assert not host.faults

    play(scene())


async def refused(node):
    """The words with which a node is sent away for good."""
    async with asyncio.timeout(LIMIT):
        with pytest.raises(ProtocolViolation) as refusal:
            await node.run()
    return str(refusal.value)


def elsewhere(host, act):
    """What an operator does to the roster from another process, while the server runs."""
    other = Roster(host.folder / "roster.db")
    try:
        return act(other)
    finally:
        other.close()


async def nodes_finish(host, *names):
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*(host.node(host.enrol(name), name).run() for name in names))
    return await host.end()


def test_an_unknown_identity_is_told_what_the_operator_has_to_run_and_then_gets_in(room, play, undisturbed, app):
    async def scene():
        async with room(minimum_nodes=2) as host:
            stranger = Identity.generate()
            words = await refused(host.node(stranger, "0"))
            assert "this identity is not approved; the operator can run: koinon enroll approve" in words
            *_, key, name = shlex.split(words)
            assert (key, name) == (key_text(stranger.key), "NAME")
            (entry,) = (entry for entry in elsewhere(host, Roster.entries) if entry.status == "waiting")
            assert entry.key == stranger.key
            elsewhere(host, lambda it: it.approve(enroll.parse_key(key), "0"))
            last, digests = await asyncio.gather(host.node(stranger, "0").run(), nodes_finish(host, "1"))
            assert last.exists()
            assert digests == undisturbed(app("small"), 2).digests

    play(scene())


def test_a_revoked_identity_is_cut_at_once_and_the_others_go_on(room, play, undisturbed, app):
    async def scene():
        async with room(minimum_nodes=3, quorum=0.6) as host:
            identity = host.enrol("2")
            connection, answer = await host.connect(identity)
            assert isinstance(answer, Welcome)
            await connection.send(Ready())
            others = asyncio.create_task(nodes_finish(host, "0", "1"))
            while not isinstance(await connection.receive(), Task):
                pass
            elsewhere(host, lambda it: it.revoke("2"))
            async with asyncio.timeout(1.0):  # ticks are a tenth of their length here
                while not isinstance(goodbye := await connection.receive(), Goodbye):
                    pass
            assert goodbye == Goodbye("this identity was revoked", final=True)
            await connection.close()
            assert "the identity of 2 was revoked; make a new one" in await refused(host.node(identity, "2"))
            while not host.store.completed():
                await asyncio.sleep(0.02)
            others.cancel()  # the next round waits for a third node
            (record,) = host.store.history()
            assert record.digest == undisturbed(app("small"), 2).digests[0]
            assert [part.outcome for part in record.participants] == ["accepted", "accepted", "declined"]

    play(scene())


def test_a_token_lets_one_identity_in_once(room, play, undisturbed, app):
    async def scene():
        async with room(minimum_nodes=2) as host:
            first, second = Identity.generate(), Identity.generate()
            token = elsewhere(host, lambda it: it.invite("0"))
            running = asyncio.create_task(host.node(first, "0", token=token).run())
            while not host.roster.allowed(first.key):
                await asyncio.sleep(0.02)
            words = "the enrolment token is unknown, used or expired; ask the operator for a new one"
            assert words in await refused(host.node(second, "1", token=token))
            assert words in await refused(host.node(second, "1", token="guessed"))
            assert await nodes_finish(host, "1") == undisturbed(app("small"), 2).digests
            assert (await running).exists()

    play(scene())


def test_an_expired_token_lets_nobody_in(room, play, monkeypatch):
    monkeypatch.setattr(roster, "TOKEN_DAYS", -1)

    async def scene():
        async with room() as host:
            token = elsewhere(host, lambda it: it.invite("0"))
            assert "used or expired" in await refused(host.node(Identity.generate(), "0", token=token))

    play(scene())


def test_another_definition_is_refused_with_both_digests(room, play, undisturbed, app):
    async def scene():
        async with room(minimum_nodes=2) as host:
            _, answer = await host.connect(host.enrol("3"), definition="0123456789abcdef" * 4)
            mine = host.app.federation.digest[:16]
            assert answer == Goodbye(
                f"the node's definition is 0123456789abcdef, the server's is {mine}; "
                "use the same app file and versions on both",
                final=True,
            )
            assert await nodes_finish(host, "0", "1") == undisturbed(app("small"), 2).digests

    play(scene())


def test_a_clone_is_refused_while_the_other_is_alive(room, play, undisturbed, app, monkeypatch):
    monkeypatch.setattr(session, "PROBE_S", 0.5)

    async def scene():
        async with room(minimum_nodes=2) as host:
            identity = host.enrol("0")
            alive = asyncio.create_task(host.node(identity, "0").run())
            while not host.server.health()["nodes"]:
                await asyncio.sleep(0.02)
            for _ in range(10):  # for longer than the living one has to answer the probe
                _, answer = await host.connect(identity)
                reason = "0 is connected already; if this is not you, have its identity revoked"
                assert answer == Goodbye(reason, final=False)
                await asyncio.sleep(0.1)
            assert host.server.health()["nodes"] == 1
            assert await nodes_finish(host, "1") == undisturbed(app("small"), 2).digests
            assert (await alive).exists()

    play(scene())


def test_an_owners_policy_is_heard_before_anything_is_sent(room, play, undisturbed, app):
    async def scene():
        async with room(minimum_nodes=2) as host:
            with pytest.raises(PolicyRefused, match="most_rounds = 2 forbids a run of 3 rounds"):
                await host.node(host.enrol("3"), "2", policy=Policy(most_rounds=2)).run()
            assert await nodes_finish(host, "0", "1") == undisturbed(app("small"), 2).digests

    play(scene())


def test_a_node_whose_policy_refuses_a_round_declines_and_the_others_go_on(room, play, undisturbed, app):
    async def scene():
        async with room(minimum_nodes=3, quorum=0.6) as host:
            third = host.node(host.enrol("2"), "2", policy=Policy(smallest_cohort=4))
            declining = asyncio.create_task(third.run())
            assert await nodes_finish(host, "0", "1") == undisturbed(app("small"), 2).digests
            assert (await declining).exists()  # who may not train may have the model
            for record in host.store.history():
                (declined,) = (part for part in record.participants if part.outcome == "declined")
                assert declined.client == "2"
                assert "smallest_cohort = 4 forbids a cohort of 3" in declined.reason

    play(scene())
