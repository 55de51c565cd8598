"""A node in a secure sum, with a disk that lasts and a server that may be anybody."""

import pytest
import torch
from torch import nn

import koinon as kn
from koinon.core.errors import AdmissionError, Unavailable, VerificationFailed
from koinon.durable import checkpoint
from koinon.durable.journal import Journal
from koinon.durable.peers import Peers
from koinon.protocol import sums
from koinon.protocol.messages import Blob, Chunk, Continue, Declined, FromNode, Offer, Refused, Summing, Task
from koinon.protocol.node import Received, Say, Train, Upload
from koinon.run.participant import Participant
from koinon.run.policy import Policy
from koinon.run.seat import Mask
from koinon.secure import groups, messages
from koinon.secure.events import Open, Stored, Tell
from koinon.secure.events import Received as Said
from koinon.secure.messages import Entry
from koinon.secure.server import Host, ServerState
from koinon.wire.codec import encode
from koinon.wire.identity import Identity, key_text

NAMES = ("ann", "bob", "cyd")


def model():
    return nn.Linear(4, 3)


FEDERATION = kn.Federation(
    kn.TorchLearner(model, loss=nn.CrossEntropyLoss(), batch_size=8, metrics=(kn.Accuracy(),)),
    kn.fedavg(stages=(kn.Weight(at_most=1000),), secure=kn.SecureSum(clip=1.0)),
    rounds=3,
)


def examples(place):
    inputs = torch.randn(12 + place, 4, generator=torch.Generator().manual_seed(place))
    samples = kn.Samples(inputs, inputs[:, :3].argmax(1))
    return kn.DataSet(samples, samples)


class Node:
    """A participant that can be killed and started again, and what it has said."""

    def __init__(self, folder, name, policy=Policy(), federation=FEDERATION, identity=None):
        self.home, self.name, self.policy, self.federation = folder / name, name, policy, federation
        self.identity = identity or Identity.generate()
        self.said = []
        self.start()

    def start(self):
        self.journal = Journal(self.home / "run")
        place = NAMES.index(self.name) if self.name in NAMES else 9
        self.participant = Participant(
            self.federation,
            self.name,
            0,
            examples(place),
            self.journal,
            self.policy,
            lambda: 0.0,
            run="run",
            identity=self.identity,
        )
        return self

    def restart(self):
        self.journal.close()
        return self.start()

    def hear(self, message):
        """What it says to a message, once it has done all that it has to do."""
        return self.do(self.participant.handle(Received(message)))

    def do(self, outs):
        said = []
        for out in outs:
            if isinstance(out, Say):
                said.append(out.message)
            elif isinstance(out, Train | Mask):
                said += self.do(self.participant.handle(self.participant.work(out)))
            elif isinstance(out, Upload):
                said.append(out)
        self.said += [message for message in said if isinstance(message, FromNode)]
        return said

    def given(self, vector):
        """Give it the model of a task."""
        data = vector.numpy().tobytes()
        return self.do(self.participant.chunk(Chunk(checkpoint.digest(vector), 0, data)))


class Server:
    """One attempt, played by hand; the test may say something else."""

    def __init__(self, nodes, round=1, attempt=0, model=None):
        self.nodes = {node.name: node for node in nodes}
        self.model = FEDERATION.learner.initial(0) if model is None else model
        keys = {node.name: node.identity.key for node in nodes}
        self.host = Host("run", keys, FEDERATION.scheme, FEDERATION.carried)
        self.round, self.attempt = round, attempt
        self.hall = groups.HallState(ServerState(sums.number(round, attempt), tuple(self.nodes)))
        self.task = Task(round, Blob(checkpoint.digest(self.model), 4 * len(self.model)), 3, 60.0, {}, (), attempt)
        self.told, self.offers, self.opening = [], {}, None

    def ask(self, *names):
        for name in names or self.nodes:
            self.answered(name, self.nodes[name].hear(self.task))
            self.answered(name, self.nodes[name].given(self.model))

    def answered(self, name, said):
        for message in said:
            if isinstance(message, Summing):
                self.step(Said(name, messages.decode(message.message, messages.FromClient, 1 << 20)))
            elif isinstance(message, Offer):
                self.offers[name] = message
                self.step(Stored(name, bytes.fromhex(message.update.digest)))

    def step(self, event):
        self.hall, effects = groups.step(self.host, self.hall, event)
        for effect in effects:
            if isinstance(effect, Tell):
                self.told.append((effect.client, effect.message))
            elif isinstance(effect, Open):
                self.opening = effect.opening

    def go_on(self, until=None):
        """Deliver what is told, up to messages of a kind, which are given back."""
        kept = {}
        while self.told:
            name, message = self.told.pop(0)
            if until is not None and isinstance(message, until):
                kept[name] = message
            else:
                self.answered(name, self.nodes[name].hear(Summing(messages.encode(message))))
        return kept


@pytest.fixture
def nodes(tmp_path):
    return [Node(tmp_path, name) for name in NAMES]


def refusals(said):
    return [message for message in said if isinstance(message, Declined)]


def test_three_nodes_add_up_and_of_one_alone_nothing_is_said(nodes):
    server = Server(nodes)
    server.ask()
    server.go_on()
    assert server.opening is not None and set(server.opening.survivors) == set(NAMES)
    for node in nodes:
        trained = node.participant.state.journal[1].offer
        plain = (node.journal.folder / "update-000001").read_bytes()
        words = b"".join(encode(message) for message in node.said) + node.journal.masked.read_bytes()
        assert plain[:16] not in words and trained.update.digest.encode() not in words
        assert {message.weight for message in node.said if isinstance(message, Offer)} == {0.0}
        assert all(not message.metrics and message.examples == 0 for message in node.said if isinstance(message, Offer))
        assert trained.metrics and trained.examples >= 12
        (ready,) = node.do(node.participant.connected())
        assert ready.examples == 0


@pytest.mark.parametrize("kind", [messages.Invitation, messages.Delivery, messages.Survivors, messages.Agreement])
def test_a_node_that_is_killed_in_any_phase_goes_on_with_the_same_words(nodes, kind):
    server = Server(nodes)
    server.ask()
    waiting = server.go_on(until=kind)
    ann = nodes[0].restart()
    again = ann.hear(server.task)
    assert [message for message in again if isinstance(message, Summing)] == [
        message for message in ann.said if isinstance(message, Summing)
    ][:1], "the same keys"
    for name in NAMES:
        server.answered(name, server.nodes[name].hear(Summing(messages.encode(waiting[name]))))
    server.go_on()
    assert server.opening is not None and "ann" in server.opening.survivors
    offered = [message.update for message in ann.said if isinstance(message, Offer)]
    assert len(set(offered)) == 1, "the same masked bytes"


def test_a_second_attempt_masks_the_same_update_anew_and_nothing_is_trained_twice(nodes):
    first = Server(nodes)
    first.ask()
    first.go_on(until=messages.Survivors)
    trained = [node.participant.state.journal[1].offer for node in nodes]
    second = Server(nodes, attempt=1)
    second.ask()
    second.go_on()
    assert second.opening is not None
    assert [node.participant.state.journal[1].offer for node in nodes] == trained
    assert all(second.offers[name].update != first.offers[name].update for name in NAMES)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_node_that_has_signed_for_its_update_helps_no_other_sum_of_it(nodes, restarted):
    server = Server(nodes)
    server.ask()
    server.go_on(until=messages.Agreement)
    if restarted:
        nodes[0].restart()
    (answer,) = refusals(nodes[0].hear(Server(nodes, attempt=1).task))
    assert "has signed a survivor set for its update 1 already" in answer.reason
    assert not any(isinstance(message, Summing) for message in nodes[0].said[-1:])


def test_words_of_an_earlier_attempt_mean_nothing(nodes):
    server = Server(nodes)
    server.ask()
    stale = server.go_on(until=messages.Delivery)
    second = Server(nodes, attempt=1)
    second.ask()
    assert nodes[0].hear(Summing(messages.encode(stale["ann"]))) == []


def test_malformed_words_end_the_nodes_part_in_one_clear_line(nodes):
    server = Server(nodes)
    server.ask()
    (answer,) = refusals(nodes[0].hear(Summing(b"\xc1")))
    assert answer.round == 1 and "malformed message of a secure sum" in answer.reason


def test_another_identity_under_a_name_that_is_known_is_refused_also_in_another_run(nodes, tmp_path):
    server = Server(nodes)
    server.ask()
    server.go_on()
    nodes[2] = Node(tmp_path / "impostor", "cyd")
    for node in nodes[:2]:
        node.hear(Refused(1, "next"))
    again = Server(nodes, round=2, model=server.model + 1)
    again.ask()
    again.go_on()
    assert again.opening is None
    (answer,) = refusals(nodes[0].said)
    assert "cyd is said to have another identity than this client trusts by that name" in answer.reason


def test_a_list_is_all_that_a_node_trusts(nodes, tmp_path):
    known = {node.name: key_text(node.identity.key) for node in nodes}
    ann = Node(tmp_path / "listed", "ann", Policy(peers=known))
    server = Server([ann, *nodes[1:]])
    server.ask()
    server.go_on()
    assert server.opening is not None
    stranger = Node(tmp_path / "stranger", "ann", Policy(peers={name: known[name] for name in ("bob",)}))
    again = Server([stranger, *[Node(tmp_path / "others", name) for name in NAMES[1:]]])
    again.ask()
    again.go_on()
    (answer,) = refusals(stranger.said)
    assert "another identity" in answer.reason or "nobody whom this node trusts" in answer.reason
    with pytest.raises(AdmissionError, match="is no public key"):
        Policy(peers={"bob": "nonsense"})


def test_a_node_that_cannot_write_says_nothing(nodes, monkeypatch):
    def full(data):
        raise Unavailable("the disk is full")

    monkeypatch.setattr(nodes[0].journal, "keep_sum", full)
    with pytest.raises(Unavailable):
        nodes[0].hear(Server(nodes).task)
    assert nodes[0].said == []


def test_a_server_that_adds_up_secretly_where_nothing_is_defined_gets_nothing(tmp_path):
    plain = kn.Federation(FEDERATION.learner, kn.fedavg(), rounds=3)
    node = Node(tmp_path, "ann", federation=plain)
    (answer,) = node.hear(Server([node]).task)
    assert isinstance(answer, Declined) and "nothing is defined to be" in answer.reason


def test_a_server_that_asks_for_updates_in_clear_where_a_sum_is_defined_gets_none(nodes):
    server = Server(nodes)
    clear = Task(1, server.task.model, 3, 60.0)
    (answer,) = nodes[0].hear(clear)
    assert isinstance(answer, Declined) and "asks for an update in clear" in answer.reason
    assert nodes[0].given(server.model) == []
    server.ask("bob")
    assert nodes[1].participant.state.journal[1].offer is not None
    assert nodes[1].hear(Continue(1, 0)) == [], "the plain update never leaves, offered or not"
    (answer,) = nodes[1].hear(clear)
    assert isinstance(answer, Declined)
    for node in nodes:
        assert not any(isinstance(message, Offer | Upload) for message in node.said)


def test_what_is_uploaded_is_the_masked_update(nodes):
    server = Server(nodes)
    server.ask()
    server.go_on(until=messages.Survivors)
    (upload,) = nodes[0].hear(Continue(1, 0))
    assert upload.offer.update == server.offers["ann"].update
    assert nodes[0].participant.path(upload.offer) == nodes[0].journal.masked


def test_a_damaged_list_of_peers_is_told(tmp_path):
    path = tmp_path / "peers.json"
    peers = Peers(path)
    entry = Entry("ann", bytes(32), bytes(32), bytes(64))
    peers.met((entry,))
    assert Peers(path).among(()) == {"ann": bytes(32)}
    assert Peers(path).among((Entry("ann", b"1" * 32, bytes(32), bytes(64)),)) == {"ann": bytes(32)}
    assert Peers(path, {"bob": b"2" * 32}).among((entry,)) == {"bob": b"2" * 32}
    path.write_bytes(b"{")
    with pytest.raises(VerificationFailed, match="restore it, or remove it"):
        Peers(path)
