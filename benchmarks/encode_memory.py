"""Memory to encode 100 million parameters beyond what goes in and what comes out, each codec in a process of its own.

In goes the update, out come its bytes and what the codec remembers for the next round; a model is 381 MiB.
"""

import gc
import multiprocessing
import os
from collections.abc import Mapping
from pathlib import Path

import torch

import koinon as kn
from benchmarks.figures import Figure
from benchmarks.trials import memory
from koinon.core.layout import Layout, Slot
from koinon.core.rng import generator
from koinon.update.codec import Codec, Shared

SIDE = 10_000
MIB = 1 << 20
CODECS: Mapping[str, Codec] = {
    "Float16()": kn.Float16(),
    "Quantize(8)": kn.Quantize(8),
    "Quantize(4) >> Zstd()": kn.Quantize(4) >> kn.Zstd(),
    "Eden(1)": kn.Eden(1),
    "TopK(0.01)": kn.TopK(0.01),
    "RandomMask(0.25) >> Eden(1)": kn.RandomMask(0.25) >> kn.Eden(1),
    "Sign()": kn.Sign(),
    "LowRank(4)": kn.LowRank(4),
    "Layers(4) >> Quantize(8)": kn.Layers(4) >> kn.Quantize(8),
    "Rotate() >> Quantize(4)": kn.Rotate() >> kn.Quantize(4),
    "ErrorFeedback(TopK(0.01))": kn.ErrorFeedback(kn.TopK(0.01)),
    "Lazy(Eden(1))": kn.Lazy(kn.Eden(1), patience=1.0),
}
BLOCK_MIB = 64


def measure(folder: Path, quick: bool) -> list[Figure]:
    side = 300 if quick else SIDE
    model = 4 * side * side / MIB
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        extra = {name: pool.apply(_extra, (codec, side)) for name, codec in CODECS.items()}
    return [_figure(name, value, model) for name, value in extra.items()]


def _figure(name: str, extra: float, model: float) -> Figure:
    return Figure(name, extra, "MiB", model, f"<= {BLOCK_MIB} MiB", extra <= BLOCK_MIB)


def _extra(codec: Codec, side: int) -> float:
    """MiB at the peak of an encoding beyond those before and the result's."""
    torch.set_num_threads(1)
    layout = Layout((Slot("weight", (side, side), torch.float32, 0, True),))
    vector, known = torch.randn(layout.length, generator=generator(0, "vector")), Shared(layout, 0, 1)
    small = Shared(Layout((Slot("weight", (64, 64), torch.float32, 0, True),)), 0, 1)
    codec.encode(codec.init(small.layout), vector[: small.length], small, generator(0, "warm"))
    state = {name: tensor.clone() for name, tensor in codec.init(layout).items()}
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
    before = memory(os.getpid())
    after, data = codec.encode(state, vector, known, generator(0, "encode"))
    made = len(data) + sum(tensor.nbytes for name, tensor in after.items() if tensor is not state.get(name))
    return memory(os.getpid(), "VmHWM") - before - made / MIB
