"""The class-conditional pipeline against diffusers' own loop, its definition, and itself in other batches."""

import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from torch.testing import assert_close

from trilemma.pipelines import class_conditional, shared
from trilemma.pipelines.class_conditional import ClassConditionalPipeline

NAMES = ["airplane", "cat", "dog"]
SCHEDULERS = [
    DDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
]


def make_unet(out_channels=1, **config):
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=out_channels,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        add_attention=False,
        **({"num_class_embeds": 4} | config),
    )
    torch.nn.init.normal_(net.class_embedding.weight, std=3.0)  # labels that make a visible difference
    return net.eval()


@pytest.fixture(scope="module")
def unet():
    return make_unet()


@pytest.fixture
def pipe(unet):
    pipeline = ClassConditionalPipeline(unet, DDIMScheduler(num_train_timesteps=50), class_names=NAMES)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def calls(unet, monkeypatch):
    """The labels of every call of the network."""
    calls, forward = [], UNet2DModel.forward

    def spy(self, sample, timestep, class_labels=None):
        calls.append(class_labels.tolist())
        return forward(self, sample, timestep, class_labels)

    monkeypatch.setattr(UNet2DModel, "forward", spy)
    return calls


def sample(pipe, labels, seeds=None, steps=5, **options):
    seeds = range(len(labels)) if seeds is None else seeds
    return pipe(labels, seeds=seeds, num_inference_steps=steps, output_type="pt", **options).images


def test_names_ids_and_null_reach_the_network(pipe, calls):
    sample(pipe, ["cat", 2, None, np.int64(0)], steps=1)
    assert calls == [[1, 2, 3, 0]]
    calls.clear()
    sample(pipe, torch.tensor([2, 0]), steps=1)
    pipe("dog", seeds=[0, 1], num_inference_steps=1)
    assert calls == [[2, 0], [2, 2]]
    assert pipe.class_names == tuple(NAMES)


def test_equals_diffusers_ddpm_pipeline(unet):
    """Differential: the same network with its label frozen in, sampled by diffusers' own loop."""

    class Frozen(UNet2DModel):
        def forward(self, sample, timestep):
            return super().forward(sample, timestep, torch.full((len(sample),), 1))

    frozen = Frozen.from_config(unet.config)
    frozen.load_state_dict(unet.state_dict())
    scheduler = DDPMScheduler(num_train_timesteps=20)
    theirs = DDPMPipeline(frozen.eval(), scheduler)
    ours = ClassConditionalPipeline(unet, scheduler)
    options = {"num_inference_steps": 20, "output_type": "np"}
    generators = [[torch.Generator().manual_seed(seed) for seed in (5, 6)] for _ in range(2)]
    expected = theirs(batch_size=2, generator=generators[0], **options).images
    by_generator = ours([1, 1], generator=generators[1], **options).images
    by_seed = ours([1, 1], seeds=[5, 6], **options).images
    np.testing.assert_allclose(by_generator, expected, atol=1e-5)
    np.testing.assert_array_equal(by_seed, by_generator)


def test_scale_one_is_the_conditional_model_bit_for_bit(pipe, calls):
    plain = sample(pipe, ["cat", "dog"])
    conditional_calls = list(calls)
    calls.clear()
    assert torch.equal(sample(pipe, ["cat", "dog"], guidance_scale=[1.0, 1]), plain)
    assert calls == conditional_calls == [[1, 2]] * 5
    assert not torch.equal(sample(pipe, ["cat", "dog"], guidance_scale=1.01), plain)


def test_scale_zero_is_the_unconditional_model(pipe):
    unconditional = sample(pipe, [None, None])
    assert_close(sample(pipe, ["cat", "dog"], guidance_scale=0), unconditional, atol=1e-5, rtol=0)


def test_only_guided_rows_are_doubled(pipe, calls):
    """Null labels and images at scale 1 need no second branch, whatever the others need."""
    mixed = sample(pipe, ["cat", "dog", None], guidance_scale=[1, 3, 3], steps=1)
    assert calls == [[1, 2, 3, 3]]
    assert_close(mixed[[0]], sample(pipe, ["cat"], seeds=[0], steps=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_guidance_is_affine_in_the_scale(unet, monkeypatch, prediction_type):
    """One unclipped DDIM step is affine in the output: x(s) = x(0) + s (x(1) - x(0)), for any target."""
    scheduler = DDIMScheduler(num_train_timesteps=50, clip_sample=False, prediction_type=prediction_type)
    pipe = ClassConditionalPipeline(unet, scheduler)
    pipe.set_progress_bar_config(disable=True)

    def step(scale):  # from pure noise, as the network sees it, to the state before the second of two steps
        options = {"guidance_scale": scale, "num_inference_steps": 2, "trajectory": 3, "output_type": "pt"}
        return pipe([1], seeds=[0], **options).trajectory[1]

    monkeypatch.setattr(shared, "convert", lambda images, _: images)  # unclipped
    null, conditional = step(0.0), step(1.0)
    assert (conditional - null).abs().max() > 0.1
    assert_close(step(2.5), null + 2.5 * (conditional - null), atol=1e-4, rtol=1e-4)


def test_doubled_batch_equals_two_forwards(pipe, calls):
    options = {"guidance_scale": [3.0, 1.0, 0.5]}
    doubled = sample(pipe, ["cat", "dog", 0], **options)
    assert {len(call) for call in calls} == {5}
    calls.clear()
    two = sample(pipe, ["cat", "dog", 0], batched_guidance=False, **options)
    assert {len(call) for call in calls} == {3, 2}
    assert_close(two, doubled, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_batch_equals_one_by_one_with_any_scheduler(unet, scheduler):
    pipe = ClassConditionalPipeline(unet, scheduler(num_train_timesteps=50), NAMES)
    pipe.set_progress_bar_config(disable=True)
    labels, seeds, scales = ["cat", None, 2, 0], [7, 11, 7, 0], [2.0, 1.5, 1.0, 0.0]
    batch = sample(pipe, labels, seeds, steps=5, guidance_scale=scales)
    assert torch.isfinite(batch).all()
    for i in range(4):
        one = sample(pipe, labels[i : i + 1], seeds[i : i + 1], steps=5, guidance_scale=scales[i])
        assert_close(one, batch[i : i + 1], atol=2e-5, rtol=0)


def test_the_interval_is_in_noise_levels(pipe, calls):
    abar = pipe.scheduler.alphas_cumprod.double()
    pipe.scheduler.set_timesteps(10)
    sigma = ((1 - abar) / abar).sqrt()[pipe.scheduler.timesteps]
    low, high = sigma[6].item(), sigma[3].item()
    sample(pipe, ["cat"], steps=10, guidance_scale=2.0, guidance_interval=(low * 1.001, high * 1.001))
    assert [len(call) for call in calls] == [1] * 3 + [2] * 3 + [1] * 4
    calls.clear()
    sample(pipe, ["cat"], steps=10, guidance_scale=2.0, guidance_interval=(0, math.inf))
    assert [len(call) for call in calls] == [2] * 10


def test_the_interval_means_the_same_to_schedulers_that_step_between_timesteps():
    euler = EulerDiscreteScheduler(num_train_timesteps=50, use_karras_sigmas=True)
    euler.set_timesteps(10)
    expected = [0.05 < sigma <= 0.5 for sigma in euler.sigmas[:-1].tolist()]
    assert class_conditional._guided_steps(euler, (0.05, 0.5)) == expected
    assert 0 < sum(expected) < 10


def test_learned_variance_comes_from_the_conditional_branch(monkeypatch):
    unet, seen = make_unet(out_channels=2), []
    scheduler = DDPMScheduler(num_train_timesteps=50, variance_type="learned_range")
    pipe = ClassConditionalPipeline(unet, scheduler)
    step = DDPMScheduler.step

    def spy(self, output, timestep, image, **options):
        seen.append((output, timestep, image))
        return step(self, output, timestep, image, **options)

    monkeypatch.setattr(DDPMScheduler, "step", spy)
    sample(pipe, [1, 2], guidance_scale=3.0)
    for output, timestep, image in seen:
        with torch.no_grad():
            conditional = unet(image, timestep, torch.tensor([1, 2])).sample
            null = unet(image, timestep, torch.tensor([3, 3])).sample
        assert_close(output[:, 1:], conditional[:, 1:], atol=1e-5, rtol=1e-4)
        assert_close(output[:, :1], (null + 3 * (conditional - null))[:, :1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scheduler", [s for s in SCHEDULERS if s is not DDPMScheduler])
def test_schedulers_without_learned_variance_get_the_mean_half(scheduler):
    """`from_config` carries "learned_range" into schedulers that cannot use it."""
    ddpm = DDPMScheduler(num_train_timesteps=50, variance_type="learned_range")
    pipe = ClassConditionalPipeline(make_unet(out_channels=2), scheduler.from_config(ddpm.config))
    pipe.set_progress_bar_config(disable=True)
    assert sample(pipe, [0, 1], guidance_scale=2.0).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(("labels", "message"), [
    (["cta"], r"class_labels\[0\] must be .* 0 'airplane', 1 'cat', 2 'dog', or None; got 'cta'. .*'cat'\?"),
    (["3"], "'dog', or None; got '3'"),
    ([0, 3], r"class_labels\[1\] must be one of .*; got 3"),
    ([-1], "or None; got -1"),
    ([True], "or None; got True"),
    ([np.True_], "or None; got True"),
    (torch.tensor([True]), "or None; got True"),
    ([1.0], "or None; got 1.0"),
    ([], "for each of 0 images; got 0"),
])
def test_labels_that_are_not_classes(pipe, labels, message):
    with pytest.raises(ValueError, match=message):
        pipe(labels)


def test_a_model_without_names_says_so(unet):
    pipe = ClassConditionalPipeline(unet, DDIMScheduler())
    with pytest.raises(ValueError, match=r"one of 0 to 2 \(this model has no class names\), or None; got"):
        pipe(["cat"])


@pytest.mark.parametrize(("options", "message"), [
    ({"guidance_scale": [1, 2, 3]}, "3 guidance scales for 2 labels"),
    ({"guidance_scale": math.nan}, "finite"),
    ({"guidance_scale": True}, "finite"),
    ({"guidance_interval": (2, 1)}, "low < high"),
    ({"guidance_interval": 3}, "low < high"),
    ({"num_inference_steps": 5.0}, "an integer; got 5.0"),
    ({"generator": (torch.Generator(),)}, "generator or a list of 2, one per image; got a list of 1"),
    ({"seeds": [1]}, "seeds must be 2 ints, one per image; got 1"),
    ({"seeds": 1}, "sequence of ints"),
    ({"num_inference_steps": 51}, "must be 1 to 50"),
    ({"trajectory": 9}, "trajectory must be"),
    ({"seeds": [1, 2], "generator": torch.Generator()}, "not both"),
    ({"output_type": "jpg"}, "one of pil, np, pt"),
])
def test_options_that_do_not_fit(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe([0, 1], **({"num_inference_steps": 2} | options))


def test_options_that_the_scheduler_lacks(unet):
    with pytest.raises(ValueError, match="eta must be 0 for DDPMScheduler"):
        ClassConditionalPipeline(unet, DDPMScheduler())([0], eta=1.0)
    edm = ClassConditionalPipeline(unet, EDMEulerScheduler())
    with pytest.raises(ValueError, match="alphas_cumprod"):
        edm([0], guidance_interval=(0, 1), num_inference_steps=2)


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "b"], ["a", "b", "c", "d"]])
def test_names_must_be_one_a_class(unet, names):
    with pytest.raises(ValueError, match="3 different names"):
        ClassConditionalPipeline(unet, DDIMScheduler(), names)


def test_an_unconditional_network_is_refused():
    with pytest.raises(ValueError, match="num_class_embeds"):
        ClassConditionalPipeline(UNet2DModel(norm_num_groups=4, block_out_channels=(8,) * 4), DDIMScheduler())


def test_output_types_and_trajectory(pipe):
    options = {"seeds": [0, 1], "num_inference_steps": 5}
    tensor = pipe([0, 1], output_type="pt", **options).images
    array = pipe([0, 1], output_type="np", **options).images
    pictures = pipe([0, 1], output_type="pil", **options).images
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    np.testing.assert_array_equal(np.asarray(pictures[0]), (array[0, :, :, 0] * 255).round().astype(np.uint8))
    (alone,) = pipe([0, 1], output_type="pt", return_dict=False, **options)
    assert torch.equal(alone, tensor)
    kept = pipe([0, 1], output_type="pt", trajectory=3, **options).trajectory
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    noise = torch.stack([torch.randn(1, 8, 8, generator=generator) for generator in generators])
    assert kept.shape == (3, 2, 1, 8, 8)
    assert_close(kept[0], (noise / 2 + 0.5).clamp(0, 1))
    assert torch.equal(kept[-1], tensor)
    pictures = pipe([0, 1], trajectory=3, **options).trajectory
    assert [len(state) for state in pictures] == [2] * 3


def test_saved_and_loaded_again(pipe, tmp_path, capfd):
    pipe.save_pretrained(tmp_path)
    loaded = ClassConditionalPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert loaded.class_names == tuple(NAMES)
    assert "Expected types" not in capfd.readouterr().err
    loaded.set_progress_bar_config(disable=True)
    saved, found = pipe.unet.state_dict(), loaded.unet.state_dict()
    assert saved.keys() == found.keys()
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    # Tensors of a file lie otherwise in memory than those made here, and kernels may then add in another
    # order: 5 steps of about 10 layers, float32's 1.2e-7 each, come to 6e-6 of images within 0..1.
    assert_close(sample(loaded, ["cat"]), sample(pipe, ["cat"]), atol=1e-5, rtol=0)


def test_half_precision_weights_keep_the_sampling_in_float32(pipe):
    half = ClassConditionalPipeline(make_unet().bfloat16(), pipe.scheduler, NAMES)
    images = sample(half, ["cat", "dog"], guidance_scale=2.0)
    assert images.dtype == torch.float32
    assert_close(images, sample(pipe, ["cat", "dog"], guidance_scale=2.0), atol=0.1, rtol=0)
