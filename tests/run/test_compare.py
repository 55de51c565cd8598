import functools

import pytest
import torch
from torch import nn

import koinon as kn
from koinon.run.compare import TOGETHER, compare, rivals
from koinon.view.progress import Quiet


def model() -> nn.Module:
    return nn.Linear(3, 2)


def owner(seed: int, count: int, test: bool = True) -> kn.DataSet:
    rng = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, generator=rng) + seed
    samples = kn.Samples(inputs, (inputs.sum(1) > 3 * seed).long())
    return kn.DataSet(samples, samples if test else None)


FEDERATION = kn.Federation(
    kn.TorchLearner(
        model,
        nn.CrossEntropyLoss(),
        functools.partial(torch.optim.SGD, lr=0.1),
        batch_size=8,
        metrics=(kn.Accuracy(), kn.AUROC()),
    ),
    kn.fedadam(),
    rounds=3,
)
OWNERS = {"basel": owner(0, 20), "bern": owner(1, 33)}


def test_an_owner_alone_trains_as_a_federation_of_one(tmp_path) -> None:
    models = rivals(FEDERATION, kn.Population.of(OWNERS), seed=5)
    assert set(models) == {"basel alone", "bern alone", "all data pooled"}
    one = kn.Population.of({"basel": OWNERS["basel"]})
    run = kn.simulate(FEDERATION, one, 5, runs=tmp_path, progress=Quiet())
    assert torch.equal(models["basel alone"], run.vector)


def test_pooled_data_is_all_that_the_owners_train_on(tmp_path) -> None:
    population = kn.Population.of(OWNERS)
    parts = [OWNERS[name].train for name in population.ids]
    together = kn.Samples(torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts]))
    one = kn.Population.of({"pooled": together})
    run = kn.simulate(FEDERATION, one, 5, runs=tmp_path, progress=Quiet())
    assert torch.equal(rivals(FEDERATION, population, seed=5)["all data pooled"], run.vector)


def test_the_last_column_is_of_all_examples_and_not_a_mean_of_the_others() -> None:
    learner, vector = FEDERATION.learner, FEDERATION.learner.initial(1)
    population = kn.Population.of({**OWNERS, "zug": owner(2, 9, test=False)})
    tables = {table.title: table for table in compare(learner, {"initial": vector}, population)}
    assert set(tables) == {"loss", "accuracy", "auroc"}
    parts = [OWNERS[name].test for name in population.ids if name != "zug"]
    whole = kn.Samples(torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts]))
    expected = learner.evaluate(vector, whole)
    for title, table in tables.items():
        assert table.columns == (*(name for name in population.ids if name != "zug"), TOGETHER)
        ((name, cells),) = table.rows
        assert name == "initial"
        assert cells[-1] == pytest.approx(expected[title].value)
    assert tables["auroc"].rows[0][1][-1] != pytest.approx(sum(tables["auroc"].rows[0][1][:-1]) / 2)


def test_only_samples_can_be_pooled() -> None:
    listed = [(torch.zeros(3), 0), (torch.ones(3), 1)]
    with pytest.raises(kn.AdmissionError, match=r"kn\.Samples"):
        rivals(FEDERATION, kn.Population.of({"basel": listed}))
