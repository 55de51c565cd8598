"""Coverage-guided fuzzing of what reads a peer's bytes: `python fuzz_codec.py [libFuzzer's options]`; needs atheris.

The first byte picks a reader, the second whether it reads the rest as it is, or a valid message edited by the rest.
"""

import sys

import atheris

with atheris.instrument_imports(include=["koinon.wire", "koinon.protocol"]):
    from koinon.core.errors import ProtocolViolation
    from koinon.core.statistics import Ranking, Ratio
    from koinon.protocol.messages import Blob, FromNode, FromServer, Handshake, Offer, Task
    from koinon.wire import channel
    from koinon.wire.codec import decode, encode
    from koinon.wire.identity import Identity

DIGEST = "0" * 64
NODE, SERVER = Identity.generate(), Identity.generate()
HELLO = channel.hello(NODE)
CHALLENGE = channel.challenge(SERVER, HELLO, run="run", certificate=DIGEST)


def prove(data: bytes) -> tuple[channel.Channel, bytes]:
    return channel.prove(NODE, HELLO, data, pinned=SERVER.key, certificate=DIGEST, definition=DIGEST, name="north")


CHANNEL, PROOF = prove(CHALLENGE)
METRICS = {"accuracy": Ratio(1.0, 2.0), "auroc": Ranking((1, 2000), (3, 4))}
OFFER = encode(Offer(1, Blob(DIGEST, 1), 1.0, 1, METRICS, 1.0))
TASK = encode(Task(1, Blob(DIGEST, 1), 3, 60.0))
READERS = (
    (lambda data: decode(data, FromNode), OFFER),
    (lambda data: decode(data, FromServer), TASK),
    (lambda data: decode(data, Handshake), PROOF),
    (lambda data: channel.challenge(SERVER, data, run="run", certificate=DIGEST), HELLO),
    (prove, CHALLENGE),
    (lambda data: channel.admit(SERVER, HELLO, CHALLENGE, data), PROOF),
    (CHANNEL.open, bytes(CHANNEL.seal(Task(1, Blob(DIGEST, 1), 3, 60.0)))),
)


def edit(message: bytes, edits: bytes) -> bytes:
    """The message with single bytes replaced: pairs of a place and a value."""
    edited = bytearray(message)
    for place, value in zip(edits[::2], edits[1::2], strict=False):
        edited[place % len(edited)] = value
    return bytes(edited)


def read(data: bytes) -> None:
    if len(data) < 2:
        return
    reader, message = READERS[data[0] % len(READERS)]
    try:
        reader(edit(message, data[2:]) if data[1] % 2 else data[2:])
    except ProtocolViolation:
        return


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
