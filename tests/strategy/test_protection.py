"""What noise needs of a definition: every row is refused, or corrected, when the federation is built."""

import pytest

import koinon as kn
from koinon.privacy.events import Gaussian, PoissonSampled
from koinon.testing import admission
from koinon.testing.admission import ROWS, Corrected, Refused, built

NOISE = kn.GaussianNoise(1.0, cohort=10)


@pytest.mark.parametrize("row", [row for row in ROWS if isinstance(row, Refused)], ids=lambda row: row.what)
def test_what_noise_cannot_honour_is_refused_with_the_cure(row) -> None:
    with pytest.raises(kn.AdmissionError) as refusal:
        row.build()
    assert row.cure in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("row", [row for row in ROWS if isinstance(row, Corrected)], ids=lambda row: row.what)
def test_what_can_be_honoured_in_another_way_is_corrected(row) -> None:
    assert row.said().startswith("corrected: ")


def test_the_table_says_what_was_let_through(monkeypatch, capsys) -> None:
    assert admission.main() == 0
    assert capsys.readouterr().out.count("pass  ") == len(ROWS)
    through = Refused("nothing", lambda: None, "a cure")
    uncured = Refused("no cure", ROWS[0].build, "a cure")
    broken = Corrected("not corrected", lambda: (_ for _ in ()).throw(AssertionError))
    monkeypatch.setattr(admission, "ROWS", (through, uncured, broken))
    assert admission.main() == 1
    assert capsys.readouterr().out.count("FAIL  ") == 3


def test_poisson_sampling_amplifies_and_nothing_else_does() -> None:
    for sample in (kn.Everyone(), kn.Uniform(10), kn.RoundRobin(10)):
        (protection,) = built(kn.Clip(1.0), NOISE, sample=sample).protections
        assert protection.event == Gaussian(1.0)
    (protection,) = built(kn.Clip(1.0), NOISE, sample=kn.Poisson(0.1)).protections
    assert protection.event == PoissonSampled(0.1, Gaussian(1.0))


def test_a_fixed_number_of_clients_promises_only_that_one_may_be_replaced() -> None:
    fixed = built(kn.Clip(1.0), NOISE, sample=kn.Uniform(10)).protections[0]
    everyone = built(kn.Clip(1.0), NOISE).protections[0]
    assert (fixed.neighbours, everyone.neighbours) == ("replace-one", "add-remove")
    assert fixed.after(10, 1e-5).epsilon > everyone.after(10, 1e-5).epsilon


def test_what_is_told_is_the_total_of_all_rounds() -> None:
    strategy = {"sample": kn.Poisson(0.1)}
    (protection,) = built(kn.Clip(1.0), kn.GaussianNoise(1.0, cohort=10), **strategy).protections
    total = protection.after(100, 1e-3)
    assert f"{total.epsilon:.4f}" == "4.7844"
    assert str(total).endswith("at delta 0.001 per client (add-remove neighbours, Poisson sampling, PLD accounting)")


def test_a_budget_ends_the_run_before_the_round_that_would_exceed_it() -> None:
    budget = kn.Budget(3.0, 1e-3)
    made = built(kn.Clip(1.0), kn.GaussianNoise(2.0, cohort=10), budget=budget)
    (protection,) = made.protections
    assert 0 < made.planned < made.rounds
    assert protection.after(made.planned, 1e-3).epsilon <= 3.0 < protection.after(made.planned + 1, 1e-3).epsilon
