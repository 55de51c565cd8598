"""Tuning and trade-off: what is trained is what is told, nothing is trained twice, and no failure ends a search."""

import functools
import math
import re
import sys

import pytest
import torch
from torch import nn

import koinon as kn
from koinon.run.pages import advice, disclaimer, draw_tuned, publish_tradeoff, publish_tuned, tradeoff_rows
from koinon.run.private import judged_by
from koinon.run.tradeoff import tradeoff
from koinon.run.tune import Search, Trial, tune

DELTA = 1e-3


def samples(seed: int, count: int = 12) -> kn.Samples:
    inputs = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return kn.Samples(inputs, (inputs.sum(1) > 0).long())


POPULATION = kn.Population.of(samples, size=40)
EVALUATION = kn.Evaluation(test=samples(999, 200))


def federation(model=lambda: nn.Linear(4, 2), evaluation: kn.Evaluation = EVALUATION, **more: object) -> kn.Federation:
    sgd = functools.partial(torch.optim.SGD, lr=0.5)
    learner = kn.TorchLearner(model, nn.CrossEntropyLoss(), sgd, batch_size=4, metrics=(kn.Accuracy(),))
    return kn.Federation(learner, kn.fedavg(**more), 4, evaluation)


def tuned(folder, search: Search, made: kn.Federation | None = None, seed: int = 0):
    told: list[Trial] = []
    found = tune(
        made or federation(),
        POPULATION,
        search,
        folder,
        delta=DELTA,
        seed=seed,
        tell=lambda trial, metric: told.append(trial),
    )
    return found, told


def test_every_trial_spends_what_it_was_asked_to_and_the_best_is_on_the_frontier(tmp_path) -> None:
    found, told = tuned(tmp_path, Search((1.0, 8.0), (0.5,)))
    assert found.metric == "accuracy" and list(found.trials) == told
    noisy = [trial for trial in found.trials if trial.epsilon is not None]
    for trial in noisy:
        spent = kn.privacy.epsilon(
            noise_multiplier=trial.noise_multiplier, sample_rate=trial.rate, rounds=4, delta=DELTA
        )
        assert 0.98 * trial.epsilon <= spent <= trial.epsilon
    for best in found.frontier:
        rivals = [trial.metrics["accuracy"] for trial in noisy if trial.epsilon == best.epsilon]
        assert best.metrics["accuracy"] == max(rivals) and len(rivals) >= 3
    assert found.chosen == found.frontier[-1]
    assert math.isinf(found.cost.epsilon) and "nothing bounds" in disclaimer(found)


def test_a_search_that_was_ended_goes_on_and_makes_no_trial_twice(tmp_path) -> None:
    search = Search((1.0, 8.0), (0.5,), (0.2, 1.0))
    whole, told = tuned(tmp_path, search)
    (kept,) = tmp_path.glob("trials-*.jsonl")
    lines = kept.read_text().splitlines()
    assert len(told) == len(whole.trials) == 4
    kept.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])  # killed while it wrote the last line
    again, told = tuned(tmp_path, search)
    assert len(told) == 1
    assert [(t.epsilon, t.clip_norm, t.metrics) for t in again.trials] == [
        (t.epsilon, t.clip_norm, t.metrics) for t in whole.trials
    ]
    assert tuned(tmp_path, search)[1] == []
    assert len(tuned(tmp_path, search, seed=1)[1]) == 4, "another seed is another search"


def test_with_given_clip_norms_the_trials_have_a_price_together(tmp_path) -> None:
    found, _ = tuned(tmp_path, Search((1.0, 8.0), (0.5,), (0.2, 1.0)))
    assert found.pilot is None
    assert 8.0 < found.cost.epsilon < math.inf
    assert str(found.cost) in disclaimer(found)


def test_a_target_ends_the_search_at_the_first_epsilon_that_reaches_it(tmp_path) -> None:
    ladder = (0.01, 20.0, 40.0)
    easy, _ = tuned(tmp_path, Search(ladder, (1.0,), (1.0,), target=0.8))
    assert easy.chosen.epsilon == 20.0 and [trial.epsilon for trial in easy.trials] == [0.01, 20.0]
    assert easy.chosen.metrics["accuracy"] >= 0.8
    hopeless, _ = tuned(tmp_path, Search(ladder, (1.0,), (1.0,), target=2.0))
    assert hopeless.chosen is None and len(hopeless.trials) == 3
    assert "no epsilon that was tried" in advice(hopeless, 40, DELTA)
    less, _ = tuned(tmp_path, Search(ladder, (1.0,), (1.0,), metric="loss", target=1e6))
    assert less.chosen.epsilon == 0.01, "of a loss, less is better"


def test_a_trial_that_fails_ends_nothing(tmp_path) -> None:
    def brittle(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets) / (outputs.abs().max() < 1e3)

    learner = kn.TorchLearner(lambda: nn.Linear(4, 2), brittle, batch_size=4, metrics=(kn.Accuracy(),))
    made = kn.Federation(learner, kn.fedavg(), 4, EVALUATION)
    found, _ = tuned(tmp_path, Search((0.1,), (0.5,), (1e6, 0.1)), made)
    failed, fine = found.trials
    assert failed.failure and not failed.metrics
    assert found.chosen == fine and fine.metrics["accuracy"] is not None


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: federation(evaluation=kn.Evaluation()), "needs a test set"),
        (
            lambda: federation(
                stages=(kn.Clip(1.0), kn.GaussianNoise(1.0, cohort=4)),
                evaluation=kn.Evaluation(EVALUATION.test, federated=False),
            ),
            "take its noise out",
        ),
    ],
)
def test_apps_that_cannot_be_studied_are_refused(made, words, tmp_path) -> None:
    with pytest.raises(kn.AdmissionError, match=words):
        tuned(tmp_path, Search((1.0,)), made())
    with pytest.raises(kn.AdmissionError, match=words):
        tradeoff(made(), POPULATION, tmp_path, delta=DELTA)


@pytest.mark.parametrize("wrong", [{"epsilons": ()}, {"epsilons": (0.0,)}, {"rates": (2.0,)}, {"clip_norms": (-1.0,)}])
def test_searches_without_sense_are_refused(wrong) -> None:
    with pytest.raises(kn.AdmissionError):
        Search(**wrong)


def test_a_metric_that_is_not_measured_is_refused() -> None:
    with pytest.raises(kn.AdmissionError, match="measures accuracy, loss"):
        judged_by(("loss", "accuracy"), "auc")


def test_a_page_and_a_picture_show_the_frontier(tmp_path, monkeypatch) -> None:
    found, _ = tuned(tmp_path, Search((1.0, 8.0), (0.5,), (1.0,)))
    page = publish_tuned(tmp_path, "app.py", found, 40, DELTA).read_text()
    trial = found.chosen
    assert f"kn.GaussianNoise({trial.noise_multiplier:g}, cohort=20)" in page and "not charged" in page
    assert page.count('class="end score"') == 2 and "<script" not in page
    picture = draw_tuned(tmp_path, found)
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(kn.Unavailable, match=r"koinon\[plot\]"):
        draw_tuned(tmp_path, found)


def test_a_tradeoff_has_every_protection_at_every_epsilon_with_its_own_unit(tmp_path) -> None:
    found = tradeoff(federation(), POPULATION, tmp_path, delta=DELTA, epsilons=(2.0, 8.0), rate=0.5)
    plain, *protected = found.lines
    assert plain.guarantee is None and plain.metrics["accuracy"] > 0.8 and plain.bytes_up > 4 * 40 * 4 * 10
    assert [(line.asked, line.unit) for line in protected] == [(2.0, "client"), (8.0, "client")] * 2 + [
        (2.0, "record"),
        (8.0, "record"),
    ]
    for line in protected:
        assert line.guarantee.unit == line.unit
        assert 0.98 * line.asked <= line.guarantee.epsilon <= line.asked
        assert line.bytes_up > 0 and line.seconds > 0
    assert [line.guarantee.neighbours for line in protected[::2]] == ["add-remove", "replace-one", "add-remove"]
    page = publish_tradeoff(tmp_path, "app.py", found, 40, DELTA).read_text()
    assert "different promises" in page and page.count("<polyline") == 3
    assert len(tradeoff_rows(found)[1]) == 7


def test_a_protection_that_cannot_be_is_a_line_that_says_why(tmp_path) -> None:
    def mixing() -> nn.Module:
        return nn.Sequential(
            nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)
        )

    found = tradeoff(federation(mixing), POPULATION, tmp_path, delta=DELTA, epsilons=(8.0,), rate=0.5, clip_norm=1.0)
    assert re.search("use nn.GroupNorm", found.lines[-1].failure)
    page = publish_tradeoff(tmp_path, "app.py", found, 40, DELTA).read_text()
    assert "use nn.GroupNorm" in page and "not 8" in page
