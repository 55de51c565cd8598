"""Who speaks, in which conversation, in which order: the handshake and the signed envelope. No I/O.

    hello      node's key and nonce                        ->
                                                           <-  challenge  server's key and nonce, run, certificate
    proof      definition, name, token                     ->

The challenge is signed over the hello, the proof over both, each signature under its own domain. The node pins
the server's key and compares the certificate that the server signed with the one its TLS connection saw, so
somebody in between with a certificate from a trusted authority is refused before the token is revealed.

Afterwards a frame is `signature (64) | number (8, big endian) | message`. The signature covers a digest of the whole
handshake, the direction, the number and the SHA-256 of the message; the number must be exactly the next.
"""

import hashlib
import secrets
import struct
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from koinon.core.errors import ProtocolViolation
from koinon.protocol.messages import (
    MAX_MESSAGE_BYTES,
    VERSION,
    Challenge,
    FromNode,
    FromServer,
    Handshake,
    Hello,
    Message,
    Proof,
)
from koinon.wire.codec import Data, decode, encode, encode_behind
from koinon.wire.identity import Identity, key_text, verify

HANDSHAKE_BYTES = 4 << 10
"""Largest message of the handshake, in bytes."""

ENVELOPE_BYTES = 72
"""What a frame adds to its message, in bytes."""

_ENVELOPE = struct.Struct(">64sQ")
_UP, _DOWN = b"node to server", b"server to node"
_UNSIGNED = bytes(64)
_H = TypeVar("_H", Hello, Challenge, Proof)


@dataclass(frozen=True)
class Applicant:
    """A node that has proved who it is; whether it may join is for the caller to say.

    Attributes:
        key: Its public key.
        definition: Digest of the definition that it has.
        name: The name it asks for, if any.
        token: Its one-time token, or empty.
    """

    key: bytes
    definition: str
    name: str | None
    token: str


@dataclass
class Channel:
    """One side of an established conversation: numbers and signs what goes out, checks what comes in.

    Attributes:
        identity: This side's identity.
        peer: The other side's public key.
        session: Digest of the whole handshake.
    """

    identity: Identity
    peer: bytes
    session: bytes
    _outgoing: bytes
    _incoming: bytes
    _among: object
    _sent: int = field(default=0, init=False)
    _received: int = field(default=0, init=False)

    def seal(self, message: Message) -> bytearray:
        """The next outgoing frame.

        Raises:
            AdmissionError: if the message is larger than any peer accepts.
        """
        frame = encode_behind(message, ENVELOPE_BYTES)
        digest = hashlib.sha256(memoryview(frame)[ENVELOPE_BYTES:]).digest()
        signature = self.identity.sign(self._envelope(self._outgoing, self._sent, digest))
        _ENVELOPE.pack_into(frame, 0, signature, self._sent)
        self._sent += 1
        return frame

    def open(self, data: Data) -> Message:
        """The message in the next incoming frame.

        Raises:
            ProtocolViolation: if it is too large, truncated, not by the peer, not of this conversation and direction,
                replayed, out of order, or no message that the peer may send. The channel stays as it was.
        """
        frame = memoryview(data)
        if not ENVELOPE_BYTES < frame.nbytes <= MAX_MESSAGE_BYTES:
            raise ProtocolViolation(
                f"the peer sent a frame of {frame.nbytes} bytes; one has {ENVELOPE_BYTES + 1} to {MAX_MESSAGE_BYTES}"
            )
        signature, number = _ENVELOPE.unpack_from(frame)
        body = frame[ENVELOPE_BYTES:]
        verify(self.peer, self._envelope(self._incoming, number, hashlib.sha256(body).digest()), signature)
        if number < self._received:
            raise ProtocolViolation(f"the peer replayed message {number}; the next is {self._received}")
        if number > self._received:
            raise ProtocolViolation(f"the peer skipped messages: {number} came, the next is {self._received}")
        message = decode(body, self._among)
        self._received += 1
        return message

    def _envelope(self, direction: bytes, number: int, digest: bytes) -> bytes:
        return b"\0".join((b"koinon message 1", direction, self.session + number.to_bytes(8, "big") + digest))


def hello(identity: Identity) -> bytes:
    """The node's first message."""
    return encode(Hello(VERSION, identity.key, secrets.token_bytes(32)))


def challenge(identity: Identity, greeting: bytes, *, run: str, certificate: str) -> bytes:
    """The server's answer to a node's hello.

    Args:
        identity: The server's identity.
        greeting: What the node sent.
        run: Id of the run that the server serves.
        certificate: SHA-256 of the server's TLS certificate, in hex.

    Raises:
        ProtocolViolation: if the greeting is no Hello, or one of another version.
    """
    version = _expect(greeting, Hello).version
    if version != VERSION:
        raise ProtocolViolation(
            f"the node speaks protocol version {version}, the server {VERSION}; install the same Koinon on both"
        )
    unsigned = Challenge(identity.key, secrets.token_bytes(32), run, certificate, _UNSIGNED)
    signature = identity.sign(_transcript(b"koinon server 1", greeting, encode(unsigned)))
    return encode(msgspec.structs.replace(unsigned, signature=signature))


def prove(
    identity: Identity,
    greeting: bytes,
    challenged: bytes,
    *,
    pinned: bytes,
    certificate: str,
    definition: str,
    name: str | None = None,
    token: str = "",
) -> tuple[Channel, bytes]:
    """The node's channel and its proof, once the server has proved itself.

    Args:
        identity: The node's identity.
        greeting: What the node sent.
        challenged: What the server answered.
        pinned: The public key that the server must have.
        certificate: SHA-256 of the certificate that the TLS connection really saw, in hex.
        definition: Digest of the definition on the node's disk.
        name: The name that the node asks for.
        token: One-time enrolment token, or empty.

    Raises:
        ProtocolViolation: if the server is not the pinned one, or not the one at the other end of this connection.
    """
    received = _expect(challenged, Challenge)
    if received.key != pinned:
        raise ProtocolViolation(
            f"the server's key is {key_text(received.key)}, but {key_text(pinned)} is pinned; ask the operator which is right"
        )
    unsigned_challenge = encode(msgspec.structs.replace(received, signature=_UNSIGNED))
    verify(pinned, _transcript(b"koinon server 1", greeting, unsigned_challenge), received.signature)
    if received.certificate != certificate:
        raise ProtocolViolation(
            "the server vouches for another TLS certificate than this connection has: somebody is in between, "
            "or the certificate was renewed and the server not restarted"
        )
    unsigned = Proof(definition, name, token, _UNSIGNED)
    signature = identity.sign(_transcript(b"koinon node 1", greeting, challenged, encode(unsigned)))
    proof = encode(msgspec.structs.replace(unsigned, signature=signature))
    session = _session(greeting, challenged, proof)
    return Channel(identity, pinned, session, _UP, _DOWN, FromServer), proof


def admit(identity: Identity, greeting: bytes, challenged: bytes, proof: bytes) -> tuple[Channel, Applicant]:
    """The server's channel and who is at its other end, once the node has proved itself.

    Raises:
        ProtocolViolation: if the proof is malformed or not by the holder of the key in the greeting.
    """
    key = _expect(greeting, Hello).key
    received = _expect(proof, Proof)
    unsigned = encode(msgspec.structs.replace(received, signature=_UNSIGNED))
    verify(key, _transcript(b"koinon node 1", greeting, challenged, unsigned), received.signature)
    session = _session(greeting, challenged, proof)
    applicant = Applicant(key, received.definition, received.name, received.token)
    return Channel(identity, key, session, _DOWN, _UP, FromNode), applicant


def _expect(data: bytes, kind: type[_H]) -> _H:
    message = decode(data, Handshake, HANDSHAKE_BYTES)
    if not isinstance(message, kind):
        raise ProtocolViolation(f"the peer sent {type(message).__name__} where {kind.__name__} is due")
    return message


def _session(*messages: bytes) -> bytes:
    return hashlib.sha256(_transcript(b"koinon session 1", *messages)).digest()


def _transcript(domain: bytes, *messages: bytes) -> bytes:
    return domain + b"\0" + b"".join(hashlib.sha256(message).digest() for message in messages)
