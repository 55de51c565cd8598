"""Runs over real sockets through a network that is slow, loses packets and breaks."""

from pathlib import Path

import pytest

from koinon.core.network import Network
from koinon.durable.store import Store
from koinon.run.up import Trial

APPS = Path(__file__).parent / "apps"


def history(app, tmp_path, network, nodes=2, rounds=3):
    """The rounds of a run in which every node took part in every round."""
    names = {str(place): f"population:{place}/{nodes}" for place in range(nodes)}
    serve = ["--min-nodes", str(nodes), "--quorum", "1", "--seed", "0", "--rounds", str(rounds)]
    with Trial(str(APPS / f"{app}.py"), names, tmp_path / "run", serve, network=network) as trial:
        trial.start_server()
        for node in names:
            trial.start_node(node)
        assert trial.wait() == 0
    store = Store(tmp_path / "run")
    try:
        return store.history()
    finally:
        store.close()


def test_a_network_that_breaks_all_the_time_changes_no_bit(tmp_path, undisturbed):
    network = Network(
        up_mbit=80.0, down_mbit=80.0, round_trip_ms=20.0, jitter_ms=5.0, loss=0.001, cuts_per_hour=720.0, cut_s=0.3
    )
    records = history("packed", tmp_path, network, rounds=8)
    assert [record.digest for record in records] == undisturbed(str(APPS / "packed.py"), 2, 8).digests
    logs = "".join(path.read_text() for path in (tmp_path / "run" / "logs").iterdir())
    assert logs.count("joined run") > 2, "nothing was ever cut"


@pytest.mark.parametrize(("up_mbit", "everything"), [(100.0, True), (0.5, False)])
def test_nodes_send_what_their_link_can_take(tmp_path, up_mbit, everything):
    records = history("fitted", tmp_path, Network(up_mbit=up_mbit, down_mbit=1000.0, round_trip_ms=5.0))
    values = 600 * 1000
    for record in records:
        for part in record.participants:
            whole = part.bytes_up > 4 * values
            assert whole == (everything and record.round > 1), "nothing is known of a link before the first update"
            assert whole or part.bytes_up < values / 4
