import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import koinon as kn
from koinon.core.errors import AdmissionError, PolicyRefused, Unavailable
from koinon.durable.spending import Release
from koinon.run.policy import Policy


def federation(*stages: object) -> kn.Federation:
    learner = kn.TorchLearner(torch.nn.Linear(2, 1), loss=torch.nn.MSELoss())
    return kn.Federation(learner, kn.fedavg(stages=stages), 10, kn.Evaluation(federated=not stages))


PLAIN = federation()
CENTRAL = federation(kn.Clip(1.0), kn.GaussianNoise(2.0, cohort=4))
LOCAL = federation(kn.Clip(3.0), kn.Local(kn.GaussianNoise(2.0)))
MINE, OTHER = PLAIN.digest, "cd" * 32


def load(folder: Path, text: str) -> Policy:
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return Policy.load(path)


def refused(folder: Path, text: str) -> str:
    with pytest.raises(AdmissionError) as caught:
        load(folder, text)
    message = str(caught.value)
    assert str(folder / "policy.toml") in message and "\n" not in message
    return message


@given(st.integers(0, 2**31), st.integers(1, 10**6))
def test_the_default_allows_everything(rounds: int, cohort: int) -> None:
    Policy().check_join(PLAIN, rounds)
    Policy().check_task(rounds, cohort)


def test_a_file_is_read_as_it_stands(tmp_path: Path) -> None:
    text = f'smallest_cohort = 3\ndefinitions = ["{MINE}"]\nmost_rounds = 200\nrequire_secure_sum = true\nrequire_dp = true\n'
    expected = Policy(smallest_cohort=3, definitions=(MINE,), most_rounds=200, require_secure_sum=True, require_dp=True)
    assert load(tmp_path, text) == expected
    assert load(tmp_path, "# nothing is forbidden\n") == Policy()


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_a_cohort_is_allowed_exactly_from_the_smallest_on(smallest: int, cohort: int) -> None:
    policy = Policy(smallest_cohort=smallest)
    if cohort >= smallest:
        policy.check_task(1, cohort)
    else:
        with pytest.raises(PolicyRefused, match=f"smallest_cohort = {smallest} forbids a cohort of {cohort}$"):
            policy.check_task(1, cohort)


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_rounds_are_counted_at_joining_and_again_at_every_task(most: int, rounds: int) -> None:
    policy = Policy(most_rounds=most)
    if rounds <= most:
        policy.check_join(PLAIN, rounds)
        policy.check_task(rounds, 1)
    else:
        with pytest.raises(PolicyRefused, match=f"most_rounds = {most} forbids a run of {rounds} rounds$"):
            policy.check_join(PLAIN, rounds)
        with pytest.raises(PolicyRefused, match=f"most_rounds = {most} forbids round {rounds}$"):
            policy.check_task(rounds, 1)


def test_only_listed_definitions_may_run() -> None:
    Policy(definitions=(OTHER, MINE)).check_join(PLAIN, 1)
    for definitions in ((OTHER,), ()):
        with pytest.raises(PolicyRefused, match=f"definitions does not list {MINE}"):
            Policy(definitions=definitions).check_join(PLAIN, 1)


def test_a_run_in_which_the_server_sees_updates_is_refused_when_a_secure_sum_is_required() -> None:
    policy = Policy(require_secure_sum=True)
    with pytest.raises(PolicyRefused, match="require_secure_sum = true, and the run has no secure sum"):
        policy.check_join(PLAIN, 1)
    secure = dataclasses.replace(PLAIN, strategy=kn.fedavg(stages=(), secure=kn.SecureSum(clip=1.0)))
    policy.check_join(secure, 1)


def test_the_owner_says_where_noise_must_come_from() -> None:
    for wanted, offered in ((True, CENTRAL), (True, LOCAL), ("server", CENTRAL), ("client", LOCAL)):
        Policy(require_dp=wanted).check_join(offered, 1)
    with pytest.raises(PolicyRefused, match="require_dp = true; the run has no noise"):
        Policy(require_dp=True).check_join(PLAIN, 1)
    with pytest.raises(PolicyRefused, match='require_dp = "client"; the run has noise only from: server'):
        Policy(require_dp="client").check_join(CENTRAL, 1)


def test_the_owner_says_how_far_an_update_may_go() -> None:
    Policy(most_norm=1.0).check_join(CENTRAL, 1)
    with pytest.raises(PolicyRefused, match="most_norm = 1, and the run clips to 3"):
        Policy(most_norm=1.0).check_join(LOCAL, 1)
    with pytest.raises(PolicyRefused, match="most_norm = 1, and the run does not clip"):
        Policy(most_norm=1.0).check_join(PLAIN, 1)


def test_a_ceiling_counts_everything_that_was_spent() -> None:
    (protection,) = CENTRAL.protections
    most = protection.after(5, 1e-5).epsilon
    policy = Policy(most_epsilon=most * 1.001, delta=1e-5)
    policy.check_join(CENTRAL, 10)
    policy.check_spent([Release.of(protection, 2), Release.of(protection, 3)])
    with pytest.raises(PolicyRefused, match=r"most_epsilon = .* with this round it would be epsilon .* per client"):
        policy.check_spent([Release.of(protection, 2), Release.of(protection, 4)])
    with pytest.raises(PolicyRefused, match=r"most_epsilon = .*, and the run has no noise"):
        policy.check_join(PLAIN, 10)


def test_an_unknown_setting_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    message = refused(tmp_path, "smalest_cohort = 3")
    assert "no setting smalest_cohort; did you mean smallest_cohort?" in message
    assert "most_rounds" in message and "require_dp" in message
    assert "did you mean" not in refused(tmp_path, "zzz = 1")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("smallest_cohort = 0", "smallest_cohort = 0"),
        ("smallest_cohort = '3'", "smallest_cohort = '3'"),
        ("smallest_cohort = 2.5", "smallest_cohort = 2.5"),
        ("smallest_cohort = true", "smallest_cohort = True"),
        ("most_rounds = -1", "most_rounds = -1"),
        ("definitions = 'abc'", "definitions = 'abc'"),
        ("definitions = ['abc']", "definitions = ['abc']"),
        ("require_dp = 1", "require_dp = 1"),
        ("[require_secure_sum]\nx = 1", "require_secure_sum = {'x': 1}"),
    ],
)
def test_a_wrong_value_is_refused_by_name(line: str, key: str, tmp_path: Path) -> None:
    message = refused(tmp_path, line)
    assert key in message and "expected" in message


def test_what_is_not_toml_is_refused_with_its_place(tmp_path: Path) -> None:
    assert "line 2" in refused(tmp_path, "most_rounds = 1\nsmallest_cohort = = 3")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AdmissionError, match=r"binary\.toml is not valid TOML"):
        Policy.load(tmp_path / "binary.toml")
    with pytest.raises(Unavailable, match=r"missing\.toml"):
        Policy.load(tmp_path / "missing.toml")


def test_a_policy_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Policy().smallest_cohort = 2  # type: ignore[misc]
