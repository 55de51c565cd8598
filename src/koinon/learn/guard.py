"""What surrounds code that is not Koinon's: its draws, its threads, its errors."""

import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from koinon.core.errors import ClientFailed, KoinonError


@contextmanager
def sealed(rng: torch.Generator) -> Iterator[None]:
    """Global draws come from `rng`, one thread, and a loss that would broadcast raises; then all is as before."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), one_thread():
        warnings.filterwarnings("error", message="Using a target size")
        torch.set_rng_state(rng.get_state())
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes on one thread, so that bits do not depend on how many there are; then all is as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def blamed(where: str) -> Iterator[None]:
    """Whatever the user's code raises, as this client's failure in one line."""
    try:
        yield
    except KoinonError as error:
        raise ClientFailed(f"{where}: {error}") from error
    except Exception as error:
        raise ClientFailed(f"{where}: {line(error)}") from error


def line(error: Exception) -> str:
    """An error's kind and message, shortened."""
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 300)}"


def check_loss(loss: float, round: int, step: int) -> None:
    """Raise ClientFailed if a step's loss is not a number that training can go on with."""
    if loss - loss != 0:  # infinite or NaN
        raise ClientFailed(
            f"round {round}, step {step}: the loss is {loss}; lower the learning rate or scale the inputs"
        )


def not_finite(round: int) -> ClientFailed:
    """A client's failure: its trained model is not finite."""
    return ClientFailed(f"round {round}: the trained model is not finite; lower the learning rate")
