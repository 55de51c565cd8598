"""Encoding and decoding 25 million parameters on one thread, against the obvious torch expression of the same codec.

Rates are bytes of float32 that go in, or come out, in a second. Decoding goes block by block, as the server does it.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import koinon as kn
from benchmarks.figures import Figure
from koinon.aggregate.mean import BLOCK
from koinon.core.rng import generator
from koinon.core.types import Vector
from koinon.update.codec import Codec, InMemory, Shared, flat

LENGTH = 25_000_000
BITS, SCALED = 256, 4096


@dataclass(frozen=True)
class Rival:
    """The obvious expression of a codec.

    Attributes:
        encode: A vector -> what would travel, as tensors.
        decode: Those tensors -> a vector.
    """

    encode: Callable[[Vector], tuple[torch.Tensor, ...]]
    decode: Callable[..., Vector]


@dataclass(frozen=True)
class Contest:
    """A codec, its rival, and what it is to reach in MB/s; None for no aim."""

    name: str
    codec: Codec
    rival: Rival
    encode_aim: float | None = None
    decode_aim: float | None = None


def quantize(bits: int) -> Rival:
    steps = 2**bits - 1

    def encode(vector: Vector) -> tuple[torch.Tensor, ...]:
        blocks = torch.nn.functional.pad(vector, (0, -len(vector) % BITS)).view(-1, BITS)
        scales = blocks.abs().amax(1, keepdim=True)
        levels = torch.floor((blocks / scales + 1) * (steps / 2) + torch.rand(blocks.shape)).clamp(0, steps)
        return levels.to(torch.uint8), scales

    def decode(codes: torch.Tensor, scales: torch.Tensor) -> Vector:
        return ((codes.float() * (2 / steps) - 1) * scales).flatten()

    return Rival(encode, decode)


def top(fraction: float) -> Rival:
    def encode(vector: Vector) -> tuple[torch.Tensor, ...]:
        places = vector.abs().topk(int(fraction * len(vector)), sorted=False).indices
        return places.int(), vector[places]

    return Rival(
        encode, lambda places, values: torch.zeros(int(len(values) / fraction)).index_put((places.long(),), values)
    )


def hadamard(blocks: torch.Tensor) -> torch.Tensor:
    """The fast Walsh-Hadamard transform of each row, step by step."""
    half = 1
    while half < blocks.shape[1]:
        pairs = blocks.view(len(blocks), -1, 2, half)
        blocks = torch.stack((pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]), 2).flatten(1)
        half *= 2
    return blocks / blocks.shape[1] ** 0.5


def rotate() -> Rival:
    signs = torch.randint(2, (2, SCALED)) * 2.0 - 1

    def encode(vector: Vector) -> tuple[torch.Tensor, ...]:
        blocks = torch.nn.functional.pad(vector, (0, -len(vector) % SCALED)).view(-1, SCALED)
        return (hadamard(hadamard(blocks * signs[0]) * signs[1]),)

    return Rival(encode, lambda blocks: (hadamard(hadamard(blocks) * signs[1]) * signs[0]).flatten())


def drive() -> Rival:
    turn = rotate()

    def encode(vector: Vector) -> tuple[torch.Tensor, ...]:
        (blocks,) = turn.encode(vector)
        return blocks > 0, blocks.square().sum(1, keepdim=True) / blocks.abs().sum(1, keepdim=True)

    return Rival(encode, lambda signs, scales: turn.decode((signs * 2.0 - 1) * scales))


def sign() -> Rival:
    def encode(vector: Vector) -> tuple[torch.Tensor, ...]:
        blocks = torch.nn.functional.pad(vector, (0, -len(vector) % SCALED)).view(-1, SCALED)
        return blocks >= 0, blocks.abs().mean(1, keepdim=True)

    return Rival(encode, lambda signs, scales: ((signs * 2.0 - 1) * scales).flatten())


def contests() -> list[Contest]:
    return [
        Contest("8 bits", kn.Quantize(8), quantize(8), 400, 1000),
        Contest("4 bits", kn.Quantize(4), quantize(4)),
        Contest("rotation", kn.Rotate(), rotate(), 250),
        Contest("rotation, 1 bit", kn.Eden(1), drive()),
        Contest("largest 1 %", kn.TopK(0.01), top(0.01), 400),
        Contest("signs", kn.Sign(), sign()),
    ]


def measure(folder: Path, quick: bool) -> list[Figure]:
    length, turns = (200_000, 2) if quick else (LENGTH, 5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        vector = torch.randn(length, generator=generator(0, "benchmark"))
        return [figure for contest in contests() for figure in held(contest, vector, turns)]
    finally:
        torch.set_num_threads(threads)


def held(contest: Contest, vector: Vector, turns: int) -> list[Figure]:
    """Both in turns, so that what else the machine does hits both alike."""
    known, codec, rival = Shared(flat(len(vector))), contest.codec, contest.rival
    _, data = codec.encode({}, vector, known, generator(0, "encode"))
    tensors = rival.encode(vector)
    seconds: dict[str, list[float]] = {}
    runs: dict[str, Callable[[], object]] = {
        "encode": lambda: codec.encode({}, vector, known, generator(0, "encode")),
        "decode": lambda: decoded(codec, data, known),
        "rival's encode": lambda: rival.encode(vector),
        "rival's decode": lambda: rival.decode(*tensors),
    }
    for _ in range(turns + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds.setdefault(name, []).append(time.perf_counter() - began)
    rate = {name: 4e-6 * len(vector) / statistics.median(each[1:]) for name, each in seconds.items()}
    bits = 8 * len(data) / len(vector)
    return [
        _figure(
            f"{contest.name} ({bits:.2f} bits): encode", rate["encode"], rate["rival's encode"], contest.encode_aim
        ),
        _figure(f"{contest.name}: decode", rate["decode"], rate["rival's decode"], contest.decode_aim),
    ]


def decoded(codec: Codec, data: bytes | memoryview, known: Shared) -> None:
    for start in range(0, known.length, BLOCK):
        codec.decode(InMemory(data), known, start, min(start + BLOCK, known.length))


def _figure(name: str, rate: float, rival: float, aim: float | None) -> Figure:
    if aim is None:
        return Figure(name, rate, "MB/s", rival)
    return Figure(name, rate, "MB/s", rival, f"> {aim:.0f} MB/s", rate > aim)
