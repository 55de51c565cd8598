"""Every command: its result, its JSON, and one clear line with the right exit code for everything that goes wrong."""

import json
import logging
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from koinon.cli.main import main
from koinon.durable.store import Store
from koinon.run.app import load_app
from koinon.run.up import Trial

COMMANDS = [
    "new", "simulate", "up", "serve", "join", "explain", "enroll new", "enroll approve", "enroll token",
    "enroll revoke", "enroll list", "runs list", "runs show", "runs resume", "runs compare", "runs verify", "runs export",
    "data list", "data show", "data partition", "ledger show", "ledger verify", "tune privacy", "tradeoff",
]  # fmt: skip
RESULT = {"digest", "rounds", "metrics", "epsilon", "bytes_up", "bytes_down", "seconds", "path"}
PATIENCE_S = 240.0


class Ended:
    """How a command ended."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def result(self):
        """The last line, which is JSON."""
        assert self.code == 0, self.err
        return json.loads(self.out.splitlines()[-1], parse_constant=pytest.fail)

    def error(self, code):
        """The one line that says what is wrong."""
        assert self.code == code, (self.code, self.err)
        assert "Traceback" not in self.err
        (line,) = (line for line in self.err.splitlines() if line.startswith("error: "))
        assert self.err.splitlines()[-1] == line
        assert not self.out
        return line.removeprefix("error: ")


@pytest.fixture
def koinon(capsys, monkeypatch, tmp_path):
    """Run a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["koinon", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return Ended(end.value.code or 0, *capsys.readouterr())

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


def process(*arguments, **options):
    """Start a command as a process."""
    command = [sys.executable, "-m", "koinon.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def ended(started):
    """A process's end."""
    out, err = started.communicate(timeout=PATIENCE_S)
    return Ended(started.returncode, out, err)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(koinon, command):
    help = koinon(*command.split(), "--help")
    assert help.code == 0
    assert "--json" in help.out


def test_the_command_line_itself(koinon):
    assert koinon("--version").out == "0.1.0\n"
    assert "simulate" in koinon("--help").out
    nothing = koinon()
    assert (nothing.code, nothing.err) == (2, "")
    assert "simulate" in nothing.out
    assert koinon("simulate").error(2) == "Missing argument 'APP'; --help shows what there is"
    assert "No such command 'simulat'" in koinon("simulat").error(2)
    assert "--clients" in koinon("simulate", "app.py", "--clients", "some").error(2)


def test_a_new_app_works_at_once(koinon):
    assert koinon("new", "mine").out == "koinon simulate mine/app.py\n"
    assert koinon("new", "other", "--json").result == {"app": "other/app.py"}
    assert "mine is not empty" in koinon("new", "mine").error(2)
    run = koinon("simulate", "mine/app.py", "--clients", 3, "--rounds", 2, "--json").result
    assert run["metrics"]["accuracy"] > 0.2
    assert koinon("explain", "mine/app.py", "--json").result


def test_simulate_and_what_is_done_with_a_run(koinon, app):
    assert koinon("runs", "list", "--json").result == []
    result = koinon("simulate", app("small"), "--clients", 2, "--rounds", 2, "--json").result
    assert result.keys() >= RESULT
    assert result["rounds"] == 2
    id = result["id"]
    again = koinon("simulate", app("small"), "--clients", 2, "--rounds", 2, "--runs", "elsewhere").out
    assert result["digest"] in again
    assert koinon("simulate", app("small"), "--clients", 2, "--seed", 1, "--json").result["digest"] not in again

    listed = {entry["id"]: entry for entry in koinon("runs", "list", "--json").result}
    assert listed[id]["status"] == "finished"
    assert id in koinon("runs", "list").out
    shown = koinon("runs", "show", id, "--json").result
    assert [record["round"] for record in shown["history"]] == [1, 2]
    assert shown["history"][-1]["digest"] == result["digest"]
    assert "2 of 2 accepted" in koinon("runs", "show", id).out
    assert koinon("runs", "resume", id, "--json").result["digest"] == result["digest"]
    for path in koinon("runs", "export", id, "--json").result.values():
        assert Path(path).stat().st_size
    assert koinon("runs", "verify", id, "--json").result["verified"] is True

    with sqlite3.connect(Path("runs") / id / "run.db") as database:
        database.execute("UPDATE rounds SET record = replace(record, 'accepted', 'refused') WHERE round = 1")
    database.close()
    assert "round 1" in koinon("runs", "verify", id).error(7)
    (checkpoint,) = Path("elsewhere").glob("*/checkpoints/*.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    assert "missing or damaged" in koinon("runs", "verify", checkpoint.parts[1], "--runs", "elsewhere").error(7)
    for command in ("show", "verify", "resume", "export"):
        assert "there is no run other in runs; `koinon runs list` shows" in koinon("runs", command, "other").error(4)


def test_apps_that_cannot_be_run(koinon):
    assert "there is no app missing.py; `koinon new DIR` makes one" in koinon("simulate", "missing.py").error(4)
    Path("empty.py").write_text("")
    assert "defines no `federation`" in koinon("simulate", "empty.py").error(2)
    Path("broken.py").write_text("1 / 0")
    assert "broken.py cannot be run: ZeroDivisionError" in koinon("explain", "broken.py").error(2)
    assert "there is no app no.such.module" in koinon("simulate", "no.such.module:federation").error(4)


def test_what_an_app_does_not_support(koinon, app):
    Path("bare.py").write_text(Path(app("small")).read_text().partition("def population")[0])
    assert "bare.py defines no `population`" in koinon("simulate", "bare.py").error(2)
    assert "a federation needs at least one round, not 0" in koinon("simulate", app("small"), "--rounds", 0).error(2)
    Path("poor.py").write_text(Path(app("small")).read_text().replace("(client, 10 + 3 * client)", "(client, 0)"))
    assert "every client of round 1 failed, e.g. 0: round 1: the data set is empty" in koinon(
        "simulate", "poor.py"
    ).error(6)


def test_data(koinon):
    assert "digits" in koinon("data", "list").out.splitlines()
    assert "digits" in koinon("data", "list", "--json").result
    assert koinon("data", "show", "digits", "--json").result["inputs"] == [1, 8, 8]
    assert "no data set is called 'digit'" in koinon("data", "show", "digit").error(2)
    assert "cannot read missing.csv" in koinon("data", "show", "missing.csv").error(4)
    Path("ragged.csv").write_text("a,b\n1,2\n3\n")
    assert "ragged.csv, line 3: 1 cells" in koinon("data", "show", "ragged.csv").error(4)


def test_runs_are_compared(koinon):
    koinon("new", "app")
    ids = [
        koinon("simulate", "app/app.py", "--rounds", "2", "--seed", str(seed), "--json").result["id"] for seed in (0, 1)
    ]
    timed = koinon("simulate", "app/app.py", "--rounds", "3", "--devices", "silos", "--json").result["id"]
    rows = koinon("runs", "compare", *ids, timed, "--plot", "runs.svg", "--by", "megabytes", "--json").result
    assert [row["id"] for row in rows] == [*ids, timed]
    assert [row["rounds"] for row in rows] == [2, 2, 3]
    assert all(row["best accuracy"] >= row["accuracy"] > 0 for row in rows)
    assert rows[0]["accuracy"] != rows[1]["accuracy"]
    assert [("virtual seconds" in row) for row in rows] == [False, False, True]
    assert "<svg" in Path("runs.svg").read_text()
    shown = koinon("runs", "compare", *ids, "--metric", "loss").out
    assert "best loss" in shown
    assert "has no f1; it has accuracy, loss" in koinon("runs", "compare", *ids, "--metric", "f1").error(2)


def test_a_partition_is_measured_and_drawn(koinon):
    alike = koinon("data", "partition", "digits", "--by", "IID", "--clients", "10", "--json").result
    apart = koinon(
        "data", "partition", "digits", "--by", "Shards:2", "--clients", "10", "--plot", "parts.svg", "--json"
    ).result
    assert alike["clients"] == apart["clients"] == alike["classes"] == 10
    assert alike["label_distance"] < 0.15 < 0.7 < apart["label_distance"]
    assert "<svg" in Path("parts.svg").read_text()
    assert "did you mean Dirichlet?" in koinon("data", "partition", "digits", "--by", "Dirichlt").error(2)
    assert "write for instance Dirichlet:0.3" in koinon("data", "partition", "digits", "--by", "Dirichlet").error(2)
    unknown = koinon("data", "partition", "digits", "--by", "IID", "--plot", "parts.foo").error(4)
    assert "name it .png, .svg or .pdf" in unknown


def test_enrolment_by_hand(koinon):
    key = koinon("enroll", "new", "--home", "node").out.strip()
    assert koinon("enroll", "new", "--home", "other", "--json").result["key"] != key
    assert key in koinon("enroll", "new", "--home", "node").error(2)
    assert koinon("enroll", "approve", key, "north", "--json").result == {"name": "north", "status": "approved"}
    (entry,) = koinon("enroll", "list", "--json").result
    assert entry == {"name": "north", "key": key, "status": "approved"}
    assert koinon("enroll", "revoke", "north").out == "north is revoked\n"
    assert koinon("enroll", "list").out.split() == ["revoked", "north", key]
    assert len(koinon("enroll", "token", "south", "--json").result["token"]) >= 32
    assert "there is no node west" in koinon("enroll", "revoke", "west").error(2)
    assert "'no' is no public key" in koinon("enroll", "approve", "no", "west").error(2)
    assert "cannot be a node's name" in koinon("enroll", "approve", key, "../west").error(2)


def test_what_keeps_a_server_from_starting(koinon, app):
    small = app("small")
    assert "'8443' is no address; write HOST:PORT" in koinon("serve", small, "--listen", "8443", "--dev").error(2)
    assert "--cert and --key, or --dev" in koinon("serve", small, "--listen", "127.0.0.1:0").error(2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = f"port 127.0.0.1:{port} is in use; choose another with --listen"
        assert words in koinon("serve", small, "--listen", f"127.0.0.1:{port}", "--dev").error(4)
    listen = "--listen", "127.0.0.1:0", "--dev"
    assert "set --min-nodes" in koinon("serve", small, *listen, "--min-nodes", 0).error(2)
    assert "set --quorum" in koinon("serve", small, *listen, "--quorum", 2).error(2)
    Path("file").touch()
    assert "cannot open" in koinon("serve", small, *listen, "--runs", "file/runs").error(4)
    simulated = koinon("simulate", small, "--clients", 2, "--rounds", 1, "--json").result["id"]
    assert f"run {simulated} is a simulation" in koinon("serve", small, *listen, "--run", simulated).error(2)
    (served,) = (entry["id"] for entry in koinon("runs", "list", "--json").result if entry["id"] != simulated)
    words = f"{served} is no simulation; go on with it by `koinon serve APP --run {served}`"
    assert words in koinon("runs", "resume", served).error(2)
    Path("changed.py").write_text(Path(small).read_text().replace("batch_size=8", "batch_size=9"))
    assert f"run {served} has definition" in koinon("serve", "changed.py", *listen, "--run", served).error(2)


def test_what_keeps_a_node_from_starting(koinon, app):
    key = koinon("enroll", "new", "--home", "node").out.strip()
    join = "join", "wss://localhost:1", app("small"), "--server", key, "--home"
    assert "koinon enroll new --home none" in koinon(*join, "none", "--data", "digits").error(2)
    assert "cannot read missing.csv" in koinon(*join, "node", "--data", "missing.csv").error(4)
    Path("columns.csv").write_text("a,b,c\n" + "1,2,3\n" * 9)
    words = koinon(*join, "node", "--data", "columns.csv").error(2)
    assert words == "columns.csv has no column 'class'; it has: a, b, c"
    data = "--data", "population:0/2"
    assert "the population has 2 clients" in koinon(*join, "node", "--data", "population:2/2").error(2)
    assert "cannot read the policy missing.toml" in koinon(*join, "node", *data, "--policy", "missing.toml").error(4)
    Path("policy.toml").write_text("smalest_cohort = 3")
    assert "did you mean smallest_cohort?" in koinon(*join, "node", *data, "--policy", "policy.toml").error(2)
    assert "no authority's certificate" in koinon(*join, "node", *data, "--ca", "policy.toml").error(4)
    assert "write wss://HOST:PORT" in koinon("join", "localhost", *join[2:], "node", *data).error(2)
    Path("node/identity.pem").chmod(0o644)
    assert "is open to other users" in koinon(*join, "node", *data).error(4)


def test_nodes_that_a_server_or_their_owner_keeps_out(koinon, app, tmp_path, undisturbed):
    """Exit codes 5 and 3, beside a run of real processes that none of it disturbs."""
    nodes = {name: f"population:{name}/2" for name in ("0", "1")}
    with Trial(app("small"), nodes, tmp_path / "runs" / "run", ["--min-nodes", "2"]) as trial:
        with trial.log("server").open("ab") as log:
            trial.start_server(stdout=log.fileno(), stderr=log.fileno())
        trial.start_node("0")
        deadline = time.monotonic() + PATIENCE_S
        while "0 joined" not in trial.log("server").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        join = re.search("koinon (join .*) --data SOURCE", trial.log("server").read_text())[1].split()
        mine = "--data", "population:1/2", "--home", "stranger"
        koinon("enroll", "new", "--home", "stranger")

        line = koinon(*join, *mine).error(5)
        pinned = join.index("--server") + 1
        other = [*join[:pinned], "ed25519:" + "A" * 43, *join[pinned + 1 :]]
        assert "is pinned; ask the operator which is right" in koinon(*other, *mine).error(5)
        command = re.search(r"the operator can run: koinon (enroll approve \S+) NAME", line)[1].split()
        assert koinon(*command, "strange", "--home", trial.folder / "server").out == "strange may join\n"

        Path("policy.toml").write_text("require_dp = true")
        assert "the owner's policy: require_dp = true" in koinon(*join, *mine, "--policy", "policy.toml").error(3)
        Path("changed.py").write_text(Path(app("small")).read_text().replace("batch_size=8", "batch_size=9"))
        changed = ["changed.py" if argument == app("small") else argument for argument in join]
        ours, servers = (load_app(path).federation.digest[:16] for path in ("changed.py", app("small")))
        words = f"the node's definition is {ours}, the server's is {servers}; use the same app file"
        assert words in koinon(*changed, *mine).error(5)

        trial.start_node("1")
        assert trial.wait() == 0
        assert "Traceback" not in trial.log("server").read_text()
    store = Store(trial.folder)
    assert [record.digest for record in store.history()] == undisturbed(app("small"), 2).digests
    store.close()


def test_up_comes_to_the_same_bits_as_simulate(app, tmp_path, undisturbed):
    up = ended(process("up", app("small"), "--nodes", 3, "--seed", 0, "--runs", tmp_path / "runs", "--json"))
    assert up.result.keys() >= RESULT
    assert up.result["digest"] == undisturbed(app("small"), 3).digests[-1]
    assert up.result["rounds"] == 3
    assert up.result["epsilon"] is None
    assert up.result["metrics"]["accuracy"] >= 0
    assert up.result["bytes_up"] > 0 < up.result["bytes_down"]
    assert (Path(up.result["path"]) / "model.safetensors").exists()
    assert "Traceback" not in up.err


def test_a_simulation_that_is_interrupted_says_how_to_go_on(app, tmp_path):
    started = process("simulate", app("small"), "--rounds", 5000, "--runs", tmp_path)
    for line in started.stderr:
        if line.startswith("round 2/"):
            break
    started.send_signal(signal.SIGINT)
    assert "nothing is lost" in ended(started).error(130)


def test_noise_on_a_network_is_charged_on_server_and_nodes(koinon, app, tmp_path):
    """Real processes: the server's run and each node's ledger say the same, and a ledger that was edited is found out."""
    result = ended(process("up", app("private"), "--nodes", 3, "--runs", tmp_path / "runs", "--json")).result
    assert result["epsilon"] == pytest.approx(5.17481, abs=1e-4)
    of_run = koinon("ledger", "show", "--run", result["id"], "--runs", str(tmp_path / "runs"), "--json").result
    assert of_run["rounds"] == {result["id"]: 3} and of_run["spent"]["server"]["epsilon"] == result["epsilon"]
    home = Path(result["path"]) / "nodes" / "0"
    of_node = koinon("ledger", "show", "--home", str(home), "--json").result
    assert of_node["spent"] == of_run["spent"]
    assert "per client (add-remove neighbours" in koinon("ledger", "show", "--home", str(home)).out
    assert koinon("ledger", "verify", "--home", str(home), "--json").result["entries"] == 3
    with sqlite3.connect(home / "ledger.db") as database:
        database.execute("DELETE FROM charges WHERE round = 3")
    assert "differ from what its log says" in koinon("ledger", "verify", "--home", str(home)).error(7)
    assert "there is no ledger" in koinon("ledger", "show").error(4)


def test_privacy_is_tuned_and_its_price_is_told(koinon, app):
    """The page, the picture and the advice; a second call makes no trial again; one clear line for what is wrong."""
    search = "tune", "privacy", app("small"), "--clients", 20, "--rounds", 2, "--rate", 0.5, "--delta", 1e-3
    said = koinon(*search, "--epsilon", 4, "--clip", 0.5)
    assert said.code == 0 and "kn.GaussianNoise(" in said.out and "not charged" in said.out
    assert said.err.count("epsilon 4") == 1
    result = koinon(*search, "--epsilon", 4, "--clip", 0.5, "--json")
    assert "epsilon 4" not in result.err
    assert result.result["chosen"]["epsilon"] == 4 and "epsilon 3.9" in result.result["cost"]
    assert all(Path(result.result[kind]).is_file() for kind in ("page", "picture"))
    assert "there is no metric auc" in koinon(*search, "--clip", 0.5, "--metric", "auc").error(2)
    assert "each > 0" in koinon(*search, "--epsilon", 0).error(2)
    assert "take its noise out" in koinon("tune", "privacy", app("private")).error(2)
    traded = koinon("tradeoff", *search[2:], "--epsilon", 8, "--clip", 0.5, "--json").result
    assert [line["unit"] for line in traded["lines"]] == [None, "client", "client", "record"]
    assert "per record" in traded["lines"][-1]["guarantee"] and Path(traded["page"]).is_file()
    assert "nobody" in koinon("tradeoff", *search[2:], "--epsilon", 8, "--clip", 0.5).out


def test_nodes_that_lie_break_the_mean_and_not_a_robust_rule(koinon, tmp_path):
    """Eight real nodes at four hospitals, two of which send their updates turned round and ten times as long."""
    hospitals = Path(__file__).parents[2] / "examples" / "hospitals.py"
    attacked = (
        "--nodes",
        8,
        "--rounds",
        15,
        "--attack",
        "SignFlip:10",
        "--liars",
        2,
        "--runs",
        tmp_path / "runs",
        "--json",
    )
    broken = ended(process("up", hospitals, *attacked)).result
    held = ended(process("up", f"{hospitals}:robust", *attacked)).result
    assert broken["metrics"]["auroc"] < 0.75 < 0.84 < held["metrics"]["auroc"]
    assert "Who is suspected" in Path(held["path"], "report.html").read_text()
    up = "up", str(hospitals), "--nodes", 8
    assert "did you mean SignFlip?" in koinon(*up, "--attack", "SignFlap").error(2)
    assert "cannot lie" in koinon(*up, "--attack", "SignFlip", "--liars", 8).error(2)
    assert "write for instance SignFlip or SignFlip:10" in koinon(*up, "--attack", "SemanticBackdoor").error(2)
    join = "join", "wss://localhost:1", str(hospitals), "--data", "x", "--server", "x", "--attack", "SignFlip"
    assert "give --dev with --attack" in koinon(*join).error(2)
