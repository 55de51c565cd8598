"""The simulated world: one server, its nodes, and what befalls them until all faults are healed."""

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from koinon.core.errors import Unavailable
from koinon.core.types import ClientId
from koinon.durable.history import RunInfo
from koinon.federation import Federation
from koinon.protocol.events import Stopped
from koinon.protocol.state import waiting_for
from koinon.run.policy import Policy
from koinon.testing.disk import Disk, Killed
from koinon.testing.invariants import Observer, require
from koinon.testing.network import Clock, Link, Weather
from koinon.testing.node import Caller, NodeProcess
from koinon.testing.plan import Happening, Plan
from koinon.testing.process import DEFINITION, SERVER, Parts, Surroundings, identity
from koinon.testing.server import ServerProcess
from koinon.testing.toy import LENGTH, Toy, federation, holdings

QUIET_S = 45.0
"""Seconds, beyond the deadline, without any progress after which a run is taken to wait."""

LONGEST_S = 2000.0
"""Seconds after the healing by which a run has ended or is quiet."""


class World:
    """One run of the simulator.

    Attributes:
        faults: How often each fault was injected.
        events: How many events happened.
    """

    def __init__(self, seed: int, folder: Path, plan: Plan, rng: random.Random, parts: Parts) -> None:
        self.plan = plan
        self.faults: Counter[str] = Counter()
        self.events = 0
        self.around = Surroundings(
            seed=seed,
            folder=folder,
            rng=rng,
            clock=Clock(),
            weather=Weather(plan.tampering, plan.latency_s, set(), {}),
            observer=Observer(folder / "run", seed),
            faults=self.faults,
            parts=parts,
            settings=plan.settings,
        )
        self._federation = self._defined()
        self._info = RunInfo(
            f"run-{seed}", "toy", DEFINITION, plan.rounds, seed, LENGTH, "2000-01-01T00:00:00Z", "running", "network"
        )
        self._data = holdings(plan.nodes)
        self._names: dict[bytes, ClientId] = {identity(name).key: name for name in self._data}
        self._disks = {name: Disk(rng, self.faults) for name in (SERVER, *self._data)}
        self._server: ServerProcess | None = None
        self._nodes: dict[ClientId, NodeProcess] = {}
        self._callers: list[Caller] = []
        self._links: dict[ClientId, Link] = {}
        self._gone: set[ClientId] = set()
        self._down: dict[str, float] = {}
        self._progressed = 0.0

    def run(self) -> str:
        """Let everything happen; returns what the run waits for in the end, empty when it has ended.

        Raises:
            Broken: if an invariant does not hold.
        """
        clock, plan = self.around.clock, self.plan
        for disk in self._disks.values():
            disk.deadly = plan.deadly
        self._up(SERVER)
        for name, late in zip(self._data, plan.late, strict=True):
            self._later(late, lambda name=name: self._up(name))  # type: ignore[misc]
        for happening in plan.happenings:
            self._later(happening.time, lambda happening=happening: self._befall(happening))  # type: ignore[misc]
        self._later(plan.healing, self._heal)
        while not self._over():
            clock.step()
            self._revive()
            self.events += 1
            self.around.observer.check(self._disks[SERVER].writes)
            require(clock.now < plan.healing + LONGEST_S, "the run neither ends nor comes to rest")
        return self._settled()

    def close(self) -> None:
        """Let go of all files."""
        self.around.observer.close()
        if self._server is not None and self._server.alive:
            self._server.close()
        for node in self._nodes.values():
            if node.alive:
                node.close()

    def _defined(self) -> Federation:
        learner = Toy(self.around.rng.random, self.plan.whims, self.around.observer.trains)
        defined = federation(learner, self.plan.sample, self.plan.rounds, self.plan.secure)
        self.around.observer.federation = defined
        return defined

    def _later(self, time: float, action: Callable[[], None]) -> None:
        self.around.clock.at(time, action)

    def _progress(self) -> None:
        self._progressed = self.around.clock.now

    def _up(self, name: str) -> None:
        """Start a process, unless it runs, is gone for good or has done its part; try later if it dies of it."""
        self._down.pop(name, None)
        if name in self._gone:
            return
        try:
            self._start_server() if name == SERVER else self._start_node(name)
        except (Killed, OSError, Unavailable) as error:
            self.around.tell(name, f"does not come up: {error!r}")
            self._fall(name, 2.0)

    def _start_server(self) -> None:
        if self._server is None or not self._server.alive:
            disk = self._disks[SERVER]
            self.around.tell(SERVER, "starts")
            self._server = ServerProcess(self.around, disk, self._federation, self._info, self._names, self._progress)
            self._server.guarded(self._server.start)

    def _start_node(self, name: ClientId) -> None:
        known = self._nodes.get(name)
        if known is not None and (known.alive or (known.quit is not None and known.quit.finished)):
            return
        self.around.tell(name, "starts")
        index = int(name.partition("-")[2])
        policy = Policy(smallest_cohort=3) if index == self.plan.declining else Policy()
        node = NodeProcess(
            name,
            self.around,
            self._disks[name],
            self._dial,
            self._federation,
            self._data[name],
            policy,
            self._progress,
        )
        self._nodes[name] = node
        node.guarded(node.start)

    def _fall(self, name: str, seconds: float) -> None:
        """A process is down and comes back after so many seconds."""
        if name not in self._down:
            self._down[name] = self.around.clock.now + seconds
            self._later(self._down[name], lambda: self._up(name))

    def _revive(self) -> None:
        """See who was killed by a write, and plan their return."""
        if self._server is not None and not self._server.alive:
            self._fall(SERVER, self.around.rng.uniform(0.5, 8.0))
        for name, node in self._nodes.items():
            if not node.alive and node.quit is None and name not in self._gone:
                self._fall(name, self.around.rng.uniform(0.5, 8.0))

    def _dial(self, name: str) -> Link | None:
        around = self.around
        until = around.weather.unreachable.get(name, 0.0)
        if self._server is None or not self._server.alive or around.clock.now < until:
            return None
        link = self._links[name] = Link(around.clock, around.rng, around.weather, name, self.faults)
        self._server.accept(link)
        return link

    def _befall(self, happening: Happening) -> None:
        around, name, seconds = self.around, happening.node, happening.seconds
        self.faults[happening.fault] += 1
        around.tell("world", f"{happening.fault}: {name}, {seconds:.1f} s")
        node, link = self._nodes.get(name), self._links.get(name)
        ends = around.clock.now + seconds
        match happening.fault:
            case "connection cut" if link is not None:
                link.sever({"node": seconds / 10, "server": around.rng.uniform(0.0, 2.0)})
            case "half-open connection" if link is not None:
                link.sever(around.told("node"))
            case "server crash" if self._server is not None and self._server.alive:
                self._server.kill()
            case "node crash" if node is not None and node.alive:
                node.kill()
            case "machine lost" if node is not None and node.alive:
                self._gone.add(name)
                node.kill()
            case "partition":
                around.weather.unreachable[name] = ends
            case "slow node":
                around.weather.slow.add(name)
            case "clock forward":
                around.skew_s += 180 * seconds
            case "clock backward":
                around.skew_s -= 180 * seconds
            case "clone":
                self._clone(name, seconds)
            case "server disk full":
                self._fill(SERVER, ends)
            case "node disk full":
                self._fill(name, ends)
            case "polite leave" | "leave and return" if node is not None and node.alive:
                self._leave(node, seconds, happening.fault == "leave and return")
            case "operator stops" if self._server is not None and self._server.alive:
                server = self._server
                server.guarded(lambda: server.stop(Stopped("the operator had enough")))

    def _clone(self, name: ClientId, seconds: float) -> None:
        clone = Caller(name, self.around, Disk(self.around.rng, self.faults), self._dial)
        self._callers.append(clone)
        clone.guarded(clone.start)
        clone.after(seconds, clone.kill)

    def _fill(self, name: str, ends: float) -> None:
        disk = self._disks[name]
        disk.full = True
        self._later(ends, lambda: setattr(disk, "full", False))

    def _leave(self, node: NodeProcess, seconds: float, returns: bool) -> None:
        node.guarded(node.leave)
        if returns:
            self._later(self.around.clock.now + 12.0 + seconds, lambda: self._up(node.name))
        else:
            self._gone.add(node.name)

    def _heal(self) -> None:
        around = self.around
        around.tell("world", "all faults end")
        around.weather.tampering = 0.0
        around.weather.slow.clear()
        around.weather.unreachable.clear()
        for disk in self._disks.values():
            disk.deadly, disk.full = 0.0, False
        for caller in self._callers:
            if caller.alive:
                caller.kill()
        self._progress()

    def _over(self) -> bool:
        now = self.around.clock.now
        if now < self.plan.healing or self._down or self._server is None or not self._server.alive:
            return False
        if any(self._later_than(happening, now) for happening in self.plan.happenings):
            return False
        running = [name for name, node in self._nodes.items() if node.alive]
        if self._server.coordinator.state.status != "running" and not running:
            return True
        return now - self._progressed > self.plan.settings.deadline_s + QUIET_S

    def _later_than(self, happening: Happening, now: float) -> bool:
        return happening.fault == "leave and return" and now < happening.time + 13.0 + happening.seconds

    def _settled(self) -> str:
        """What must hold when nothing moves any more."""
        assert self._server is not None
        coordinator = self._server.coordinator
        state = coordinator.state
        coordinator.store.verify()
        self.around.observer.look_back()
        require(len(coordinator.store.history()) == state.completed, "the history is not as long as the run")
        alive = [name for name, node in self._nodes.items() if node.alive]
        waiting = waiting_for(coordinator.terms, state)
        if state.status == "running":
            self._must_wait(alive, waiting)
        else:
            require(not alive, f"the run is {state.status} and {', '.join(alive)} still wait")
        for name in self._nodes:
            left = len(list((self.around.folder / name).glob("update-*")))
            require(left <= 1, f"{name} keeps {left} updates that nobody will ask for")
        final = state.status == "finished"
        for name, node in self._nodes.items():
            if name in self._gone or node.quit is None or node.quit.reason == "left":
                continue
            require(node.quit.finished == final, f"{name} ends with {node.quit} in a run that is {state.status}")
            if final:
                held = (self.around.folder / name / f"model-{state.model.digest}").read_bytes()
                require(held == self.around.observer.models[state.completed], f"{name} has another final model")
        return waiting

    def _must_wait(self, alive: list[ClientId], waiting: str) -> None:
        """A run that does not go on says so, and could not have gone on."""
        assert self._server is not None
        state = self._server.coordinator.state
        require(bool(waiting), "the run stands still and does not say what it waits for")
        require(sorted(state.present) == sorted(alive), f"{alive} run, {state.present} are connected: {waiting}")
        if state.round is None:
            terms = self._server.coordinator.terms
            enough = len(state.willing) >= max(terms.minimum_nodes, terms.least)
            require(not enough, f"enough are here, yet it waits for {waiting}")
            return
        require(state.round.sum is None, f"the secure sum of round {state.round.number} stands still: {waiting}")
        require(not state.round.closing, f"round {state.round.number} is never added up")
        idle = sorted(set(alive) & set(state.round.missing))
        require(not idle, f"waits for {waiting}, but {', '.join(idle)} could answer")
        fresh = sorted(set(alive) - set(state.round.cohort))
        require(not fresh, f"waits for {waiting}, but {', '.join(fresh)} could be asked")
