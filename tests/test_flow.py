"""Flow matching against closed forms, diffusers and scipy, and its training through the entry point."""

import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import TINY
from diffusers import (
    ConfigMixin,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
    UNet2DModel,
)
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from entry import environment, run, start, two_ranks
from scipy.optimize import linear_sum_assignment
from test_train_unconditional import assert_same, scalars, weights
from torch.testing import assert_close

from trilemma.pipelines import as_ours, stock_family
from trilemma.pipelines.flow import ClassConditionalFlowPipeline, FlowPipeline
from trilemma.pipelines.samplers import FLOW_SAMPLERS
from trilemma.training.diffusion.flow import TIME_DENSITIES, assignment, between, coupled
from trilemma.training.families.flow import FlowConfig
from trilemma.training.objectives.flow import Flow
from trilemma.training.options.command_line import parse

SCRIPT = "training/train_flow.py"
MEAN, STD = 0.3, 0.25
UNET = {key: value for key, value in TINY.items() if key[0] != "_"} | {"sample_size": 8}


class GaussianVelocity(ModelMixin, ConfigMixin):
    """E[noise - x0 | x_s] for x0 of independent N(MEAN, STD^2): the perfect network, times 1 + `error`."""

    @register_to_config
    def __init__(self, sample_size: int = 4, in_channels: int = 1, out_channels: int = 1, error: float = 0.0):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, time_step, class_labels=None):
        s = torch.as_tensor(time_step).double().expand(len(x)).view(-1, 1, 1, 1) / 1000
        variance = ((1 - s) * STD).square() + s.square()
        velocity = (s - (1 - s) * STD**2) / variance * (x.double() - (1 - s) * MEAN) - MEAN
        return UNet2DOutput(sample=(velocity * (1 + self.config.error)).float())


def scheduler():
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def small_flow():
    torch.manual_seed(0)
    return quiet(FlowPipeline(UNet2DModel(**UNET, in_channels=1, out_channels=1).eval(), scheduler()))


# The path and its times


def test_the_path_is_that_of_diffusers_scheduler():
    x0, noise = torch.randn(2, 5, 3, 4, 4).unbind(0)
    for at in (0, 1, 500, 998, 999):
        time_step = scheduler().timesteps[at]
        s = (time_step / 1000).double().expand(5)
        assert_close(between(x0, noise, s), scheduler().scale_noise(x0, time_step[None].expand(5), noise))


@pytest.mark.parametrize(("density", "cumulative"), [
    ("uniform", lambda s: s),
    ("logit_normal", lambda s: torch.special.ndtr((torch.logit(s) - 0.4) / 1.2)),
    # Esser et al. 2024, section 3.1: the density 2 / (pi - 2 pi s + 2 pi s^2)
    ("cosmap", lambda s: 0.5 + 2 / torch.pi * torch.atan(2 * s - 1)),
])  # fmt: skip
def test_times_have_their_density_and_are_spread_over_it(density, cumulative):
    options = dict(logit_mean=0.4, logit_std=1.2) if density == "logit_normal" else {}
    objective = Flow(torch.nn.Identity(), FlowConfig(time_density=density, **options))
    for generator in (None, torch.Generator().manual_seed(0)):
        s = objective.times(64, torch.device("cpu"), generator)
        assert s.dtype == torch.float64
        assert ((cumulative(s) * 64).floor().sort().values == torch.arange(64)).all(), "one in each part"
    assert set(TIME_DENSITIES) == set(FlowConfig.__annotations__["time_density"].__args__)


# Which noise belongs to which image


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_the_assignment_is_scipys(count):
    rng = np.random.default_rng(count)
    for cost in (rng.random((count, count)), rng.integers(0, 3, (count, count)).astype(float)):
        columns = assignment(cost)
        assert sorted(columns) == list(range(count))
        rows, best = linear_sum_assignment(cost)
        assert cost[range(count), columns].sum() == pytest.approx(cost[rows, best].sum(), abs=1e-9)


def test_coupled_noise_is_the_same_noise_nearer_to_its_images():
    x0, noise = torch.randn(2, 16, 1, 2, 2, generator=torch.Generator().manual_seed(0)).unbind(0)
    labels = torch.arange(16) % 3
    for given in (None, labels):
        paired = coupled(x0, noise, given)
        assert_close(paired.flatten(1).sum(1).sort().values, noise.flatten(1).sum(1).sort().values)
        assert (x0 - paired).square().sum() < (x0 - noise).square().sum()
    for label in range(3):  # the noise of a class stays with it
        mine = labels == label
        assert {tuple(row) for row in paired[mine].flatten(1).tolist()} == {
            tuple(row) for row in noise[mine].flatten(1).tolist()
        }


def test_coupling_changes_pairs_and_no_law():
    """The loss of the same network falls, since targets are closer to their mean; noise stays N(0, I)."""
    x0 = MEAN + STD * torch.randn(512, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    losses = {}
    for name in ("independent", "optimal"):
        objective = Flow(GaussianVelocity(sample_size=1), FlowConfig(coupling=name)).eval()
        losses[name] = float(objective(x0, None, torch.Generator().manual_seed(1))[0].mean())
    assert losses["optimal"] < 0.8 * losses["independent"]


# The loss and the samplers, for a Gaussian


def test_the_loss_is_least_at_the_exact_velocity_and_then_the_variance_that_is_left():
    """Var[noise - x0 | x_s] = STD^2 / ((1 - s)^2 STD^2 + s^2), whose mean over s is 1.43."""
    s = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    least = float((STD**2 / ((1 - s) ** 2 * STD**2 + s**2)).mean())
    x0 = MEAN + STD * torch.randn(4096, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    losses = []
    for error in (-0.1, 0.0, 0.1):
        objective = Flow(GaussianVelocity(error=error), FlowConfig()).eval()
        loss, logs = objective(x0, None, torch.Generator().manual_seed(1))
        losses.append(float(loss.mean()))
    assert losses[1] == pytest.approx(least, rel=0.02)  # 65,536 pixels: 4 standard errors
    assert losses[1] < min(losses[0], losses[2])
    assert set(logs) == {f"loss_q{q}" for q in (1, 2, 3, 4)}
    assert float(logs["loss_q1"].nanmean()) > float(logs["loss_q4"].nanmean())


@pytest.mark.parametrize(("sampler", "steps", "error"), [
    ("euler", 100, 0.02), ("heun", 30, 0.005), ("dpmsolver++", 30, 0.005),
    ("shifted-dpmsolver++", 60, 0.005),
])  # fmt: skip
def test_each_sampler_converges_to_the_law(sampler, steps, error):
    """The exact flow moves every image from its noise to MEAN + STD noise."""
    pipeline = quiet(FlowPipeline(GaussianVelocity(), scheduler()).with_sampler(sampler))

    def furthest(steps):
        images = pipeline(seeds=range(20), num_inference_steps=steps, output_type="pt").images
        noise = torch.cat(
            [torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(20)]
        )
        return float((images - ((MEAN + STD * noise) / 2 + 0.5).clamp(0, 1)).abs().max())

    assert furthest(steps) < error
    assert furthest(steps) < furthest(steps // 4) / 2


@pytest.mark.parametrize("sampler", FLOW_SAMPLERS)
def test_every_sampler_is_that_of_stock_diffusers(sampler):
    ours = quiet(small_flow().with_sampler(sampler))
    row = FLOW_SAMPLERS[sampler]
    assert type(ours.scheduler).__name__ == row.scheduler
    stock = quiet(DDPMPipeline(ours.unet, ours.scheduler))
    images = ours(seeds=[3, 4], num_inference_steps=6, output_type="pt").images
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    theirs = stock(2, generator=generators, num_inference_steps=6, output_type="pt").images
    assert_close(images, theirs, rtol=0, atol=1e-5)
    assert ours.with_sampler("euler").sampler == "euler"


def test_the_shifted_sampler_takes_smaller_steps_where_there_is_more_noise():
    """s -> 2.5 s / (1 + 1.5 s), Esser et al. 2024, equation 23, of even steps from 1 to 1 / N."""
    sampler = small_flow().with_sampler("shifted-dpmsolver++").scheduler
    sampler.set_timesteps(5)
    even = torch.tensor([1 - 1 / 1000, 0.8, 0.6, 0.4, 0.2])
    assert_close(sampler.sigmas[:-1], 2.5 * even / (1 + 1.5 * even), rtol=0, atol=2e-3)
    assert sampler.sigmas[-1] == 0


def test_a_stock_pipeline_with_a_scheduler_of_flows_is_of_this_family():
    pipeline = small_flow()
    for sampler in FLOW_SAMPLERS:
        stock = DDPMPipeline(pipeline.unet, pipeline.with_sampler(sampler).scheduler)
        assert stock_family(type(stock), stock.scheduler) == "flow"
        assert (type(as_ours(stock)), as_ours(stock).sampler) == (FlowPipeline, sampler)


def test_guidance_mixes_velocities_inside_its_interval():
    torch.manual_seed(0)
    net = UNet2DModel(**UNET, in_channels=1, out_channels=1, num_class_embeds=4).eval()
    pipeline = quiet(ClassConditionalFlowPipeline(net, scheduler(), class_names=("a", "b", "c")))
    options = dict(class_labels=["b"], num_inference_steps=5, seeds=[0], output_type="pt")
    asked = []
    net.register_forward_pre_hook(lambda net, inputs: asked.append(inputs[2].tolist()))
    pipeline(**options, guidance_scale=2.0, guidance_interval=(0.0, 2.0))
    # Noise over signal is s / (1 - s): at most 2 where s is at most 2/3.
    assert asked == [[1], [1], [1, 3], [1, 3], [1, 3]]
    x, labels = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 3])
    sigmas = [1, 0.75025, 0.5005, 0.25075, 0.001, 0]
    with torch.no_grad():
        for now, after in pairwise(sigmas):
            given, null = net(x.expand(2, -1, -1, -1), torch.tensor(1000 * now), labels).sample
            x = x + (after - now) * (null + 2 * (given - null))
    images = pipeline(**options, guidance_scale=2.0).images
    assert_close(images, (x / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)


# Through the entry point


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folders of a run without classes, and of one with classes that couples its noise."""
    folder = tmp_path_factory.mktemp("flow")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    flags = ["--model_config_name_or_path", str(folder / "tiny.json"), "--train_batch_size", "8"]
    flags += ["--eval_batch_size", "4", "--max_train_steps", "4", "--cache_dir", str(folder / "cache")]
    flags += ["--ddpm_num_inference_steps", "5", "--logging_steps", "1", "--validation_steps", "2"]
    scored = ["--eval_steps", "4", "--eval_num_samples", "70", "--eval_metrics", "class_accuracy"]
    run(SCRIPT, *flags, "--sampler", "heun", "--output_dir", str(folder / "plain"))
    classes = ["--class_conditional", "--coupling", "optimal", "--time_density", "logit_normal", *scored]
    run(SCRIPT, *flags, *classes, "--output_dir", str(folder / "classes"))
    return folder


STRANGER = """
import sys
sys.modules["trilemma"] = None
import numpy as np, torch
from diffusers import DDPMPipeline, DiffusionPipeline
plain, classes = sys.argv[1:]
pipe = DDPMPipeline.from_pretrained(plain)
assert type(pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
generators = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
one = pipe(2, generator=generators, num_inference_steps=5, output_type="np").images
pipe = DiffusionPipeline.from_pretrained(classes, trust_remote_code=True).with_sampler("dpmsolver++")
options = dict(guidance_scale=2.0, num_inference_steps=3, seeds=[5, 6], output_type="np")
two = pipe(["3", 4], **options).images
pipe.save_pretrained("again")
pipe = DiffusionPipeline.from_pretrained("again", trust_remote_code=True)
assert pipe.sampler == "dpmsolver++" and abs(pipe(["3", 4], **options).images - two).max() < 1e-5
np.savez("drawn.npz", one=one, two=two)
"""


def test_a_stranger_draws_the_same_images(trained, tmp_path):
    folders = [str(trained / "plain"), str(trained / "classes")]
    home = environment(HF_HOME=str(tmp_path / "home"))
    subprocess.run([sys.executable, "-c", STRANGER, *folders], check=True, env=home, cwd=tmp_path)
    drawn = np.load(tmp_path / "drawn.npz")
    ours = quiet(FlowPipeline.from_pretrained(folders[0]))
    images = ours(seeds=[7, 8], num_inference_steps=5, output_type="np").images
    assert abs(images - drawn["one"]).max() < 1e-5
    ours = quiet(
        as_ours(DiffusionPipeline.from_pretrained(folders[1], trust_remote_code=True)).with_sampler(
            "dpmsolver++"
        )
    )
    options = dict(guidance_scale=2.0, num_inference_steps=3, seeds=[5, 6], output_type="np")
    assert abs(ours(["3", 4], **options).images - drawn["two"]).max() < 1e-5
    assert json.loads((trained / "plain" / "model_index.json").read_text())["_class_name"] == "DDPMPipeline"
    assert not list((trained / "plain").glob("*.py"))


def test_the_folder_is_like_that_of_every_family(trained):
    for name in ("plain", "classes"):
        files = {path.name for path in (trained / name).iterdir()}
        assert {"samples.png", "process.png", "schedules.png", "loss.png", "README.md", "run.json"} <= files
        assert json.loads((trained / name / "run.json").read_text())["family"] == "flow"
        logged = {key for line in scalars(trained / name) for key in line}
        assert {"loss", "validation_loss", "loss_q1", "loss_q4"} <= logged
    lines = [json.loads(line) for line in (trained / "classes" / "results.jsonl").read_text().splitlines()]
    assert {(line["metric"], line["sampler"], line["guidance_scale"]) for line in lines} == {
        ("class_accuracy", "shifted-dpmsolver++", 1.0)
    }
    card = (trained / "classes" / "README.md").read_text()
    assert "flow matching model" in card
    assert "guidance_scale=1.0, num_inference_steps=5" in card


@pytest.mark.long
def test_killed_and_resumed_ends_with_the_same_weights(tmp_path, tiny):
    flags = [*tiny, "--max_train_steps", "12", "--checkpointing_steps", "4", "--class_conditional"]
    flags += ["--coupling", "optimal", "--time_density", "cosmap"]
    run(SCRIPT, *flags, "--output_dir", str(tmp_path / "uncut"))
    cut = tmp_path / "cut"
    assert start(SCRIPT, *flags, "--output_dir", str(cut), signal_at=(7, 9)).wait() == -9
    run(SCRIPT, *flags, "--output_dir", str(cut))
    assert_same(weights(tmp_path / "uncut"), weights(cut))


@pytest.mark.parametrize(("flags", "message"), [
    (["--time_density", "logitnormal"], "--time_density must be one of uniform, logit_normal, cosmap"),
    (["--time_density", "uniform", "--logit_std", "0.5"], "--logit_std has no effect"),
    (["--time_density", "logit_normal", "--logit_std", "0"], "--logit_std must be greater than 0"),
    (["--coupling", "ot"], "--coupling must be one of independent, optimal; got 'ot'"),
    (["--p_uncond", "0.2"], "--p_uncond has no effect"),
    (["--class_conditional", "--p_uncond", "1.5"], "--p_uncond must be at least 0 and at most 1; got 1.5"),
    (["--sampler", "ddim"], f"--sampler must be one of {', '.join(FLOW_SAMPLERS)}; got 'ddim'"),
    (["--prediction_type", "epsilon"], "--prediction_type"),
])  # fmt: skip
def test_bad_input_is_refused_in_one_line(capsys, flags, message):
    with pytest.raises(SystemExit) as end:
        parse("flow", "", flags)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_starting_from_a_flow_takes_its_weights_and_from_another_model_is_refused(trained, tmp_path, tiny):
    out = ["--output_dir", str(tmp_path / "out"), "--max_train_steps", "1", "--learning_rate", "1e-12"]
    start_from = ["--init_from", str(trained / "plain"), "--no-use_ema"]
    run(SCRIPT, *tiny, *start_from, *out)
    old, new = weights(trained / "plain"), weights(tmp_path / "out")
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in old)
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    DDPMPipeline(small_flow().unet, scheduler).save_pretrained(tmp_path / "ddpm")
    out[1] = str(tmp_path / "other")
    done = run(SCRIPT, *tiny, "--init_from", str(tmp_path / "ddpm"), *out, check=False)
    assert done.wait() == 1
    assert "has a DDPMScheduler and predicts v_prediction; this trains a flow" in done.output
    assert "Traceback" not in done.output
    with pytest.raises(SystemExit):
        parse("unconditional", "", ["--dataset_name", "digits", "--init_from", str(trained / "plain")])


@pytest.mark.long
@pytest.mark.distributed
def test_two_ranks_are_one_flow(tmp_path, tiny):
    flags = [*tiny, "--coupling", "optimal", "--max_train_steps", "6"]
    one, two = two_ranks("two_ranks_flow.py", tmp_path, *flags)
    assert one["weights"] == two["weights"]
    assert not set(one["x_s"]) & set(two["x_s"])
    assert not set(one["times"]) & set(two["times"])
