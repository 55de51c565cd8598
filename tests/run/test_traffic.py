"""Bytes that are told beforehand are those of the real pieces."""

import hashlib

import pytest

from koinon.durable.checkpoint import READ_BYTES
from koinon.protocol.messages import Blob
from koinon.run.outbox import FileChunks
from koinon.run.traffic import blob_bytes, message_bytes


@pytest.mark.parametrize("node", [True, False])
@pytest.mark.parametrize("size", [0, 1, 100, 300, 70_000, READ_BYTES, READ_BYTES + 1, 3 * READ_BYTES + 7])
@pytest.mark.parametrize("offset", [0, 50, 200, 66_000, READ_BYTES + 1])
def test_a_blob_has_the_bytes_of_its_pieces(size, offset, node, tmp_path):
    content = bytes(size)
    path, digest = tmp_path / "blob", hashlib.sha256(content).hexdigest()
    path.write_bytes(content)
    pieces = FileChunks(digest, path, 0, size, offset, "never")
    assert blob_bytes(Blob(digest, size), offset, node=node) == sum(message_bytes(each, node=node) for each in pieces)
