"""The table under an evaluation's results: what real images, blurred ones and noise score."""

import pytest

from trilemma.eval.scoring.calibration import calibrate
from trilemma.eval.scoring.yardsticks import Reference, yardsticks
from trilemma.training.images.image_set import hold_out, load_images
from trilemma.training.loop.machine import evaluation_accelerator
from trilemma.training.options.groups import DataConfig


@pytest.fixture(scope="module")
def digits():
    """Images to train on, and others."""
    return hold_out(load_images(DataConfig(dataset_name="digits")), 200, 0)


def rows(text):
    return {line.split()[0]: [float(cell) for cell in line.split()[1:]] for line in text.splitlines()[2:]}


def test_damage_shows(digits, tmp_path):
    accelerator = evaluation_accelerator(1)
    sticks = yardsticks(
        ("fd", "prdc", "class_accuracy"), "classifier", Reference(*digits), accelerator, tmp_path
    )
    text = calibrate(sticks, Reference(*digits), 150, accelerator)
    assert "150 held-out images, the same blurred, and noise score" in text
    assert text == calibrate(sticks, Reference(*digits), 150, accelerator)
    of = rows(text)
    real, blurred, noise = of["fd_classifier"]
    assert real < 1 < 20 < min(blurred, noise)
    real, blurred, noise = of["class_accuracy"]
    assert real > 0.9 > 0.5 > noise


def test_without_held_out_images_the_table_says_so(digits, tmp_path):
    accelerator, alone = evaluation_accelerator(1), Reference(digits[0])
    sticks = yardsticks(("fd",), "pixels", alone, accelerator, tmp_path)
    assert "100 images of the reference itself" in calibrate(sticks, alone, 100, accelerator)


def test_metrics_are_left_out_that_cannot_be_measured(digits, tmp_path):
    accelerator, alone = evaluation_accelerator(1), Reference(digits[0])
    sticks = yardsticks(("fd", "kid"), "pixels", alone, accelerator, tmp_path)
    assert set(rows(calibrate(sticks, alone, 63, accelerator))) == {"kid_pixels"}
    assert not calibrate(sticks[:0], alone, 63, accelerator)
    assert not calibrate(sticks, alone, 1, accelerator)


def test_a_metric_of_held_out_images_is_refused_before_an_extractor_is_made(digits, tmp_path):
    """Which may be a classifier, and is then trained for minutes."""
    with pytest.raises(ValueError, match="memorization needs real images that were not trained on"):
        yardsticks(("fd", "memorization"), "no such extractor", Reference(digits[0]), None, tmp_path)
