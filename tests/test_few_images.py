"""One to three training images, or that few left by a hold-out: every family trains and shows its model."""

import json
import re

import pytest
from entry import run
from PIL import Image

from trilemma.training import families
from trilemma.training.output_folder import OutputFolder

OWN = {
    "ddgan": ["--discriminator_channels", "4", "8", "--train_batch_size", "4", "--class_conditional"],
    "consistency": ["--class_conditional"],
    "vdm": ["--vdm_timesteps", "10", "--class_conditional"],
    "flow": ["--class_conditional", "--coupling", "optimal"],
    "vae": ["--latent_dim", "2", "--vae_channels", "8", "8"],
}
"""Small networks; with classes where they are a choice."""


@pytest.fixture
def photos(tmp_path):
    """A folder with this number of images, of which the first is alone in its class."""

    def make(count):
        for index in range(count):
            folder = tmp_path / "photos" / ("äpfel" if index == 0 else "birne")
            folder.mkdir(parents=True, exist_ok=True)
            Image.linear_gradient("L").resize((8, 8)).rotate(90 * index).save(folder / f"{index}.png")
        return tmp_path / "photos"

    return make


@pytest.fixture
def flags(tmp_path, tiny):
    """The flags of a short run of a family."""

    def make(family, folder, *more):
        network = tiny[:2] if family != "vae" else []
        return [
            *network, "--train_data_dir", str(folder), "--max_train_steps", "2", "--train_batch_size", "2",
            "--eval_batch_size", "3", "--logging_steps", "1", "--cache_dir", str(tmp_path / "cache"),
            "--output_dir", str(tmp_path / "out"), *OWN.get(family, []), *more,
        ]  # fmt: skip

    return make


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("family", families.names())
def test_every_family_trains_draws_and_writes_its_card(tmp_path, photos, flags, family, count):
    # One class folder alone would be no labels, so the first of two is chosen; of three, two are held out.
    more = {1: ["--classes", "äpfel"], 2: [], 3: ["--validation_size", "2"]}[count]
    done = run(f"training/train_{family}.py", *flags(family, photos(max(2, count)), *more))
    assert f"{2 if count == 2 else 1} images of photos" in done.output
    folder = OutputFolder(tmp_path / "out")
    pictures = [path.name for path in folder.path.glob("*.png")]
    expected = families.column("trilemma.eval.pictures", family).PICTURES
    assert set(pictures) == {folder.samples.name, folder.losses.name, *expected}
    assert folder.samples.name in folder.card.read_text(encoding="utf-8")
    lines = folder.scalars.read_text(encoding="utf-8").splitlines()
    scalars = [json.loads(line, parse_constant=pytest.fail) for line in lines]  # Infinity, NaN
    assert [line["step"] for line in scalars if "loss" in line] == [1, 2]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--eval_metrics", "fd"],
            "--eval_steps needs at least 4 training .* photos has 3: .*hold out",
        ),
        (["--eval_metrics", "energy", "--eval_feature_extractor", "pixels"], "leave out --eval_steps"),
    ],
)
def test_evaluation_against_few_images_is_refused_before_the_training(tmp_path, photos, flags, more, message):
    words = flags("unconditional", photos(3), "--eval_steps", "1", *more)
    done = run("training/train_unconditional.py", *words, check=False)
    assert done.wait() == 1
    assert re.search(message, done.output)
    assert "Traceback" not in done.output
    assert not (tmp_path / "out" / "logs").exists()


@pytest.mark.parametrize(
    ("family", "count", "more", "message"),
    [
        ("unconditional", 5, ["prdc", "--eval_feature_extractor", "pixels"], "--eval_metrics prdc needs 6"),
        ("unconditional", 9, ["prdc", "--eval_feature_extractor", "pixels", "--eval_num_samples", "5"],
         "--eval_metrics prdc needs 6 images or more of each kind; got 9 and 5"),
        ("unconditional", 9, ["is", "--eval_feature_extractor", "pixels"], "--eval_metrics is needs class"),
        ("unconditional", 9, ["fd", "memorization", "--eval_feature_extractor", "pixels"],
         "--eval_metrics memorization needs real images"),
        ("vae", 9, ["fd", "class_accuracy", "--eval_feature_extractor", "pixels"],
         "--eval_metrics class_accuracy needs a model with classes"),
    ],
)  # fmt: skip
def test_metrics_that_cannot_be_measured_are_refused_before_the_training(
    tmp_path, photos, flags, family, count, more, message
):
    words = flags(family, photos(count), "--eval_steps", "1", "--eval_metrics", *more)
    done = run(f"training/train_{family}.py", *words, check=False)
    assert done.wait() in (1, 2)
    assert re.search(message, done.output)
    assert "Traceback" not in done.output
    assert not (tmp_path / "out" / "logs").exists()
