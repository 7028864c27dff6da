"""Consistency tuning: the function that stock diffusers samples, exact for a Gaussian, and whole runs."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config
from entry import TINY, environment, run, start, two_ranks
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from trilemma.model_cards.hub.bundle import save_bundle
from trilemma.pipelines import as_ours
from trilemma.pipelines.consistency import ConsistencyPipeline
from trilemma.training.diffusion.label_dropout import LabelDropout
from trilemma.training.diffusion.process import noise_schedule
from trilemma.training.families.consistency import ConsistencyConfig, complete
from trilemma.training.loop.watchdog import GRACE, PATIENCE, CollapsedRun, Watchdog
from trilemma.training.networks.build import build_network
from trilemma.training.objectives.consistency import (
    SIGNS,
    Consistency,
    Teacher,
    boundary,
    detail,
    last_time,
    lcm_scheduler,
    pseudo_huber,
)
from trilemma.training.options.command_line import parse

SCRIPT = "training/train_consistency.py"
COSINE = noise_schedule("squaredcos_cap_v2", 1000)
TARGETS = ("epsilon", "sample", "v_prediction")
NAMES = ("zero", "one", "two")
STD = 0.25


def options(**values):
    return ConsistencyConfig(**({"denoising_steps": 0, "stage_steps": 1, "stages": 8} | values))


def make_net(classes=None, dropout=0.0):
    torch.manual_seed(0)
    net = build_network(
        TINY, channels=1, resolution=8, dropout=dropout, num_class_embeds=classes and len(classes) + 1
    )
    for p in net.parameters():
        if not p.any():  # at the start of a training, the output depends neither on t nor on the label
            nn.init.normal_(p, std=0.1)
    return net


def make_pipeline(names=None, schedule=COSINE, **values):
    pipe = ConsistencyPipeline(make_net(names).eval(), lcm_scheduler(schedule, options(**values)), names)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images_of(pipe, seeds, **more):
    return pipe(seeds=seeds, output_type="pt", **more).images


# The function


@pytest.mark.parametrize("scaling", [10.0, 0.3])
def test_the_boundary_is_that_of_the_stock_scheduler(scaling):
    scheduler = lcm_scheduler(COSINE, options(timestep_scaling=scaling))
    skip, out = boundary(torch.arange(1, 1001), scaling)
    for t in (0, 1, 2, 500, 999):
        theirs = scheduler.get_scalings_for_boundary_condition_discrete(torch.tensor(t))
        assert [float(skip[t]), float(out[t])] == pytest.approx([float(x) for x in theirs], rel=1e-6)
    assert (float(skip[0]), float(out[0])) == (1, 0)


@pytest.mark.parametrize("schedule", [COSINE, noise_schedule("sigmoid", 100), noise_schedule("linear", 40)])
@pytest.mark.parametrize("target", TARGETS)
def test_the_function_is_what_the_stock_scheduler_makes_of_the_network(schedule, target):
    objective = Consistency(make_net().eval(), schedule, options(prediction_type=target))
    scheduler = objective.scheduler
    scheduler.set_timesteps(objective.last)
    assert scheduler.timesteps.tolist() == list(range(objective.last))[::-1]
    x = torch.randn(1, 1, 8, 8)
    for t in (1, 2, schedule.steps // 3, objective.last):
        time = torch.tensor([t])
        with torch.no_grad():
            ours, output = objective.f(x, time, None), objective.net(x, time - 1).sample
        scheduler._step_index = None
        theirs = scheduler.step(output, time[0] - 1, x).denoised
        assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
        if t == 1:
            assert torch.equal(ours, x), "f(x, 0) = x at the clean end"


class GaussianNet(ModelMixin, ConfigMixin):
    """The network whose consistency function is that of N(0, STD^2): paths keep x_t over its deviation."""

    @register_to_config
    def __init__(self, target="sample", scaling=10.0, sample_size=8, in_channels=1, out_channels=1):
        super().__init__()
        self.abar = COSINE.process().abar
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x, t, class_labels=None):
        t = torch.as_tensor(t).reshape(-1) + 1
        skip, out = boundary(t, self.config.scaling)
        abar = self.abar[t]
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        x0 = (deviation(self.abar[1]) / deviation(abar) - skip) / out * x.double()
        answer = {"sample": x0, "epsilon": (x - alpha * x0) / sigma, "v_prediction": (alpha * x - x0) / sigma}
        return SimpleNamespace(sample=answer[self.config.target].to(x.dtype))


def deviation(abar):
    return (abar * STD**2 + 1 - abar).sqrt()


@pytest.mark.parametrize("target", TARGETS)
def test_stock_samples_of_a_gaussian_have_its_law_in_1_2_and_4_calls(target):
    """The law at t = 1, where the paths end: here its deviation is 0.25008."""
    config = options(prediction_type=target)
    process, scheduler = COSINE.process(), lcm_scheduler(COSINE, config)
    pipe = DDPMPipeline(GaussianNet(target), scheduler)
    pipe.set_progress_bar_config(disable=True)
    end = float(deviation(process.abar[1]))
    for steps in (1, 2, 4):
        generator = torch.Generator().manual_seed(steps)
        images = pipe(500, generator, steps, output_type="np").images * 2 - 1
        error = 4 * end / (2 * images.size) ** 0.5
        assert images.std() == pytest.approx(end, abs=error)
        assert abs(images.mean()) < 4 * end / images.size**0.5
        if steps == 1:
            noise = torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(steps)).movedim(1, -1)
            start = deviation(process.abar[last_time(process, target)])
            rounding = 1e-4 if target == "epsilon" else 1e-5  # its x0_hat divides by 0.01
            expected = (end / start * noise).float().clamp(-1, 1)
            assert_close(torch.tensor(images), expected, rtol=0, atol=rounding)


def fixed_point(gap):
    """a_T of f(x_t, t) = a_t x_t where no gradient is left for a Gaussian: a_t E[x_t^2] = a_r E[x_t x_r]."""
    objective = Consistency(make_net(), COSINE, options())
    abar = objective.process.abar
    t = torch.arange(2, 1001)
    r = objective.before(t, gap)
    product = (abar[t] * abar[r]).sqrt() * STD**2 + ((1 - abar[t]) * (1 - abar[r])).sqrt()
    gains = torch.ones(1001, dtype=torch.float64)
    for i, before in enumerate(r.tolist()):
        gains[i + 2] = gains[before] * product[i] / deviation(abar[i + 2]) ** 2
    return float(gains[1000])


def test_as_the_gap_closes_the_optimum_becomes_the_consistency_function():
    """A gap of all of t is denoising, which answers noise with the mean; a small one keeps the deviation."""
    gains = [fixed_point(2.0**-k) for k in (0, 1, 3, 8)]
    assert gains == sorted(gains)
    assert gains[0] < 0.01
    assert gains[-1] == pytest.approx(STD, rel=0.02)


def test_only_epsilon_starts_where_a_hundredth_of_the_image_is_left():
    process = COSINE.process()
    assert [last_time(process, target) for target in ("sample", "v_prediction")] == [1000, 1000]
    last = last_time(process, "epsilon")
    assert process.abar[last].sqrt() >= 0.01 > process.abar[last + 1].sqrt()


# The loss


def test_pseudo_huber_and_detail():
    a, b = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    distance = (a - b).flatten(1).norm(dim=1)
    assert_close(pseudo_huber(a, b, 1e-6), distance, rtol=0, atol=2e-6)  # linear far out
    assert_close(pseudo_huber(a, b, 1e4), distance**2 / 2e4, rtol=0.05, atol=1e-5)  # quadratic near 0
    assert_close(detail(torch.randn(4, 1, 64, 64)), torch.full((4,), 2.0), rtol=0.1, atol=0)
    assert detail(torch.ones(2, 1, 8, 8)).tolist() == [0, 0]
    assert_close(detail(torch.full((2, 2, 1, 1), 3.0)), torch.full((2,), 9.0))


def test_the_gap_closes_in_stages():
    config = options(denoising_steps=4, stage_steps=3, stages=3)
    gaps = [config.gap(step) for step in range(20)]
    assert gaps == [1.0] * 4 + [0.5] * 3 + [0.25] * 3 + [0.125] * 10
    config = options(stage_steps=3, first_stage=2, stages=3)
    assert [config.gap(step) for step in range(8)] == [0.25] * 3 + [0.125] * 5


@pytest.mark.parametrize(("steps", "warned"), [("96", []), ("20", [(20, 20)])])
def test_a_run_that_ends_before_its_last_stage_says_so(monkeypatch, steps, warned):
    """Half of the run denoises, then come stages 2 and 3."""
    said: list[tuple] = []
    monkeypatch.setattr(complete.__globals__["logger"], "warning", lambda _, *values: said.append(values))
    flags = ["--first_stage", "2", "--stages", "3", "--stage_steps", "10", "--max_train_steps", steps]
    complete(parse("consistency", "", flags), (), range(960), SimpleNamespace(num_processes=1), None, None)
    assert said == warned


@pytest.mark.parametrize(
    ("flags", "denoising", "stage"),
    [
        (["--max_train_steps", "96"], 48, 6),
        (["--max_train_steps", "96", "--init_from", "x", "--stages", "4"], 0, 24),
        (["--max_train_steps", "96", "--init_from", "x", "--distil"], 0, 24),
        (["--max_train_steps", "5"], 2, 1),
        (["--max_train_steps", "96", "--first_stage", "7"], 48, 24),
        (["--num_epochs", "3", "--train_batch_size", "4", "--denoising_steps", "6"], 6, 3),
        (["--max_train_steps", "96", "--stage_steps", "100"], 48, 100),
    ],
)
def test_stages_share_the_run(monkeypatch, flags, denoising, stage):
    monkeypatch.setattr("trilemma.training.options.command_line.take_over", lambda *facts: {})
    monkeypatch.setattr("trilemma.training.families.consistency.saved_flow", lambda source: False)
    config = parse("consistency", "", ["--dataset_name", "a/b", *flags])
    config = complete(config, (), range(40), SimpleNamespace(num_processes=1), None, None).objective
    assert (config.denoising_steps, config.stage_steps) == (denoising, stage)


@pytest.mark.parametrize("gap", [1.0, 0.5, 2.0**-8])
def test_r_is_a_step_before_t_at_least(gap):
    t = torch.arange(2, 1001)
    r = Consistency(make_net(), COSINE, options()).before(t, gap)
    assert (r >= 1).all()
    assert (r < t).all()
    assert_close((t - r).double(), ((t - 1) * gap).double().clamp(min=1), rtol=0, atol=1)
    assert gap < 1 or (r == 1).all()


@pytest.mark.parametrize("stage", [0, 3, 5])
def test_even_steps_have_one_length_and_end_at_the_clean_end(stage):
    t, step = torch.arange(2, 1001), 999 * 2.0**-stage
    r = Consistency(make_net(), COSINE, options(spacing="even")).before(t, 2.0**-stage)
    assert_close((t - r).double(), (t - 1).clamp(max=step).double(), rtol=0, atol=1)
    assert (r[t - 1 <= step] == 1).all()
    assert ((r >= 1) & (r < t)).all()


class Watched(nn.Module):
    """A network that is dropout, and what it was called with."""

    def __init__(self):
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.ones(1)), []

    def forward(self, x, t, labels=None):
        mask = nn.functional.dropout(torch.ones_like(x), 0.5)
        self.calls.append((x.detach(), t, labels, mask))
        return SimpleNamespace(sample=self.weight * x * mask)


def test_both_ends_have_the_same_noise_dropout_and_labels():
    net = Watched()
    config = options(class_conditional=True, p_uncond=0.5)
    objective = Consistency(net, COSINE, config, LabelDropout(3, 0.5), NAMES)
    objective.gap = 0.5
    x0 = torch.rand(64, 1, 8, 8) * 2 - 1
    torch.manual_seed(1)
    objective(x0, torch.arange(64) % 3)
    after = torch.rand(1)
    (x_r, r, labels_r, mask_r), (x_t, t, labels_t, mask_t) = net.calls
    assert torch.equal(mask_r, mask_t)
    assert torch.equal(labels_r, labels_t)
    assert 10 < int((labels_t == 3).sum()) < 54
    noise = []
    for x, time in ((x_r, r), (x_t, t)):
        alpha, sigma = objective.process.signal_and_noise(time + 1, x0)
        noise.append((x - alpha * x0) / sigma)
    level = (1 - objective.process.at(r + 1)).sqrt()  # rounding is divided by it
    assert ((noise[0] - noise[1]).flatten(1).abs().amax(1) < 1e-5 / level).all()
    # The next step draws other masks: random numbers are those after one pass, not before it.
    objective(x0, torch.arange(64) % 3)
    assert not torch.equal(net.calls[-1][3], mask_t)
    assert not torch.equal(after, torch.rand(1))


@pytest.mark.parametrize("half", [False, True])
def test_the_gradient_is_that_of_the_noisier_end_alone(half):
    """In bfloat16 too, where autocast would keep weights that it has cast without a gradient."""
    objective = Consistency(make_net(), COSINE, options(huber_c=0.1))
    objective.gap = 0.5
    x0 = torch.rand(16, 1, 8, 8) * 2 - 1
    ends, f = [], objective.f

    def watched(*arguments):
        ends.append((arguments, f(*arguments)))
        return ends[-1][1]

    objective.f = watched
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        losses, logs = objective(x0, None, torch.Generator().manual_seed(0))
    losses.mean().backward()
    gradient = [p.grad.clone() for p in objective.net.parameters()]
    assert losses.dtype == torch.float32
    assert logs["gap"].tolist() == [0.5] * 16
    (_, fixed), (arguments, _) = ends
    assert not fixed.requires_grad
    objective.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        again = f(*arguments)
    t, r = arguments[1], ends[0][0][1]
    expected = pseudo_huber(again, fixed, 0.1) / 8 * 999 / (t - r)
    assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    expected.mean().backward()
    for p, before in zip(objective.net.parameters(), gradient, strict=True):
        assert_close(before, p.grad, rtol=1e-3, atol=1e-5)


def test_validation_is_fixed_through_all_stages():
    objective = Consistency(make_net(dropout=0.5), COSINE, options()).eval()
    x0 = torch.rand(8, 1, 8, 8)
    values = []
    for objective.gap in (1.0, 0.25):
        losses, logs = objective(x0, None, torch.Generator().manual_seed(3))
        values.append(losses)
    assert torch.equal(*values)
    assert float(logs["gap"][0]) == 2.0**-8


def test_distillation_and_guidance_are_those_of_a_step_of_stock_ddim():
    teacher = make_net(NAMES).eval()
    config = options(class_conditional=True, guidance_scale=3.0)
    objective = Consistency(make_net(NAMES), COSINE, config, LabelDropout(3, 0), NAMES, Teacher(teacher))
    x, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    t, r = torch.full((4,), 600), torch.full((4,), 500)
    facts = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    stock = DDIMScheduler(**facts, timestep_spacing="trailing")
    stock.set_timesteps(10)
    with torch.no_grad():
        known, null = (teacher(x, t - 1, ids).sample for ids in (labels, torch.full_like(labels, 3)))
        plain, guided = (
            stock.step(out, 599, x, use_clipped_model_output=True).prev_sample
            for out in (known, null + 3 * (known - null))
        )
        zero = torch.zeros_like(x)
        ours = objective.taught(x, zero, t, r, labels)
        objective.config = options(class_conditional=True, distil=True)
        step = objective.taught(x, zero, t, r, labels)
    assert_close(ours, guided - plain, rtol=1e-4, atol=1e-5)
    assert_close(step, plain, rtol=1e-4, atol=1e-5)
    assert ours[3].abs().max() == 0, "an image without its label gets none"
    assert ours[:3].abs().amax((1, 2, 3)).min() > 1e-3
    names = [name for name, _ in objective.named_parameters()]
    assert all(name.startswith("net.") for name in names)


@pytest.mark.parametrize("target", TARGETS)
def test_distillation_from_a_flow_is_a_step_of_its_stock_scheduler(target):
    """Whatever the network that learns predicts; x_t / (alpha + sigma) is the flow's state."""
    flow = make_net().eval()
    flow.conv_out.weight.data.mul_(0.05)  # nothing is clipped
    config = options(distil=True, prediction_type=target)
    objective = Consistency(make_net(), COSINE, config, teacher=Teacher(flow, is_flow=True))
    x_t, t, r = 0.1 * torch.randn(4, 1, 8, 8), torch.full((4,), 600), torch.full((4,), 500)
    (alpha, sigma), (alpha_r, sigma_r) = (objective.process.signal_and_noise(k, x_t) for k in (t, r))
    now, then = (float((b / (a + b))[0]) for a, b in ((alpha, sigma), (alpha_r, sigma_r)))
    stock = FlowMatchEulerDiscreteScheduler()
    stock.set_timesteps(sigmas=[now, then])
    with torch.no_grad():
        assert objective.taught_x0(x_t, t, None).abs().max() < 1
        ours = objective.taught(x_t, torch.zeros_like(x_t), t, r, None)
        x_s = x_t / (alpha + sigma)
        assert float(stock.timesteps[0]) == pytest.approx(1000 * now, rel=1e-6)
        theirs = stock.step(flow(x_s, stock.timesteps[0]).sample, stock.timesteps[0], x_s).prev_sample
    assert_close(ours / (alpha_r + sigma_r), theirs, rtol=1e-4, atol=1e-5)


def test_the_guidance_of_a_flow_mixes_its_velocities():
    """Guided by 3 as the flow's own pipeline has it: null + 3 (known - null)."""
    flow = make_net(NAMES).eval()
    flow.conv_out.weight.data.mul_(0.02)  # nothing is clipped
    config = options(distil=True, class_conditional=True, guidance_scale=3.0)
    teacher = Teacher(flow, is_flow=True)
    objective = Consistency(make_net(NAMES), COSINE, config, LabelDropout(3, 0), NAMES, teacher)
    x_t, labels = 0.1 * torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    t, r = torch.tensor([900, 600, 300]), torch.tensor([800, 500, 200])
    (alpha, sigma), (alpha_r, sigma_r) = (objective.process.signal_and_noise(k, x_t) for k in (t, r))
    (x_s, s), then = (v / (alpha + sigma) for v in (x_t, sigma)), sigma_r / (alpha_r + sigma_r)
    with torch.no_grad():
        known, null = (flow(x_s, 1000 * s.flatten(), k).sample for k in (labels, torch.full_like(labels, 3)))
        velocity = null + 3 * (known - null)
        assert (x_s - s * velocity).abs().max() < 1
        ours = objective.taught(x_t, torch.zeros_like(x_t), t, r, labels) / (alpha_r + sigma_r)
    assert_close(ours, x_s + (then - s) * velocity, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.01, 50.0])
def test_blur_and_noise_stop_a_run_while_its_loss_falls(ratio):
    watchdog = Watchdog(1, Accelerator(cpu=True), SIGNS)

    def watch(step, gap, detail):
        values = {"loss": 1 / step, "gap": gap, "detail": detail, "detail_data": 1.0}
        watchdog.watch({name: torch.tensor([value]) for name, value in values.items()}, step)

    for step in range(1, 20):
        watch(step, 0.5, ratio)  # a wide gap averages over images: no sign
        assert watchdog.calm
    watch(20, 2.0**-8, 1.0)
    assert watchdog.calm
    for step in range(21, 20 + PATIENCE):
        watch(step, 2.0**-8, ratio)
        assert not watchdog.calm
    assert step > GRACE
    with pytest.raises(CollapsedRun, match=r"blurred or noisy.*--learning_rate"):
        watch(step + 1, 2.0**-8, ratio)


# The pipeline


def test_classes_by_name_number_and_none():
    pipe = make_pipeline(NAMES)
    by_name = images_of(pipe, [1, 2, 3], class_labels=["two", 0, None])
    one_by_one = [images_of(pipe, [s], class_labels=[k]) for s, k in ((1, 2), (2, "zero"), (3, None))]
    assert_close(by_name, torch.cat(one_by_one), atol=1e-5, rtol=0)
    assert not torch.allclose(by_name, images_of(pipe, [1, 2, 3], class_labels=None))
    with pytest.raises(ValueError, match="class_labels must be None: this model has no classes"):
        make_pipeline()(class_labels=[1])


def test_what_the_pipeline_refuses():
    pipe = make_pipeline()
    for steps in (0, 1001, 2.5, True):
        with pytest.raises(ValueError, match=r"--num_inference_steps must be an integer from 1 to 1000"):
            pipe(num_inference_steps=steps)
    with pytest.raises(ValueError, match="scheduler must be an LCMScheduler; got a DDPMScheduler"):
        ConsistencyPipeline(make_net(), DDPMScheduler())
    short = make_pipeline(prediction_type="epsilon")
    with pytest.raises(ValueError, match="from 1 to 993, and few are enough; got 994"):
        short(num_inference_steps=994)


STRANGER = """
import sys
sys.modules["trilemma"] = None
import torch
from diffusers import DDPMPipeline, DiffusionPipeline
wanted = torch.load("wanted.pt")
plain = DDPMPipeline.from_pretrained("plain")
classes = DiffusionPipeline.from_pretrained("classes", trust_remote_code=True)
for name, pipe, more in (
    ("plain", plain, {"output_type": "np"}),
    ("classes", classes, {"output_type": "pt", "class_labels": ["two", "zero"]}),
):
    assert type(pipe.scheduler).__name__ == "LCMScheduler"
    pipe.set_progress_bar_config(disable=True)
    for steps in (1, 2, 4):
        generator = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        images = pipe(batch_size=2, generator=generator, num_inference_steps=steps, **more).images
        torch.testing.assert_close(torch.as_tensor(images), wanted[name][steps], atol=1e-5, rtol=0)
"""


def test_a_stranger_draws_the_same_images(tmp_path):
    """Without classes by a stock pipeline and without foreign code; its images are ours."""
    wanted = {}
    for name, names in (("plain", None), ("classes", NAMES)):
        pipe, labels = make_pipeline(names), {"class_labels": ["two", "zero"]} if names else {}
        wanted[name] = {n: images_of(pipe, [3, 4], num_inference_steps=n, **labels) for n in (1, 2, 4)}
        folder = save_bundle(pipe, tmp_path / name)
        index = json.loads((folder / "model_index.json").read_text())
        assert index["unet"] == ["diffusers", "UNet2DModel"]
        assert index["scheduler"] == ["diffusers", "LCMScheduler"]
        if names:
            assert index["_class_name"] == ["pipeline_consistency", "ConsistencyPipeline"]
            continue
        assert index["_class_name"] == "DDPMPipeline"
        assert set(index) == {"_class_name", "_diffusers_version", "unet", "scheduler"}
        assert not list(folder.rglob("*.py"))
        ours = as_ours(DDPMPipeline.from_pretrained(folder))
        assert (type(ours), ours.steps(None)) == (ConsistencyPipeline, 2)
        wanted[name] = {n: images.movedim(1, -1) for n, images in wanted[name].items()}
    torch.save(wanted, tmp_path / "wanted.pt")
    done = subprocess.run(
        [sys.executable, "-c", STRANGER], capture_output=True, text=True, cwd=tmp_path,
        env=environment(HF_HOME=str(tmp_path / "home")),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not expected" not in done.stderr


# The entry point


def refused(capsys, *argv):
    with pytest.raises(SystemExit):
        parse("consistency", "", list(argv))
    return capsys.readouterr().err


def test_what_the_command_line_refuses(tmp_path, capsys):
    assert "--guidance_scale has no effect" in refused(capsys, "--guidance_scale", "2")
    guided = ["--class_conditional", "--guidance_scale", "2"]
    assert "--guidance_scale 2 needs a diffusion model or a flow: name one" in refused(capsys, *guided)
    assert "--distil has no effect without --init_from" in refused(capsys, "--distil")
    config = parse("consistency", "", ["--first_stage", "5", "--stages", "4"])
    with pytest.raises(ValueError, match="--first_stage must be at most --stages, 4; got 5"):
        complete(config, (), range(9), SimpleNamespace(num_processes=1), None, None)
    assert "--p_uncond has no effect" in refused(capsys, "--p_uncond", "0.2")
    assert "--p_uncond must be at least 0 and at most 1" in refused(
        capsys, "--class_conditional", "--p_uncond", "1.5"
    )
    assert "--stages must be at least 1" in refused(capsys, "--stages", "0")
    assert "--sampler must be one of lcm" in refused(capsys, "--sampler", "ddim")
    assert "--huber_c must be greater than 0" in refused(capsys, "--huber_c", "0")
    new = ["--init_from", str(tmp_path), "--class_conditional", "--init_new_classes"]
    assert "--init_from has not learned these classes" in refused(capsys, *new)


@pytest.fixture
def flags(tiny):
    """Of a run that takes milliseconds a step, without a number of sampling steps."""
    at = tiny.index("--ddpm_num_inference_steps")
    return [*tiny[:at], *tiny[at + 2 :]]


def weights(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def scalars(folder):
    return [json.loads(line) for line in (folder / "logs" / "scalars.jsonl").read_text().splitlines()]


def test_a_run_from_scratch_fills_its_folder_and_is_scored(tmp_path, flags):
    out = tmp_path / "out"
    more = [
        "--max_train_steps",
        "8",
        "--first_stage",
        "1",
        "--stages",
        "2",
        "--sample_steps",
        "4",
        "--eval_steps",
        "8",
    ]
    more += ["--eval_feature_extractor", "pixels", "--eval_num_samples", "64", "--timestep_scaling", "5"]
    more += ["--ddpm_num_inference_steps", "4"]
    run(SCRIPT, *flags, *more, "--output_dir", str(out))
    names = {path.name for path in out.iterdir()}
    assert {"samples.png", "process.png", "schedules.png", "loss.png", "best", "results.jsonl"} <= names
    assert not list(out.glob("*.py"))
    gaps = [line["gap"] for line in scalars(out) if "gap" in line]
    assert gaps == [1.0] * 4 + [0.5] * 2 + [0.25] * 2
    held = [line for line in scalars(out) if "validation_loss" in line]
    assert [line["validation_gap"] for line in held] == [0.25, 0.25]
    card = (out / "README.md").read_text()
    assert "consistency model of 8x8 grey images" in card
    assert "DDPMPipeline.from_pretrained" in card
    assert "num_inference_steps=4" in card
    line = json.loads((out / "results.jsonl").read_text().splitlines()[-1])
    assert (line["sampler"], line["num_inference_steps"]) == ("lcm", 4)
    # Further tuning keeps what the weights have learned.
    more = ["--init_from", str(out), "--learning_rate", "1e-12", "--no-use_ema", "--max_train_steps", "1"]
    run(SCRIPT, *flags, *more, "--output_dir", str(tmp_path / "more"))
    for name, tensor in weights(out).items():
        assert_close(weights(tmp_path / "more")[name], tensor, atol=1e-6, rtol=0)
    assert "timestep_scaling: 5.0" in (tmp_path / "more" / "config.yaml").read_text()


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """A diffusion model with classes, one that learns its variance, and a flow with classes."""
    folder = tmp_path_factory.mktemp("parents")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    short = ["--model_config_name_or_path", str(folder / "tiny.json"), "--max_train_steps", "1",
             "--eval_batch_size", "1", "--ddpm_num_inference_steps", "2"]  # fmt: skip
    runs = {"class_conditional": ["--ddpm_num_steps", "100", "--prediction_type", "v_prediction"],
            "unconditional": ["--loss_type", "hybrid"], "flow": ["--class_conditional"]}  # fmt: skip
    for family, more in runs.items():
        more = ["--dataset_name", "digits", *short, *more, "--output_dir", str(folder / family)]
        run(f"training/train_{family}.py", *more)
    return folder


def test_a_guided_run_that_is_killed_and_resumed_ends_with_the_same_weights(tmp_path, flags, parents):
    """Over the ends of stages, with classes and dropout; the teacher is trained again before the last run."""
    parent = tmp_path / "parent"
    shutil.copytree(parents / "class_conditional", parent)
    flags = [*flags, "--init_from", str(parent), "--class_conditional", "--guidance_scale", "2"]
    flags += ["--first_stage", "1", "--stages", "3", "--checkpointing_steps", "4", "--max_train_steps", "16"]
    run(SCRIPT, *flags, "--output_dir", str(tmp_path / "uncut"))
    cut, step = tmp_path / "cut", random.Random(0).randrange(5, 15)
    killed = start(SCRIPT, *flags, "--output_dir", str(cut), signal_at=(step, signal.SIGKILL))
    assert killed.wait() == -signal.SIGKILL
    file = parent / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: -tensor for name, tensor in load_file(file).items()}, file)
    run(SCRIPT, *flags, "--output_dir", str(cut))
    uncut, resumed = weights(tmp_path / "uncut"), weights(cut)
    assert uncut.keys() == resumed.keys()
    assert all(torch.equal(uncut[name], resumed[name]) for name in uncut)
    steps = [(line["step"], line["gap"]) for line in scalars(cut) if "loss" in line and "gap" in line]
    assert steps == [(k + 1, 2.0 ** -min(3, 1 + k // 5)) for k in range(16)]
    config = (cut / "config.yaml").read_text()
    assert "ddpm_num_steps: 100\n" in config
    assert json.loads((cut / "model_index.json").read_text())["class_names"]["3"] == "3"
    other = run(SCRIPT, *flags[:-2], "--max_train_steps", "32", "--output_dir", str(cut), check=False)
    assert other.wait() != 0
    assert "--stage_steps: 5 then, 10 now" in other.output


def test_a_flow_is_distilled_after_a_fifth_of_denoising(tmp_path, flags, parents, capsys):
    """It begins with the flow's weights; process and target are the run's own."""
    flags = [*flags, "--init_from", str(parents / "flow"), "--class_conditional", "--guidance_scale", "2"]
    flags += ["--distil", "--max_train_steps", "5"]
    flags += ["--prediction_type", "v_prediction", "--ddpm_beta_schedule", "squaredcos_cap_v2"]
    run(SCRIPT, *flags, "--output_dir", str(tmp_path / "out"))
    gaps = [line["gap"] for line in scalars(tmp_path / "out") if "gap" in line]
    assert gaps == [1.0, *(2.0**-k for k in (2, 3, 4, 4))]
    still = ["--learning_rate", "1e-12", "--no-use_ema", "--output_dir", str(tmp_path / "still")]
    run(SCRIPT, *flags, *still)
    for name, tensor in weights(parents / "flow").items():
        assert_close(weights(tmp_path / "still")[name], tensor, atol=1e-6, rtol=0)
    with pytest.raises(SystemExit):
        parse("unconditional", "", ["--dataset_name", "digits", "--init_from", str(parents / "flow")])
    assert "it is a flow, whose network predicts a velocity: take" in capsys.readouterr().err


def test_parents_that_do_not_fit_are_refused(tmp_path, flags, parents):
    out = ["--max_train_steps", "1", "--output_dir", str(tmp_path / "out")]
    for parent, words in (
        ("class_conditional", "has 10 classes .* and this trains a model of no classes"),
        ("unconditional", "has another network"),
    ):
        done = run(SCRIPT, *flags, *out, "--init_from", str(parents / parent), check=False)
        assert done.wait() == 1
        assert "Traceback" not in done.output
        assert re.search(words, done.output), done.output
    done = run(SCRIPT, *flags, *out, "--compile", check=False)
    assert done.wait() == 1
    assert "add --dropout 0" in done.output


@pytest.mark.long
@pytest.mark.distributed
def test_two_ranks_are_one_model(tmp_path, flags):
    one, two = two_ranks("two_ranks_consistency.py", tmp_path, *flags, "--max_train_steps", "8")
    assert one["weights"] == two["weights"]
    assert one["gaps"] == two["gaps"]
    assert len(set(one["gaps"])) == 5
    assert not set(one["noise"]) & set(two["noise"])
