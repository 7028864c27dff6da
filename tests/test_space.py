"""The page that draws from a model, without Gradio: what it offers, what it draws, what it refuses."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from test_shared_pipelines import FAMILIES, NAMES, make, plain, unconditional, vdm

from trilemma.model_cards.space import drawing
from trilemma.model_cards.space.drawing import (
    EACH_CLASS,
    LARGEST_SEED,
    MOST_IMAGES,
    MOST_STATES,
    Settings,
    draw,
    following,
    has_guidance,
    has_process,
    in_words,
    read_seeds,
    sampled_by,
    starting,
    step_choices,
)
from trilemma.training.sampling import sample


@pytest.mark.parametrize("family", FAMILIES)
def test_images_are_those_that_the_toolkit_draws(family, monkeypatch):
    """More images than the network takes at a time, of every class in turn, with guidance if there is any."""
    monkeypatch.setattr(drawing, "AT_ONCE", 2)
    pipeline, seeds = make(family), [0, 1, 2, 40, 41]
    steps = 4 if 4 in step_choices(pipeline) else None
    guidance = 2.5 if has_guidance(pipeline) else None
    labels = [i % len(NAMES) for i in range(len(seeds))] if pipeline.class_names else None
    drawn = draw(pipeline, "0-2, 40 41", Settings(steps=steps, guidance=guidance))
    options = {} if guidance is None else {"guidance_scale": guidance}
    expected = sample(
        pipeline, seeds, batch_size=4, num_inference_steps=steps, class_labels=labels, options=options
    )
    assert drawn.seeds == seeds
    made = np.stack([np.asarray(image) for image in drawn.states[-1]])
    assert made.shape == (5, 8, 8)
    # Other batches round differently; to 8 bits that is at most one level.
    assert np.abs(made.astype(int) - expected[:, 0].numpy().astype(int)).max() <= 1
    assert len(drawn.states) == ((steps or pipeline.steps(None)) + 1 if family != "vae" else 1)
    assert has_process(pipeline) is (family != "vae")


def test_a_process_of_many_steps_has_few_states():
    pipeline = unconditional(DDPMScheduler(40))
    assert len(draw(pipeline, "3", Settings("ddim", 40)).states) == MOST_STATES


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_offered_is_what_the_family_has(family):
    pipeline = make(family)
    for name in pipeline.samplers():
        other = sampled_by(pipeline, name)
        for steps in step_choices(other):
            assert other.steps(steps) == steps
    start = starting(pipeline)
    assert start.steps in step_choices(sampled_by(pipeline, start.sampler))
    assert (len(step_choices(pipeline)) == 1) is (family in ("ddgan", "vae"))
    assert (start.guidance is not None) is has_guidance(pipeline)
    assert has_guidance(pipeline) is (family in ("class_conditional", "vdm", "flow"))


def test_the_page_begins_with_few_steps_unless_it_is_told_otherwise():
    slow = unconditional(DDPMScheduler(1000))
    assert starting(slow) == ("dpmsolver++", 20, None)
    assert starting(slow, Settings("ddim", 10)) == ("ddim", 10, None)
    assert starting(slow, Settings(None, 30)) == ("ddpm", 30, None)
    assert starting(unconditional(DDPMScheduler(40))) == ("dpmsolver++", 20, None)
    assert starting(unconditional(DDPMScheduler(10))) == ("ddpm", 10, None)
    assert starting(vdm(), Settings(guidance=3.0)) == ("ancestral", 250, 3.0)
    assert not has_guidance(vdm(None))
    with pytest.raises(ValueError, match="must be 1 to 1000"):
        starting(slow, Settings("ddim", 1001))


def test_points_of_the_plane_are_refused():
    pipeline = unconditional()
    pipeline.unet.register_to_config(in_channels=2)
    with pytest.raises(ValueError, match=r"eval/generate\.py --output points\.png"):
        starting(pipeline)


def test_seeds_are_read_as_typed():
    assert read_seeds("0-3") == [0, 1, 2, 3]
    assert read_seeds(" 3, 7;20 - 22  5") == [3, 7, 20, 21, 22, 5]
    assert read_seeds(str(LARGEST_SEED)) == [LARGEST_SEED]
    assert len(read_seeds(f"1-{MOST_IMAGES}")) == MOST_IMAGES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one image"),
        (" , ", "at least one image"),
        ("one", "whole numbers.*got 'one'"),
        ("1.5", "whole numbers.*got '1.5'"),
        ("-3", "whole numbers.*got '-3'"),
        ("5-2", "whole numbers.*got '5-2'"),
        ("٣", "whole numbers"),
        (str(LARGEST_SEED + 1), "below 2\\^63"),
        (f"0-{MOST_IMAGES}", f"at most {MOST_IMAGES} images"),
        ("0-999999999999999999", f"at most {MOST_IMAGES} images"),
        ("1 " * (MOST_IMAGES + 1), f"at most {MOST_IMAGES} images"),
    ],
)
def test_what_is_no_seed_is_refused_before_anything_is_drawn(text, message):
    with pytest.raises(ValueError, match=f"^Seeds.*{message}"):
        draw(None, text, Settings())


@pytest.mark.parametrize("text", ["0-15", "3, 7, 5", "9", f"{LARGEST_SEED - 1}-{LARGEST_SEED}"])
def test_other_seeds_are_as_many_and_none_of_them_again(text):
    before, after = read_seeds(text), read_seeds(following(text))
    assert len(after) == len(before)
    assert not set(after) & set(before)


@pytest.mark.parametrize(
    ("settings", "label", "message"),
    [
        (Settings("ddmp"), 0, "^Sampler must be one of .*got 'ddmp'"),
        (Settings(steps="many"), 0, "^Steps must be a whole number; got 'many'"),
        (Settings(steps=True), 0, "^Steps must be a whole number"),
        (Settings(steps="41"), 0, "^Steps must be 1 to 40"),
        (Settings(steps="0"), 0, "^Steps must be 1 to 40"),
        (Settings(steps=4), 3, "^Class must be one of zero, one, two.*got 3"),
        (Settings(steps=4, guidance=float("nan")), 0, "^Guidance must be finite"),
    ],
)
def test_errors_have_the_words_of_the_page(settings, label, message):
    with pytest.raises(ValueError, match=message):
        draw(make("class_conditional"), "0", settings, label)


def test_words_are_replaced_only_where_they_stand_alone():
    assert (
        in_words("--sampler must; my--sampler, guidance_scales")
        == "Sampler must; my--sampler, guidance_scales"
    )


def test_one_class_is_drawn_for_all_seeds():
    pipeline = make("ddgan")
    one = draw(pipeline, "0-2", Settings(), 1)
    expected = sample(pipeline, range(3), batch_size=3, class_labels=[1, 1, 1])
    assert [np.asarray(image).tolist() for image in one.states[-1]] == expected[:, 0].tolist()
    assert (
        draw(pipeline, "1", Settings(), EACH_CLASS).states[-1]
        == draw(pipeline, "1", Settings(), 0).states[-1]
    )


def test_the_summary_counts_the_calls_of_the_network():
    pipeline = make("class_conditional")
    calls = []
    hook = pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    plain_one = draw(pipeline, "0", Settings("ddim", 4)).summary
    assert len(calls) == 4
    assert "1 image in" in plain_one
    assert "by ddim: 4 calls of the network for each image" in plain_one
    assert "8 calls" in draw(pipeline, "0-1", Settings("ddim", 4, 2.0)).summary
    hook.remove()


def test_values_that_are_no_numbers_are_not_shown():
    pipeline = plain()
    with torch.no_grad():
        next(pipeline.unet.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="the image of seed 4 has values that are not numbers"):
        draw(pipeline, "4-5", Settings())
