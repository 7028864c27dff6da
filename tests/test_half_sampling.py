"""Sampling with the network alone in half precision: the sampler stays float32, and results say so."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from test_shared_pipelines import FAMILIES

from trilemma.eval import generate
from trilemma.eval.metrics.sample_metric import Measurement
from trilemma.eval.options import SamplingConfig
from trilemma.eval.scoring.model_images import Drawing
from trilemma.eval.scoring.protocol import ReferenceProtocol
from trilemma.eval.scoring.results import ResultLine, lines
from trilemma.pipelines.unconditional import UnconditionalPipeline
from trilemma.pipelines.vae import VAEPipeline
from trilemma.training.devices.precision import check_half, network_in
from trilemma.training.options.command_line import parse

CPU = torch.device("cpu")
BF16_ROUNDING = 2.0**-8
"""The largest relative error of rounding to bf16, which keeps 8 binary digits of a number."""


class Mixer(ModelMixin, ConfigMixin):
    """One convolution of one pixel: each output value is a sum of C products."""

    @register_to_config
    def __init__(self, sample_size: int = 8, in_channels: int = 3, out_channels: int = 3):
        super().__init__()
        self.conv = torch.nn.Conv2d(in_channels, out_channels, 1)
        self.seen, self.inside = [], []

    def forward(self, x, timestep):
        self.seen.append(x.dtype)
        out = self.conv(x)
        self.inside.append(out.dtype)
        return UNet2DOutput(sample=out)


def mixer() -> UnconditionalPipeline:
    torch.manual_seed(0)
    net = Mixer().requires_grad_(False)
    net.conv.weight.mul_(0.5)
    scheduler = DDIMScheduler(1000, prediction_type="sample", clip_sample=False, timestep_spacing="trailing")
    pipeline = UnconditionalPipeline(net, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_one_step_differs_by_the_rounding_of_one_layer():
    """With one step of DDIM and a network that predicts x_0, the image is the network's output."""
    pipeline, options = mixer(), dict(seeds=range(16), num_inference_steps=1, output_type="pt")
    exact = pipeline(**options).images
    with network_in("bf16", pipeline.network, CPU):
        half = pipeline(**options).images
    assert pipeline.network.inside == [torch.float32, torch.bfloat16]
    # Inputs, weights and the sum are rounded: three relative errors, of the sum of sizes. [0, 1] halves it.
    noise = torch.stack([torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(s)) for s in range(16)])
    conv = pipeline.network.conv
    sizes = torch.nn.functional.conv2d(noise.abs(), conv.weight.abs(), conv.bias.abs())
    bound = 0.5 * 3.02 * BF16_ROUNDING * sizes + 1e-6
    assert ((half - exact).abs() <= bound).all()
    assert (half != exact).any()


def test_the_state_of_the_sampler_is_float32():
    pipeline = mixer()
    with network_in("bf16", pipeline.network, CPU):
        output = pipeline(seeds=range(2), num_inference_steps=10, trajectory=4, output_type="pt")
    assert set(pipeline.network.seen) == {torch.float32}  # what the network is given: the state
    assert set(pipeline.network.inside) == {torch.bfloat16}
    assert output.trajectory.dtype == torch.float32
    assert not torch.equal(output.trajectory, output.trajectory.bfloat16().float())


@pytest.mark.parametrize("compiled", [False, True])
def test_the_network_is_as_before_afterwards_also_after_an_error(compiled):
    net = Mixer()
    if compiled:
        net.forward = own = lambda x, t: UNet2DOutput(sample=net.conv(x))

    def fail() -> None:
        with network_in("bf16", net, CPU):
            assert net(torch.zeros(1, 3, 8, 8), 0).sample.dtype == torch.float32
            raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        fail()
    assert vars(net).get("forward") is (own if compiled else None)
    with network_in(None, net, CPU), network_in("no", net, CPU):
        assert vars(net).get("forward") is (own if compiled else None)


def test_a_real_network_draws_the_same_pictures():
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(32, 32), norm_num_groups=8,
        layers_per_block=1, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=32,
    ).eval()  # fmt: skip
    pipeline = UnconditionalPipeline(net, DDPMScheduler(1000)).with_sampler("dpmsolver++")
    accelerator, drawn = Accelerator(cpu=True), {}
    for precision in (None, "bf16"):
        sampling = SamplingConfig(num_samples=4, num_inference_steps=10, mixed_precision=precision)
        drawing = Drawing(pipeline, "model", sampling, 2, accelerator)
        drawn[precision] = torch.cat([images for _, images, _ in drawing]).float()
        assert drawing.origin(None, None).mixed_precision == precision
    # Each layer rounds at random by at most 2^-8 of its values; some 30 of them follow each other.
    error = (drawn["bf16"] - drawn[None]).square().mean().sqrt()
    assert 0 < error <= 30**0.5 * BF16_ROUNDING * drawn[None].std()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "vae"])
def test_every_family_draws_with_its_network_in_half_precision(family):
    """The network of a VAE is not called as a whole; see below."""
    torch.manual_seed(0)
    pipeline = FAMILIES[family]()
    pipeline.network.eval()
    pipeline.set_progress_bar_config(disable=True)
    seen = []
    pipeline.network.register_forward_hook(lambda *call: seen.append(call[2]))
    steps = pipeline.steps(4 if family == "ddgan" else 5)
    options = dict(seeds=[0, 1], num_inference_steps=steps, output_type="pt")
    exact = pipeline(**options).images
    with network_in("bf16", pipeline.network, CPU):
        half = pipeline(**options).images
    outputs = [out if isinstance(out, torch.Tensor) else out.sample for out in seen]
    assert {out.dtype for out in outputs} == {torch.float32}  # what the sampler is given
    error, apart = (half - exact).abs().mean(), (exact[0] - exact[1]).abs().mean()
    assert 0 < error < apart / 2, "nearer to the exact image of its seed than to that of another"


def test_what_has_no_half_precision_is_refused():
    with pytest.raises(ValueError, match="--mixed_precision fp16 needs a GPU; on a CPU take bf16 or no"):
        check_half("fp16", CPU)
    for precision in (None, "no", "bf16"):
        check_half(precision, CPU)


def test_a_vae_refuses_it(capsys):
    from trilemma.pipelines.networks.vae_model import VAEModel

    pipeline = VAEPipeline(VAEModel(8, 1, 4, (8, 8)))
    drawing = Drawing(pipeline, "m", SamplingConfig(2, mixed_precision="bf16"), 2, Accelerator(cpu=True))
    with pytest.raises(ValueError, match="no effect on this model"):
        list(drawing)
    with pytest.raises(SystemExit):
        parse("vae", "", ["--eval_steps", "5", "--eval_mixed_precision", "bf16"])
    assert "--eval_mixed_precision is not offered" in capsys.readouterr().err


def test_lines_record_it_and_older_lines_are_read():
    protocol = ReferenceProtocol("pixels", "none", "none", "uint8", "digits", "train", "abc", True, 50)
    origin = Drawing(mixer(), "m", SamplingConfig(2, mixed_precision="bf16", num_inference_steps=5), 2,
                     Accelerator(cpu=True)).origin(None, None)  # fmt: skip
    (line,) = lines({"fd": Measurement(1.0, 2)}, origin, protocol, commit=None)
    assert line.mixed_precision == "bf16"
    assert ResultLine.from_json(json.loads(json.dumps(line.to_json()))) == line
    older = {key: value for key, value in line.to_json().items() if key != "mixed_precision"}
    assert ResultLine.from_json(older).mixed_precision is None


def test_generate_draws_in_it_and_keeps_the_two_apart(tmp_path):
    """Folders of float32, which older versions began, go on; those of another precision are refused."""
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4,
        layers_per_block=1, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    UnconditionalPipeline(net, DDPMScheduler(1000)).save_pretrained(tmp_path / "model")
    flags = ["--model", str(tmp_path / "model"), "--num_samples", "2", "--sampler", "ddim"]
    flags += ["--num_inference_steps", "2", "--cpu_threads", "1", "--output"]
    generate.main([*flags, str(tmp_path / "x.npy")])
    generate.main([*flags, str(tmp_path / "y.npy"), "--mixed_precision", "bf16"])
    x, y = (np.load(tmp_path / name).astype(int) for name in ("x.npy", "y.npy"))
    assert 0 < abs(x - y).max() <= 32
    generate.main([*flags, str(tmp_path / "z")])
    assert "mixed_precision" not in json.loads((tmp_path / "z" / "drawing.json").read_text())
    with pytest.raises(SystemExit, match="drawn with other settings"):
        generate.main([*flags, str(tmp_path / "z"), "--mixed_precision", "bf16"])
    with pytest.raises(SystemExit, match="fp16 needs a GPU"):
        generate.main([*flags, str(tmp_path / "w"), "--mixed_precision", "fp16"])
