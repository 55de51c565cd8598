"""The way down: nodes that hold a model are sent what changed, and everyone ends with the same bits."""

import hashlib
import time
from pathlib import Path

import pytest
import torch

import koinon as kn
from koinon.durable import checkpoint
from koinon.durable.journal import Journal
from koinon.durable.store import Store
from koinon.protocol.messages import Blob, Chunk, Delta
from koinon.protocol.node import Connected, Download, Downloaded
from koinon.run.app import load_app
from koinon.run.coordinator import Coordinator
from koinon.run.explain import explain
from koinon.run.inbox import Inbox
from koinon.run.settings import Settings
from koinon.run.work import changed
from koinon.update.codec import Shared
from koinon.view.progress import Quiet

APP = load_app(str(Path(__file__).parents[1] / "system" / "apps" / "small.py"))
DOWN = kn.ErrorFeedback(kn.Quantize(4))


class Killed(Quiet):
    """The process is killed when round 2 has closed."""

    def closed(self, record):
        if record.round == 2:
            raise KeyboardInterrupt


def federation(downlink=DOWN, sample=kn.Everyone(), rounds=5):
    return kn.Federation(APP.federation.learner, kn.fedavg(sample=sample, downlink=downlink), rounds)


def simulated(folder, *arguments, **settings):
    return kn.simulate(federation(*arguments), APP.clients(3), runs=folder, **settings)


def down(run):
    return [[part.bytes_down for part in record.participants] for record in run.history]


def larger():
    return torch.nn.Sequential(torch.nn.Linear(4, 300), torch.nn.Linear(300, 3))


def test_after_the_first_round_less_is_sent(tmp_path):
    learner = kn.TorchLearner(larger, loss=torch.nn.CrossEntropyLoss(), batch_size=8)

    def sent(downlink):
        made = kn.Federation(learner, kn.fedavg(downlink=downlink), 3)
        return down(kn.simulate(made, APP.clients(3), runs=tmp_path))

    changes, models = sent(DOWN), sent(None)
    assert changes[0] == models[0]
    assert all(
        3 * change < model for later in (1, 2) for change, model in zip(changes[later], models[later], strict=True)
    )


def test_what_was_left_out_and_who_holds_what_survive_a_kill(tmp_path):
    sample = kn.Uniform(2)
    whole = simulated(tmp_path / "whole", DOWN, sample)
    with pytest.raises(KeyboardInterrupt):
        simulated(tmp_path / "cut", DOWN, sample, progress=Killed())
    (begun,) = (tmp_path / "cut").iterdir()
    resumed = simulated(tmp_path / "cut", DOWN, sample, resume=begun.name)
    assert (resumed.digest, down(resumed)) == (whole.digest, down(whole))


def test_a_server_that_starts_again_knows_what_changed_and_keeps_no_more(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        simulated(tmp_path, progress=Killed())
    store = Store(next(tmp_path.iterdir()))
    server = Coordinator(federation(), store.info(), store, Settings(), time.monotonic)
    deltas, history = server.state.deltas, store.history()
    assert [delta.round for delta in deltas] == [1, 2] and deltas[1].base == history[0].digest
    path, begin = server.file(deltas[1].change)
    assert hashlib.sha256(path.read_bytes()[begin:]).hexdigest() == deltas[1].change.digest
    store.close()


def test_a_run_keeps_only_the_changes_that_it_may_send(tmp_path):
    run = simulated(tmp_path)
    most = (4 * APP.federation.learner.layout.length - 1) // DOWN.size(APP.federation.learner.layout)
    kept = sorted(int(path.name.partition("-")[2]) for path in (run.path / "deltas").iterdir())
    assert kept == list(range(6 - most, 6)) and most < 5


def test_what_is_left_out_is_made_up_for(tmp_path):
    fine = simulated(tmp_path, None)
    coarse, without = (simulated(tmp_path, codec) for codec in (kn.ErrorFeedback(kn.TopK(0.2)), kn.TopK(0.2)))

    def apart(run):
        return torch.cat([(run.model[name] - fine.model[name]).flatten() for name in run.model]).norm()

    assert 0 < apart(coarse) < apart(without)


def inbox(tmp_path, model):
    journal = Journal(tmp_path)
    held = Blob(checkpoint.digest(model), 4 * len(model))
    journal.put(held, model)
    return journal, held, Inbox(federation(), 0, journal, 7)


def patch(held, model):
    layout = APP.federation.learner.layout
    _, change = DOWN.encode(
        DOWN.init(layout), torch.linspace(-1, 1, layout.length), Shared(layout, 0, 1), torch.Generator()
    )
    after = changed(federation(), 0, 1, model.clone(), change)
    delta = Delta(held.digest, 1, Blob(checkpoint.digest(after), len(change)))
    return delta, bytes(change), after


def test_a_node_makes_the_model_from_what_it_holds(tmp_path):
    model = torch.ones(APP.federation.learner.layout.length)
    journal, held, box = inbox(tmp_path, model)
    delta, change, after = patch(held, model)
    wanted = Blob(checkpoint.digest(after), held.size)
    assert box.begin(Download(wanted, (delta,))) is None
    assert box.take(Chunk(delta.change.digest, 0, change[:3])) is None
    assert box.take(Chunk(delta.change.digest, 3, change[3:])) == Downloaded(wanted.digest)
    assert torch.equal(journal.model(wanted.digest), after)
    assert journal.holding() == (wanted.digest, wanted.size)


@pytest.mark.parametrize("damage", [lambda change: bytes(len(change)), lambda change: b"\xff" * len(change)])
def test_what_does_not_lead_to_the_model_is_dropped_and_the_model_asked_for(damage, tmp_path):
    model = torch.ones(APP.federation.learner.layout.length)
    _, held, box = inbox(tmp_path, model)
    delta, change, after = patch(held, model)
    assert box.begin(Download(Blob(checkpoint.digest(after), held.size), (delta,))) is None
    assert box.take(Chunk(delta.change.digest, 0, damage(change))) == Connected(None, 0, 7)


def test_changes_of_another_model_or_larger_than_any_are_not_waited_for(tmp_path):
    model = torch.ones(APP.federation.learner.layout.length)
    _, held, box = inbox(tmp_path, model)
    other, vast = Delta("a" * 64, 1, Blob("b" * 64, 5)), Delta(held.digest, 1, Blob("b" * 64, 10**9))
    many = (Delta(held.digest, 1, Blob("b" * 64, DOWN.most(APP.federation.learner.layout))),) * 60
    for deltas in ((other,), (vast,), many):
        assert box.begin(Download(Blob("c" * 64, held.size), deltas)) == Connected(held.digest, held.size, 7)


def test_what_a_node_is_sent_is_explained():
    layout = APP.federation.learner.layout
    told = dict(explain(federation()).facts)["bytes to a node, a round"]
    assert (
        told
        == f"{4 * layout.length:,} and framing, or at most {DOWN.most(layout):,} for each round since the model that it holds"
    )
    assert dict(explain(federation(None)).facts)["bytes to a node, a round"] == f"{4 * layout.length:,} and framing"
