"""Laws of DP-SGD: what one record can change is bounded, the rest is noise of the right size, and nothing else is told."""

import functools
import itertools
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.datasets import load_digits
from torch import nn

from koinon.core.errors import AdmissionError, ClientFailed
from koinon.core.noise import Noise
from koinon.core.rng import generator
from koinon.core.statistics import values
from koinon.data.dataset import Samples, TorchDataset
from koinon.learn.corrections import Proximal
from koinon.learn.dpsgd import DPSGD, PrivateGradients, add_clipped
from koinon.learn.learner import LocalTask
from koinon.learn.metrics import Accuracy
from koinon.learn.torch import TorchLearner
from koinon.privacy.accountant import spent
from koinon.privacy.events import Gaussian, PoissonSampled, Repeated

NOISE = Noise.seeded(7)
SILENT = 1e-9  # the smallest noise multiplier
SGD = functools.partial(torch.optim.SGD, lr=1.0)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def samples(count=20, shape=(4,), seed=0):
    rng = torch.Generator().manual_seed(seed)
    return Samples(torch.randn(count, *shape, generator=rng), torch.randint(3, (count,), generator=rng))


def learner(model=mlp, dp=DPSGD(1.0, 1.0, 0.5), optimizer=SGD, loss=nn.CrossEntropyLoss(), **settings):
    return TorchLearner(model, loss, optimizer, **settings, dp=dp)


def train(of, data, noise=NOISE, start=None, seed=0, correction=None):
    start = of.initial(0) if start is None else start
    return of.train(start, data, LocalTask(1, correction, noise), generator(seed, "train"))


def drawn_sum(of, data, noise=NOISE):
    """The noisy sum of one step, before it is divided."""
    of._workspace.load(of.initial(0))
    of._workspace.module.train()
    gradient = PrivateGradients(of.dp, of._workspace, of._mean_loss, of.batch_size).draw(data, noise)
    return gradient * of.dp.sample_rate * len(data)


def single_gradients(of, data):
    """Each record's gradient as the plain backward pass gives it; `[n, D]`."""
    of._workspace.load(of.initial(0))
    module, rows = of._workspace.module.train(), []
    for index in range(len(data)):
        inputs, targets = data.batch(torch.tensor([index]))
        gradients = torch.autograd.grad(
            of.loss(module(inputs), targets), of._workspace.parameters, allow_unused=True, materialize_grads=True
        )
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]).double())
    return torch.stack(rows)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


class Keeping(torch.optim.SGD):
    """Plain SGD that keeps every gradient it was given."""

    def __init__(self, parameters, kept, lr=0.0):
        super().__init__(parameters, lr=lr)
        self.kept = kept

    def step(self, closure):
        loss = closure()
        self.kept.append(torch.cat([p.grad.flatten().clone() for group in self.param_groups for p in group["params"]]))
        super().step()
        return loss


class Counting(nn.Module):
    """Every record's gradient is 1, so that a sum counts records."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, inputs):
        return self.weight.expand(len(inputs))


def mean_output(outputs, targets):
    return outputs.mean()


def nothing(outputs, targets):
    return 0 * outputs.sum()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.decode.weight = self.encode.weight
        self.spare = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        return self.scale * self.decode(self.encode(inputs).tanh())


class Mixing(nn.Module):
    """Would let one record into the gradients of others, in its batch and, by a buffer, in later ones."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(4), persistent=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs):
        self.seen = self.seen + inputs.detach().sum(0)
        self.calls += 1
        return self.line((inputs + inputs.mean(0) + self.seen) * self.calls)


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(16, 3)
    )


def wide():
    return nn.Sequential(nn.Linear(4, 700), nn.ReLU(), nn.Linear(700, 3))


def transformer():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 4), layer, nn.Flatten(), nn.Linear(8, 3))


MODELS = {
    "mlp": (mlp, (4,)), "wide": (wide, (4,)), "convolutional": (convolutional, (1, 8, 8)), "tied": (Tied, (4,)),
    "transformer": (transformer, (4,)), "instance norm": (lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, affine=True), nn.Flatten(), nn.Linear(4, 3)), (4,)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of vmap over attention
@pytest.mark.parametrize("batch_size", [1, 7, 100])
@pytest.mark.parametrize("name", MODELS)
def test_the_sum_is_that_of_each_records_gradient_clipped_by_itself(name, batch_size):
    model, shape = MODELS[name]
    data = samples(20, shape)
    gradients = single_gradients(learner(model), data)
    norms = gradients.norm(dim=1, keepdim=True)
    for clip_norm in (1e3, float(norms.median()), 1e-6):
        of = learner(model, DPSGD(SILENT, clip_norm, 1.0), batch_size=batch_size)
        expected = (gradients * (clip_norm / norms).clamp(max=1)).sum(0)
        assert relative(drawn_sum(of, data).double(), expected) < 1e-5


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_no_record_reaches_into_another_whatever_the_module_does(batch_size):
    of = learner(Mixing, DPSGD(SILENT, 1e3, 1.0), batch_size=batch_size)
    data = samples(20)
    alone = sum(drawn_sum(of, data.subset([index])) for index in range(20))
    assert relative(drawn_sum(of, data), alone) < 1e-5


@given(
    st.integers(0, 2**32), st.sampled_from([1.0, 1e-3, 1e3]), st.sampled_from([0.0, 1e-30, 1.0, 1e18, 1e38, math.inf])
)
@settings(max_examples=40)
def test_a_record_more_moves_the_sum_by_at_most_the_clip_norm(seed, clip_norm, scale):
    of = learner(lambda: nn.Linear(4, 3), DPSGD(SILENT, clip_norm, 1.0), batch_size=4)
    data, other = samples(9, seed=seed), samples(1, seed=seed + 1)
    more = Samples(torch.cat([data.inputs, other.inputs * scale]), torch.cat([data.targets, other.targets]))
    assert (drawn_sum(of, more) - drawn_sum(of, data)).norm() <= clip_norm * (1 + 1e-5)


FLOATS = st.floats(width=32) | st.sampled_from([0.0, 1e-40, 1e-20, 1e20, 3e38, math.inf, math.nan])


@given(st.lists(FLOATS, min_size=1, max_size=6), st.integers(0, 3000), st.floats(1e-9, 1e9))
def test_no_gradient_at_all_adds_more_than_the_clip_norm(gradient, zeros, clip_norm):
    rows = [torch.tensor([gradient]), torch.zeros(1, zeros)]
    total = torch.zeros(len(gradient) + zeros)
    add_clipped(total, rows, clip_norm)
    assert total.double().norm() <= clip_norm * (1 + 1e-6)
    norm = rows[0].double().norm()
    if 1e-15 < norm < 1e15:  # short of what float32 can square, the direction stays, and short ones stay as they are
        expected = rows[0][0].double() * min(1.0, clip_norm / float(norm))
        assert torch.allclose(total[: len(gradient)].double(), expected, rtol=1e-5, atol=float(expected.norm()) * 1e-6)


def test_the_norm_of_millions_of_elements_does_not_fall_short():
    row = torch.rand(1, 25_000_000, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(25_000_000)
    add_clipped(total, [row], 1.0)
    assert float(torch.linalg.vector_norm(total, dtype=torch.float64)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_clipped_in_float32(dtype):
    data = samples(12)
    data = Samples((data.inputs * torch.logspace(-4, 4, 12).view(-1, 1)).to(dtype), data.targets)
    of = learner(lambda: nn.Linear(4, 3).to(dtype), DPSGD(SILENT, 0.5, 1.0))
    for index in range(12):
        assert drawn_sum(of, data.subset([index])).norm() <= 0.5 * (1 + 1e-5)
    delta = train(of, data).delta
    assert delta.dtype == torch.float32 and delta.any()
    end = of.initial(0) + delta
    assert torch.equal(end, end.to(dtype).float())


@pytest.mark.parametrize("make", [SGD, functools.partial(torch.optim.SGD, lr=1.0, momentum=0.9), torch.optim.Adam])
def test_without_clipping_and_noise_a_step_is_that_of_the_full_batch(make):
    data = samples(24)
    plain = learner(dp=None, optimizer=make, batch_size=24)
    of = learner(dp=DPSGD(SILENT, 1e3, 1.0), optimizer=make, batch_size=7)
    assert relative(train(of, data).delta, train(plain, data).delta) < 1e-5


@pytest.mark.parametrize(("noise_multiplier", "clip_norm", "sample_rate"), [(1.1, 0.5, 0.25), (4.0, 3.0, 0.01)])
def test_what_leaves_is_noise_of_the_stated_size(noise_multiplier, clip_norm, sample_rate):
    kept = []
    dp = DPSGD(noise_multiplier, clip_norm, sample_rate)
    of = learner(lambda: nn.Linear(200, 100), dp, functools.partial(Keeping, kept=kept, lr=1.0), loss=nothing)
    data = Samples(torch.zeros(40, 200), torch.zeros(40))
    start = torch.zeros(of.layout.length)
    delta = train(of, data, start=start).delta
    steps = math.ceil(1 / sample_rate)
    scale = sample_rate * 40 / (noise_multiplier * clip_norm)
    assert len(kept) == steps
    assert stats.kstest((kept[0] * scale).numpy(), "norm").pvalue > 1e-3
    assert stats.kstest((delta * scale / math.sqrt(steps)).numpy(), "norm").pvalue > 1e-3
    assert abs(float(torch.corrcoef(torch.stack(kept[:2]))[0, 1])) < 0.05


def test_records_are_drawn_independently_and_the_divisor_is_their_expected_number():
    kept, count, rate = [], 60, 0.3
    optimizer = functools.partial(Keeping, kept=kept)
    of = learner(Counting, DPSGD(SILENT, 1e3, rate), optimizer, loss=mean_output, epochs=120, batch_size=8)
    train(of, Samples(torch.zeros(count, 1), torch.zeros(count)))
    found = torch.cat(kept).double() * rate * count  # by the actual number, every gradient would be 1
    counts = found.round().long()
    assert len(kept) == 400
    assert torch.allclose(found, counts.double(), atol=1e-4)
    edges = [0, 13, 16, 18, 20, 23, count + 1]
    seen = [int(((counts >= low) & (counts < high)).sum()) for low, high in itertools.pairwise(edges)]
    cumulative = stats.binom.cdf([edge - 1 for edge in edges], count, rate)
    expected = [400 * (high - low) for low, high in itertools.pairwise(cumulative)]
    assert stats.chisquare(seen, expected, sum_check=False).pvalue > 1e-3


def test_every_record_is_as_likely_as_any_other_and_none_depends_on_another():
    kept, count, rate = [], 30, 0.2
    optimizer = functools.partial(Keeping, kept=kept)
    of = learner(
        lambda: nn.Linear(count, 1, bias=False), DPSGD(SILENT, 1e3, rate), optimizer, loss=mean_output, epochs=100
    )
    train(of, Samples(torch.eye(count), torch.zeros(count)))
    drawn = (torch.stack(kept).double() * rate * count).round()  # [steps, records]
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    bound = 4.5 * math.sqrt(rate * (1 - rate) / len(drawn))
    assert (drawn.mean(0) - rate).abs().max() < bound
    correlations = torch.corrcoef(drawn.T).fill_diagonal_(0)
    assert correlations.abs().max() < 4.5 / math.sqrt(len(drawn))


def test_an_empty_sample_is_a_step_of_noise():
    kept = []
    of = learner(Counting, DPSGD(1.0, 1.0, 1e-3), functools.partial(Keeping, kept=kept, lr=1.0), loss=mean_output)
    train(of, Samples(torch.zeros(1, 1), torch.zeros(1)))
    assert len(kept) == 1000
    assert stats.kstest((torch.cat(kept[:500]) * 1e-3).numpy(), "norm").pvalue > 1e-3


def dropping():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def test_equal_noise_gives_equal_bits_and_other_noise_others_whatever_the_public_generator():
    data, of = samples(30), learner(dropping)
    first = train(of, data).delta
    train(of, samples(9, seed=3), NOISE.of("other"))
    assert torch.equal(train(of, data, seed=5).delta, first)
    assert torch.equal(train(learner(dropping), data).delta, first)
    deltas = [train(of, data, NOISE.of("train", round)).delta for round in range(3)]
    assert all(not torch.equal(a, b) for a, b in zip(deltas, [first, *deltas], strict=False))
    before = torch.get_rng_state()
    train(of, data)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_differs_from_record_to_record():
    dp = DPSGD(SILENT, 1e3, 1.0)
    of = learner(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(1, 1)), dp, loss=mean_output)
    found = drawn_sum(of, Samples(torch.ones(1000, 1), torch.zeros(1000)))
    assert (
        850 < float(found[0]) < 1150 and abs(float(found[0]) - 2 * round(float(found[0]) / 2)) < 0.01
    )  # each gives 0 or 2


def test_nothing_is_told_beside_the_update():
    update = train(learner(), samples(33))
    assert (update.examples, update.weight, update.metrics) == (1, 1, {})


@pytest.mark.parametrize(("epochs", "rate", "steps"), [(1, 1.0, 1), (3, 0.4, 8), (2, 1 / 49, 98), (1, 1 / 107, 107)])
def test_the_release_counts_the_steps_that_were_made(epochs, rate, steps):
    kept = []
    of = learner(
        Counting, DPSGD(1.3, 1.0, rate), functools.partial(Keeping, kept=kept), loss=mean_output, epochs=epochs
    )
    train(of, Samples(torch.zeros(5, 1), torch.zeros(5)))
    assert len(kept) == steps
    assert of.release() == Repeated(PoissonSampled(rate, Gaussian(1.3)), steps)
    assert learner(dp=None).release() is None


def test_a_training_costs_what_its_release_says():
    of = learner(dp=DPSGD(1.1, 1.0, 0.01), epochs=10)
    assert round(spent(of.release(), 1e-5, "add-remove", "record").epsilon, 4) == 1.5154


class Twice(torch.optim.SGD):
    """Asks for the gradient at two places, and keeps both."""

    def __init__(self, parameters, kept):
        super().__init__(parameters, lr=1.0)
        self.kept = kept

    def step(self, closure):
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for _ in range(2):
            loss = closure()
            self.kept.append(torch.cat([parameter.grad.flatten() for parameter in parameters]))
            with torch.no_grad():
                torch._foreach_add_(parameters, 1.0)
        return loss


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_an_optimizer_that_asks_again_is_given_the_same_noise_on_the_same_gradient(mu):
    kept = []
    train(learner(optimizer=functools.partial(Twice, kept=kept)), samples(), correction=Proximal(mu))
    assert len(kept) == 4
    for first, second in (kept[:2], kept[2:]):
        assert torch.allclose(second, first + mu, atol=1e-5)


def test_a_correction_is_added_after_the_noise():
    of = learner(lambda: nn.Linear(4, 3), DPSGD(1.0, 1.0, 0.5), functools.partial(torch.optim.SGD, lr=0.1), nothing)
    first, second = (drawn_sum(of, samples(), NOISE.of("step", number)) / 10 for number in (1, 2))
    delta = train(of, samples(), correction=Proximal(0.5)).delta
    moved = -0.1 * first
    assert relative(delta, moved - 0.1 * (second + 0.5 * moved)) < 1e-5


def test_a_record_without_a_finite_gradient_counts_for_nothing_and_tells_nothing():
    data = samples(20)
    data.inputs[3], data.inputs[11] = math.nan, math.inf
    of = learner(lambda: nn.Linear(4, 3), DPSGD(SILENT, 1.0, 1.0), batch_size=6)
    rest = data.subset([index for index in range(20) if index not in (3, 11)])
    assert relative(drawn_sum(of, data), drawn_sum(of, rest)) < 1e-5
    train(of, data)
    assert not drawn_sum(of, data.subset([3, 11])).abs().max() > 1e-6


def test_frozen_parameters_stay_and_any_data_set_will_do():
    module = mlp()
    module[0].requires_grad_(False)
    of, data = learner(module), samples()
    pairs = TorchDataset([({"x": row}, target) for row, target in zip(data.inputs, data.targets, strict=True)])
    named = learner(lambda: Named(module))
    assert of.layout.length == 27
    assert torch.equal(train(named, pairs).delta, train(of, data).delta)


class Named(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, inputs):
        return self.inner(inputs["x"])


def test_training_fails_in_one_line_without_data_without_noise_and_where_it_diverges():
    of = learner()
    with pytest.raises(ClientFailed, match="round 1: the data set is empty"):
        train(of, samples().subset([]))
    with pytest.raises(ClientFailed, match="round 1: training with dp needs secret noise; give LocalTask"):
        train(of, samples(), noise=None)
    with pytest.raises(ClientFailed, match="round 1: the trained model is not finite; lower the learning rate"):
        train(learner(dp=DPSGD(1e3, 1.0, 0.5), optimizer=functools.partial(torch.optim.SGD, lr=1e38)), samples())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.line = nn.GRU(1, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, inputs):
        return self.line(self.cell(inputs[..., None])[0][:, -1])


class Branching(nn.Linear):
    def forward(self, inputs):
        return super().forward(inputs) if inputs.sum() > 0 else -super().forward(inputs)


class Writing(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("seen", torch.zeros(4), persistent=False)

    def forward(self, inputs):
        self.seen.add_(inputs.detach().sum(0))
        return super().forward(inputs + self.seen)


@pytest.mark.parametrize("model", [Recurrent, lambda: Branching(4, 3), Writing, lambda: nn.Linear(5, 3)])
def test_a_model_that_cannot_be_taken_record_by_record_fails_in_one_line_that_names_the_cure(model):
    of = learner(model, DPSGD(1.0, 1.0, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the model's own slowness
        with pytest.raises(ClientFailed, match=r"round 1, step 1: the gradient of a single record .* needs") as failure:
            train(of, samples())
    assert "\n" not in str(failure.value) and "torch.func.vmap takes" in str(failure.value)


def test_a_loss_that_is_no_scalar_is_an_error():
    of = learner(dp=DPSGD(1.0, 1.0, 1.0), loss=nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(ClientFailed, match=r"the loss is \[1\], not a scalar"):
        train(of, samples())


class Remembering(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("mean", torch.zeros(4))


@pytest.mark.parametrize(("arguments", "cure"), [
    ({"model": nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))}, "^1 is a BatchNorm1d.*use nn.GroupNorm"),
    ({"model": nn.BatchNorm1d(3, track_running_stats=False)}, "^the model is a BatchNorm1d.*use nn.GroupNorm"),
    ({"model": nn.InstanceNorm1d(3, affine=True, track_running_stats=True)}, "InstanceNorm1d.*use nn.GroupNorm"),
    ({"model": Remembering()}, "the buffer mean would leave without noise; register it with persistent=False"),
    ({"loss": nn.CrossEntropyLoss(weight=torch.ones(3))}, "class weights cancel.*in a function of your own"),
    ({"loss": nn.NLLLoss(weight=torch.ones(3))}, "class weights cancel.*in a function of your own"),
    ({"optimizer": torch.optim.LBFGS}, "LBFGS needs more than one gradient.*use torch.optim.SGD"),
])  # fmt: skip
def test_what_would_not_protect_is_refused_at_construction_with_the_cure(arguments, cure):
    with pytest.raises(AdmissionError, match=cure):
        learner(**arguments)
    TorchLearner(**{"model": mlp, "loss": nn.CrossEntropyLoss(), **arguments})  # and only with dp


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["noise_multiplier", "clip_norm", "sample_rate"])
def test_numbers_out_of_bounds_are_refused(name, value):
    with pytest.raises(AdmissionError, match=f"DPSGD needs a {name} .*not {value}"):
        DPSGD(**{"noise_multiplier": 1.0, "clip_norm": 1.0, "sample_rate": 0.5, name: value})


def test_a_rate_above_one_is_refused():
    with pytest.raises(AdmissionError, match="up to 1, not 32; give records per step / records"):
        DPSGD(1.0, 1.0, 32)


def test_it_learns():
    digits = load_digits()
    inputs, targets = torch.from_numpy(digits.data / 16).float(), torch.from_numpy(digits.target)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    data, test = (
        Samples(inputs[order[:1437]], targets[order[:1437]]),
        Samples(inputs[order[1437:]], targets[order[1437:]]),
    )
    of = learner(
        lambda: nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)),
        DPSGD(1.0, 1.0, 128 / 1437), functools.partial(torch.optim.SGD, lr=1.0), epochs=10, batch_size=128,
        metrics=[Accuracy()],
    )  # fmt: skip
    start = of.initial(0)
    model = start + train(of, data, start=start).delta
    assert values(of.evaluate(model, test))["accuracy"] > 0.85
    assert F.cosine_similarity(start, model, dim=0) < 0.99
