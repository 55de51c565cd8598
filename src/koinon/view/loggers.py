"""Runs in other people's tools: TensorBoard and MLflow.

They are told what the run's record says of the whole federation, never of one client: a tracking server is often shared more
widely than the folder of a run.
"""

import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from koinon.core.errors import Unavailable
from koinon.durable.history import RoundRecord, RunInfo, Values
from koinon.view.progress import Callback

_POLITE = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # by default it goes on for minutes, which the end of a run would wait for
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""Settings of MLflow's client, for who has not set them."""


class TensorBoard(Callback):
    """Writes a run's curves for TensorBoard: `tensorboard --logdir FOLDER`. The extra `[tensorboard]`.

    A run that is resumed goes on with its curves.

    Args:
        folder: Where to; each run has a folder of its id in it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._writer: Any = None

    @contextmanager
    def following(self, info: RunInfo) -> Iterator[None]:
        """Write for as long as the run lasts.

        Raises:
            Unavailable: if TensorBoard is not installed, or the folder cannot be written.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise Unavailable(
                "curves for TensorBoard are written by its package; install it: pip install 'koinon[tensorboard]'"
            ) from error
        try:
            self._writer = SummaryWriter(str(self.folder / info.id))
        except OSError as error:
            raise Unavailable(f"curves for TensorBoard cannot be written to {self.folder}: {error}") from error
        try:
            yield
        finally:
            self._writer.close()

    def evaluated(self, round: int, metrics: Values) -> None:
        """What clients found, merged."""
        self._write(round, _federated(metrics))

    def closed(self, record: RoundRecord) -> None:
        """A point of each curve."""
        self._write(record.round, _points(record))

    def _write(self, round: int, points: Mapping[str, float]) -> None:
        for name, value in points.items():
            self._writer.add_scalar(name, value, round)
        self._writer.flush()


class MLflow(Callback):
    """Tells an MLflow server of a run: parameters, curves and how it ended. The extra `[mlflow]`.

    A thread of its own speaks to the server: rounds do not wait for it. A run that is resumed goes on where it was.

    Args:
        uri: Of the tracking server, such as `http://127.0.0.1:5000`.
        experiment: Name of the experiment that runs belong to; made if there is none.
    """

    def __init__(self, uri: str, experiment: str = "koinon") -> None:
        self.uri = uri
        self.experiment = experiment
        self._client: Any = None
        self._run = ""
        self._sent: list[Future[None]] = []
        self._sender: ThreadPoolExecutor

    @contextmanager
    def following(self, info: RunInfo) -> Iterator[None]:
        """Tell it for as long as the run lasts.

        Raises:
            Unavailable: if MLflow is not installed, or the server does not answer.
        """
        for name, value in _POLITE.items():
            os.environ.setdefault(name, value)
        try:
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise Unavailable("MLflow is spoken to by its package; install it: pip install 'koinon[mlflow]'") from error
        try:
            self._client = MlflowClient(tracking_uri=self.uri)
            self._run = self._begun(info)
        except MlflowException as error:
            raise Unavailable(f"MLflow at {self.uri} cannot be told of the run: {error}") from error
        with ThreadPoolExecutor(1, "mlflow") as self._sender:
            try:
                yield
            except BaseException as error:
                self._ended("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
                raise
            self._ended("FINISHED")

    def evaluated(self, round: int, metrics: Values) -> None:
        """What clients found, merged."""
        self._send(round, _federated(metrics))

    def closed(self, record: RoundRecord) -> None:
        """A point of each curve."""
        self._send(record.round, _points(record))

    def _begun(self, info: RunInfo) -> str:
        """MLflow's id of the run, which may be there already."""
        known = self._client.get_experiment_by_name(self.experiment)
        experiment = self._client.create_experiment(self.experiment) if known is None else known.experiment_id
        named = f"tags.`koinon.run` = '{info.id}'"
        for found in self._client.search_runs([experiment], named, max_results=1):
            self._client.update_run(found.info.run_id, "RUNNING")
            return str(found.info.run_id)
        made = self._client.create_run(experiment, run_name=info.id, tags={"koinon.run": info.id}).info.run_id
        for name in ("app", "definition", "rounds", "seed", "parameters", "runtime"):
            self._client.log_param(made, name, getattr(info, name))
        return str(made)

    def _send(self, round: int, points: Mapping[str, float]) -> None:
        """Have points sent.

        Raises:
            mlflow.exceptions.MlflowException: if earlier ones could not be.
        """
        from mlflow.entities import Metric

        self._answered(wait=False)
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, round) for name, value in points.items() if not math.isnan(value)]
        self._sent.append(self._sender.submit(self._client.log_batch, self._run, metrics))

    def _answered(self, wait: bool) -> None:
        """Forget what has arrived.

        Raises:
            mlflow.exceptions.MlflowException: if something has not.
        """
        while self._sent and (wait or self._sent[0].done()):
            try:
                self._sent.pop(0).result()
            except BaseException:
                while self._sent:  # they would each wait for the same server
                    self._sent.pop().cancel()
                raise

    def _ended(self, status: str) -> None:
        self._answered(wait=True)
        self._client.set_terminated(self._run, status)


def _points(record: RoundRecord) -> dict[str, float]:
    outcomes = Counter(part.outcome for part in record.participants)
    points = {f"training/{name}": value for name, value in record.training.items()}
    points |= {f"metrics/{name}": value for name, value in record.metrics.items()}
    points |= {
        "round/seconds": record.seconds,
        "round/accepted": float(outcomes["accepted"]),
        "round/asked": float(outcomes.total()),
        "round/bytes_up": float(record.bytes_up),
        "round/bytes_down": float(record.bytes_down),
    }
    virtual = {"round/network_s": record.network_s, "round/clock_s": record.clock_s}
    return points | {name: value for name, value in virtual.items() if value is not None}


def _federated(metrics: Values) -> dict[str, float]:
    return {f"federated/{name}": value for name, value in metrics.items()}
