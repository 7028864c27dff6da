"""The FID's Inception-v3 against torch-fidelity's extractor: recorded outputs, or the oracle itself.

`pip download --no-deps torch-fidelity`, unpack the wheel, and name the folder that holds `torch_fidelity/` in
TRILEMMA_TORCH_FIDELITY. Never install it without torchvision: `import torchmetrics` would then fail.
`python tests/test_inception.py`, with that variable set, records the digest anew from the oracle's outputs.
"""

import importlib
import json
import math
import os
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from trilemma.eval.features import inception
from trilemma.eval.features.inception import InceptionV3, find_weights, load_inception, resize_tf1

DIGEST = Path(__file__).parent / "data" / "inception_digest.json"
ORACLE = os.environ.get("TRILEMMA_TORCH_FIDELITY")
SIZES = (28, 32, 64, 299, 512)


def uniform(rng: np.random.Generator, shape, low: float, high: float) -> torch.Tensor:
    # Plain uniform doubles: the one stream of numpy that has never changed for a given bit generator.
    return torch.from_numpy(low + (high - low) * rng.random(tuple(shape))).float()


def seeded_state() -> dict[str, torch.Tensor]:
    """Random weights under which activations neither vanish nor explode, whatever the version of torch."""
    rng = np.random.Generator(np.random.PCG64(20151205))
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in InceptionV3().state_dict().items()}
    state = {}
    for name in sorted(shapes):
        shape = shapes[name]
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros((), dtype=torch.int64)
        elif name.endswith(("running_var", "bn.weight")):
            state[name] = uniform(rng, shape, 0.7, 1.3)
        elif len(shape) == 1:
            state[name] = uniform(rng, shape, -0.2, 0.2)
        else:  # He et al. 2015: a uniform variable of variance 2 / fan_in
            bound = math.sqrt(6 / math.prod(shape[1:]))
            state[name] = uniform(rng, shape, -bound, bound)
    return state


def seeded_images(size: int) -> torch.Tensor:
    """uint8 (2, 3, size, size): noise, which shows a resize's errors, and a smooth image, more like data."""
    rng = np.random.Generator(np.random.PCG64(size))
    noise = np.floor(256 * rng.random((3, size, size)))
    y, x = np.meshgrid(np.arange(size) / size, np.arange(size) / size, indexing="ij")
    smooth = np.stack([255 * x, 255 * y * (1 - x), 255 * np.abs(x - y)])
    return torch.from_numpy(np.stack([noise, np.floor(smooth)]).astype(np.uint8))


def digest(values: torch.Tensor) -> list[list[float]]:
    """For each image: 24 values evenly spaced, then the mean and the root mean square over all."""
    rows = values.double()
    picked = rows[:, :: rows.shape[1] // 24][:, :24]
    return torch.cat([picked, rows.mean(1, True), rows.square().mean(1, True).sqrt()], 1).tolist()


def oracle(state: dict[str, torch.Tensor], folder: Path):
    """torch-fidelity's extractor with these weights, past the package's __init__, which needs torchvision."""
    package = types.ModuleType("torch_fidelity")
    package.__path__ = [str(Path(ORACLE) / "torch_fidelity")]
    sys.modules["torch_fidelity"] = package
    try:
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "torch_fidelity"]:
            del sys.modules[name]
    torch.save(state, folder / "weights.pth")
    return module.FeatureExtractorInceptionV3(
        "inception-v3-compat",
        ["2048", "logits_unbiased", "logits"],
        feature_extractor_weights_path=str(folder / "weights.pth"),
    )


def assert_within(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """1e-4 of each value, or 1e-4 of the root mean square for the values near zero."""
    scale = expected.square().mean().sqrt().item()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * scale)


@pytest.fixture(scope="module")
def net() -> InceptionV3:
    with torch.device("meta"):
        net = InceptionV3()
    net.load_state_dict(seeded_state(), assign=True)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("size", SIZES)
def test_matches_the_recorded_outputs_of_torch_fidelity(net, size):
    recorded = json.loads(DIGEST.read_text())["sizes"][str(size)]
    features, logits = net(seeded_images(size))
    outputs = {"features": features, "logits_unbiased": logits, "logits": logits + net.fc.bias}
    for name, values in outputs.items():
        assert_within(torch.tensor(digest(values)), torch.tensor(recorded[name]))


@pytest.mark.skipif(ORACLE is None, reason="TRILEMMA_TORCH_FIDELITY does not name torch-fidelity's folder")
def test_matches_torch_fidelity(net, tmp_path):
    reference = oracle(net.state_dict(), tmp_path)
    for size in SIZES:
        images = seeded_images(size)
        features, logits = net(images)
        expected_features, expected_unbiased, expected_logits = reference(images)
        assert_within(features, expected_features)
        assert_within(logits, expected_unbiased)
        assert_within(logits + net.fc.bias, expected_logits)


def test_activations_of_the_seeded_weights_are_sane(net):
    features, logits = net(seeded_images(32))
    assert 0.01 < features.std() < 100
    assert 0.01 < logits.std() < 100
    assert (features[0] - features[1]).abs().mean() > 0.01  # the two images are told apart


def test_state_has_the_names_and_number_of_the_published_file(net):
    state = net.state_dict()
    assert len(state) == 566
    assert state["fc.weight"].shape == (1008, 2048)
    assert {"Conv2d_1a_3x3.conv.weight", "Mixed_7c.branch3x3dbl_3b.bn.running_var"} <= state.keys()


def resize_by_loops(image: np.ndarray, size: int) -> np.ndarray:
    """The rule pixel by pixel in float64: src = dst * in / out, neighbours clamped to the image."""
    height, width = image.shape
    result = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            y, x = i * height / size, j * width / size
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            top = image[y0, x0] + (image[y0, x1] - image[y0, x0]) * (x - x0)
            bottom = image[y1, x0] + (image[y1, x1] - image[y1, x0]) * (x - x0)
            result[i, j] = top + (bottom - top) * (y - y0)
    return result


@pytest.mark.parametrize("shape", [(5, 5), (7, 4), (31, 40), (13, 13)])
def test_resize_is_the_written_rule(shape):
    image = np.floor(256 * np.random.default_rng(0).random(shape))
    resized = resize_tf1(torch.from_numpy(image).float()[None, None], 13)[0, 0]
    expected = torch.from_numpy(resize_by_loops(image, 13))
    torch.testing.assert_close(resized.double(), expected, rtol=0, atol=1e-3)


def test_resize_to_the_same_size_changes_nothing():
    image = torch.rand(1, 3, 9, 9)
    torch.testing.assert_close(resize_tf1(image, 9), image, rtol=0, atol=0)


@pytest.fixture
def no_weights(monkeypatch):
    monkeypatch.delenv(inception.WEIGHTS_VARIABLE, raising=False)
    return monkeypatch


def test_weights_load_by_path_variable_and_cache(net, no_weights, tmp_path):
    images = seeded_images(8)
    file = tmp_path / "cache" / inception.WEIGHTS_FILE
    file.parent.mkdir()
    torch.save(net.state_dict(), file)
    no_weights.setattr(inception, "WEIGHTS_SHA256", inception.file_sha256(file))
    loaded, sha256 = load_inception(None, tmp_path / "cache")
    assert sha256 == inception.file_sha256(file)
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), net.state_dict(), rtol=0, atol=0)
    # What is loaded may lie otherwise in memory, so that about 50 layers, float32's 1.2e-7 each, round
    # otherwise.
    for ours, theirs in zip(loaded(images), net(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))

    moved = file.rename(tmp_path / "elsewhere.pth")
    assert find_weights(str(moved), tmp_path) == moved
    no_weights.setenv(inception.WEIGHTS_VARIABLE, str(moved))
    assert find_weights(None, tmp_path / "cache") == moved


def test_tampered_weights_are_refused(no_weights, tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"not the network")
    hashes = f"{inception.file_sha256(file)}.*{inception.WEIGHTS_SHA256}"
    with pytest.raises(ValueError, match=rf"weights\.pth.*{hashes}"):
        load_inception(str(file), tmp_path)


def test_missing_file_is_named(no_weights, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--extractor_weights.*nowhere\.pth"):
        find_weights(str(tmp_path / "nowhere.pth"), tmp_path)
    no_weights.setenv(inception.WEIGHTS_VARIABLE, str(tmp_path / "nowhere.pth"))
    with pytest.raises(FileNotFoundError, match=inception.WEIGHTS_VARIABLE):
        find_weights(None, tmp_path / "cache")


def test_download_is_checked_and_kept_once(no_weights, tmp_path):
    source = tmp_path / "release.pth"
    source.write_bytes(b"weights")
    no_weights.setattr(inception, "WEIGHTS_URL", source.as_uri())
    no_weights.setattr(inception, "WEIGHTS_SHA256", inception.file_sha256(source))
    found = find_weights(None, tmp_path / "cache")
    assert found.read_bytes() == b"weights"
    source.unlink()
    assert find_weights(None, tmp_path / "cache") == found


def test_failed_downloads_name_the_ways_out_and_leave_nothing(no_weights, tmp_path):
    source = tmp_path / "release.pth"
    no_weights.setattr(inception, "WEIGHTS_URL", source.as_uri())
    ways = rf"--extractor_weights.*{inception.WEIGHTS_VARIABLE}.*{inception.WEIGHTS_FILE}.*classifier"
    with pytest.raises(RuntimeError, match=ways):
        find_weights(None, tmp_path / "cache")
    source.write_bytes(b"another file than the published one")
    with pytest.raises(RuntimeError, match=f"hash.*{ways}"):
        find_weights(None, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def record(folder: Path) -> None:
    state = seeded_state()
    reference = oracle(state, folder)
    sizes = {}
    for size in SIZES:
        features, unbiased, logits = reference(seeded_images(size))
        named = {"features": features, "logits_unbiased": unbiased, "logits": logits}
        sizes[size] = {
            name: [[float(f"{x:.7g}") for x in row] for row in digest(v)] for name, v in named.items()
        }
    source = "torch-fidelity 0.4.0, FeatureExtractorInceptionV3, float32 on CPU, weights seeded_state()"
    DIGEST.parent.mkdir(exist_ok=True)
    DIGEST.write_text(json.dumps({"oracle": source, "sizes": sizes}, indent=None) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        record(Path(folder))
