"""Every codec: what it claims, what it does with any vector, and with any bytes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import koinon as kn
from koinon.core.layout import Layout
from koinon.core.rng import generator
from koinon.update.codec import InMemory, OnDisk, Shared

PLAIN = (
    kn.Float32(),
    kn.Float16(),
    kn.BFloat16(),
    kn.Quantize(8),
    kn.Quantize(4),
    kn.Quantize(4, block=7),
    kn.Quantize(2),
    kn.Quantize(1),
    kn.Rotate(),
    kn.Rotate() >> kn.Quantize(2),
    kn.Eden(1),
    kn.Eden(2),
    kn.Eden(3),
    kn.Eden(4),
    kn.TopK(0.03),
    kn.TopK(1.0),
    kn.TopK(0.2) >> kn.Quantize(4),
    kn.TopK(0.2) >> kn.Rotate() >> kn.Quantize(2),
    kn.RandomMask(0.3),
    kn.RandomMask(0.5) >> kn.Eden(1),
    kn.RandomMask(0.5) >> kn.TopK(0.5),
    kn.Sign(),
    kn.Sign(block=10),
    kn.ternary(0.1),
    kn.LowRank(2),
    kn.Layers(2),
    kn.Layers(3) >> kn.Quantize(4),
)
PACKED = (
    kn.Zstd(),
    kn.Quantize(4) >> kn.Zstd(),
    kn.TopK(0.2) >> kn.Quantize(4) >> kn.Zstd(),
    kn.LowRank(1) >> kn.Zstd(),
    kn.Layers(2) >> kn.TopK(0.2) >> kn.Quantize(4) >> kn.Zstd(),
    kn.Fitted((kn.Float32(), kn.Quantize(4) >> kn.Zstd(), kn.Eden(1)), most_bytes=5000),
    kn.Fitted((kn.LowRank(2), kn.TopK(0.1)), seconds=1.0),
)
WITH_MEMORY = (
    kn.ErrorFeedback(kn.Float32()),
    kn.ErrorFeedback(kn.TopK(0.1) >> kn.Quantize(4) >> kn.Zstd()),
    kn.ErrorFeedback(kn.RandomMask(0.1)),
    kn.ErrorFeedback(kn.ternary(0.1)),
    kn.ErrorFeedback(kn.LowRank(1)),
    kn.ErrorFeedback(kn.Layers(2) >> kn.Quantize(4)),
    kn.ErrorFeedback(kn.Fitted((kn.Quantize(8), kn.TopK(0.1)), most_bytes=500)),
    kn.Lazy(kn.Quantize(8), patience=1.0),
    kn.Lazy(kn.ErrorFeedback(kn.TopK(0.2)), patience=3.0, most_skipped=2),
)
CODECS = (*PLAIN, *PACKED, *WITH_MEMORY)
every_codec = pytest.mark.parametrize("codec", CODECS, ids=str)

KINDS = ("normal", "zeros", "spike", "pair", "denormal", "tails", "sparse", "constant", "large")


def vector(kind, length, seed=0):
    """A vector of some kind."""
    normal = torch.randn(length, generator=generator(seed, "vector"))
    match kind:
        case "zeros":
            return torch.zeros(length)
        case "spike":
            return torch.nn.functional.one_hot(torch.tensor(length // 2), length).float() if length else normal
        case "pair":
            return torch.tensor([1.0, 0.5, *[0.0] * length])[:length]
        case "denormal":
            return normal * 1e-42
        case "tails":
            return normal * (3 * normal.roll(1)).exp()
        case "sparse":
            return normal * (normal.roll(1) > 1.5)
        case "constant":
            return torch.full((length,), -0.3)
        case "large":
            return normal * 1e15
    return normal


VECTORS = st.builds(
    vector,
    st.sampled_from(KINDS),
    st.sampled_from((0, 1, 2, 7, 8, 63, 127, 128, 129, 255, 256, 300, 1000, 4095, 4096, 4097, 9000)),
    st.integers(0, 9),
)


def layout(length):
    """A layout with matrices in it, where there is room."""
    rows = int(length**0.5)
    shapes = torch.nn.ParameterDict({"a": torch.empty(rows, rows), "b": torch.empty(length - rows * rows)})
    return Layout.of(shapes)


def shared(length, round=1):
    return Shared(layout(length), 0, round)


def sent(codec, given, seed=0, state=None, round=1):
    """The memory after a vector, its bytes, and what is decoded of them."""
    known = shared(len(given), round)
    state = codec.init(known.layout) if state is None else state
    state, data = codec.encode(state, given, known, generator(seed, "encode", round))
    data = bytes(data)
    return state, data, codec.decode(InMemory(data), known, 0, len(given))


def squares(given):
    return float(given.double().square().sum())


@every_codec
@settings(max_examples=10, deadline=None)
@given(given=VECTORS, data=st.data())
def test_any_range_is_that_part_of_the_whole_and_sizes_are_true(codec, given, data):
    before = given.clone()
    _, encoded, whole = sent(codec, given)
    assert torch.equal(given, before)
    assert whole.shape == given.shape and whole.dtype == torch.float32 and whole.isfinite().all()
    assert codec.size(layout(len(given))) in (None, len(encoded))
    assert len(encoded) <= codec.most(layout(len(given)))
    start = data.draw(st.integers(0, len(given)))
    stop = data.draw(st.integers(start, len(given)))
    part = codec.decode(InMemory(encoded), shared(len(given)), start, stop)
    rounding = 1e-6 * squares(given) ** 0.5 if "LowRank" in str(codec) else 0.0  # matrix products depend on the shape
    torch.testing.assert_close(part, whole[start:stop], rtol=0.0, atol=rounding)


@every_codec
def test_equal_seeds_give_equal_bytes_and_zeros_stay_zeros(codec):
    normal = vector("normal", 1000)
    assert sent(codec, normal, seed=3)[1] == sent(codec, normal, seed=3)[1]
    assert not sent(codec, torch.zeros(1000))[2].any()


@every_codec
def test_a_file_and_memory_decode_alike(codec, tmp_path):
    _, data, whole = sent(codec, vector("normal", 1000))
    path = tmp_path / "update"
    path.write_bytes(data)
    assert torch.equal(codec.decode(OnDisk(path), shared(1000), 0, 1000), whole)


DRAWS = 12


@every_codec
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "denormal"])
def test_what_is_decoded_is_as_near_and_as_short_as_claimed(codec, kind):
    given, claims = vector(kind, 300), codec.claims
    decoded = [sent(codec, given, seed, round=seed)[2] for seed in range(DRAWS)]
    if claims.growth < float("inf"):
        assert max(map(squares, decoded)) <= claims.growth**2 * squares(given) * (1 + 1e-4)
    misses = torch.tensor([squares(given - claims.shrink * each) for each in decoded])
    luck = 4 * float(misses.std()) / DRAWS**0.5
    assert float(misses.mean()) <= (1 - claims.contraction + 1e-5) * squares(given) + luck


UNBIASED = [codec for codec in (*PLAIN, *PACKED) if codec.claims.unbiased]


@pytest.mark.parametrize("codec", UNBIASED, ids=str)
@pytest.mark.parametrize("kind", ["normal", "pair", "tails"])
def test_what_is_decoded_is_right_on_average(codec, kind):
    given, draws = vector(kind, 300, seed=1), 120 if codec.claims.variance else 1
    mean = sum(sent(codec, given, seed, round=seed)[2].double() for seed in range(draws)) / draws
    expected = codec.claims.variance * squares(given) / draws
    luck = 1.5 if kind == "normal" else 9  # where two values decide, a mean of 120 is no more certain than that
    assert squares(given - mean) <= luck * expected + 1e-11 * squares(given)


def test_only_codecs_that_are_right_on_average_say_so():
    biased = (
        kn.ErrorFeedback(kn.Quantize(4)),
        kn.TopK(0.5),
        kn.Sign(),
        kn.ternary(0.5),
        kn.LowRank(1),
        kn.BFloat16(),
        kn.Float16(),
    )
    assert not any(codec.claims.unbiased for codec in biased)
    assert len(UNBIASED) > 12


@every_codec
@settings(max_examples=10, deadline=None)
@given(
    length=st.sampled_from((0, 1, 300, 5000)),
    edits=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=20),
    cut=st.integers(-3, 3),
    data=st.data(),
)
def test_other_bytes_are_refused_or_decode_to_something(codec, length, edits, cut, data):
    _, encoded, _ = sent(codec, vector("normal", length))
    raw = bytearray(encoded[:cut] if cut < 0 else encoded + bytes(cut))
    for place, value in edits:
        if raw:
            raw[place % len(raw)] = value
    if data.draw(st.booleans()):
        raw = bytearray(data.draw(st.binary(min_size=len(raw), max_size=len(raw)))) if len(raw) < 4000 else raw
    try:
        decoded = codec.decode(InMemory(bytes(raw)), shared(length), length // 3, length)
    except ValueError:
        return
    assert decoded.shape == (length - length // 3,) and decoded.dtype == torch.float32


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@given(given=VECTORS)
@settings(max_examples=40, deadline=None)
def test_quantize_is_off_by_less_than_a_step(bits, given):
    _, _, decoded = sent(kn.Quantize(bits, block=50), given)
    for values, codes in zip(given.split(50), decoded.split(50), strict=True):
        if len(values):
            largest = values.abs().max()
            assert (values - codes).abs().max() <= 2 / (2**bits - 1) * largest * (1 + 1e-5) + 2e-45


@given(given=VECTORS)
@settings(deadline=None)
def test_halves_are_rounded_to_nearest(given):
    assert torch.equal(sent(kn.BFloat16(), given)[2], given.to(torch.bfloat16).float())
    assert torch.equal(sent(kn.Float16(), given)[2], given.clamp(-65504, 65504).half().float())
    assert torch.equal(sent(kn.Float32(), given)[2], given)


def test_no_value_of_float32_is_too_large_for_a_half():
    most = torch.tensor([3.4e38, -3.4e38, 7e4])
    assert sent(kn.BFloat16(), most)[2].isfinite().all()
    assert sent(kn.Float16(), most)[2].tolist() == [65504, -65504, 65504]


@pytest.mark.parametrize("length", [5, 300, 70_000, 200_001])
@pytest.mark.parametrize("kind", ["normal", "tails", "sparse", "spike", "constant"])
def test_the_largest_values_are_sent_as_they_are(kind, length):
    given = vector(kind, length)
    _, _, decoded = sent(kn.TopK(0.01), given)
    count = -(-length // 100)
    assert int((decoded != 0).sum()) <= count
    assert torch.equal(decoded[decoded != 0], given[decoded != 0])
    expected = given.abs().topk(count).values.sort().values
    assert torch.equal(decoded.abs().topk(count).values.sort().values, expected)


def test_of_equal_magnitudes_the_first_are_sent():
    assert sent(kn.TopK(0.4), torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0]))[2].tolist() == [1, 0, 0, 0, 2]


def test_a_masks_values_can_be_added_before_they_are_decoded():
    one, other = vector("normal", 70_000), vector("normal", 70_000, seed=1)
    codec, known = kn.RandomMask(0.1), shared(70_000)
    rows = [
        torch.frombuffer(bytearray(sent(codec, each, seed)[1]), dtype=torch.float32)
        for seed, each in enumerate((one, other))
    ]
    total = InMemory(bytes(sum(rows).numpy().tobytes()))
    torch.testing.assert_close(
        codec.decode(total, known, 0, 70_000), sum(sent(codec, each)[2] for each in (one, other))
    )


def test_a_mask_is_another_in_every_round():
    ones = torch.ones(1000)
    masks = [sent(kn.RandomMask(0.5), ones, round=round)[2] for round in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_signs_come_with_the_mean_magnitude_of_their_block():
    _, data, decoded = sent(kn.Sign(block=2), torch.tensor([1.0, -3.0, 0.0, 4.0, -5.0]))
    assert decoded.tolist() == [2, -2, 2, 2, -5]
    assert len(data) == 3 * 4 + 1


def test_a_rotation_keeps_lengths_and_spreads_a_spike():
    codec, given = kn.Rotate(), vector("spike", 4096)
    _, data, decoded = sent(codec, given)
    turned = torch.frombuffer(bytearray(data[8:]), dtype=torch.float32)
    assert abs(squares(turned) - 1) < 1e-5
    assert turned.abs().max() < 0.1
    torch.testing.assert_close(decoded, given, rtol=1e-5, atol=1e-6)


def test_low_rank_keeps_matrices_of_that_rank_and_what_has_no_rank():
    left, right = vector("normal", 60).view(30, 2), vector("normal", 60, seed=1).view(2, 30)
    given = torch.cat([(left @ right).reshape(-1), vector("normal", 50, seed=2)])
    _, data, decoded = sent(kn.LowRank(2), given)
    assert len(data) == 4 * (2 * (30 + 30) + 50)
    torch.testing.assert_close(decoded, given, rtol=1e-4, atol=1e-4)


def test_low_rank_gets_nearer_with_what_it_remembers():
    given, codec = vector("normal", 900), kn.LowRank(2)
    state, _, first = sent(codec, given)
    for round in range(10):
        state, _, decoded = sent(codec, given, state=state, round=round)
    best = float(torch.linalg.svdvals(given.view(30, 30).double())[2:].square().sum())
    assert squares(given - decoded) < 1.02 * best < squares(given - first)


@pytest.mark.parametrize("codec", [*PLAIN, *PACKED], ids=str)
def test_feedback_loses_nothing(codec):
    feedback, given = kn.ErrorFeedback(codec), [vector("tails", 300, seed) for seed in range(5)]
    state, delivered = None, torch.zeros(300)
    for round, each in enumerate(given):
        state, _, decoded = sent(feedback, each, state=state, round=round)
        delivered += decoded
    torch.testing.assert_close(delivered + state["left"], sum(given), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("codec", [codec for codec in PLAIN if codec.claims.contraction > 0.02], ids=str)
def test_feedbacks_memory_stays_bounded(codec):
    feedback, state, memory = kn.ErrorFeedback(codec), None, []
    for round in range(80):
        state, _, _ = sent(feedback, vector("normal", 200, round), state=state, round=round)
        memory.append(squares(state["left"]))
    contraction = codec.claims.contraction
    assert max(memory) <= 4 * (1 - contraction) / contraction**2 * 200 * 1.3 + 1e-3


def test_feedback_delivers_at_last_what_top_k_never_chose():
    feedback, given, state = kn.ErrorFeedback(kn.TopK(0.1)), torch.arange(1.0, 11.0), None
    total = torch.zeros(10)
    for round in range(100):
        state, _, decoded = sent(feedback, given, state=state, round=round)
        total += decoded
    assert (total > 0).all()
