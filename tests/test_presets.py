"""Every recipe trains two steps, on a shrunken network and images made up for it, through its entry point."""

import json

import numpy as np
import pytest
from conftest import TINY
from datasets import ClassLabel, Dataset, Features, Image
from entry import ROOT, run
from PIL import Image as PILImage

from trilemma.training.nets import NETS
from trilemma.training.presets import PRESETS

FAMILIES = ("unconditional", "class_conditional")
ROWS = [(family, name) for family in FAMILIES for name in PRESETS[family]]


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


@pytest.mark.parametrize(("family", "name"), ROWS)
def test_a_preset_trains_two_steps(folder, tmp_path, family, name):
    flags = ["--preset", name, "--train_data_dir", str(folder / "data"), "--label_column", "fine_label"]
    flags += [
        "--model_config_name_or_path",
        str(folder / "tiny.json"),
        "--resolution",
        "16",
        "--channels",
        "3",
    ]
    flags += ["--train_batch_size", "4", "--validation_size", "3", "--max_train_steps", "2"]
    flags += [
        "--eval_batch_size",
        "2",
        "--ddpm_num_inference_steps",
        "2",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    done = run(f"training/train_{family}.py", *flags, "--cache_dir", str(folder / "cache"))
    assert (tmp_path / "out" / "model_index.json").is_file(), done.output
    steps = [
        json.loads(line) for line in (tmp_path / "out" / "logs" / "scalars.jsonl").read_text().splitlines()
    ]
    assert all(np.isfinite(line["loss"]) for line in steps if "loss" in line)


def test_the_documentation_has_every_row():
    text = (ROOT / "docs" / "recipes.md").read_text()
    for family, rows in PRESETS.items():
        for name, row in rows.items():
            assert f"| `{name}` |" in text
            assert family == "class_conditional" or row.source in text
    assert all(f"| `{name}` |" in text for name in NETS)
