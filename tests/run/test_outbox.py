"""The order in which things leave over one connection."""

import asyncio

from koinon.protocol.messages import Chunk, Goodbye, Heartbeat, Message, Summing
from koinon.run.outbox import FileChunks, Outbox

PIECE = 1 << 18
"""Bytes that a blob is read by."""


class Line:
    """A connection that keeps what was sent, and lets something happen after each message."""

    def __init__(self, happens: dict[int, list[Message]]) -> None:
        self.sent: list[Message] = []
        self.outbox = Outbox(self)
        self._happens = happens

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        for item in self._happens.get(len(self.sent), []):
            self.outbox.put(item)

    async def close(self, reason: str) -> None:
        """Nothing is behind it."""


def sent(items, happens=None) -> list[str]:
    """What left: a blob's offset in pieces, a message of a sum in its own words, others by name."""

    async def conversation() -> list[Message]:
        line = Line(happens or {})
        for item in [*items, Goodbye("done", final=True)]:
            line.outbox.put(item)
        await line.outbox.run()
        return line.sent

    return [word(message) for message in asyncio.run(conversation())]


def word(message: Message) -> str:
    match message:
        case Chunk():
            return f"piece {message.offset // PIECE}"
        case Summing():
            return message.message.decode()
        case _:
            return type(message).__name__


def blob(tmp_path) -> FileChunks:
    path = tmp_path / "blob"
    path.write_bytes(bytes(3 * PIECE))
    return FileChunks("0" * 64, path, 0, 3 * PIECE, 0, "test.piece")


def test_a_message_of_a_sum_leaves_between_two_pieces_of_a_blob_and_once(tmp_path):
    late = {1: [Summing(b"keys"), Summing(b"shares")]}
    assert sent([blob(tmp_path)], late) == ["piece 0", "keys", "shares", "piece 1", "piece 2", "Goodbye"]


def test_nothing_else_overtakes_a_blob(tmp_path):
    late = {1: [Heartbeat(), Summing(b"keys")]}
    assert sent([blob(tmp_path), Heartbeat()], late)[:4] == ["piece 0", "keys", "piece 1", "piece 2"]


def test_a_message_of_a_sum_waits_for_what_is_no_blob():
    assert sent([Heartbeat(), Summing(b"keys"), Heartbeat()]) == ["Heartbeat", "keys", "Heartbeat", "Goodbye"]


def test_what_is_said_before_a_blob_leaves_before_it(tmp_path):
    said = [Summing(b"keys"), Summing(b"shares"), blob(tmp_path)]
    assert sent(said) == ["keys", "shares", "piece 0", "piece 1", "piece 2", "Goodbye"]
