"""Judges: the shipped ones, which one an evaluation takes, and the judge that is published with a model."""

import configparser
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from entry import ROOT, environment, run
from PIL import Image
from test_classifier import Blobs

from trilemma.eval.evaluate import EvaluateConfig
from trilemma.eval.features import classifier, judge_files, train_judges
from trilemma.eval.features.classifier import classifier_file, load_classifier
from trilemma.eval.features.extractors import load_extractor
from trilemma.eval.features.judge_files import (
    SHIPPED,
    JudgeChoice,
    check_classes,
    find_judge,
    judge_names,
    keep_judges,
    read_trained,
    shipped_judge,
)
from trilemma.eval.options import check_choices
from trilemma.eval.scoring.after_training import evaluate
from trilemma.eval.scoring.results import read
from trilemma.eval.scoring.yardsticks import Reference, pick_extractor
from trilemma.model_cards.hub import recheck
from trilemma.model_cards.hub.sent import sent
from trilemma.training.images.image_set import hold_out, load_images
from trilemma.training.options.flags import build
from trilemma.training.options.groups import DataConfig
from trilemma.training.output_folder import OutputFolder

NAMES = ("cifar10", "cifar10-16", "digits", "mnist")
ACCURACY = {"cifar10": 0.75, "cifar10-16": 0.7, "digits": 0.97, "mnist": 0.99}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load_images(DataConfig(dataset_name="digits", cache_dir=str(tmp_path_factory.mktemp("digits"))))


@pytest.fixture
def untrained(monkeypatch):
    """Nothing is trained in this test."""
    monkeypatch.setattr(classifier, "train_classifier", None)


@pytest.fixture
def shipped_copy(tmp_path, monkeypatch):
    """The shipped judges in a folder that may be changed."""
    folder = tmp_path / "judges"
    shutil.copytree(SHIPPED, folder)
    monkeypatch.setattr(judge_files, "SHIPPED", folder)
    monkeypatch.setattr(classifier, "SHIPPED", folder)
    return folder


def as_data_of(name, images):
    """`images` with the fingerprint of a shipped judge's data."""
    return replace(images, part_of=read_trained(shipped_judge(name)).data_fingerprint)


# The files


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_file_says_what_it_was_trained_on(name):
    file = shipped_judge(name)
    assert file.stat().st_size < 1_200_000
    net, trained, sha256 = load_classifier(file)
    assert file.name == f"{name}-{sha256[:16]}.safetensors"
    assert trained.version == judge_files.VERSION
    assert trained.seed == classifier.SEED
    assert trained.data == train_judges.ROWS[name].data
    assert (trained.note is not None) == name.startswith("cifar10"), "a copy is called one"
    assert trained.images_seen > 0
    assert trained.held_out > 0
    assert trained.held_out_accuracy > ACCURACY[name]
    prints = (trained.data_fingerprint, *trained.other_fingerprints)
    assert len({*prints}) == (1 if name == "digits" else 2)
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in prints)
    side, channels = {"digits": (8, 1), "mnist": (28, 1), "cifar10": (32, 3), "cifar10-16": (16, 3)}[name]
    assert (trained.resolution, trained.channels, trained.num_classes) == (side, channels, 10)
    features, logits = net(torch.zeros(2, channels, side, side, dtype=torch.uint8))
    assert features.shape == (2, 64 if channels == 1 else 128)
    assert logits.shape == (2, 10)


def test_these_and_no_others_are_shipped():
    assert judge_names() == NAMES
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    pattern = setup["options.package_data"]["trilemma.eval.features"]
    assert all(fnmatch(f"judges/{file.name}", pattern) for file in SHIPPED.iterdir())
    assert len(list(SHIPPED.iterdir())) == len(NAMES)


def test_the_script_makes_the_digits_judge_again(tmp_path, digits, monkeypatch):
    """Same file if the processor is the same, so here only its facts and its accuracy; old files go."""
    (tmp_path / f"digits-{'0' * 16}.safetensors").touch()
    monkeypatch.setattr(classifier, "IMAGES_PER_CHANNEL", 5000)
    train_judges.main(["--judges", "digits", "mnist", "--output_dir", str(tmp_path)])
    (file,) = tmp_path.iterdir()
    trained, shipped = read_trained(file), read_trained(shipped_judge("digits"))
    assert trained.held_out_accuracy > 0.9
    assert trained == shipped._replace(
        images_seen=trained.images_seen, held_out_accuracy=trained.held_out_accuracy
    )


# Which one


def test_found_by_the_fingerprint_of_the_loaded_split(digits, untrained, tmp_path):
    file = shipped_judge("digits")
    assert classifier_file(digits, tmp_path) == file
    rest, held_out = hold_out(digits, 64, seed=0)
    assert rest.split_fingerprint == held_out.split_fingerprint == digits.fingerprint
    assert rest.subset(range(9)).split_fingerprint == digits.fingerprint
    assert classifier_file(rest, tmp_path) == classifier_file(held_out, tmp_path) == file
    assert list(tmp_path.iterdir()) == []


def test_the_test_split_has_the_judge_of_its_data(digits, untrained, tmp_path):
    file, part = shipped_judge("mnist"), digits.subset(range(50))
    assert read_trained(file).is_of(as_data_of("mnist", part))
    assert find_judge(as_data_of("mnist", part), tmp_path) == file
    test = replace(part, part_of=read_trained(file).other_fingerprints[0])
    assert find_judge(test, tmp_path) == file


def test_other_images_have_none(tmp_path):
    assert find_judge(Blobs(), tmp_path) is None
    config = DataConfig(dataset_name="digits", classes=("3", "4"), cache_dir=str(tmp_path))
    assert find_judge(load_images(config), tmp_path) is None


def test_by_name_on_other_images_which_is_recorded(untrained, tmp_path, capsys):
    class_names = tuple("abcdefghij")
    blobs = Blobs(class_names=class_names)
    net = load_extractor("classifier", reference=blobs, cache_dir=str(tmp_path), judge=JudgeChoice("digits"))
    assert (net.file, net.judge_data) == (shipped_judge("digits"), "digits")
    blobs = Blobs(channels=3, resolution=32, class_names=class_names)
    net = load_extractor("classifier", reference=blobs, cache_dir=str(tmp_path), judge=JudgeChoice("cifar10"))
    assert net.judge_data.startswith("CIFAR-10 (")
    assert "JPEG" in net.judge_data


def test_by_name_on_its_own_images_there_is_nothing_to_say(digits, untrained, tmp_path):
    net = load_extractor("classifier", reference=digits, cache_dir=str(tmp_path), judge=JudgeChoice("digits"))
    assert net.judge_data is None


def test_by_name_without_labels_or_images(untrained, tmp_path):
    blobs = Blobs()
    blobs.labels = None
    assert find_judge(blobs, tmp_path, JudgeChoice("digits")) == shipped_judge("digits")
    assert classifier_file(None, tmp_path, JudgeChoice("digits")) == shipped_judge("digits")
    with pytest.raises(ValueError, match=r"--reference must be a data set, or --judge .*mnist"):
        classifier_file(None, tmp_path)


@pytest.mark.parametrize(
    ("blobs", "has"),
    [
        (Blobs(resolution=9, class_names=tuple("abcdefghij")), "blobs has 9x9 grey images of 10 classes"),
        (Blobs(channels=3, class_names=tuple("abcdefghij")), "blobs has 8x8 RGB images of 10 classes"),
        (Blobs(class_names=("one", "two")), "blobs has 8x8 grey images of 2 classes"),
    ],
)
def test_by_name_on_images_of_another_shape_is_refused(blobs, has, tmp_path):
    words = f"--eval_judge digits takes 8x8 grey images of 10 classes; {has}"
    with pytest.raises(ValueError, match=words):
        find_judge(blobs, tmp_path, JudgeChoice("digits", option="--eval_judge"))


def test_images_of_one_class_train_no_judge_and_may_be_a_part_of_anothers(tmp_path):
    """A network that has one answer learns nothing, and features of it would measure nothing."""
    one = Blobs(class_names=("one",))
    one.labels = np.zeros_like(one.labels)
    with pytest.raises(ValueError, match=r"blobs has one: name a judge .* --judge \(.*digits, mnist\)"):
        find_judge(one, tmp_path)
    assert find_judge(one, tmp_path, JudgeChoice("digits")) == shipped_judge("digits")
    with pytest.raises(ValueError, match="the judge knows 10 classes, and blobs has 1"):
        check_classes(one, 10, "class_accuracy")
    check_classes(Blobs(class_names=tuple("abcdefghij")), 10, "class_accuracy")
    one.points = False
    with pytest.raises(ValueError, match="no labels of two classes or more"):
        pick_extractor(Reference(one), tmp_path)


def test_names_are_checked_when_parsed():
    check_choices(judge="mnist")
    with pytest.raises(ValueError, match=r"--judge must be one of cifar10, .*got 'cifar'.*mean cifar10"):
        check_choices(judge="cifar")
    with pytest.raises(ValueError, match="--eval_judge must be"):
        check_choices(judge="svhn", in_training=True)


def test_a_name_and_a_file_are_one_too_many(tmp_path):
    with pytest.raises(ValueError, match="one of --extractor_weights and --judge"):
        load_extractor("classifier", weights="x.safetensors", judge=JudgeChoice("digits"))


def test_the_model_s_own_goes_first_and_a_sha256_before_it(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "IMAGES_PER_CHANNEL", 1000)
    blobs, cache, folder = Blobs(), tmp_path / "cache", OutputFolder(tmp_path / "model")
    folder.path.mkdir()
    own = classifier_file(blobs, cache)
    keep_judges(folder, [own, None, shipped_judge("digits"), own])
    (kept,) = folder.judges()
    assert sorted(folder.path.iterdir()) == [kept]
    assert kept.read_bytes() == own.read_bytes()
    monkeypatch.setattr(classifier, "train_classifier", None)
    elsewhere = tmp_path / "elsewhere"
    assert classifier_file(blobs, elsewhere, JudgeChoice(folder=folder.path)) == kept
    assert load_classifier(kept)[2] == load_classifier(own)[2]
    # Another folder's judge of the same images: of two, the one that a result names.
    sha256 = load_classifier(shipped_judge("digits"))[2]
    assert find_judge(blobs, elsewhere, JudgeChoice(sha256=sha256, folder=folder.path)).parent == SHIPPED
    sha256 = load_classifier(own)[2]
    assert find_judge(blobs, cache, JudgeChoice(sha256=sha256)) == own
    # The folder's does not serve images that it was not trained on.
    assert classifier_file(digits, elsewhere, JudgeChoice(folder=folder.path)).parent == SHIPPED


def test_a_damaged_shipped_file_is_refused_with_its_name(shipped_copy, digits, tmp_path):
    file = shipped_judge("digits")
    assert file.parent == shipped_copy
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file.name}.*sha256.*install trilemma again"):
        load_extractor("classifier", reference=digits, cache_dir=str(tmp_path))
    file.write_bytes(content[:100])
    with pytest.raises(ValueError, match=rf"{file.name} is not a whole"):
        load_extractor("classifier", reference=digits, cache_dir=str(tmp_path))


# On other processors


ON_ANOTHER_PROCESSOR = """
import sys
import numpy as np, torch
from trilemma.eval.features.extractors import load_extractor
from trilemma.eval.features.judge_files import JudgeChoice

images = torch.from_numpy(np.load(sys.argv[2]))
net = load_extractor("classifier", judge=JudgeChoice(sys.argv[1]))
features, logits = net(images)
np.savez(sys.argv[3], features=features.numpy(), logits=logits.numpy(), sha256=net.sha256)
"""
INSTRUCTIONS = ({"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2"}, {})


@pytest.mark.long
@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_features_agree_between_instruction_sets(name, digits, tmp_path):
    """Rounding errors of a sum of k products grow as the root of k: in 6 layers of at most 9 x 128 products,
    features come to differ by about 6 * sqrt(1152) * 2^-24 = 1.2e-5 of their size. 1e-4 is 8 times as much.
    """
    images = digits.__getitems__(range(200))[0]
    if name == "cifar10":
        images = (
            torch.nn.functional.interpolate(images.float(), 32, mode="bilinear").byte().expand(-1, 3, -1, -1)
        )
    np.save(tmp_path / "images.npy", images.numpy())
    outputs = []
    for i, instructions in enumerate(INSTRUCTIONS):
        target = tmp_path / f"{i}.npz"
        line = [sys.executable, "-c", ON_ANOTHER_PROCESSOR, name, str(tmp_path / "images.npy"), str(target)]
        subprocess.run(line, check=True, env=environment(**instructions))
        outputs.append(np.load(target))
    one, other = outputs
    assert str(one["sha256"]) == str(other["sha256"])
    for part in ("features", "logits"):
        np.testing.assert_allclose(one[part], other[part], rtol=0, atol=1e-4 * np.abs(one[part]).max())


# Whole runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Tiny models with an evaluation at the end: of the digits, and of data that no judge is shipped for."""
    root = tmp_path_factory.mktemp("runs")
    (root / "tiny.json").write_text(json.dumps(TINY))
    blobs = Blobs()
    for i, (pixels, label) in enumerate(zip(blobs.pixels, blobs.labels, strict=True)):
        folder = root / "data" / "train" / ("above", "below")[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0]).save(folder / f"{i:03}.png")
    flags = ["--model_config_name_or_path", str(root / "tiny.json"), "--train_batch_size", "8"]
    flags += ["--eval_batch_size", "4", "--ddpm_num_inference_steps", "5", "--max_train_steps", "4"]
    flags += ["--eval_steps", "4", "--eval_num_samples", "70", "--eval_metrics", "fd", "modes"]
    for name, data in (
        ("digits", ["--validation_size", "20"]),
        ("blobs", ["--train_data_dir", str(root / "data"), "--validation_size", "5"]),
    ):
        place = ["--output_dir", str(root / name / "out"), "--cache_dir", str(root / name / "cache")]
        run("training/train_unconditional.py", *flags, *data, *place)
    return root


def test_training_on_the_digits_takes_the_shipped_judge(runs):
    lines = read(runs / "digits" / "out" / "results.jsonl")
    assert {line.extractor_sha256 for line in lines} == {load_classifier(shipped_judge("digits"))[2]}
    assert {line.judge_accuracy for line in lines} == {
        read_trained(shipped_judge("digits")).held_out_accuracy
    }
    assert {line.reference_n for line in lines} == {1797 - 20}
    assert all("judge_data" not in line.extra for line in lines)
    assert not (runs / "digits" / "cache" / "classifiers").exists()
    assert OutputFolder(runs / "digits" / "out").judges() == []


def scored(folder, tmp_path, **values):
    """Lines of an evaluation of a model folder with an empty cache."""
    usual = {"num_samples": 80, "num_inference_steps": 4, "sampler": "ddim", "metrics": ("fd", "modes")}
    place = {"model": str(folder), "output": str(folder / "more.jsonl"), "cache_dir": str(tmp_path / "cache")}
    evaluate(build(EvaluateConfig, usual | place | values))
    return read(Path((place | values)["output"]))


def test_other_data_have_their_judge_in_the_model_s_folder(runs, untrained, tmp_path):
    folder = OutputFolder(runs / "blobs" / "out")
    (judge,) = folder.judges()
    sha256 = load_classifier(judge)[2]
    assert {line.extractor_sha256 for line in read(folder.results)} == {sha256}
    assert judge.name in sent(folder)
    # On another machine: an empty cache, and nothing may be trained.
    lines = scored(folder.path, tmp_path)
    assert {line.extractor_sha256 for line in lines} == {sha256}
    assert folder.judges() == [judge]


def test_verify_takes_the_judge_of_the_folder(runs, untrained, tmp_path, monkeypatch):
    monkeypatch.setenv("TRILEMMA_CACHE", str(tmp_path / "cache"))
    checks = recheck.recheck(str(runs / "blobs" / "out"), reference=str(runs / "data"))
    assert {check.line.measure for check in checks} >= {"fd", "modes"}
    assert all(check.agrees for check in checks), checks


def test_evaluate_by_name_says_so_in_one_line_and_in_the_results(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(judge_files, "_check_shape", lambda *_: None)  # the blobs have two classes
    folder = runs / "blobs" / "out"
    lines = scored(folder, tmp_path, judge="digits", output=str(tmp_path / "named.jsonl"), metrics=("fd",))
    said = [line for line in capsys.readouterr().out.splitlines() if "trained on digits" in line]
    assert len(said) == 1
    (line,) = lines
    assert line.extra == {"judge_data": "digits"}
    assert line.extractor_sha256 == load_classifier(shipped_judge("digits"))[2]
    assert len(OutputFolder(folder).judges()) == 1, "results elsewhere leave the folder as it was"


def test_evaluate_leaves_the_judge_beside_its_results(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "IMAGES_PER_CHANNEL", 1000)
    folder = tmp_path / "copy"
    shutil.copytree(runs / "blobs" / "out", folder)
    for file in OutputFolder(folder).judges():
        file.unlink()
    lines = scored(folder, tmp_path, output=str(folder / "results.jsonl"), metrics=("fd",))
    (judge,) = OutputFolder(folder).judges()
    assert judge == OutputFolder(folder).judge(lines[-1].extractor_sha256[:16])


@pytest.mark.long
def test_distances_agree_between_instruction_sets(runs, tmp_path):
    values = []
    for i, instructions in enumerate(INSTRUCTIONS):
        output = tmp_path / f"{i}.jsonl"
        line = [sys.executable, str(ROOT / "eval/evaluate.py"), "--model", str(runs / "digits" / "out")]
        line += ["--num_samples", "200", "--sampler", "ddim", "--num_inference_steps", "4", "--metrics", "fd"]
        line += ["--output", str(output), "--cache_dir", str(tmp_path / f"cache{i}"), "--cpu_threads", "1"]
        subprocess.run(line, check=True, env=environment(**instructions), capture_output=True)
        values += read(output)
    one, other = values
    assert one.extractor_sha256 == other.extractor_sha256
    assert one.value == pytest.approx(other.value, rel=1e-3)
