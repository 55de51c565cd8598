"""Callbacks beside the view of a run: they are told everything, and nothing that is wrong with one costs the run."""

import functools
from contextlib import contextmanager

import pytest

import koinon as kn
from koinon.view.progress import Quiet
from tests.strategy import lines


class Told(kn.Callback):
    def __init__(self):
        self.heard = []

    @contextmanager
    def following(self, info):
        self.heard.append("begun")
        try:
            yield
        except BaseException as error:
            self.heard.append(repr(error))
            raise
        self.heard.append("over")

    def opened(self, round, cohort):
        self.heard.append(("opened", round, len(cohort)))

    def replied(self, round, client, outcome, reason=""):
        self.heard.append((client, outcome))

    def closed(self, record):
        self.heard.append(("closed", record.round))

    def evaluated(self, round, metrics):
        self.heard.append(("evaluated", round, sorted(metrics)))

    def note(self, text):
        self.heard.append(text)


class Failing(kn.Callback):
    def __init__(self, error=ZeroDivisionError("no disk")):
        self.error, self.calls = error, 0

    def closed(self, record):
        self.calls += 1
        raise self.error


class Unwilling(kn.Callback):
    @contextmanager
    def following(self, info):
        raise kn.Unavailable("nobody to tell")
        yield


class BadEnd(kn.Callback):
    @contextmanager
    def following(self, info):
        yield
        raise OSError("the server is gone")


class View(Quiet):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def run(folder, callbacks):
    view = View()
    defined = lines.federation(kn.fedavg())
    population = kn.Population.of(functools.partial(lines.samples, copies=lines.COPIES), size=lines.CLIENTS)
    made = kn.simulate(defined, population, runs=folder, progress=view, callbacks=callbacks)
    return made, view.notes


def test_callbacks_are_told_what_happens_from_the_beginning_to_the_end(tmp_path):
    told = Told()
    made, notes = run(tmp_path, [told])
    assert told.heard[0] == "begun" and told.heard[-1] == "over"
    rounds = [each[1] for each in told.heard if each[0] == "closed"]
    assert rounds == [record.round for record in made.history]
    first = told.heard[1 : told.heard.index(("closed", 1)) + 1]
    asked = len(made.history[0].participants)
    assert first[0] == ("opened", 1, asked) and len(first) == asked + 2
    assert {outcome for _, outcome in first[1:-1]} == {"accepted"}
    assert notes == []


def test_a_callback_that_fails_is_told_no_more_and_the_run_goes_on(tmp_path):
    failing, told = Failing(), Told()
    made, notes = run(tmp_path / "with", [failing, told])
    alone, _ = run(tmp_path / "without", [])
    assert made.digest == alone.digest and made.info.status == "finished"
    assert failing.calls == 1
    assert notes == ["the callback Failing failed and is told no more: ZeroDivisionError('no disk')"]
    assert told.heard.count("over") == 1 and ("closed", len(made.history)) in told.heard, (
        "the next one is told as before"
    )


def test_a_callback_that_ends_badly_does_not_take_the_run_with_it(tmp_path):
    told = Told()
    made, notes = run(tmp_path, [told, BadEnd()])
    assert made.info.status == "finished" and told.heard[-1] == "over"
    assert notes == ["the callback BadEnd failed and is told no more: OSError('the server is gone')"]


def test_who_interrupts_is_not_taken_for_a_callback_that_failed(tmp_path):
    told = Told()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, [told, Failing(KeyboardInterrupt())])
    assert told.heard[-1] == "KeyboardInterrupt()"


def test_a_callback_that_cannot_begin_ends_the_run_before_its_first_round(tmp_path):
    told = Told()
    with pytest.raises(kn.Unavailable, match="nobody to tell"):
        run(tmp_path, [told, Unwilling()])
    assert [each for each in told.heard if each[0] == "opened"] == []
