"""Samplers by name, shares of the seeds, and their reunion."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import nn

from trilemma.pipelines.samplers import SAMPLERS
from trilemma.pipelines.unconditional import UnconditionalPipeline
from trilemma.training.sampling import Share, gather_in_order, sample, shard


class GaussianNetwork(ModelMixin, ConfigMixin):
    """What `target` asks for when the pixels are independent N(0.3, 0.2^2); 1000 steps of a schedule."""

    @register_to_config
    def __init__(self, target="epsilon", schedule="linear", sample_size=32, in_channels=1, out_channels=1):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        abar = DDPMScheduler(beta_schedule=schedule).alphas_cumprod.double()
        self.register_buffer("log_ratio", 0.5 * torch.log((1 - abar) / abar), persistent=False)

    def forward(self, x, t):
        below = int(t)
        above = min(below + 1, 999)
        log_ratio = torch.lerp(self.log_ratio[below], self.log_ratio[above], float(t) - below)
        alpha = (1 + (2 * log_ratio).exp()) ** -0.5
        sigma = log_ratio.exp() * alpha
        epsilon = sigma * (x.double() - alpha * 0.3) / (alpha**2 * 0.04 + sigma**2)
        x0 = (x - sigma * epsilon) / alpha
        targets = {"epsilon": epsilon, "sample": x0, "v_prediction": alpha * epsilon - sigma * x0}
        return SimpleNamespace(sample=targets[self.config.target].float())


def pipeline_of(target="epsilon", schedule="linear", sample_size=8):
    scheduler = DDPMScheduler(
        beta_schedule=schedule, prediction_type=target, timestep_spacing="trailing", clip_sample=False
    )
    pipeline = UnconditionalPipeline(GaussianNetwork(target, schedule, sample_size), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize(
    ("name", "target"), [(n, target) for n, row in SAMPLERS.items() for target in row.targets]
)
def test_every_sampler_finds_the_law_of_the_data(name, target, schedule):
    pipeline = pipeline_of(target, schedule, sample_size=32).with_sampler(name)
    images = pipeline(seeds=range(8), num_inference_steps=250, output_type="pt").images * 2 - 1
    # 8192 pixels: standard errors 0.0022 and 0.0016; 250 steps of first order narrow the law by up to 0.015.
    assert abs(images.mean() - 0.3) < 0.01
    assert abs(images.std() - 0.2) < 0.02


@pytest.mark.parametrize("name", SAMPLERS)
def test_another_sampler_keeps_the_schedule_and_changes_nothing_else(name):
    pipeline = pipeline_of()
    before = str(vars(pipeline.scheduler))
    other = pipeline.with_sampler(name)
    assert other.unet is pipeline.unet
    assert type(other.scheduler).__name__ == SAMPLERS[name].scheduler
    assert other.sampler == name
    assert other.scheduler.config.timestep_spacing == "trailing"
    torch.testing.assert_close(other.scheduler.betas, pipeline.scheduler.betas)
    assert isinstance(pipeline.scheduler, DDPMScheduler)
    assert pipeline.components["scheduler"] is pipeline.scheduler
    assert str(vars(pipeline.scheduler)) == before
    back = other.with_sampler("ddpm")
    assert {k: v for k, v in back.scheduler.config.items() if k[0] != "_"}.items() >= {
        (k, v) for k, v in pipeline.scheduler.config.items() if k[0] != "_" and k != "trained_betas"
    }


def test_a_sampler_that_is_not_there_or_cannot_do_it():
    with pytest.raises(ValueError, match=r"--sampler must be one of ddpm, ddim, .*; got 'ddmp'"):
        pipeline_of().with_sampler("ddmp")
    with pytest.raises(ValueError, match=r"with --prediction_type sample; these can: ddpm, ddim"):
        pipeline_of("sample").with_sampler("euler_ancestral")


@pytest.mark.parametrize("name", SAMPLERS)
def test_evaluations_are_the_calls_of_the_network(name):
    pipeline = pipeline_of().with_sampler(name)
    calls = []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: calls.append(1))
    pipeline(seeds=[0, 1], num_inference_steps=10)
    expected = 19 if name == "heun" else 10
    assert pipeline.calls(10, False) == len(calls) == expected


@pytest.mark.parametrize(("count", "world"), [(10, 1), (10, 3), (2, 4), (0, 2)])
def test_shares_make_up_the_whole(count, world):
    shares = [shard(range(count), rank, world) for rank in range(world)]
    assert sorted(seed for share in shares for seed in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("world", [1, 3, 7])
def test_batches_and_ranks_do_not_change_an_image(world):
    pipeline, seeds = pipeline_of().with_sampler("sde-dpmsolver++"), range(20, 25)
    whole = sample(pipeline, seeds, batch_size=5, num_inference_steps=8)
    assert (whole.dtype, whole.shape) == (torch.uint8, (5, 1, 8, 8))
    for rank in range(world):
        share = sample(pipeline, seeds, batch_size=2, num_inference_steps=8, share=Share(rank, world))
        assert share.shape[1:] == whole.shape[1:]
        # Other batches round otherwise, which may turn a pixel by a grey level.
        torch.testing.assert_close(share.int(), whole[rank::world].int(), atol=1, rtol=0)


def test_labels_and_options_reach_the_pipeline_of_their_image():
    def pipeline(seeds, class_labels, guidance_scale, num_inference_steps, output_type):
        calls.append((seeds, class_labels, guidance_scale, num_inference_steps, output_type))
        return SimpleNamespace(images=torch.zeros(len(seeds), 1, 2, 2))

    calls = []
    sample(
        pipeline,
        [5, 6, 7, 8, 9],
        batch_size=2,
        num_inference_steps=3,
        class_labels=[0, 1, 2, 3, 4],
        options={"guidance_scale": 2.0},
        share=Share(0, 2),
    )
    assert calls == [([5, 7], [0, 2], 2.0, 3, "pt"), ([9], [4], 2.0, 3, "pt")]


def test_gathering_in_one_process():
    images = torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2)
    assert torch.equal(gather_in_order(images), images)


SCRIPT = """
import torch
from accelerate import Accelerator
from trilemma.training.loop.machine import closing_groups
from trilemma.training.sampling import Share, gather_in_order, sample
from types import SimpleNamespace

def pipeline(seeds, num_inference_steps, output_type):
    return SimpleNamespace(images=torch.tensor(seeds).view(-1, 1, 1, 1).expand(-1, 3, 2, 2) / 255)

def main():
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    for count in (1, 2, 5, 8):
        images = gather_in_order(sample(pipeline, range(count), batch_size=2, share=Share.of(accelerator)))
        assert images.shape == (count, 3, 2, 2), images.shape
        assert images[:, 0, 0, 0].tolist() == list(range(count))

with closing_groups():
    main()
print("done")
"""


@pytest.mark.distributed
def test_gathering_uneven_shares_in_two_processes(tmp_path):
    script = tmp_path / "gather.py"
    script.write_text(SCRIPT)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
    ]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(launch, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("done") == 2
