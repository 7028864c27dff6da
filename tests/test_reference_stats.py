"""Statistics files: what is written comes back, and what does not fit is refused by name."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close

from trilemma.eval.metrics.distances import FrechetDistance
from trilemma.eval.metrics.frechet import Gaussian, frechet_distance
from trilemma.eval.scoring.protocol import ReferenceProtocol
from trilemma.eval.scoring.reference import (
    ReferenceCollector,
    ReferenceStatistics,
    cache_path,
    load_reference,
)

PROTOCOL = ReferenceProtocol(
    "inception", "6726", "tf1-bilinear-299", "round", "cifar10", "train", "abc", False, 50
)


def features(n: int = 50) -> torch.Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(0))


def statistics(keep: int = 20) -> ReferenceStatistics:
    collector = ReferenceCollector(50, 4, num_classes=3, keep=keep)
    for index in torch.arange(50).split(7):
        part = features()[index]
        collector.update(index, part, part[:, :3])
    return collector.statistics(PROTOCOL)


def test_collector_measures_the_moments_and_keeps_a_nested_subset():
    stats, all_kept = statistics(), statistics(keep=1000)
    expected = Gaussian.of(features())
    assert_close(stats.gaussian.mean, expected.mean)
    assert_close(stats.gaussian.covariance, expected.covariance)
    assert stats.gaussian.n == 50
    assert_close(stats.class_counts, torch.bincount(features()[:, :3].argmax(1), minlength=3).double())
    assert_close(all_kept.features[:20], stats.features, rtol=0, atol=0)
    assert sorted(all_kept.features[:, 0].tolist()) == sorted(features()[:, 0].tolist())
    assert statistics(keep=0).features is None


def test_collector_of_one_feature():
    collector = ReferenceCollector(9, 1)
    collector.update(torch.arange(9), features(9)[:, :1])
    stats = collector.statistics(dataclasses.replace(PROTOCOL, n=9))
    assert_close(stats.gaussian.covariance[0, 0], features(9)[:, 0].double().var())
    assert stats.class_counts is None
    with pytest.raises(ValueError, match="n=50, but 9 images"):
        collector.statistics(PROTOCOL)


def test_own_file_returns_everything(tmp_path):
    stats = dataclasses.replace(statistics(), heldout=features(8))
    stats.save(tmp_path / "new" / "reference.safetensors")
    loaded = load_reference(tmp_path / "new" / "reference.safetensors")
    assert loaded.protocol == PROTOCOL
    assert loaded.gaussian.n == 50
    for ours, theirs in (
        (loaded.gaussian.mean, stats.gaussian.mean),
        (loaded.gaussian.covariance, stats.gaussian.covariance),
        (loaded.features, stats.features),
        (loaded.heldout, stats.heldout),
        (loaded.class_counts, stats.class_counts),
    ):
        assert_close(ours, theirs, rtol=0, atol=0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["reference.safetensors"]


@pytest.mark.parametrize("field", dataclasses.fields(ReferenceProtocol), ids=lambda field: field.name)
def test_another_protocol_is_refused_by_field(field):
    stats = statistics()
    stats.check(PROTOCOL)
    changed = {"flips": True, "n": 49}.get(field.name, "other")
    with pytest.raises(ValueError, match=field.name) as error:
        stats.check(dataclasses.replace(PROTOCOL, **{field.name: changed}))
    assert repr(changed) in str(error.value)
    assert repr(dataclasses.asdict(PROTOCOL)[field.name]) in str(error.value)


def test_cache_path_depends_on_all_of_the_protocol(tmp_path):
    paths = {cache_path(tmp_path, PROTOCOL, 0), cache_path(tmp_path, PROTOCOL, 10)}
    for field in dataclasses.fields(ReferenceProtocol):
        changed = {"flips": True, "n": 49}.get(field.name, "other")
        paths.add(cache_path(tmp_path, dataclasses.replace(PROTOCOL, **{field.name: changed}), 0))
    assert len(paths) == 2 + len(dataclasses.fields(ReferenceProtocol))
    assert cache_path(tmp_path, PROTOCOL, 0) in paths


def test_npz_is_that_of_other_tools(tmp_path):
    """{mu, sigma} as pytorch-fid writes it; without a count there is a distance and no floor."""
    path, x = tmp_path / "theirs.npz", features().double().numpy()
    np.savez(path, mu=x.mean(0), sigma=np.cov(x, rowvar=False))
    loaded = load_reference(path)
    assert loaded.protocol is None
    assert frechet_distance(loaded.gaussian, Gaussian.of(features())) == 0.0
    loaded.check(PROTOCOL)
    metric = FrechetDistance(loaded, 30)
    metric.update(torch.arange(30), features(30))
    assert metric.compute()["fd"].floor is None
    assert load_reference(path, n=50).gaussian.n == 50
    with pytest.raises(ValueError, match=r"only be written as \.npz"):
        loaded.save(tmp_path / "copy.safetensors")
    statistics().save_npz(tmp_path / "ours.npz")
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as ours:
        np.testing.assert_allclose(ours["mu"], x.mean(0), atol=1e-12)
        np.testing.assert_allclose(ours["sigma"], np.cov(x, rowvar=False), atol=1e-12)
    single = tmp_path / "single.npz"
    np.savez(single, mu=x.mean(0).astype(np.float32), sigma=np.cov(x, rowvar=False).astype(np.float32))
    assert_close(load_reference(single).gaussian.covariance, loaded.gaussian.covariance, rtol=1e-5, atol=1e-6)


MU, SIGMA = np.zeros(4), np.eye(4)
SKEWED = np.where(np.arange(16).reshape(4, 4) == 1, 0.5, SIGMA)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": MU}, "no array named 'sigma'"),
        ({"mean": MU, "cov": SIGMA}, "no array named 'mu' or 'sigma'"),
        ({"mu": MU[:3], "sigma": SIGMA}, r"got \(3,\) and \(4, 4\)"),
        ({"mu": SIGMA, "sigma": SIGMA}, "must have shapes"),
        ({"mu": MU * np.nan, "sigma": SIGMA}, "not finite"),
        ({"mu": MU, "sigma": SIGMA + np.inf}, "not finite"),
        ({"mu": MU, "sigma": SKEWED}, "not symmetric"),
        ({"mu": MU, "sigma": -SIGMA}, "negative variance"),
        ({"mu": np.array([object()]), "sigma": SIGMA}, "never read"),
        ({"mu": np.array(["a", "b"]), "sigma": SIGMA}, "not an .npz of plain arrays"),
    ],
)
def test_bad_npz_is_refused(tmp_path, arrays, message):
    path = tmp_path / "bad.npz"
    np.savez(path, allow_pickle=True, **arrays)
    with pytest.raises(ValueError, match=message) as error:
        load_reference(path)
    assert "bad.npz" in str(error.value)


class Boom:
    """Pickled, it would run code on loading."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


@pytest.mark.parametrize("content", [pickle.dumps(Boom()), b"", b"PK\x03\x04 cut off", b"text"])
def test_files_that_are_no_npz_are_refused_and_never_run(tmp_path, content):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not an .npz of plain arrays"):
        load_reference(path)


def test_files_that_are_not_ours_are_refused(tmp_path):
    path = tmp_path / "reference.safetensors"
    with pytest.raises(FileNotFoundError, match="no statistics file"):
        load_reference(path)
    statistics().save(path)
    with pytest.raises(ValueError, match="statistics of 50 images; got n=7"):
        load_reference(path, n=7)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="not a whole"):
        load_reference(path)
    save_file({"mean": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="is not a trilemma-reference-1 file"):
        load_reference(path)
    other = tmp_path / "reference.pkl"
    other.write_bytes(whole)
    with pytest.raises(ValueError, match=r"ends in \.safetensors or \.npz; got 'reference.pkl'"):
        load_reference(other)
