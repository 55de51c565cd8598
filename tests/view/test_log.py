import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from koinon.core.errors import AdmissionError
from koinon.view.log import configure, log

LOGGERS = ("", "koinon", "uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Logging is one for the whole process; leave it as it was."""
    before = [(logging.getLogger(n), logging.getLogger(n).level, logging.getLogger(n).handlers[:]) for n in LOGGERS]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_a_person_reads_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    log("round {round} opened: {nodes} nodes", round=3, nodes=4, hidden="x")
    log("{node} is at 100%s", level=logging.WARNING, node="bern\n23:59:59 forged\x1b[2J")
    first, second = lines(capsys)
    assert re.fullmatch(r"\d\d:\d\d:\d\d round 3 opened: 4 nodes", first)
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning: bern 23:59:59 forged \[2J is at 100%s", second)


def test_a_machine_reads_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure(json=True)
    log("round {round} opened: {nodes} nodes", round=3, nodes=4, reason="a\nb", loss=float("nan"), kind=ValueError)
    (line,) = lines(capsys)
    parsed = json.loads(line)
    moment = datetime.fromisoformat(parsed.pop("time"))
    assert moment.utcoffset() == timedelta(0) and abs(datetime.now(UTC) - moment) < timedelta(minutes=1)
    fields = {"round": 3, "nodes": 4, "reason": "a\nb", "loss": None, "kind": "<class 'ValueError'>"}
    assert parsed == {
        "level": "info",
        "logger": "koinon",
        "event": "round {round} opened: {nodes} nodes",
        "message": "round 3 opened: 4 nodes",
        "fields": fields,
    }


@pytest.mark.parametrize("as_json", [False, True])
def test_a_traceback_is_kept(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    configure(json=as_json)
    try:
        raise ValueError("lost")
    except ValueError:
        logging.getLogger("koinon").exception("cannot go on")
    written = lines(capsys)
    if as_json:
        parsed = json.loads(written[0])
        assert parsed["level"] == "error" and parsed["error"].endswith("ValueError: lost")
    else:
        assert written[0].endswith("error: cannot go on") and written[-1] == "ValueError: lost"


def test_the_level_is_koinons_and_others_speak_from_warnings_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure(level="warning")
    log("quiet")
    configure(level="debug")
    log("loud", level=logging.DEBUG)
    for name in ("uvicorn.error", "uvicorn.access", "websockets.server"):
        logging.getLogger(name).info("quiet")
        logging.getLogger(name).warning("loud %s", name)
    written = [line.partition(" ")[2] for line in lines(capsys)]
    assert written == [
        "loud",
        *(f"warning: loud {name}" for name in ("uvicorn.error", "uvicorn.access", "websockets.server")),
    ]


def test_uvicorns_own_handlers_are_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    access = logging.getLogger("uvicorn.access")
    access.addHandler(logging.StreamHandler())
    configure()
    access.warning("once")
    assert len(lines(capsys)) == 1


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(AdmissionError, match="no log level 'loud'; take one of debug, info, warning, error"):
        configure(level="loud")
