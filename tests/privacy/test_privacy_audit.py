"""What real runs give away stays within what they claim, and a run with too little noise is found out."""

import bisect
import functools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import beta, binom
from torch import nn

import koinon as kn
from koinon.core.layout import Layout, Slot
from koinon.core.noise import Noise
from koinon.core.rng import generator
from koinon.core.types import Update
from koinon.privacy.audit import Audit, audited, lower_bound
from koinon.view.progress import Quiet

CONFIDENCES = st.floats(0.5, 0.999)
DELTAS = st.floats(1e-9, 0.05)


@st.composite
def outcomes(draw, most=60):
    """(guessed, correct, canaries)."""
    canaries = draw(st.integers(1, most))
    guessed = draw(st.integers(0, canaries))
    return guessed, draw(st.integers(0, guessed)), canaries


@pytest.mark.parametrize(("guessed", "correct", "canaries", "delta", "epsilon"), [
    (100, 75, 1000, 1e-4, 0.673),
    (1510, 1439, 100_000, 1e-5, 2.675),
])  # fmt: skip
def test_published_figures(guessed, correct, canaries, delta, epsilon):
    assert lower_bound(guessed, correct, canaries, delta) == pytest.approx(epsilon, abs=1e-3)


@settings(max_examples=50)
@given(outcomes(most=5000), CONFIDENCES)
def test_without_delta_it_inverts_the_binomial_tail(outcome, confidence):
    guessed, correct, canaries = outcome
    accuracy = beta.ppf(1 - confidence, correct, guessed - correct + 1) if correct else 0.0  # Clopper and Pearson's
    expected = max(0.0, logit(accuracy))
    assert lower_bound(guessed, correct, canaries, 0.0, confidence) == pytest.approx(expected, abs=1e-6)


def theorem(guessed, correct, canaries, epsilon, delta):
    """The bound of Theorem 5.2 on the chance of such an outcome, term by term."""
    truthful = Fraction(1 / (1 + math.exp(-epsilon)))
    chance = [
        math.comb(guessed, right) * truthful**right * (1 - truthful) ** (guessed - right)
        for right in range(guessed + 1)
    ]
    best = max((sum(chance[max(correct - i, 0) : correct]) / i for i in range(1, canaries + 1)), default=0)
    return float(sum(chance[correct:]) + 2 * canaries * Fraction(delta) * best)


@settings(max_examples=40)
@given(outcomes(most=25), DELTAS, CONFIDENCES, st.floats(0, 1))
def test_with_delta_everything_below_it_is_refuted_and_nothing_above(outcome, delta, confidence, share):
    guessed, correct, canaries = outcome
    bound = lower_bound(*outcome, delta, confidence)
    assert theorem(guessed, correct, canaries, bound + 1e-6, delta) >= 1 - confidence
    assert theorem(guessed, correct, canaries, bound + 5 * share, delta) >= (1 - confidence) * (1 - 1e-9)
    if bound:
        assert theorem(guessed, correct, canaries, share * bound, delta) <= (1 - confidence) * (1 + 1e-9)


@settings(max_examples=40)
@given(outcomes(), st.just(0.0) | DELTAS, CONFIDENCES)
def test_more_right_guesses_show_more_and_more_doubt_shows_less(outcome, delta, confidence):
    guessed, correct, canaries = outcome
    bound = lower_bound(guessed, correct, canaries, delta, confidence)
    slack = bound + 1e-9
    if correct:
        assert lower_bound(guessed, correct - 1, canaries, delta, confidence) <= slack
    assert lower_bound(guessed + 1, correct, canaries + 1, delta, confidence) <= slack
    assert lower_bound(guessed, correct, 2 * canaries, delta, confidence) <= slack
    assert lower_bound(guessed, correct, canaries, 2 * delta, confidence) <= slack
    assert lower_bound(guessed, correct, canaries, delta, (1 + confidence) / 2) <= slack


@settings(max_examples=20)
@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 5), st.just(0.0) | DELTAS)
def test_of_a_mechanism_that_keeps_its_promise_it_says_too_much_in_one_case_of_twenty(canaries, share, epsilon, delta):
    """Randomized response that gives each canary away with probability delta, guessed as well as can be."""
    guessed = math.ceil(share * canaries)
    accusing = bisect.bisect_right(
        range(guessed + 1), epsilon, key=lambda correct: lower_bound(guessed, correct, canaries, delta)
    )
    given_away = np.arange(canaries + 1)
    known = given_away.clip(max=guessed)
    accused = binom.sf(accusing - known - 1, guessed - known, expit(epsilon))
    assert binom.pmf(given_away, canaries, delta) @ accused <= 0.05 + 1e-9


SCORES = st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), max_size=30)


@settings(max_examples=50)
@given(SCORES, st.data())
def test_guesses_do_not_depend_on_the_coins(canaries, data):
    included = torch.tensor([coin for coin, _ in canaries], dtype=torch.bool)
    scores = torch.tensor([float(score) for _, score in canaries])
    guesses = data.draw(st.integers(0, len(canaries)))
    one, other = (audited(coins, scores, guesses, 0.0).correct for coins in (included, ~included))
    assert one + other == guesses


def test_the_highest_are_guessed_included_and_the_lowest_excluded():
    included = torch.tensor([True, True, False, False, False, True])
    scores = torch.tensor([0.9, 0.8, 0.1, 0.2, 0.7, -1.0])
    correct = [audited(included, scores, guesses, 0.0).correct for guesses in range(7)]
    assert correct == [0, 1, 1, 2, 3, 3, 4]
    assert audited(included, scores, 6, 1e-3, 0.9) == Audit(lower_bound(6, 4, 6, 1e-3, 0.9), 6, 4)


@pytest.mark.parametrize("call", [
    lambda: lower_bound(10, 11, 20, 0),
    lambda: lower_bound(21, 10, 20, 0),
    lambda: lower_bound(10, -1, 20, 0),
    lambda: lower_bound(10, 5, 20, 1),
    lambda: lower_bound(10, 5, 20, math.nan),
    lambda: lower_bound(10, 5, 20, 0, 1),
    lambda: audited(torch.ones(3), torch.zeros(3), 1, 0),
    lambda: audited(torch.ones(3, dtype=torch.bool), torch.zeros(2), 1, 0),
    lambda: audited(torch.ones(3, dtype=torch.bool), torch.zeros(3), 4, 0),
    lambda: audited(torch.ones(3, dtype=torch.bool), torch.zeros(3), -1, 0),
    lambda: audited(torch.ones(3, dtype=torch.bool), torch.tensor([0, math.nan, 1]), 1, 0),
])  # fmt: skip
def test_senseless_arguments_are_refused(call):
    with pytest.raises(kn.AdmissionError):
        call()


CANARIES = 2000
GUESSES = 200
DELTA = 1e-5
NOISE = 1.5  # claims an epsilon of 2.75, of which so many guesses are expected to show two fifths
HUGE = 1e6  # against a clip at 1

LAYOUT = Layout((Slot("weight", (CANARIES,), torch.float32, 0, True),))
INCLUDED = torch.rand(CANARIES, generator=generator(0, "canaries")) < 0.5


@dataclass(frozen=True)
class Shouting:
    """A learner that moves one coordinate, the one that its client holds the number of, as far as it can."""

    layout: Layout = LAYOUT

    def initial(self, seed):
        return torch.zeros(self.layout.length)

    def train(self, start, data, task, rng):
        (number,), _ = data.batch(torch.tensor([0]))
        delta = torch.zeros(self.layout.length)
        delta[number] = HUGE
        return Update.of(delta, 1)

    def evaluate(self, model, data):
        return {}


def of_clients(folder):
    """(what is claimed, scores): every included canary is a client, protected by the server's noise."""
    stages = (kn.Clip(1.0), kn.GaussianNoise(NOISE, cohort=CANARIES / 2))
    federation = kn.Federation(Shouting(), kn.fedavg(stages=stages), 1, kn.Evaluation(federated=False))
    population = kn.Population.of(
        {
            str(number): kn.Samples(torch.tensor([number]), torch.zeros(1))
            for number in INCLUDED.nonzero().flatten().tolist()
        }
    )
    return claim_and_model(federation, population, folder)


def of_records(folder):
    """(what is claimed, scores): every canary is a record of one client, excluded ones without content; four steps."""
    module = nn.Linear(CANARIES, 1, bias=False)
    nn.init.zeros_(module.weight)
    learner = kn.TorchLearner(
        module,
        loss=lambda outputs, targets: -HUGE * outputs.mean(),
        optimizer=functools.partial(torch.optim.SGD, lr=1.0),
        epochs=4,
        batch_size=250,
        dp=kn.DPSGD(NOISE * math.sqrt(4), clip_norm=1.0, sample_rate=1.0),
    )
    federation = kn.Federation(learner, kn.fedavg(stages=()), 1, kn.Evaluation(federated=False))
    population = kn.Population.of([kn.Samples(torch.diag(INCLUDED.float()), torch.zeros(CANARIES))])
    return claim_and_model(federation, population, folder)


def claim_and_model(federation, population, folder):
    run = kn.simulate(federation, population, runs=folder, progress=Quiet())
    (protection,) = federation.protections
    return protection.after(len(run.history), DELTA).epsilon, run.vector


@pytest.mark.parametrize("attacked", [of_clients, of_records])
def test_a_run_gives_away_no_more_than_it_claims_and_the_audit_sees_what_it_does(attacked, tmp_path):
    claimed, scores = attacked(tmp_path)
    found = audited(INCLUDED, scores, GUESSES, DELTA)
    assert 2 < claimed < 4
    assert 0.3 * claimed < found.epsilon <= claimed


@pytest.mark.parametrize("attacked", [of_clients, of_records])
@pytest.mark.parametrize("share", [0, 1 / 4])
def test_a_run_with_too_little_noise_is_found_out(attacked, share, tmp_path, monkeypatch):
    add_gaussian = Noise.add_gaussian
    monkeypatch.setattr(
        Noise,
        "add_gaussian",
        lambda noise, vector, stddev: add_gaussian(noise, vector, share * stddev) if share else vector,
    )
    claimed, scores = attacked(tmp_path)
    assert audited(INCLUDED, scores, GUESSES, DELTA).epsilon > claimed


def test_a_run_in_which_nobody_clips_is_found_out(tmp_path, monkeypatch):
    for module in ("update.clip", "aggregate.bounded"):
        monkeypatch.setattr(f"koinon.{module}.shrinking", lambda length, norm: torch.ones_like(length).float())
    claimed, scores = of_clients(tmp_path)
    assert audited(INCLUDED, scores, GUESSES, DELTA).epsilon > claimed
