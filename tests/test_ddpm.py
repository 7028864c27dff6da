"""The objective as a whole: every target, loss and schedule, on small networks and exact answers."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import nn

from trilemma.eval.bounds.gaussian import gaussian_terms
from trilemma.pipelines.unconditional import UnconditionalPipeline
from trilemma.training.diffusion.losses import LOSSES, prior_bpd
from trilemma.training.diffusion.process import SCHEDULES, TARGETS, noise_schedule
from trilemma.training.diffusion.times import ImportanceTimes
from trilemma.training.objectives.ddpm import DDPM, ddpm_scheduler
from trilemma.training.options.ddpm import DDPMConfig


class Constant(nn.Module):
    """A network that always answers the same, in the dtype that autocast would leave."""

    def __init__(self, value=0.0, outputs=1):
        super().__init__()
        self.value, self.outputs = nn.Parameter(torch.tensor(value)), outputs

    def forward(self, x, t, class_labels=None):
        answer = self.value.expand(len(x), self.outputs * x.shape[1], *x.shape[2:])
        return type("Output", (), {"sample": answer})


def objective(net, schedule="linear", steps=1000, **options):
    return DDPM(net, noise_schedule(schedule, steps), DDPMConfig(**options), UnconditionalPipeline)


def tiny(outputs=1):
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=outputs, block_out_channels=(8, 8), norm_num_groups=4,
        layers_per_block=1, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        add_attention=False,
    )  # fmt: skip


@pytest.mark.parametrize("prediction_type", TARGETS)
@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_target_and_loss_trains(prediction_type, loss_type):
    torch.manual_seed(0)
    net = tiny(outputs=1 + LOSSES[loss_type].learns_variance)
    model = objective(net, steps=100, prediction_type=prediction_type, loss_type=loss_type)
    x0 = torch.rand(16, 1, 8, 8) * 2 - 1
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    first = last = None
    for _ in range(12):
        losses, logs = model(x0, None, generator.manual_seed(1))
        assert losses.shape == (16,)
        assert losses.isfinite().all()
        assert all(v.shape == (16,) for v in logs.values())
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        last = losses.mean().item()
        first = last if first is None else first
    assert last < first
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_zero_network_loses_the_variance_of_the_noise(schedule):
    losses, _ = objective(Constant(), schedule)(torch.zeros(512, 1, 8, 8), None)
    torch.testing.assert_close(losses.mean(), torch.tensor(1.0), rtol=0.05, atol=0)


def test_an_exact_network_loses_nothing():
    """For data of one point the noise can be computed from x_t."""
    x0 = torch.full((64, 1, 4, 4), 0.3)
    model = objective(Constant())

    def exact(x, t, class_labels=None):
        alpha, sigma = model.process.signal_and_noise(t + 1, x)
        return type("Output", (), {"sample": (x - alpha * 0.3) / sigma})

    model.denoise = exact
    losses, _ = model(x0, None)
    torch.testing.assert_close(losses, torch.zeros(64), atol=1e-6, rtol=0)


def test_a_generator_fixes_t_and_noise():
    model = objective(tiny())
    x0 = torch.rand(8, 1, 8, 8)
    one, _ = model(x0, None, torch.Generator().manual_seed(3))
    two, _ = model(x0, None, torch.Generator().manual_seed(3))
    other, _ = model(x0, None, torch.Generator().manual_seed(4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_quartiles_average_to_the_loss():
    losses, logs = objective(Constant())(torch.zeros(256, 1, 4, 4), None)
    quarters = torch.stack([logs[f"loss_q{q}"] for q in (1, 2, 3, 4)])
    assert (~quarters.isnan()).sum(0).eq(1).all()
    torch.testing.assert_close(quarters.nansum(0), losses)


def test_noise_and_loss_are_float32_under_bf16_autocast():
    net = tiny()
    model = objective(net)
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = model(torch.rand(4, 1, 8, 8), None)
    assert losses.dtype == torch.float32


def test_hybrid_adds_the_bound():
    """With the network's answer fixed, hybrid - l2 is 0.001 times the bound, and its gradient skips the
    mean.
    """
    x0, generator = torch.rand(32, 1, 4, 4) * 2 - 1, torch.Generator()
    net = Constant(0.0, outputs=2)
    hybrid, logs = objective(net, loss_type="hybrid")(x0, None, generator.manual_seed(0))
    plain, _ = objective(Constant(0.0))(x0, None, generator.manual_seed(0))
    bound = logs["bpd"] - prior_bpd(noise_schedule("linear", 1000).process(), x0)  # the prior trains nothing
    torch.testing.assert_close((hybrid - plain).double(), 0.001 * bound, rtol=1e-3, atol=1e-6)


def test_the_bound_of_held_out_images_is_that_of_the_evaluation():
    """Against the sum over all t, for an untrained network, whose x_0 needs the clipping."""
    torch.manual_seed(0)
    x0, generator = torch.rand(256, 1, 8, 8).mul(255).round() / 127.5 - 1, torch.Generator()
    x0[:128] = -1  # in the order of their classes, as in folders
    model = objective(tiny(outputs=2), steps=50, loss_type="hybrid").eval()
    terms = gaussian_terms(model.pipeline(model.net), timesteps=None, batch_size=1000)
    whole = terms(x0[108:148], None, [np.random.default_rng(i) for i in range(40)])
    wanted = float(sum(values.mean() for values in whole.values()))
    fixed = [model(x0, None, generator.manual_seed(seed))[1]["bpd"].mean().item() for seed in range(5)]
    assert fixed == pytest.approx([wanted] * 5, rel=0.05)


def test_vlb_of_the_best_constant_is_near_the_entropy_of_uniform_grey_levels():
    """Uniform noise images hold 8 bits a dimension: no model can have a lower bound."""
    levels = torch.randint(0, 256, (2048, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    _, logs = objective(Constant(0.0, outputs=2), steps=1000, loss_type="hybrid")(levels / 127.5 - 1, None)
    assert logs["bpd"].mean() > 8


def test_importance_times_follow_the_losses_and_stay_unbiased():
    times = ImportanceTimes(4).train()
    assert torch.allclose(times.probabilities(), torch.full((4,), 0.25))
    for _ in range(10):
        times.observe(torch.tensor([1, 2, 3, 4]), torch.tensor([4.0, 2.0, 1.0, 1.0]))
    p = times.probabilities()
    torch.testing.assert_close(p, torch.tensor([0.5, 0.25, 0.125, 0.125]), rtol=0.01, atol=0)
    torch.manual_seed(0)
    t, weight = times.sample(20000, torch.device("cpu"), None)
    values = torch.tensor([4.0, 2.0, 1.0, 1.0])[t - 1]
    torch.testing.assert_close((weight * values).mean(), torch.tensor(2.0), rtol=0.02, atol=0)
    assert set(times.state_dict()) == {"history", "seen"}


def test_importance_history_keeps_the_newest():
    times = ImportanceTimes(1).train()
    for value in range(15):
        times.observe(torch.tensor([1]), torch.tensor([float(value)]))
    assert times.history[0].tolist() == [float(v) for v in range(5, 15)]


@pytest.mark.parametrize("count", [1, 16, 300])
def test_importance_history_is_that_of_one_loss_after_another(count):
    """Bit for bit, also where a batch has more losses of one t than the history holds."""
    torch.manual_seed(count)
    times, history, seen = ImportanceTimes(20).train(), torch.zeros(20, 10), torch.zeros(20, dtype=torch.long)
    for _ in range(30):
        t, losses = torch.randint(1, 21, (count,)), torch.rand(count)
        times.observe(t, losses)
        for row, loss in zip((t - 1).tolist(), losses.tolist(), strict=True):
            history[row] = history[row].roll(-1)
            history[row, -1] = loss
            seen[row] += 1
        assert torch.equal(times.history, history)
        assert torch.equal(times.seen, seen)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_published_scheduler_has_our_schedule(schedule):
    ours = noise_schedule(schedule, 200)
    scheduler = ddpm_scheduler(ours, DDPMConfig())
    loaded = DDPMScheduler.from_config(scheduler.config)
    abar = ours.process().abar[1:].float()
    torch.testing.assert_close(loaded.alphas_cumprod, abar, rtol=5e-4, atol=1e-6)
    loaded.set_timesteps(10)
    assert loaded.timesteps[0] == 199


def test_compiled_names_stay_and_sampling_uses_the_bare_network():
    model = objective(tiny())
    names = set(model.state_dict())
    model.compile()
    assert set(model.state_dict()) == names
    assert not any("orig_mod" in name for name in names)
