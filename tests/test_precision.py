"""Precision with real numbers: fp16 that overflows, R1 under autocast, no TF32 in what is compared."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from pretend_cuda.methods import METHODS, batch
from torch.testing import assert_close

from trilemma.eval.bounds.bits_per_dim import bits_per_image
from trilemma.eval.features.extractors import FeatureExtractor, Traits
from trilemma.eval.options import SamplingConfig
from trilemma.eval.scoring import model_images
from trilemma.eval.scoring.model_images import Drawing
from trilemma.training.devices.precision import MOST_SKIPPED, plain_float32
from trilemma.training.loop.ema import EMA
from trilemma.training.loop.method import SKIPPED, GradientDescent, Objective
from trilemma.training.loop.records import Means
from trilemma.training.options.groups import OptimConfig

CPU = torch.device("cpu")


class Toy(Objective):
    """One layer that is to give its input back."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 4)

    def forward(self, x0, labels, generator=None):
        return (self.net(x0) - x0).square().mean(1), {}

    def pipeline(self, net): ...

    def compile(self, required=True): ...


class Steep(Toy):
    """A finite loss whose gradient is infinite."""

    def forward(self, x0, labels, generator=None):
        return (self.net.weight.sum() * 0).sqrt().expand(len(x0)), {}


@pytest.fixture
def fp16(monkeypatch):
    """make(scale) -> an accelerator of fp16 with this loss scale, on the CPU; networks run in float32."""
    monkeypatch.setattr(
        "accelerate.accelerator.get_mixed_precision_context_manager",
        lambda *_, **__: torch.autocast("cpu", enabled=False),
    )

    def make(scale):
        AcceleratorState._reset_state(True)
        accelerator = Accelerator(cpu=True)
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return accelerator

    yield make
    AcceleratorState._reset_state(True)


def descent(accelerator, objective=Toy):
    torch.manual_seed(0)
    config = OptimConfig(learning_rate=0.1, lr_scheduler="linear", lr_warmup_steps=3)
    return GradientDescent(objective(), accelerator, config, 20)


def flat(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


IMAGES = torch.randn(8, 4, generator=torch.Generator().manual_seed(1)) * 30


def train(method, steps, first=1, means=None):
    """Step with an average; how many steps were skipped."""
    ema, skipped = EMA(method.net, lambda step: 0.5), 0
    for step in range(first, first + steps):
        logs = method.step(IMAGES, None)
        ema.update(step, logs.get(SKIPPED))
        skipped += bool(logs.get(SKIPPED, False))
        if means is not None:
            means.add(logs, step)
    return ema, skipped


def test_an_overflow_is_skipped_and_counted_and_changes_nothing_else(fp16):
    accelerator = fp16(2.0**127)
    method, means = descent(accelerator), Means(CPU)
    before = flat(method.net).clone()
    _, skipped = train(method, 3, means=means)
    assert skipped == method.skipped_steps() == 3  # a scale of 2^124 is too large yet
    assert torch.equal(flat(method.net), before)
    assert accelerator.scaler.get_scale() == 2.0**124
    _, more = train(method, 17, first=4, means=means)
    means.check(accelerator)
    numbers = means.reduce(accelerator)
    assert 0 < numbers["gradient_norm"] < 1e6  # of the steps that were not skipped
    assert SKIPPED not in numbers
    updates = 20 - skipped - more
    assert method.updates.done() == updates > 5
    assert method.skipped_steps() == 20 - updates

    plain = descent(Accelerator(cpu=True))
    train(plain, updates)
    assert torch.equal(flat(method.net), flat(plain.net))  # rates and moments went on from where they were


def test_the_average_does_not_move_at_a_skipped_step(fp16):
    method = descent(fp16(2.0**127))
    ema = EMA(method.net, lambda step: 0.5)
    ema.average = [a + 1 for a in ema.average]
    before = [a.clone() for a in ema.average]
    ema.update(1, method.step(IMAGES, None)[SKIPPED])
    assert all(torch.equal(a, b) for a, b in zip(before, ema.average, strict=True))
    ema.update(2, torch.tensor(False))
    for average, old, weight in zip(ema.average, before, ema.parameters, strict=True):
        assert_close(average, (old + weight.detach()) / 2)


def test_counts_survive_a_checkpoint(fp16):
    method = descent(fp16(2.0**127))
    train(method, 20)
    other = descent(fp16(1.0))
    other.load_state_dict(method.state_dict())
    assert other.updates.done() == method.updates.done()
    assert other.skipped_steps() == method.skipped_steps() > 0
    old = method.state_dict()
    del old["schedule"]["skipped"]
    other.load_state_dict(old)  # of a version that did not count them
    assert other.skipped_steps() == 0


def test_a_run_that_only_overflows_ends(fp16):
    method, means = descent(fp16(65536.0), Steep), Means(CPU)
    train(method, MOST_SKIPPED, means=means)
    means.check(method.accelerator)
    with pytest.raises(FloatingPointError, match="--mixed_precision bf16"):
        train(method, 1)


def test_a_loss_that_is_not_finite_ends_a_run(fp16):
    method, means = descent(fp16(1.0)), Means(CPU)
    means.add(method.step(IMAGES * torch.inf, None), 7)
    with pytest.raises(FloatingPointError, match="step 7"):
        means.check(method.accelerator)


def test_without_fp16_nothing_is_counted():
    method = descent(Accelerator(cpu=True))
    assert SKIPPED not in method.step(IMAGES, None)
    assert method.skipped_steps() is None
    means = Means(CPU)
    means.add({"loss": torch.ones(2), "gradient_norm": torch.tensor(torch.inf)}, 3)
    with pytest.raises(FloatingPointError, match="step 3"):
        means.check(method.accelerator)


def test_either_network_of_a_gan_may_overflow(fp16, monkeypatch):
    accelerator = fp16(2.0**127)
    monkeypatch.setattr(accelerator, "backward", lambda loss: accelerator.scaler.scale(100 * loss).backward())
    torch.manual_seed(0)
    method, means = METHODS["ddgan"](accelerator), Means(CPU)
    before = flat(method.net).clone(), flat(method.discriminator).clone()
    for step in range(1, 13):
        logs = method.step(*batch(CPU))
        means.add(logs, step)
        if step == 1:
            assert logs[SKIPPED]
            assert logs["gradient_norm_generator"].isnan()
            assert torch.equal(flat(method.net), before[0])
    means.check(accelerator)
    assert method.skipped_steps() == 24 - sum(u.done() for u in method.updates) > 1
    assert all(u.done() > 1 for u in method.updates)
    assert not torch.equal(flat(method.net), before[0])
    assert not torch.equal(flat(method.discriminator), before[1])
    other = METHODS["ddgan"](fp16(1.0))
    other.load_state_dict(method.state_dict())
    assert other.skipped_steps() == method.skipped_steps()
    assert [other.learning_rate(k) for k in (0, 1)] == [method.learning_rate(k) for k in (0, 1)]


def test_r1_is_float32_with_its_gradient(monkeypatch):
    torch.manual_seed(0)
    AcceleratorState._reset_state(True)
    turn = METHODS["ddgan"](Accelerator(cpu=True)).turns[0]
    x0, _ = batch(CPU)
    grad, seen = torch.autograd.grad, []

    def watched(*arguments, **options):
        seen.append(torch.is_autocast_enabled("cpu"))
        return grad(*arguments, **options)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    pairs = [turn.pairs.real(x0, torch.ones(len(x0), dtype=torch.long)) for _ in range(2)]
    monkeypatch.setattr(turn.pairs, "real", lambda *_: [p.clone() for p in pairs[0]])
    monkeypatch.setattr(turn.pairs, "generated", lambda *_: [p.clone() for p in pairs[1]])
    monkeypatch.setattr(turn.pairs, "times", lambda *_: torch.ones(len(x0), dtype=torch.long))
    penalties, gradients = [], []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses, logs = turn(x0, None, True)
        losses.mean().backward()
        penalties.append(logs["r1"])
        gradients.append(flat_gradient(turn))
    assert seen == [False, False]
    assert torch.equal(*penalties)
    assert_close(*gradients)


def flat_gradient(module):
    gradient = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    module.zero_grad()
    return gradient


# TF32


def state():
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.deterministic,
        torch.is_autocast_enabled("cpu"),
    )


PLAIN = ("highest", False, True, False)


@pytest.fixture
def tf32():
    """TF32 is on: cuDNN has it on by default, and many programs turn it on for products of matrices."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert state() == ("high", True, False, True)
        yield
        assert state() == ("high", True, False, True)  # as it was
    torch.set_float32_matmul_precision(before)


def test_plain_float32_ends_with_its_block(tf32):
    with plain_float32(CPU):
        assert state() == PLAIN


def test_features_are_plain_float32(tf32):
    class Net(torch.nn.Module):
        def forward(self, images):
            assert state() == PLAIN
            return images.flatten(1).float(), None

    extractor = FeatureExtractor(Net(), Traits("x", "x", "none", dim=4))
    extractor(torch.zeros(2, 3, 2, 2, dtype=torch.uint8))


def test_the_likelihood_is_plain_float32(tf32):
    class Images:
        def __len__(self):
            return 3

        def __getitems__(self, rows):
            return torch.zeros(len(rows), 1, 2, 2, dtype=torch.uint8), None

    class Terms:
        names, images_at_once = ("prior",), 2

        def __call__(self, x0, labels, generators):
            assert state() == PLAIN
            return {"prior": torch.zeros(len(x0)).double()}

    bits_per_image(Terms(), Images(), seed=0, device=CPU)


def test_samples_of_an_evaluation_are_plain_float32(tf32, monkeypatch):
    def drawn(*_, **__):
        for k in range(2):
            assert state() == PLAIN
            yield torch.tensor([k]), torch.zeros(1, 1, 2, 2, dtype=torch.uint8)

    monkeypatch.setattr(model_images, "draw_batches", drawn)
    pipeline = SimpleNamespace(network=torch.nn.Identity())
    drawing = Drawing(pipeline, "x", SamplingConfig(num_samples=2), 1, Accelerator(cpu=True))
    assert len(list(drawing)) == 2
