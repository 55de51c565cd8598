"""The log of a process: lines for a person, or one JSON object per line for a machine; always on standard error.

Koinon's code writes `log("round {round} opened: {nodes} nodes", round=3, nodes=4)`. A person reads
`12:03:04 round 3 opened: 4 nodes`; a machine gets the sentence, the unfilled event to group by, and the fields.
"""

import logging
import sys
from datetime import UTC, datetime

import msgspec

from koinon.core.errors import AdmissionError
from koinon.view import figures

LEVELS = ("debug", "info", "warning", "error")
"""What a level may be called."""

_KOINON = logging.getLogger("koinon")
_FOREIGN = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")


def configure(json: bool = False, level: str = "info") -> None:
    """Route every logger of the process to standard error; other libraries speak from warnings on.

    uvicorn must be started with `log_config=None`, or it puts its own handlers back.

    Args:
        json: One JSON object per line instead of text.
        level: The least that Koinon itself says, one of `LEVELS`.

    Raises:
        AdmissionError: if there is no such level.
    """
    if level not in LEVELS:
        raise AdmissionError(f"there is no log level {level!r}; take one of {', '.join(LEVELS)}")
    handler = _StandardError()
    handler.setFormatter(_JsonLines() if json else _Lines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    _KOINON.setLevel(level.upper())
    for name in _FOREIGN:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)


def log(event: str, /, level: int = logging.INFO, **fields: object) -> None:
    """Log an event.

    Args:
        event: A sentence with the fields' names in braces; a constant, so that equal events are equal.
        level: A level of `logging`.
        fields: What happened; those that the sentence does not name appear in JSON only.
    """
    if _KOINON.isEnabledFor(level):
        # As an argument, so that a percent sign in a field is text.
        _KOINON.log(level, "%s", event.format(**fields), extra={"event": event, "fields": fields})


class _StandardError(logging.Handler):
    """Writes to the standard error of the moment, which a live view replaces while it lasts."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


class _Lines(logging.Formatter):
    """`12:03:04 warning: sentence`, in local time; a traceback, if any, on the lines below."""

    def format(self, record: logging.LogRecord) -> str:
        clock = self.formatTime(record, "%H:%M:%S")
        urgency = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        line = f"{clock} {urgency}{figures.line(record.getMessage(), 2000)}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonLines(logging.Formatter):
    """One object: time (ISO 8601, UTC), level, logger, event, message, fields, and error where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "event", message),
            "message": message,
            "fields": getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()
