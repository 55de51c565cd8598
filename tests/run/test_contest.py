"""Runs side by side: what a course is drawn by, which value is the best, and which metric is compared."""

import pytest

import koinon as kn
from koinon.durable.history import Participation, RoundRecord, RunInfo
from koinon.run.contest import Contestant, metric_of


def contestant(*metrics, id="a", clock=False):
    info = RunInfo(id, "app", "0" * 64, len(metrics), 0, 4, "2026-01-01", "finished", "simulation")
    parts = (Participation("0", "accepted", bytes_up=1_500_000), Participation("1", "failed", bytes_up=500_000))
    history = [
        RoundRecord(number, "0" * 64, 2.0, parts, metrics=values, clock_s=10.0 * number if clock else None)
        for number, values in enumerate(metrics, 1)
    ]
    return Contestant(info, history)


THREE = contestant({"accuracy": 0.5, "loss": 2.0}, {}, {"accuracy": 0.4, "loss": 1.0}, clock=True)


def test_a_course_is_drawn_by_what_it_cost_up_to_each_evaluation():
    assert THREE.points("accuracy", "rounds") == [(1, 0.5), (3, 0.4)]
    assert THREE.points("accuracy", "seconds") == [(2.0, 0.5), (6.0, 0.4)]
    assert THREE.points("accuracy", "megabytes") == [(2.0, 0.5), (6.0, 0.4)]
    assert THREE.points("accuracy", "clock") == [(10.0, 0.5), (30.0, 0.4)], "the clock tells the sum already"


def test_the_best_of_a_score_is_the_most_and_of_a_loss_the_least():
    row = THREE.row("accuracy")
    assert (row["accuracy"], row["best accuracy"], row["after round"]) == (0.4, 0.5, 1)
    assert (THREE.row("loss")["best loss"], THREE.row("loss")["after round"]) == (1.0, 3)
    assert (row["MB up"], row["seconds"], row["virtual seconds"]) == (6.0, 6.0, 30.0)
    assert "virtual seconds" not in contestant({"loss": 1.0}).row("loss")


def test_the_metric_is_one_that_all_have():
    assert metric_of([THREE, contestant({"loss": 1.0})], None) == "loss"
    assert metric_of([THREE, THREE], None) == "accuracy", "a score before a loss"
    with pytest.raises(kn.AdmissionError, match="run b has no accuracy; it has loss"):
        metric_of([THREE, contestant({"loss": 1.0}, id="b")], "accuracy")
    with pytest.raises(kn.AdmissionError, match="no metric in common"):
        metric_of([THREE, contestant({}, id="b")], None)
