import io

import pytest
from rich.console import Console

from koinon.durable.history import Participation, RoundRecord, RunInfo
from koinon.view.progress import SHOWN_CLIENTS, LiveProgress, PlainProgress, Progress, Quiet, progress_for

INFO = RunInfo("brave-otter", "app.py", "00" * 32, 30, 0, 10, "2030-01-02T03:04:05Z", "running", "network")
RECORD = RoundRecord(
    3,
    "",
    1.2,
    (Participation("basel", "accepted"), Participation("bern", "failed", "the loss was not finite")),
    {"train_loss": 0.7},
    {"accuracy": 0.912},
)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, force_jupyter=False, width=100, _environ={"TERM": "xterm"})


def picture(live: LiveProgress) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False, force_jupyter=False)
    console.print(live)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, client: str) -> list[str]:
    return next(line.split(maxsplit=1) for line in text.splitlines() if line.startswith(client))


def test_the_live_view_follows_each_client_through_a_round() -> None:
    live = LiveProgress(terminal())
    assert "waiting for the first round" in picture(live)
    with live.following(INFO):
        live.opened(3, ["basel", "bern", "zug", "jura"])
        assert "round 3, 4 training" in picture(live)
        live.replied(3, "basel", "accepted")
        live.replied(3, "zug", "refused", "too late")
        live.replied(3, "jura", "declined", "smallest_cohort = 9")
        text = picture(live)
        assert "1 refused, 1 declined, 1 training, 1 accepted" in text
        assert row(text, "bern")[1].strip() == "training"
        assert row(text, "zug")[1].split() == ["refused", "too", "late"]
        assert "2/30" in text
        live.closed(RECORD)
        text = picture(live)
        assert "3/30" in text and "brave-otter" in text
        assert "accuracy 0.912  after round 3" in text and "train_loss" not in text
        assert "failed" in row(text, "bern")[1] and "zug" not in text


def test_metrics_stay_until_the_next_evaluation() -> None:
    live = LiveProgress(terminal())
    live.closed(RECORD)
    live.closed(RoundRecord(4, "", 1.0, (), {"train_loss": 0.6}))
    assert "accuracy 0.912  after round 3" in picture(live)


def test_what_clients_found_is_shown_before_what_training_says_and_after_what_the_server_measured() -> None:
    live = LiveProgress(terminal())
    live.closed(RoundRecord(1, "", 1.0, (), {"train_loss": 0.6}))
    assert "train_loss 0.600  after round 1" in picture(live)
    live.closed(RoundRecord(2, "", 1.0, (), {"train_loss": 0.5}))
    assert "train_loss 0.500  after round 2" in picture(live)
    live.evaluated(1, {"accuracy": 0.8})
    live.closed(RoundRecord(3, "", 1.0, (), {"train_loss": 0.4}))
    assert "accuracy 0.800  after round 1" in picture(live)
    live.closed(RECORD)
    live.evaluated(3, {"accuracy": 0.1})
    assert "accuracy 0.912  after round 3" in picture(live)


def test_what_is_waited_for_is_shown_while_it_lasts() -> None:
    console = terminal()
    live = LiveProgress(console)
    with live.following(INFO):
        live.waiting("updates from bern\x1b[2J")
        assert "waiting for updates from bern [2J" in picture(live)
        live.waiting("")
        assert "waiting for updates" not in picture(live)
        live.waiting("basel to fetch the final model")
    assert "basel" not in picture(live)


def test_a_large_cohort_is_cut_to_those_that_need_looking_at() -> None:
    live = LiveProgress(terminal())
    live.opened(1, [str(number) for number in range(1000)])
    for number in range(990):
        live.replied(1, str(number), "accepted")
    live.replied(1, "999", "failed", "out of memory")
    text = picture(live)
    assert "1 failed, 9 training, 990 accepted" in text
    assert "out of memory" in row(text, "999")[1]
    assert "and 980 more" in text
    assert len(text.splitlines()) < SHOWN_CLIENTS + 6


def test_only_the_last_notes_are_kept() -> None:
    live = LiveProgress(terminal())
    for number in range(10):
        live.note(f"note {number}\x1b[2J")
    text = picture(live)
    assert "note 9 [2J" in text and "note 6" in text and "note 5" not in text
    assert "\x1b" not in text


def test_what_is_drawn_in_a_terminal_holds_the_last_state() -> None:
    console = terminal()
    live = LiveProgress(console)
    with live.following(INFO):
        live.opened(3, ["basel", "bern"])
        live.closed(RECORD)
    assert isinstance(console.file, io.StringIO)
    assert "the loss was not finite" in console.file.getvalue()


def test_the_live_view_ends_with_the_run_that_fails() -> None:
    console = terminal()
    with pytest.raises(RuntimeError), LiveProgress(console).following(INFO):
        raise RuntimeError
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().endswith("\x1b[?25h")  # the cursor is shown again


def test_without_a_terminal_there_is_one_line_per_round() -> None:
    stream = io.StringIO()
    plain = PlainProgress(stream)
    with plain.following(INFO):
        plain.opened(3, ["basel", "bern"])
        plain.replied(3, "basel", "accepted")
        plain.closed(RECORD)
        plain.note("two\nlines\x1b[2J")
    assert stream.getvalue().splitlines() == [
        "run brave-otter: app.py, 30 rounds",
        "round 3/30: 1 of 2 accepted, accuracy 0.912, 1.20 s",
        "two lines [2J",
    ]


def test_a_line_tells_the_latest_evaluation_there_is() -> None:
    stream = io.StringIO()
    plain = PlainProgress(stream)
    with plain.following(INFO):
        plain.evaluated(1, {"accuracy": 0.8})
        plain.closed(RoundRecord(2, "", 1.0, (), {"train_loss": 0.6}))
        plain.closed(RECORD)
    assert stream.getvalue().splitlines()[1:] == [
        "round 2/30: 0 of 0 accepted, accuracy 0.800 after round 1, 1.00 s",
        "round 3/30: 1 of 2 accepted, accuracy 0.912, 1.20 s",
    ]


def test_waiting_makes_few_lines() -> None:
    stream = io.StringIO()
    plain = PlainProgress(stream)
    for number in range(100, 0, -1):
        plain.waiting(f"{number} more nodes to join")
        plain.waiting("")
    assert stream.getvalue().splitlines() == ["waiting for 100 more nodes to join"]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    quiet: Progress = Quiet()
    with quiet.following(INFO):
        quiet.opened(1, ["a"])
        quiet.replied(1, "a", "accepted")
        quiet.evaluated(0, {"accuracy": 0.5})
        quiet.closed(RECORD)
        quiet.waiting("a")
        quiet.note("nothing")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_the_view_fits_where_it_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(progress_for(terminal()), LiveProgress)
    dumb = Console(file=io.StringIO(), force_terminal=True, force_jupyter=False, _environ={"TERM": "dumb"})
    assert isinstance(progress_for(dumb), PlainProgress)
    piped = progress_for(Console(file=io.StringIO(), force_terminal=False, force_jupyter=False))
    assert isinstance(piped, PlainProgress)
    progress_for(Console(stderr=True, force_terminal=False, force_jupyter=False)).note("here")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "here\n")
