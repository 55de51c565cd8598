"""Sums of encrypted updates: ten clients with a million parameters each, one thread.

Encryption, addition and decryption are held against TenSEAL as it is commonly used: the whole vector at once, at degree 8192.
A whole round, with every key and every message, is held against that of `SecureSum` and against a plain sum in float32.
"""

import functools
import gc
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import tenseal
import torch

import koinon as kn
from benchmarks.figures import Figure
from benchmarks.trials import memory
from koinon.core.rng import generator
from koinon.secure.encrypted import ckks
from koinon.secure.encrypted.packing import Slots
from koinon.secure.encrypted.parameters import BLOCK_BYTES, Parameters

T = TypeVar("T")
CLIENTS = 10
LENGTH = 1_000_000
MIB = 1 << 20
MOST_EXPANSION = 8.2
BLOCKS_MIB = 4.0


def measure(folder: Path, quick: bool) -> list[Figure]:
    length = 20_000 if quick else LENGTH
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps, total = against_tenseal(length)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            extra = [pool.apply(job, (folder, length)) for job in (encrypting, adding)]
        return [*expansions(length), *steps, total, *rounds(length), *map(streamed, ("encrypt", "add ten"), extra)]
    finally:
        torch.set_num_threads(threads)


def expansions(length: int) -> list[Figure]:
    """Bytes of an encrypted update, of as many as were told."""
    plain, figures = 4 * length / MIB, []
    for bits, most in ((32, MOST_EXPANSION), (16, MOST_EXPANSION / 2)):
        size = kn.EncryptedSum(clip=1.0, bits=bits).most_bytes(length) / MIB
        what = f"an encrypted update of {length:,} parameters at {bits} bits, to float32"
        figures.append(Figure(what, size, "MiB", plain, f"<= {most}x", size <= most * plain))
    return figures


def against_tenseal(length: int) -> tuple[list[Figure], Figure]:
    """Seconds of each step, ours and the usual way's, on the same numbers; and how large the usual way's ciphertext is."""
    parameters, (public, secret) = Parameters.of(CLIENTS, 1), ckks.keys()
    words = np.random.default_rng(0).integers(0, 2**32, length, dtype=np.uint32)
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 49], n_threads=1)
    values = (words / 2.0**32).tolist()
    usual, theirs = timed(lambda: tenseal.ckks_vector(context, values, 2.0**40).serialize())
    blocks, ours = timed(lambda: list(ckks.encrypted(parameters, public, words)))
    figures = [Figure("encrypt", 1000 * ours, "ms", 1000 * theirs, "<= 1.0x TenSEAL's", ours <= theirs)]
    summed, theirs = timed(lambda: functools.reduce(tenseal.CKKSVector.add_, vectors(context, usual)).serialize())
    total, ours = timed(lambda: list(ckks.added(parameters, [blocks] * CLIENTS, [1] * CLIENTS)))
    figures.append(Figure("add ten, from bytes to bytes", 1000 * ours, "ms", 1000 * theirs))
    _, theirs = timed(lambda: tenseal.ckks_vector_from(context, summed).decrypt())
    opened, ours = timed(lambda: ckks.decrypted(parameters, secret, total, length))
    assert np.array_equal(opened, words * np.uint32(CLIENTS))
    figures.append(Figure("decrypt", 1000 * ours, "ms", 1000 * theirs))
    return figures, Figure("TenSEAL's own bytes at degree 8192", len(usual) / MIB, "MiB", 4 * length / MIB)


def vectors(context: tenseal.Context, data: bytes) -> Iterator[tenseal.CKKSVector]:
    return (tenseal.ckks_vector_from(context, data) for _ in range(CLIENTS))


def rounds(length: int) -> list[Figure]:
    """A round in one process, every key and message; each holds all that is sent in memory."""
    updates = torch.stack([torch.rand(length, generator=generator(0, "update", 0, str(n))) for n in range(CLIENTS)])
    exact, plain = timed(lambda: updates.sum(0))
    by_masks, masked = timed(lambda: kn.secure.run_locally(kn.SecureSum(clip=1.0), updates))
    by_keys, encrypted = timed(lambda: kn.secure.run_locally(kn.EncryptedSum(clip=1.0), updates))
    assert torch.equal(by_masks.sum, by_keys.sum) and torch.allclose(by_keys.sum, exact, atol=1e-5)
    whole = f"a round of {CLIENTS} clients in one process, EncryptedSum"
    sent = by_keys.bytes_up / MIB
    return [
        Figure(f"{whole}, to a plain sum", 1000 * encrypted, "ms", 1000 * plain),
        Figure(f"{whole}, to SecureSum", 1000 * encrypted, "ms", 1000 * masked),
        Figure("sent by whoever sends most, to SecureSum", sent, "MiB", by_masks.bytes_up / MIB),
    ]


def encrypting(folder: Path, length: int) -> float:
    """MiB that encryption to a file holds beside the vector."""
    words, parameters, public = prepared(length)
    return beyond(lambda: written(folder / "update", ckks.encrypted(parameters, public, words)))


def adding(folder: Path, length: int) -> float:
    """MiB that adding up ten files into another one holds."""
    words, parameters, public = prepared(length)
    written(folder / "update", ckks.encrypted(parameters, public, words))
    streams = [read(folder / "update") for _ in range(CLIENTS)]
    return beyond(lambda: written(folder / "sum", ckks.added(parameters, streams, [1] * CLIENTS)))


def prepared(length: int) -> tuple[Slots, Parameters, bytes]:
    """What is there before, with everything that TenSEAL loads once."""
    parameters, (public, _) = Parameters.of(CLIENTS, 1), ckks.keys()
    few = np.ones(5, dtype=np.uint32)
    block = list(ckks.encrypted(parameters, public, few))
    list(ckks.added(parameters, [block, block], [1, 1]))
    return np.arange(length, dtype=np.uint32), parameters, public


def beyond(job: Callable[[], object]) -> float:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
    before = memory(os.getpid())
    job()
    return memory(os.getpid(), "VmHWM") - before


def written(path: Path, blocks: Iterator[bytes]) -> None:
    with path.open("wb") as file:
        for block in blocks:
            file.write(block)


def read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def streamed(what: str, extra: float) -> Figure:
    return Figure(
        f"most memory beside what was there, {what}",
        extra,
        "MiB",
        None,
        f"<= {BLOCKS_MIB:.0f} MiB",
        extra <= BLOCKS_MIB,
    )


def timed(job: Callable[[], T]) -> tuple[T, float]:
    began = time.perf_counter()
    result = job()
    return result, time.perf_counter() - began
