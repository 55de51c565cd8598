"""Numbers and places in few bits."""

import contextlib
import importlib.util
import resource
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import koinon as kn
from koinon.core.rng import generator
from koinon.update import places as module
from koinon.update.codec import InMemory, Section, Shared, flat
from koinon.update.pack import WIDTHS, pack_into, packed_bytes, unpack
from koinon.update.places import PlaceCode


@given(st.sampled_from(WIDTHS), st.lists(st.integers(0, 255), max_size=70), st.data())
def test_any_range_of_packed_numbers_comes_back(width, numbers, data):
    codes = np.array(numbers, dtype=np.uint8) & (2**width - 1)
    packed = bytearray(4 + packed_bytes(width, len(codes)))
    cut = 8 * data.draw(st.integers(0, len(codes) // 8))
    for first, some in ((cut, codes[cut:]), (0, codes[:cut])):
        pack_into(packed, 4, width, len(codes), first, some)
    start = data.draw(st.integers(0, len(codes)))
    stop = data.draw(st.integers(start, len(codes)))
    found = unpack(InMemory(bytes(packed)), 4, width, len(codes), start, stop)
    assert found.tolist() == codes[start:stop].tolist()


@settings(deadline=None)
@given(st.sets(st.integers(0, 4999), min_size=1), st.sampled_from((4, 64, 1024, 1 << 16)), st.data())
def test_places_within_any_range_come_back(chosen, chunk, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        places = np.array(sorted(chosen))
        code = PlaceCode(len(places), data.draw(st.integers(int(places[-1]) + 1, 5000)))
        encoded = code.encode(places)
        assert len(encoded) == code.size
        start = data.draw(st.integers(0, code.length))
        stop = data.draw(st.integers(start, code.length))
        found, before = code.within(InMemory(encoded), start, stop)
        assert found.tolist() == [place - start for place in places if start <= place < stop]
        assert before == sum(place < start for place in places)


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.1])
def test_places_take_little_more_than_the_least_there_can_be(fraction):
    count, length = int(fraction * 1_000_000), 1_000_000
    bits = 8 * PlaceCode(count, length).size / count
    least = -np.log2(fraction) - (1 - fraction) / fraction * np.log2(1 - fraction)
    assert least < bits < least + 1.1


def test_places_that_do_not_ascend_are_refused():
    code = PlaceCode(2, 100)
    encoded = bytearray(code.encode(np.array([3, 5])))
    encoded[-3] = 0  # the planes of the lower bits, of which the two places are made equal
    encoded[-4] = 0b11
    encoded[-5] = 0b11
    with pytest.raises(ValueError, match="do not ascend"):
        code.within(InMemory(bytes(encoded)), 0, 100)


def test_a_frame_that_would_grow_beyond_its_size_is_refused():
    known, codec = Shared(flat(1000)), kn.Zstd()
    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(4000))
    for frame in (bomb, unsized, b"no frame at all"):
        data = (4000).to_bytes(8, "little") + len(frame).to_bytes(4, "little") + frame
        with pytest.raises(ValueError, match=r"another size|damaged"):
            codec.decode(InMemory(data), known, 0, 1000)


@pytest.mark.parametrize("size", [4001, 1 << 40, 2**64 - 1])
def test_more_bytes_than_any_update_has_are_not_decompressed(size):
    with pytest.raises(ValueError, match="which no update of this layout has"):
        kn.Zstd().decode(InMemory(size.to_bytes(8, "little") + bytes(100)), Shared(flat(1000)), 0, 1000)


def test_a_section_is_within_its_whole():
    assert bytes(Section(InMemory(b"abcdef"), 2, 5).read(1, 3)) == b"de"
    with pytest.raises(ValueError, match="6 bytes where at least 7"):
        Section(InMemory(b"abcdef"), 7, 6)


def test_fuzzing_by_coverage_finds_nothing():
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed")
    target = Path(__file__).with_name("fuzz_codecs.py")
    # What Linux calls a process's greatest memory includes that of the process which started it: this one.
    most = 1024 + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    options = ["-max_total_time=2", "-max_len=300", "-verbosity=0", f"-rss_limit_mb={most}"]
    command = [sys.executable, str(target), *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    "codec",
    [kn.Quantize(4), kn.Eden(1), kn.TopK(0.5), kn.RandomMask(0.1), kn.TopK(0.1) >> kn.Quantize(4) >> kn.Zstd()],
    ids=str,
)
@pytest.mark.parametrize("damaged", [False, True])
def test_a_block_takes_memory_in_proportion_to_itself(codec, damaged):
    known = Shared(flat(1_500_000))
    update = torch.randn(known.length, generator=generator(0, "update"))
    _, data = codec.encode({}, update, known, generator(0, "encode"))
    encoded = InMemory(b"\xff" * len(data) if damaged else bytes(data))
    tracemalloc.start()
    with contextlib.suppress(ValueError):
        codec.decode(encoded, known, 1_000_000, 1_000_100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_500_000, "some chunks of 2**16, where the whole has six million bytes"
