"""The unconditional pipeline: against stock diffusers, against a law that is known, and on disk."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    ConfigMixin,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    ModelMixin,
    PNDMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from diffusers.configuration_utils import register_to_config
from torch import nn

from trilemma.pipelines.unconditional import UnconditionalPipeline

BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SCHEDULERS = {
    "ddpm": DDPMScheduler(**BETAS, timestep_spacing="trailing"),
    "ddim": DDIMScheduler(**BETAS, timestep_spacing="trailing"),
    "dpmsolver++": DPMSolverMultistepScheduler(**BETAS, timestep_spacing="trailing"),
    "sde-dpmsolver++": DPMSolverMultistepScheduler(
        **BETAS, timestep_spacing="trailing", algorithm_type="sde-dpmsolver++"
    ),
    "heun": HeunDiscreteScheduler(**BETAS, timestep_spacing="trailing"),
    "euler": EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing"),
    "euler_ancestral": EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing"),
    "unipc": UniPCMultistepScheduler(**BETAS, timestep_spacing="trailing"),
    "pndm": PNDMScheduler(**BETAS, timestep_spacing="trailing"),
}


def tiny_unet(channels=1, out_channels=None):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=out_channels or channels,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        attention_head_dim=8,
    ).eval()


def pipeline_of(unet, scheduler):
    pipeline = UnconditionalPipeline(unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class GaussianNetwork(ModelMixin, ConfigMixin):
    """The best prediction of the noise for independent pixels N(mean, std^2), and a half of `variance`."""

    @register_to_config
    def __init__(self, mean=0.3, std=0.2, sample_size=32, in_channels=1, out_channels=1, variance=0.0):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
        self.log_sigma = 0.5 * torch.log((1 - abar) / abar).numpy()

    def forward(self, x, t):
        log_sigma = np.interp(float(t), np.arange(1000), self.log_sigma)
        ratio = float(
            np.exp(log_sigma)
        )  # of noise to signal; between two timesteps as the schedulers have it
        alpha = (1 + ratio**2) ** -0.5
        sigma, mean, std = ratio * alpha, self.config.mean, self.config.std
        epsilon = sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        if self.config.out_channels == 2 * self.config.in_channels:
            epsilon = torch.cat([epsilon, torch.full_like(x, self.config.variance)], dim=1)
        return SimpleNamespace(sample=epsilon)


@pytest.mark.parametrize(
    ("name", "steps"), [(name, 250) for name in SCHEDULERS if name != "ddpm"] + [("ddpm", None)]
)
def test_samples_follow_the_law_of_the_data(name, steps):
    pipeline = pipeline_of(GaussianNetwork(), SCHEDULERS[name])
    images = pipeline(seeds=range(8), num_inference_steps=steps, output_type="pt").images * 2 - 1
    # Over 8192 pixels the mean has a standard error of 0.0022 and the deviation one of 0.0016; 250 steps of
    # first order leave the deviation too small by 0.01.
    assert abs(images.mean() - 0.3) < 0.007
    assert abs(images.std() - 0.2) < 0.015


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_depends_on_its_seed_alone(name, channels):
    pipeline = pipeline_of(tiny_unet(channels), SCHEDULERS[name])
    options = {"num_inference_steps": 5, "output_type": "pt"}
    together = pipeline(seeds=[3, 4, 5, 6], **options).images
    assert together.shape == (4, channels, 8, 8)
    for i, seed in enumerate((3, 4, 5, 6)):
        alone = pipeline(seeds=[seed], **options).images[0]
        # Rounding in the network depends on the batch, and the first step divides it by sqrt(abar_T) = 0.006.
        torch.testing.assert_close(alone, together[i], atol=1e-4, rtol=0)
    pair = pipeline(seeds=np.array([6, 3]), **options).images
    torch.testing.assert_close(pair, together[[3, 0]], atol=1e-4, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_call_leaves_the_scheduler_and_the_next_call_alone(name):
    pipeline = pipeline_of(tiny_unet(), SCHEDULERS[name])
    before = str(vars(pipeline.scheduler))
    first = pipeline(seeds=[1], num_inference_steps=4, output_type="pt").images
    pipeline(seeds=[1, 2], num_inference_steps=10, output_type="pt")
    again = pipeline(seeds=[1], num_inference_steps=4, output_type="pt").images
    assert torch.equal(first, again)
    assert str(vars(pipeline.scheduler)) == before


@pytest.mark.parametrize("each", [False, True])
def test_ddpm_is_that_of_diffusers(each):
    def generator():
        return (
            [torch.Generator().manual_seed(i) for i in range(2)] if each else torch.Generator().manual_seed(0)
        )

    scheduler = DDPMScheduler(
        num_train_timesteps=20, timestep_spacing="trailing", variance_type="fixed_large"
    )
    stock = DDPMPipeline(tiny_unet(3), scheduler)
    stock.set_progress_bar_config(disable=True)
    ours = pipeline_of(tiny_unet(3), scheduler)
    theirs = stock(2, generator=generator(), num_inference_steps=20, output_type="np").images
    np.testing.assert_allclose(ours(2, generator=generator(), output_type="np").images, theirs, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_is_that_of_diffusers(eta):
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    stock = DDIMPipeline(tiny_unet(3), scheduler)
    stock.set_progress_bar_config(disable=True)
    options = {"eta": eta, "num_inference_steps": 10, "output_type": "np"}
    # Stock diffusers keeps the noise of the x_0 before it was clipped, unless asked.
    clipped = {"use_clipped_model_output": True}
    theirs = stock(2, generator=torch.Generator().manual_seed(0), **clipped, **options).images
    ours = pipeline_of(tiny_unet(3), scheduler)(
        2, generator=torch.Generator().manual_seed(0), **options
    ).images
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_shortened_ddpm_chain_ends_without_noise():
    def last_noise(steps):
        scheduler = DDPMScheduler(variance_type="fixed_large", timestep_spacing="trailing", clip_sample=False)
        pipeline = pipeline_of(GaussianNetwork(std=1e-4), scheduler)
        return (pipeline(seeds=[0], num_inference_steps=steps, output_type="pt").images * 2 - 1 - 0.3).std()

    assert last_noise(50) < 0.001
    assert last_noise(1000) < 0.001


def test_default_number_of_steps():
    def evaluations(scheduler):
        seen = []
        unet = tiny_unet()
        unet.register_forward_pre_hook(lambda module, inputs: seen.append(int(inputs[1])))
        pipeline_of(unet, scheduler)(seeds=[0])
        return seen

    assert evaluations(DDPMScheduler(num_train_timesteps=70, timestep_spacing="trailing")) == list(
        range(69, -1, -1)
    )
    ddim = evaluations(DDIMScheduler(timestep_spacing="trailing"))
    assert (len(ddim), ddim[0]) == (50, 999)
    assert evaluations(DDIMScheduler(num_train_timesteps=10, timestep_spacing="trailing")) == list(
        range(9, -1, -1)
    )


def test_heun_visits_its_timesteps_twice():
    seen = []
    unet = tiny_unet()
    unet.register_forward_pre_hook(lambda module, inputs: seen.append(float(inputs[1])))
    pipeline_of(unet, SCHEDULERS["heun"])(seeds=[0], num_inference_steps=5)
    assert seen == [999, 799, 799, 599, 599, 399, 399, 199, 199]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_only_ddpm_takes_a_learned_variance(name):
    pipeline = pipeline_of(GaussianNetwork(out_channels=2, variance=1.0), SCHEDULERS[name])
    mean_only = pipeline_of(GaussianNetwork(), SCHEDULERS[name])
    options = {"seeds": [0], "num_inference_steps": 5, "output_type": "pt"}
    torch.testing.assert_close(pipeline(**options).images, mean_only(**options).images)


@pytest.mark.parametrize(("variance", "fixed"), [(1.0, "fixed_large"), (-1.0, "fixed_small")])
def test_a_learned_variance_at_its_ends_is_a_fixed_one(variance, fixed):
    learned = DDPMScheduler(100, **BETAS, variance_type="learned_range", clip_sample=False)
    known = DDPMScheduler(100, **BETAS, variance_type=fixed, clip_sample=False)
    ours = pipeline_of(GaussianNetwork(out_channels=2, variance=variance), learned)
    same = pipeline_of(GaussianNetwork(), known)
    torch.testing.assert_close(
        ours(seeds=[0, 1], output_type="pt").images,
        same(seeds=[0, 1], output_type="pt").images,
        atol=1e-4,
        rtol=0,
    )


def test_half_precision_is_the_networks_own_affair():
    seen = []
    unet = tiny_unet().to(torch.bfloat16)
    unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    scheduler = DDIMScheduler(prediction_type="sample", clip_sample=False)
    images = pipeline_of(unet, scheduler)(seeds=[0], num_inference_steps=4, output_type="pt").images
    exact = pipeline_of(tiny_unet(), scheduler)(seeds=[0], num_inference_steps=4, output_type="pt").images
    assert set(seen) == {torch.bfloat16}
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, exact, atol=0.02, rtol=0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_trajectory_goes_from_the_noise_to_the_image(name):
    pipeline = pipeline_of(tiny_unet(), SCHEDULERS[name])
    output = pipeline(seeds=[7, 8], num_inference_steps=10, trajectory=4, output_type="pt")
    assert output.trajectory.shape == (4, 2, 1, 8, 8)
    noise = torch.cat(
        [torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (7, 8)]
    )
    torch.testing.assert_close(output.trajectory[0], (noise / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(output.trajectory[-1], output.images)
    every = pipeline(seeds=[7, 8], num_inference_steps=10, trajectory=2, output_type="pt").trajectory
    torch.testing.assert_close(every, output.trajectory[[0, -1]])


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_output_types_agree(channels, mode):
    pipeline = pipeline_of(tiny_unet(channels), SCHEDULERS["ddim"])
    options = {"seeds": [0, 1], "num_inference_steps": 5, "trajectory": 3}
    pt, array, pil = (pipeline(**options, output_type=kind) for kind in ("pt", "np", "pil"))
    assert 0 <= pt.images.min() < pt.images.max() <= 1
    np.testing.assert_array_equal(array.images, pt.images.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(array.trajectory, pt.trajectory.permute(0, 1, 3, 4, 2).numpy())
    assert [image.mode for image in pil.images] == [mode] * 2
    assert [[image.size for image in state] for state in pil.trajectory] == [[(8, 8)] * 2] * 3
    pixels = np.stack([np.asarray(image).reshape(8, 8, channels) for image in pil.images]).astype(float)
    assert np.abs(pixels - array.images * 255).max() <= 0.5001  # nearest, not cut off
    images, trajectory = pipeline(**options, output_type="pt", return_dict=False)
    assert torch.equal(images, pt.images)
    assert torch.equal(trajectory, pt.trajectory)
    assert len(pipeline(seeds=[0], num_inference_steps=2, return_dict=False)) == 1


def test_errors_name_the_remedy():
    pipeline = pipeline_of(tiny_unet(), SCHEDULERS["heun"])
    generator = torch.Generator()
    for message, options in {
        "must be one of pil, np, pt; got 'png'": {"output_type": "png"},
        "seeds or generator, not both": {"seeds": [1], "generator": generator},
        "seeds must be 3 ints, one per image; got 2": {"batch_size": 3, "seeds": [1, 2]},
        "or a list of 3, one per image; got a list of 1": {"batch_size": 3, "generator": [generator]},
        "one per image; got 5": {"seeds": 5},
        r"one per image; got \[\]": {"seeds": []},
        "eta must be 0 for HeunDiscreteScheduler": {"eta": 0.5},
        "from 2 to 10 ": {"num_inference_steps": 5, "trajectory": 11},
        "from 2 to 10  ": {"num_inference_steps": 5, "trajectory": 1},
        "must be 1 to 1000": {"num_inference_steps": 0},
        "an integer; got 5.0": {"num_inference_steps": 5.0},
        "or a list of 2, one per image; got a list of 1": {"batch_size": 2, "generator": (generator,)},
    }.items():
        with pytest.raises(ValueError, match=message.strip()):
            pipeline(**options)
    with pytest.raises(ValueError, match="must have 3 output channels, or 6"):
        pipeline_of(tiny_unet(3, 4), SCHEDULERS["ddim"])()


@pytest.mark.parametrize(("name", "steps"), [("ddim", 30), ("pndm", 501), ("ddpm", 61), ("heun", 201)])
def test_numbers_of_steps_that_make_a_wrong_chain_are_refused(name, steps):
    with pytest.raises(ValueError, match=r"must divide 1000 for a .*; got"):
        pipeline_of(tiny_unet(), SCHEDULERS[name])(seeds=[0], num_inference_steps=steps)


STRANGER = """
import sys
sys.modules["trilemma"] = None
from diffusers import DDIMPipeline, DDPMPipeline, DiffusionPipeline
import torch
for cls in (DDPMPipeline, DDIMPipeline, DiffusionPipeline):
    pipeline = cls.from_pretrained(sys.argv[1])
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(generator=torch.manual_seed(0), num_inference_steps=50, output_type="np").images
    print(type(pipeline).__name__, image.shape, int(pipeline.scheduler.timesteps[0]), sep="|")
"""


def test_on_disk_it_is_a_stock_pipeline(tmp_path):
    scheduler = DDPMScheduler(variance_type="fixed_large", timestep_spacing="trailing")
    ours = pipeline_of(tiny_unet(), scheduler)
    ours.save_pretrained(tmp_path, variant="ema")
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "DDPMPipeline"
    assert (tmp_path / "unet" / "diffusion_pytorch_model.ema.safetensors").is_file()

    ours.save_pretrained(tmp_path)
    command = [sys.executable, "-I", "-c", STRANGER, str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    names = ("DDPMPipeline", "DDIMPipeline", "DDPMPipeline")
    assert result.stdout.split("\n")[:3] == [f"{name}|(1, 8, 8, 1)|999" for name in names]

    again = UnconditionalPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    again.set_progress_bar_config(disable=True)
    options = {"seeds": [0], "num_inference_steps": 20, "output_type": "pt"}
    torch.testing.assert_close(again(**options).images, ours(**options).images)
