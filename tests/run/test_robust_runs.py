"""Robust rules in runs: equal bits everywhere, memory that survives, and rounds that wait for as many as a rule needs."""

import functools
import itertools
import re

import pytest
import torch
from torch import nn

import koinon as kn
from koinon.durable import checkpoint
from koinon.protocol.events import Joined, Tick
from koinon.protocol.messages import Blob, Ready, Task
from koinon.protocol.session import step
from koinon.protocol.state import SessionState, Terms, waiting_for
from koinon.run.explain import explain
from koinon.view.progress import Quiet

ROOT = kn.Samples(torch.randn(30, 4, generator=torch.Generator().manual_seed(5)), torch.zeros(30).long())


def samples(client: int) -> kn.Samples:
    inputs = torch.randn(12, 4, generator=torch.Generator().manual_seed(client))
    return kn.Samples(inputs, (inputs.sum(1) > 0).long())


POPULATION = kn.Population.of(samples, size=9)


def federation(reducer: object, rounds: int = 4, loss: object = None, **strategy: object) -> kn.Federation:
    learner = kn.TorchLearner(
        lambda: nn.Linear(4, 2),
        loss or nn.CrossEntropyLoss(),
        functools.partial(torch.optim.SGD, lr=0.1),
        metrics=(kn.Accuracy(),),
    )
    return kn.Federation(learner, kn.fedavg(reducer=reducer, **strategy), rounds, kn.Evaluation(test=samples(99)))


RULES = [
    kn.Median(),
    kn.Krum(2),
    kn.CenteredClipping(0.1, 2),
    kn.FoolsGold(),
    kn.Bucketing(kn.GeometricMedian(), 2),
    kn.NearestNeighborMixing(kn.CenteredClipping(0.1), 2),
    kn.FLTrust(ROOT),
    kn.Zeno(lambda: ROOT, 2),
    kn.SignGuard(),
    kn.DnC(2),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_run_that_was_ended_goes_on_with_the_same_bits(rule, tmp_path) -> None:
    whole = kn.simulate(federation(rule), POPULATION, runs=tmp_path, progress=Quiet())
    assert whole.digest == kn.simulate(federation(rule), POPULATION, runs=tmp_path, progress=Quiet()).digest

    class Ended(Quiet):
        def closed(self, record):
            if record.round == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kn.simulate(federation(rule), POPULATION, runs=tmp_path / "half", progress=Ended())
    (half,) = (tmp_path / "half").iterdir()
    again = kn.simulate(federation(rule), POPULATION, runs=tmp_path / "half", resume=half.name, progress=Quiet())
    assert again.digest == whole.digest


def test_what_a_rule_remembers_is_in_the_checkpoint(tmp_path) -> None:
    run = kn.simulate(federation(kn.FoolsGold(), 2), POPULATION, runs=tmp_path, progress=Quiet())
    state = checkpoint.load(run.path / "checkpoints" / "round-000002.safetensors")
    assert set(state.reducer) == set(POPULATION.ids)


def test_a_round_with_too_few_updates_says_so(tmp_path) -> None:
    def brittle(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets) / (len(targets) == 12)

    population = kn.Population.of(lambda client: samples(client).subset(range(12 if client < 5 else 11)), size=9)
    with pytest.raises(kn.ClientFailed, match=r"round 1 has 5 updates, and Krum needs 7, e\.g\. 5: "):
        kn.simulate(federation(kn.Krum(2), loss=brittle), population, runs=tmp_path, progress=Quiet())
    with pytest.raises(kn.AdmissionError, match="Krum needs 7 updates in a round, and there are 6"):
        federation(kn.Krum(2), sample=kn.Uniform(6))


def test_a_round_opens_with_as_many_nodes_as_the_rule_needs() -> None:
    terms = Terms(1, lambda round, sizes: list(sizes), minimum_nodes=1, quorum=0.1, least=3)
    state, sent = SessionState(Blob("a" * 64, 8)), []
    state, _ = step(terms, state, Tick(0.0))
    for node in "abc":
        assert not sent
        state, effects = step(terms, state, Joined(node, Ready()))
        sent += [effect for effect in effects if isinstance(getattr(effect, "message", None), Task)]
        if node == "a":
            assert waiting_for(terms, state) == "2 more nodes to join"
    assert len(sent) == 3 and state.round.needed == 3


def test_explain_says_how_many_liars_are_borne() -> None:
    borne = {
        kn.Mean(): 0, kn.Krum(2): 2, kn.TrimmedMean(3): 3, kn.Bucketing(kn.TrimmedMean(2), 2): 2,
    }  # fmt: skip
    for reducer, liars in borne.items():
        assert explain(federation(reducer)).tolerated_liars == liars
    sampled = explain(federation(kn.Median(), sample=kn.Uniform(9)))
    assert sampled.tolerated_liars == 4
    assert dict(sampled.facts)["liars tolerated"] == "4 of 9 updates: Median, which needs at least 1"


def test_momentum_at_the_client_is_the_moving_average_of_its_updates(tmp_path) -> None:
    plain = kn.simulate(federation(kn.Mean(), 1, stages=()), POPULATION, runs=tmp_path, progress=Quiet())
    slow = kn.simulate(
        federation(kn.Mean(), 1, stages=(kn.Momentum(0.75),)), POPULATION, runs=tmp_path, progress=Quiet()
    )
    start = federation(kn.Mean()).learner.initial(0)
    assert torch.allclose(slow.vector - start, 0.25 * (plain.vector - start), atol=1e-6)
    again = kn.simulate(
        federation(kn.Mean(), 3, stages=(kn.Momentum(0.75),)), POPULATION, runs=tmp_path, progress=Quiet()
    )
    averages = checkpoint.load(again.path / "checkpoints" / "round-000003.safetensors").clients
    assert set(averages) == {f"{client}/0.average" for client in POPULATION.ids}


def test_suspicion_is_in_the_record_and_in_the_report(tmp_path) -> None:
    made = federation(kn.Quarantine(kn.NearestNeighborMixing(kn.TrimmedMean(2), 2)), 6, stages=())
    lie = kn.Attacked(kn.attack.SignFlip(5.0), 2)
    run = kn.simulate(made, POPULATION, runs=tmp_path, progress=Quiet(), engine=lie)
    last = run.history[-1].suspicion
    assert set(last) == set(POPULATION.ids)
    assert {client for client, known in last.items() if known["left_out"]} == {"7", "8"}
    page = (run.path / "report.html").read_text()
    assert "Who is suspected" in page
    plain = kn.simulate(federation(kn.Mean(), 1), POPULATION, runs=tmp_path, progress=Quiet())
    assert "Who is suspected" not in (plain.path / "report.html").read_text()


def test_a_defence_moves_to_what_serves_and_says_why(tmp_path) -> None:
    """Four of nine lie far away: Krum leaves them out, and a median at its breakdown point is bent by them."""
    root = kn.Samples(samples(77).inputs, samples(77).targets)
    made = federation(kn.AdaptiveDefence((kn.Krum(1), kn.Median()), root, patience=2), 20, stages=())
    lie = kn.Attacked(kn.attack.Sybils(3.0, noise=1e-4), 4)
    run = kn.simulate(made, POPULATION, runs=tmp_path, progress=Quiet(), engine=lie)
    decisions = [record.decision for record in run.history]
    assert all(
        re.search(r"(moved to|stayed with) (Krum|Median) \((calm|threat), (alike|unlike)\)", each) for each in decisions
    )
    assert sum("Krum" in each for each in decisions[10:]) >= 8
    moves = [number for number, each in enumerate(decisions) if each.startswith("moved")]
    assert all(later - earlier >= 2 for earlier, later in itertools.pairwise(moves)), "patience"
    assert kn.simulate(made, POPULATION, runs=tmp_path, progress=Quiet(), engine=lie).digest == run.digest


@pytest.mark.parametrize(
    "rules",
    [(kn.Median(),), (kn.Median(), kn.NormClipping(1.0)), (kn.Median(), kn.Mean())],
    ids=["one", "none", "mean"],
)
def test_a_defence_moves_among_robust_rules_only(rules) -> None:
    with pytest.raises(kn.AdmissionError, match=r"at least two|bears no liar"):
        kn.AdaptiveDefence(rules, ROOT)
