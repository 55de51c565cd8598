"""Runs with noise: what they spend, that it is written down first, and that no noise is drawn twice."""

import functools
import hashlib
import stat

import pytest
import torch
from torch import nn

import koinon as kn
from koinon.core.noise import Noise
from koinon.durable import checkpoint
from koinon.durable.history import RunInfo
from koinon.durable.journal import Journal
from koinon.durable.ledger import Ledger
from koinon.durable.secret import noise_of
from koinon.durable.store import Store
from koinon.privacy.events import Gaussian, PoissonSampled
from koinon.protocol.events import Close
from koinon.protocol.messages import Blob, Chunk
from koinon.protocol.node import Evaluate
from koinon.run.coordinator import Coordinator
from koinon.run.explain import explain
from koinon.run.participant import Participant
from koinon.run.policy import Policy
from koinon.run.settings import Settings
from koinon.run.work import draw
from koinon.strategy.protection import Protection
from koinon.view.progress import Quiet

QUIET = kn.Evaluation(federated=False)


def samples(seed: int) -> kn.Samples:
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randn(8, 3, generator=rng)
    return kn.Samples(inputs, inputs.sum(1, keepdim=True))


POPULATION = kn.Population.of([samples(seed) for seed in range(20)])


def federation(stages: tuple[object, ...], rounds: int = 4, **strategy: object) -> kn.Federation:
    learner = kn.TorchLearner(lambda: nn.Linear(3, 1), nn.MSELoss(), functools.partial(torch.optim.SGD, lr=0.1))
    return kn.Federation(learner, kn.fedavg(stages=stages, **strategy), rounds, QUIET)


CENTRAL = (kn.Clip(0.5), kn.GaussianNoise(1.0, cohort=10))


def simulate(made: kn.Federation, folder: object, seed: int = 0) -> kn.Run:
    return kn.simulate(made, POPULATION, seed, runs=folder, progress=Quiet())


def test_what_a_run_spent_is_what_the_accountant_says_of_its_rounds(tmp_path) -> None:
    run = simulate(federation(CENTRAL, sample=kn.Poisson(0.5)), tmp_path)
    expected = kn.privacy.epsilon(noise_multiplier=1.0, sample_rate=0.5, rounds=4, delta=1e-5)
    assert run.epsilon == pytest.approx(expected, rel=1e-9)
    assert run.summary()["epsilon"] == run.epsilon
    assert "per client (add-remove neighbours, Poisson sampling" in run.summary()["guarantees"]["server"]
    assert all(len(record.releases) == 1 for record in run.history)


def test_without_noise_nothing_is_claimed(tmp_path) -> None:
    run = simulate(federation((kn.Clip(0.5),)), tmp_path)
    assert run.epsilon is None and run.info.delta is None and run.guarantees == {}


def test_nothing_is_told_beside_the_noise(tmp_path) -> None:
    run = simulate(federation(CENTRAL), tmp_path)
    for record in run.history:
        assert record.training == {} and record.federated == {}
        assert {part.examples for part in record.participants} == {1}


def test_equal_seeds_give_equal_bits_and_the_noise_is_there(tmp_path) -> None:
    first, again, other = (simulate(federation(CENTRAL), tmp_path, seed) for seed in (1, 1, 2))
    assert first.digest == again.digest != other.digest
    faint = simulate(federation((kn.Clip(0.5), kn.GaussianNoise(1e-2, cohort=20))), tmp_path, 1)
    plain = simulate(federation((kn.Clip(0.5),)), tmp_path, 1)
    assert torch.allclose(faint.vector, plain.vector, atol=0.01)
    assert not torch.equal(faint.vector, plain.vector)


def test_a_round_in_which_nobody_takes_part_is_noise_like_any_other(tmp_path) -> None:
    made = federation(CENTRAL, rounds=3, sample=kn.Poisson(1e-9))
    run = simulate(made, tmp_path)
    assert all(not record.participants for record in run.history)
    assert len({record.digest for record in run.history}) == 3
    assert not torch.allclose(run.vector, made.learner.initial(0))


def test_a_budget_ends_a_run_and_says_so(tmp_path) -> None:
    made = kn.Federation(
        federation(CENTRAL).learner, kn.fedavg(stages=CENTRAL), 50, QUIET, budget=kn.Budget(12.0, 1e-5)
    )
    run = simulate(made, tmp_path)
    assert len(run.history) == made.planned == run.info.rounds < 50
    assert run.epsilon <= 12.0 and run.info.status == "finished"


def test_the_secret_is_made_once_and_kept_from_others(tmp_path) -> None:
    first = noise_of(tmp_path)
    assert noise_of(tmp_path) == first and first.secret
    assert stat.S_IMODE((tmp_path / "noise.key").stat().st_mode) == 0o600
    (tmp_path / "noise.key").write_bytes(b"short")
    with pytest.raises(kn.VerificationFailed, match="restore it, or start a new run"):
        noise_of(tmp_path)


def coordinator(folder, made: kn.Federation) -> Coordinator:
    info = RunInfo(
        "run", "app", made.digest, made.planned, 0, made.learner.layout.length, "now", "running", "network", delta=1e-5
    )
    return Coordinator(made, info, Store(folder), Settings(minimum_nodes=1), clock=lambda: 0.0)


def added_up(folder, made: kn.Federation) -> str:
    """The digest of what a server makes of a first round without updates, that is of its noise."""
    server = coordinator(folder, made)
    server.work(Close(1, (), ()))
    server.store.close()
    return checkpoint.digest(checkpoint.load(folder / "checkpoints" / "round-000001.safetensors").model)


def test_a_server_that_starts_again_draws_the_same_noise_and_another_run_does_not(tmp_path) -> None:
    made = federation(CENTRAL)
    before = added_up(tmp_path / "one", made)
    assert added_up(tmp_path / "one", made) == before
    assert added_up(tmp_path / "two", made) != before


def test_on_a_network_neither_noise_nor_cohort_follows_from_the_seed(tmp_path) -> None:
    made = federation(CENTRAL, sample=kn.Poisson(0.5))
    sizes = {str(number): 1 for number in range(64)}
    server = coordinator(tmp_path, made)
    assert server.noise.secret and server.noise != Noise.seeded(0)
    assert draw(made, 0, server.noise, 1, list(sizes), sizes) != draw(made, 0, Noise.seeded(0), 1, list(sizes), sizes)
    assert draw(made, 0, server.noise, 1, list(sizes), sizes) == draw(
        made, 0, noise_of(tmp_path), 1, list(sizes), sizes
    )


PROTECTION = Protection("server", PoissonSampled(0.1, Gaussian(1.0)), "client", "add-remove")
OWN = Protection("client", Gaussian(1.0), "client", "replace-one")


def test_a_ledger_charges_a_round_once_and_the_servers_rounds_all(tmp_path) -> None:
    ledger = Ledger(tmp_path)
    for round in (2, 2, 5):
        ledger.charge("run", round, [PROTECTION, OWN])
    ledger.close()
    charges = [(round, release.place, release.times) for _, round, release in Ledger(tmp_path).charges()]
    assert charges == [(2, "server", 2), (2, "client", 1), (5, "server", 3), (5, "client", 1)]
    assert len(Ledger(tmp_path).after("run", 5, [PROTECTION, OWN])) == 4
    assert len(Ledger(tmp_path).after("other", 1, [PROTECTION, OWN])) == 6


@pytest.mark.parametrize(
    "edit",
    [
        "DELETE FROM charges WHERE round = 5",
        "UPDATE charges SET release = replace(release, '\"times\":3', '\"times\":1')",
        "UPDATE audit SET fields = replace(fields, '\"times\":3', '\"times\":1')",
        "DELETE FROM audit WHERE number = 2",
    ],
)
def test_a_ledger_that_was_edited_is_found_out(edit: str, tmp_path) -> None:
    ledger = Ledger(tmp_path)
    for round in (2, 5):
        ledger.charge("run", round, [PROTECTION])
    assert ledger.verify() == 2
    ledger._database.execute(edit)
    with pytest.raises(kn.VerificationFailed):
        ledger.verify()


def test_a_delta_that_would_let_one_client_be_published_is_refused(tmp_path) -> None:
    made = federation(CENTRAL)
    careless = kn.Federation(made.learner, made.strategy, 1, QUIET, budget=kn.Budget(12.0, 0.05))
    with pytest.raises(kn.AdmissionError, match=r"delta.* 1 / 20|0\.05"):
        simulate(careless, tmp_path)


def test_explain_tells_what_an_owners_policy_says_of_the_planned_rounds() -> None:
    made = federation(CENTRAL)
    epsilon = made.protections[0].after(4, 1e-5).epsilon
    allowed = dict(explain(made, Policy(require_dp=True, most_epsilon=epsilon + 0.01)).facts)["the owner's policy"]
    assert allowed.startswith("allows every planned round")
    refused = dict(explain(made, Policy(most_epsilon=epsilon - 0.01)).facts)["the owner's policy"]
    assert "refuses. the owner's policy: most_epsilon" in refused
    assert "the owner's policy" not in dict(explain(made).facts)


def test_explain_names_who_is_not_kept_from_what() -> None:
    by_server, by_client = (
        explain(federation(stages)) for stages in (CENTRAL, (kn.Clip(0.5), kn.Local(kn.GaussianNoise(1.0))))
    )
    assert "does not protect from the server" in dict(by_server.learns)["the server"]
    assert "with the node's own noise in it: epsilon" in dict(by_client.learns)["the server"]
    for explained in (by_server, by_client):
        assert "within epsilon" in dict(explained.learns)["whoever holds the final model"]
        assert explained.epsilon is not None


def test_the_report_says_what_was_spent_and_that_a_simulations_noise_protects_nobody(tmp_path) -> None:
    noisy, plain = simulate(federation(CENTRAL), tmp_path), simulate(federation((kn.Clip(0.5),)), tmp_path)
    page = (noisy.path / "report.html").read_text()
    assert f"noise by the server: {noisy.guarantees['server']}" in page and "protects nobody" in page
    assert "noise by the" not in (plain.path / "report.html").read_text()


@pytest.mark.parametrize("federated", [True, False])
def test_a_node_tells_metrics_of_the_final_model_only_where_nodes_are_to_tell_any(federated, tmp_path) -> None:
    made = federation(() if federated else CENTRAL)
    made = kn.Federation(made.learner, made.strategy, 1, kn.Evaluation(federated=federated))
    journal = Journal(tmp_path / "run")
    model = made.learner.initial(0).numpy().tobytes()
    blob = Blob(hashlib.sha256(model).hexdigest(), len(model))
    journal.expect(blob)
    assert journal.write(blob, Chunk(blob.digest, 0, model))
    data = kn.DataSet(samples(1), samples(2))
    participant = Participant(made, "0", 0, data, journal, Policy(), lambda: 0.0)
    told = participant.work(Evaluate(blob)).metrics
    assert bool(told) == federated
