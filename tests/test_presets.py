"""Every recipe trains two steps, on a shrunken network and images made up for it, through its entry point."""

import json

import numpy as np
import pytest
from conftest import TINY
from datasets import ClassLabel, Dataset, Features, Image
from entry import ROOT, run
from PIL import Image as PILImage

from trilemma.training import families
from trilemma.training.images.points import POINTS
from trilemma.training.networks.rows import NETS
from trilemma.training.options.flags import flags_of

PRESETS = {name: families.family(name).presets for name in families.names()}
ROWS = [(family, name) for family, rows in PRESETS.items() for name in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """16x16 colour images of three classes: parquet of both splits, named as CIFAR-100 names them."""
    place = tmp_path_factory.mktemp("images")
    (place / "data").mkdir()
    rng = np.random.default_rng(0)
    names = ClassLabel(names=["airplane", "cat", "dog"])
    for split, count in (("train", 24), ("test", 6)):
        pictures = [
            PILImage.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(count)
        ]
        rows = {"img": pictures, "fine_label": [i % 3 for i in range(count)]}
        table = Dataset.from_dict(rows, features=Features(img=Image(), fine_label=names))
        table.to_parquet(str(place / "data" / f"{split}-00000-of-00001.parquet"))
    (place / "tiny.json").write_text(json.dumps(TINY))
    return place


NETWORK = "--model_config_name_or_path"
STEPS = ["--ddpm_num_inference_steps", "2"]
SMALLER = {
    "ddgan": ["--discriminator_channels", "8", "8", NETWORK],
    "vae": ["--vae_channels", "8", "8"],
}
"""Flags for less work, of families that do not take the usual ones; the network's file follows NETWORK."""


def smaller_flags(family):
    takes_network = NETWORK.removeprefix("--") in flags_of(families.family(family).config)
    return list(SMALLER.get(family, [*STEPS, NETWORK] if takes_network else []))


@pytest.mark.parametrize(("family", "name"), ROWS)
def test_a_preset_trains_two_steps(folder, tmp_path, family, name):
    options, smaller = PRESETS[family][name].options, smaller_flags(family)
    flags = ["--preset", name, "--train_batch_size", "4", "--max_train_steps", "2", "--eval_batch_size", "4"]
    if "eval_steps" in options:
        flags += ["--eval_feature_extractor", "pixels", "--eval_metrics", "fd", "--eval_num_samples", "4"]
    if options.get("dataset_name") in POINTS:
        smaller = [flag for flag in smaller if flag != NETWORK]
    else:
        flags += ["--train_data_dir", str(folder / "data"), "--label_column", "fine_label"]
        flags += ["--resolution", "16", "--channels", "3", "--validation_size", "3"]
    if smaller[-1:] == [NETWORK]:
        smaller.append(str(folder / "tiny.json"))
    flags += [*smaller, "--output_dir", str(tmp_path / "out"), "--cache_dir", str(folder / "cache")]
    done = run(f"training/train_{family}.py", *flags)
    assert (tmp_path / "out" / "model_index.json").is_file(), done.output
    lines = (tmp_path / "out" / "logs" / "scalars.jsonl").read_text().splitlines()
    assert all(np.isfinite(line["loss"]) for line in map(json.loads, lines) if "loss" in line)


def test_the_documentation_has_every_row():
    text = (ROOT / "docs" / "recipes.md").read_text()
    for family, rows in PRESETS.items():
        for name, row in rows.items():
            assert f"| `{name}` |" in text
            assert family == "class_conditional" or row.source in text
    assert all(f"| `{name}` |" in text for name in NETS)
