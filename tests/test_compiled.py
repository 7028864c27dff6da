"""`--compile`: one shape is compiled, and results are those of the network as it is, up to rounding."""

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from safetensors.torch import load_file

from trilemma import train
from trilemma.eval.options import SamplingConfig
from trilemma.eval.scoring.model_images import Drawing
from trilemma.pipelines.networks.vae_model import VAEModel
from trilemma.pipelines.unconditional import UnconditionalPipeline
from trilemma.pipelines.vae import VAEPipeline
from trilemma.training.devices.compiled import compiled_forward


def small() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4,
        layers_per_block=1, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    ).eval()  # fmt: skip


def drawn(pipeline, compiled: bool, batch: int = 2) -> torch.Tensor:
    sampling = SamplingConfig(num_samples=5, num_inference_steps=4, compile=compiled)
    drawing = Drawing(pipeline, "model", sampling, batch, Accelerator(cpu=True))
    return torch.cat([images for _, images, _ in drawing])


def test_a_process_with_nothing_left_to_draw_compiles_nothing(shapes):
    sampling = SamplingConfig(num_samples=2, num_inference_steps=2, compile=True)
    pipeline = UnconditionalPipeline(small(), DDPMScheduler(1000))
    drawing = Drawing(pipeline, "model", sampling, 2, Accelerator(cpu=True), done=frozenset({0, 1}))
    assert list(drawing) == []
    assert not shapes


@pytest.fixture
def shapes(monkeypatch) -> list[tuple[int, ...]]:
    """Shapes of the calls of what was compiled; nothing is."""
    called = []

    def compile_nothing(forward, dynamic, options):
        assert not dynamic
        assert not options["layout_optimization"]

        def call(sample, *arguments, **options):
            called.append(tuple(sample.shape))
            return forward(sample, *arguments, **options)

        return call

    monkeypatch.setattr(torch, "compile", compile_nothing)
    return called


def test_training_and_validation_compile_a_shape_each(shapes):
    net = small()
    forward = compiled_forward(net.forward)
    steps = [(True, 4), (True, 4), (False, 6), (False, 2), (True, 3), (False, 6)]
    for learns, batch in steps:
        x = torch.randn(batch, 1, 8, 8)
        with torch.set_grad_enabled(learns):
            assert torch.equal(forward(x, torch.tensor(5)).sample, net(x, torch.tensor(5)).sample)
    # One call more, to compare gradients before the first step.
    assert [shape[0] for shape in shapes] == [4, 4, 4, 6, 6]


@pytest.mark.parametrize("wrong", [0.3, float("nan")])
def test_wrong_gradients_end_the_run(monkeypatch, wrong):
    """As PyTorch 2.13 had them for networks of 8 or 24 channels; those of a few roundings do not."""

    def wrong_by(share):
        def compile_wrongly(forward, **options):
            def call(*arguments):
                sample = forward(*arguments).sample
                return UNet2DOutput(sample.detach() + (1 + share) * (sample - sample.detach()))

            return call

        return compile_wrongly

    net, x = small(), torch.randn(2, 1, 8, 8)
    monkeypatch.setattr(torch, "compile", wrong_by(1e-5))
    compiled_forward(net.forward)(x, torch.tensor(5))
    monkeypatch.setattr(torch, "compile", wrong_by(wrong))
    with torch.no_grad():
        compiled_forward(net.forward)(x, torch.tensor(5))
    with pytest.raises(ValueError, match=r"--compile: PyTorch .* compiles this network wrongly"):
        compiled_forward(net.forward)(x, torch.tensor(5))


def test_what_was_chosen_by_rule_goes_on_without_compiling(monkeypatch, caplog):
    """Without a compiler, and where gradients are wrong: one warning, and the network as it is."""

    def missing_compiler(forward, **options):
        def call(*arguments):
            raise torch._dynamo.exc.BackendCompilerFailed(call, RuntimeError("no g++"), None)

        return call

    def no_place(forward, **options):
        def call(*arguments):
            raise NotADirectoryError("no cache")

        return call

    def wrong(forward, **options):
        return lambda *arguments: UNet2DOutput(forward(*arguments).sample * 2)

    net, x = small(), torch.randn(2, 1, 8, 8)
    not_here, wrongly = "not possible here", "compiles this network wrongly"
    for fault, said in ((missing_compiler, not_here), (no_place, not_here), (wrong, wrongly)):
        monkeypatch.setattr(torch, "compile", fault)
        caplog.clear()
        forward = compiled_forward(net.forward, required=False)
        for _ in range(2):
            assert torch.equal(forward(x, torch.tensor(5)).sample, net(x, torch.tensor(5)).sample)
        assert len(caplog.records) == 1
        assert said in caplog.text
        assert "--compile" not in caplog.text  # nobody typed it
        with pytest.raises(ValueError, match=f"--compile: .*{said}.*; leave it out"):
            compiled_forward(net.forward)(x, torch.tensor(5))


def test_frozen_networks_have_nothing_to_compare(shapes):
    net = small().requires_grad_(False)
    assert compiled_forward(net.forward)(torch.randn(2, 1, 8, 8), torch.tensor(5)).sample.isfinite().all()


@pytest.mark.parametrize(
    "family", ["unconditional", "class_conditional", "flow", "consistency", "vdm", "vae", "ddgan"]
)
def test_every_family_trains_as_without(shapes, tmp_path, family):
    """Steps with gradients into the arguments of the network, as a learned gamma and a latent vector have."""
    short = dict(preset="digits", max_train_steps=2, train_batch_size=4, max_train_images=64, cpu_threads=1)
    short |= dict(eval_steps=0, validation_size=4, mixed_precision="no")
    if family == "consistency":
        short |= dict(distil=False, dropout=0.0)
    weights = []
    for compile_it in (False, True):
        folder = tmp_path / str(compile_it)
        train(family=family, output_dir=str(folder), compile=compile_it, **short)
        (file,) = folder.glob("*/diffusion_pytorch_model.safetensors")
        weights.append(load_file(file))
    assert shapes
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_the_first_step_draws_no_other_noise(shapes):
    """Comparing gradients takes nothing from the random numbers of a training."""
    net, x = small(), torch.randn(2, 1, 8, 8)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    compiled_forward(net.forward)(x, torch.tensor(5))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_networks_of_several_sizes_learn_compiled_in_one_process(dropout):
    """PyTorch compiles the second for any shape, unless told not to, and failed for this one."""
    for side, channels in ((8, (8, 8)), (28, (8, 8, 8))):
        config = dict(small().config) | {
            "sample_size": side,
            "block_out_channels": channels,
            "dropout": dropout,
        }
        config |= {"down_block_types": ("DownBlock2D",) * len(channels)}
        net = UNet2DModel.from_config(config | {"up_block_types": ("UpBlock2D",) * len(channels)})
        x = torch.randn(4, 1, side, side)
        gradients = []
        for forward in (net.forward, compiled_forward(net.forward)):
            net.zero_grad()
            torch.manual_seed(7)  # which units are dropped
            forward(x, torch.tensor(5)).sample.square().mean().backward()
            gradients.append(torch.cat([each.grad.flatten() for each in net.parameters()]))
        # In float32, after some hundred roundings.
        assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[0].norm()


def test_the_shape_of_the_first_call_is_compiled_and_the_last_batch_is_not(shapes):
    pipeline = UnconditionalPipeline(small(), DDPMScheduler(1000)).with_sampler("dpmsolver++")
    assert torch.equal(drawn(pipeline, True), drawn(pipeline, False))
    assert shapes == [(2, 1, 8, 8)] * 4 * 2
    assert "forward" not in vars(pipeline.network)


@pytest.mark.slow
def test_compiled_images_are_the_same():
    """Compiled code rounds otherwise: an image in 256 levels may differ by one of them."""
    pipeline = UnconditionalPipeline(small(), DDPMScheduler(1000)).with_sampler("dpmsolver++")
    assert (drawn(pipeline, True).int() - drawn(pipeline, False).int()).abs().max() <= 1


def test_what_cannot_be_compiled_says_what_to_leave_out(monkeypatch):
    def no_compiler(forward, **options):
        def call(*arguments, **options):
            raise torch._dynamo.exc.TorchDynamoException("no C++ compiler\nmore")

        return call

    monkeypatch.setattr(torch, "compile", no_compiler)
    pipeline = UnconditionalPipeline(small(), DDPMScheduler(1000)).with_sampler("dpmsolver++")
    said = r"--compile: compiling is not possible here: no C\+\+ compiler; leave it out"
    with pytest.raises(ValueError, match=said):
        drawn(pipeline, True)
    assert "forward" not in vars(pipeline.network)


def test_a_vae_refuses_it():
    pipeline = VAEPipeline(VAEModel(8, 1, 4, (8, 8)))
    drawing = Drawing(pipeline, "m", SamplingConfig(2, compile=True), 2, Accelerator(cpu=True))
    with pytest.raises(ValueError, match="--compile has no effect on this model"):
        list(drawing)
