"""The classifier that is trained on the spot: good enough, the same each time, kept, checked, unobtrusive."""

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from entry import environment
from safetensors.torch import save_file

from trilemma.eval.features import classifier
from trilemma.eval.features.classifier import (
    ClassifierNet,
    Recipe,
    classifier_file,
    judge_in_words,
    load_classifier,
    train_classifier,
)
from trilemma.eval.features.inception import file_sha256
from trilemma.training.images.image_set import load_images
from trilemma.training.options.groups import DataConfig


@dataclass
class Blobs:
    """Images of two classes, bright above or bright below, with what the classifier reads of `Images`."""

    count: int = 60
    channels: int = 1
    resolution: int = 8
    seed: int = 0
    class_names: tuple[str, ...] | None = None
    name: str = "blobs"

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        self.labels = rng.integers(0, 2, self.count)
        half = np.arange(self.resolution) < self.resolution // 2
        bright = half[None, :] == (self.labels[:, None] == 0)
        shape = (self.count, self.channels, self.resolution, self.resolution)
        noise = rng.integers(0, 100, shape)
        self.pixels = (noise + 100 * bright[:, None, :, None]).astype(np.uint8)
        self.fingerprint = self.split_fingerprint = f"{self.seed:016d}{self.resolution}"

    def __len__(self):
        return self.count

    def __getitems__(self, indices):
        return torch.from_numpy(self.pixels[indices]), torch.from_numpy(self.labels[indices])


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(classifier, "IMAGES_PER_CHANNEL", 1000)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("digits"))
    return load_images(DataConfig(dataset_name="digits", cache_dir=cache))


def test_learns_the_digits(digits):
    net, trained = train_classifier(digits)
    assert trained.num_classes == 10
    assert trained.held_out == len(digits) // 10
    assert trained.held_out_accuracy >= 0.97
    images, labels = digits.__getitems__(np.arange(len(digits)))
    features, logits = net(images)
    assert features.shape == (len(digits), 64)
    assert (logits.argmax(1) == labels).float().mean() >= 0.97


@pytest.mark.parametrize(
    ("accuracy", "classes", "warned"),
    [
        (0.4966, 2, True),
        (0.9, 2, False),
        (0.12, 10, True),
        (0.9, 10, False),
        (0.4, 100, False),
        (1.0, 1, True),
    ],
)
def test_the_log_says_how_good_a_judge_is(accuracy, classes, warned):
    """And warns of one that cannot tell its classes apart, or has but one class."""
    said = judge_in_words(accuracy, classes)
    assert f"right on {100 * accuracy:.1f}%" in said
    assert f"chance is {100 / classes:g}%" in said
    assert ("mean little" in said) == warned
    assert "not known" in judge_in_words(float("nan"), classes)


def test_training_again_gives_the_same_file(short, tmp_path):
    first, second = (classifier_file(Blobs(), tmp_path / name) for name in "ab")
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    assert load_classifier(first)[2] == file_sha256(first)


def test_the_number_of_threads_does_not_matter(short):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, _ = train_classifier(Blobs())
        torch.set_num_threads(2)
        two, _ = train_classifier(Blobs())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(two.state_dict(), one.state_dict(), rtol=0, atol=0)


def test_nothing_of_the_surrounding_job_matters_or_changes(short):
    expected, _ = train_classifier(Blobs())
    torch.manual_seed(7)
    np.random.seed(7)
    before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        net, trained = train_classifier(Blobs())
    torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)
    torch.testing.assert_close(net.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert trained.held_out_accuracy == 1


def other_precision(job):
    if job == "float32 products":
        torch.set_float32_matmul_precision("medium")
    elif job == "kernels":
        torch.backends.mkldnn.enabled = False
    elif job == "dtype":
        torch.set_default_dtype(torch.float64)
    elif job == "device":
        torch.set_default_device("meta")


@pytest.fixture
def settings_restored():
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.mkldnn.enabled = True
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("job", ["float32 products", "kernels", "dtype", "device"])
def test_the_settings_of_a_job_neither_matter_nor_change(short, settings_restored, job):
    expected, _ = train_classifier(Blobs())

    def settings():
        backend = torch.backends.mkldnn
        precisions = [getattr(backend, name).fp32_precision for name in ("matmul", "conv")]
        return *precisions, backend.enabled, torch.get_default_dtype(), torch.get_default_device()

    other_precision(job)
    before = settings()
    net, _ = train_classifier(Blobs())
    assert settings() == before
    for name, value in net.state_dict().items():
        assert value.numpy().tobytes() == expected.state_dict()[name].numpy().tobytes(), name


ONE_AFTER_ANOTHER = """
import hashlib, sys
import numpy as np, torch
from trilemma.eval.features import classifier
from trilemma.training.images.image_set import load_images
from trilemma.training.options.groups import DataConfig

classifier.IMAGES_PER_CHANNEL = 5000
images = load_images(DataConfig(dataset_name="digits", cache_dir=sys.argv[1]))
rng = np.random.default_rng()
kept = []
for i in range(int(sys.argv[2])):
    # Other holes in the heap each time, so that tensors come to lie elsewhere.
    kept += [np.empty(n, np.uint8) for n in rng.integers(1, 5000, 100)]
    rng.shuffle(kept)
    del kept[: len(kept) // 2]
    torch.set_num_threads(1 + i % 2)
    weights = classifier.train_classifier(images)[0].state_dict().values()
    print(hashlib.sha256(b"".join(w.numpy().tobytes() for w in weights)).hexdigest(), flush=True)
"""


@pytest.mark.slow
def test_fifty_trainings_under_load_are_one(tmp_path):
    load_images(DataConfig(dataset_name="digits", cache_dir=str(tmp_path)))  # one process decodes
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    line = [sys.executable, "-c", ONE_AFTER_ANOTHER, str(tmp_path), "10"]
    threads = ("1", "1", "2", "2", "2")
    try:
        runs = [
            subprocess.Popen(line, env=environment(OMP_NUM_THREADS=number), stdout=subprocess.PIPE, text=True)
            for number in threads
        ]
        weights = [sha256 for run in runs for sha256 in run.communicate()[0].split()]
    finally:
        for process in (*busy, *runs):
            process.kill()
    assert len(weights) == 50
    assert len(set(weights)) == 1


def test_is_trained_once_for_each_data_set(short, tmp_path, monkeypatch):
    first = classifier_file(Blobs(), tmp_path)
    other = classifier_file(Blobs(seed=1), tmp_path)
    assert other != first
    monkeypatch.setattr(classifier, "train_classifier", None)
    assert classifier_file(Blobs(), tmp_path) == first
    assert sorted(p.name for p in first.parent.iterdir()) == sorted([first.name, other.name])


def test_loads_what_was_trained(short, tmp_path):
    blobs = Blobs(channels=3)
    net, trained, _ = load_classifier(classifier_file(blobs, tmp_path))
    again, expected = train_classifier(blobs)
    assert trained == expected
    assert trained.data_fingerprint == blobs.fingerprint
    images = torch.from_numpy(blobs.pixels)
    assert net(images)[0].shape == (60, 128)
    torch.testing.assert_close(net.state_dict(), again.state_dict(), rtol=0, atol=0)
    # Weights of a file may lie otherwise in memory, so that a dozen layers round otherwise.
    torch.testing.assert_close(net(images), again(images), rtol=1e-4, atol=1e-5)


def test_a_tampered_file_is_refused(short, tmp_path):
    file = classifier_file(Blobs(), tmp_path)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file.name}.*{file_sha256(file)}.*expected.*delete it"):
        load_classifier(file)


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--extractor_weights.*nowhere"):
        load_classifier(tmp_path / "nowhere.safetensors")
    file = tmp_path / "net.safetensors"
    save_file({"weight": torch.ones(2)}, file, metadata={"format": "pt"})
    named = file.rename(tmp_path / f"net-{file_sha256(file)[:16]}.safetensors")
    with pytest.raises(ValueError, match="is not a classifier of this toolkit"):
        load_classifier(named)


def test_data_without_labels_is_refused_with_the_way_out(tmp_path):
    blobs = Blobs()
    blobs.labels = None
    with pytest.raises(ValueError, match=r"blobs.*--label_column.*pixels"):
        classifier_file(blobs, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_recipes(short):
    """A test split is measured on and leaves all images to train on; flips change the images seen."""
    blobs, test = Blobs(), Blobs(count=20, seed=1)
    net, trained = train_classifier(blobs, Recipe(images_seen=300), test)
    assert (trained.images_seen, trained.held_out, trained.held_out_accuracy) == (384, 20, 1)
    flipped, _ = train_classifier(blobs, Recipe(images_seen=300, random_flip=True), test)
    assert not torch.equal(net.head.weight, flipped.head.weight)


def test_classes_are_those_of_the_data_even_if_some_are_empty(short):
    net, trained = train_classifier(Blobs(class_names=("above", "below", "nowhere")))
    assert trained.num_classes == 3
    assert net.head.out_features == 3


def test_large_images_are_averaged_down(short):
    torch.manual_seed(0)
    net = ClassifierNet(1, 2).eval()
    images = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    small = images.float().unflatten(3, (32, 2)).unflatten(2, (32, 2)).mean((3, 5))
    torch.testing.assert_close(net(images), net(small))
