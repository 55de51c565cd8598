"""All or nothing, on the disk when it is over."""

import contextlib
import sqlite3
from collections.abc import Iterator

from koinon.core.errors import Unavailable


@contextlib.contextmanager
def transaction(database: sqlite3.Connection, what: str) -> Iterator[None]:
    """A block whose changes are all durable when it ends well, and none otherwise.

    Args:
        database: In autocommit mode.
        what: What is written to, for the message.

    Raises:
        Unavailable: if the disk is full or broken.
    """
    try:
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:  # a full disk may have ended it already
                database.execute("ROLLBACK")
            raise
    except sqlite3.OperationalError as error:
        raise Unavailable(f"cannot write to {what}: {error}") from error
