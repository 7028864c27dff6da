"""What a dry run says of the data, the network and the length of a run."""

import json

import numpy as np
import pytest
from PIL import Image

from trilemma.training.options.command_line import parse
from trilemma.training.options.resolved import resolved


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures of two classes, 16x16 RGB."""
    for name in ("disk", "ring"):
        (tmp_path / name).mkdir()
        for k in range(6):
            pixels = np.full((16, 16, 3), (k, 10, 200), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{k}.png")
    return tmp_path


def lines(*flags):
    """What a dry run says."""
    return list(resolved(parse("class_conditional", "", list(flags))))


def test_local_data_are_looked_at(folder, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    flags = ["--train_data_dir", str(folder), "--train_batch_size", "4", "--num_epochs", "3"]
    assert lines(*flags, "--validation_size", "2", "--learning_rate", "1e-3") == [
        "data: 10 images to train on, 16x16 RGB, labels of 2 classes",
        "network: unet_16",
        "length: 9 steps of 4 images, 3.6 epochs, on 1 process",
        "learning rate: its peak is 0.001",
    ]


def test_what_is_not_known_is_said(tmp_path):
    data, network, length, _ = lines("--preset", "cifar10")
    assert "not known: uoft-cs/cifar10 is a data set of the Hub, and a dry run downloads nothing" in data
    assert network == "network: unet_cifar10"
    assert length.startswith("length: 800,000 steps of 128 images, on 1 process")
    data, network, length = lines("--train_data_dir", str(tmp_path / "none"), "--num_epochs", "7")
    assert str(tmp_path / "none") in data
    assert network == "network: by the resolution"
    assert length == "length: 7 epochs; the number of steps depends on the number of images"


def test_data_that_a_run_would_refuse_are_an_error(folder):
    with pytest.raises(SystemExit, match=r"--classes must be among .*; got 'bird'"):
        parse("class_conditional", "", ["--train_data_dir", str(folder), "--classes", "bird", "--dry_run"])


@pytest.mark.parametrize(
    ("family", "classes", "flags", "refused"),
    [
        ("class_conditional", ("disk", "ring"), [], None),
        ("class_conditional", ("disk", "ring", "eel"), [], "has 3 classes .* trains a model of 2 classes"),
        ("class_conditional", ("disk", "ring", "eel"), ["--init_new_classes"], None),
        ("unconditional", ("disk", "ring"), [], "has 2 classes .* trains a model of no classes"),
        ("unconditional", None, [], None),
    ],
)
def test_classes_that_a_run_would_refuse_are_an_error(
    folder, tmp_path_factory, family, classes, flags, refused
):
    start = tmp_path_factory.mktemp("start")
    names = {} if classes is None else {"class_names": {str(k): name for k, name in enumerate(classes)}}
    (start / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", **names}))
    argv = ["--train_data_dir", str(folder), "--init_from", str(start), *flags, "--dry_run"]
    with pytest.raises(SystemExit, match=refused) as end:
        parse(family, "", argv)
    assert (end.value.code in (None, 0)) is (refused is None)


def test_a_dry_run_prints_it_apart_from_the_flags(folder, capsys):
    with pytest.raises(SystemExit):
        parse("class_conditional", "", ["--train_data_dir", str(folder), "--dry_run"])
    printed = capsys.readouterr()
    assert "data: 12 images" in printed.err
    assert "12 images" not in printed.out
