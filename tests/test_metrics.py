"""The metrics against closed forms, scipy, torchmetrics, dense derivations, simulation and other shards."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.testing import assert_close
from torchmetrics.image.inception import InceptionScore as TorchmetricsInceptionScore
from torchmetrics.image.kid import poly_mmd

from trilemma.eval.metrics import frechet, pairs
from trilemma.eval.metrics.build import build_metrics
from trilemma.eval.metrics.distances import FrechetDistance
from trilemma.eval.metrics.frechet import (
    BLOCKS,
    Gaussian,
    block_of,
    frechet_distance,
    frechet_floor,
    jackknife,
)
from trilemma.eval.metrics.pairwise import kernel_distance, manifolds, nearest
from trilemma.eval.metrics.sample_metric import Measurement, block_interval, share_interval
from trilemma.eval.metrics.table import ALL_IMAGES, METRICS
from trilemma.eval.scoring.protocol import ReferenceProtocol
from trilemma.eval.scoring.reference import ReferenceCollector, ReferenceStatistics
from trilemma.training.loop.machine import closing_groups

D, K, HELDOUT = 6, 4, 160
Results = dict[str, Measurement]
OF_SAMPLES = tuple(name for name, row in METRICS.items() if row.needs != ("model",))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def gaussian(dimension: int, seed: int, n: int | None = None) -> Gaussian:
    mixing = normal(dimension, dimension, seed=seed)
    return Gaussian(normal(dimension, seed=seed + 100), mixing @ mixing.T / dimension, n)


def scipy_distance(a: Gaussian, b: Gaussian) -> float:
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy())
    means = (a.mean - b.mean).square().sum()
    return float(means + a.covariance.trace() + b.covariance.trace()) - 2 * float(np.trace(root).real)


def logits_of(features: torch.Tensor) -> torch.Tensor:
    return features @ torch.randn(features.shape[1], K, generator=rng(7), dtype=features.dtype)


def reference_of(features: torch.Tensor, heldout: torch.Tensor | None = None) -> ReferenceStatistics:
    collector = ReferenceCollector(len(features), features.shape[1], K, keep=ALL_IMAGES)
    for index in torch.arange(len(features)).split(37):
        collector.update(index, features[index], logits_of(features[index]))
    protocol = ReferenceProtocol("pixels", None, "none", "uint8", "toy", "train", "0", False, len(features))
    labels = (torch.arange(len(features)) % K)[collector.subset.members]
    return dataclasses.replace(collector.statistics(protocol), heldout=heldout, labels=labels)


def toy_reference() -> ReferenceStatistics:
    """With held-out images for three cells of `ct`."""
    return reference_of(normal(300, D, seed=1).float(), heldout=normal(HELDOUT, D, seed=2).float())


def toy_samples(n: int = 101) -> torch.Tensor:
    return (normal(n, D, seed=3) * 1.2 + 0.1).float()


def feed(metrics: dict, samples: torch.Tensor, indices: list[torch.Tensor]) -> None:
    """Score the samples of each batch of indices with every metric."""
    for index in indices:
        logits = logits_of(samples[index])
        batch = {"features": samples[index], "logits": logits, "labels": index % K}
        for name, metric in metrics.items():
            metric.update(index, *(batch[need] for need in METRICS[name].needs))


def score(reference: ReferenceStatistics, samples: torch.Tensor, names=OF_SAMPLES, batch=64) -> Results:
    metrics = build_metrics(names, reference, len(samples))
    feed(metrics, samples, list(torch.arange(len(samples)).split(batch)))
    return {name: value for metric in metrics.values() for name, value in metric.compute().items()}


def assert_same(actual: Results, expected: Results) -> None:
    """The same measures and terms, and all fields of each: n, value, interval, floor and debiased value."""
    assert actual.keys() == expected.keys()
    for name, theirs in expected.items():
        assert actual[name].n == theirs.n
        for field, ours, other in zip(theirs._fields, actual[name], theirs, strict=True):
            assert (ours is None) == (other is None), f"{name}: {field}"
            if other is not None:
                where = f"{field} of {name}"
                assert_close(
                    ours, other, rtol=1e-9, atol=1e-9, msg=lambda text, where=where: f"{where}: {text}"
                )


# The Frechet distance


def test_distance_is_the_closed_form_where_covariances_commute():
    rotation = torch.linalg.qr(normal(20, 20)).Q
    l1, l2 = torch.linspace(0.1, 3, 20).double(), torch.linspace(2, 0.01, 20).double()
    m1, m2 = normal(20, seed=1), normal(20, seed=2)
    a, b = Gaussian(m1, rotation * l1 @ rotation.T), Gaussian(m2, rotation * l2 @ rotation.T)
    expected = (m1 - m2).square().sum() + (l1.sqrt() - l2.sqrt()).square().sum()
    assert_close(frechet_distance(a, b), float(expected), rtol=1e-10, atol=0)


@pytest.mark.parametrize("dimension", [1, 3, 64])
def test_distance_is_that_of_scipys_root(dimension):
    a, b = gaussian(dimension, 0), gaussian(dimension, 1)
    expected = scipy_distance(a, b)
    assert_close(frechet_distance(a, b), expected, rtol=1e-6, atol=1e-6)
    assert_close(frechet_distance(b, a), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("n1", "n2"), [(10, 500), (500, 10), (10, 12), (40, 500), (60, 64), (2, 2)])
def test_distance_of_fewer_samples_than_features(n1, n2):
    """The trace of the root is the sum of the singular values of the cross product of centred features."""
    x, y = normal(n1, 64, seed=1), normal(n2, 64, seed=2) @ normal(64, 64, seed=3) / 8 + 1
    centred = [(z - z.mean(0)) / math.sqrt(len(z) - 1) for z in (x, y)]
    expected = (x.mean(0) - y.mean(0)).square().sum() + sum(z.square().sum() for z in centred)
    expected -= 2 * torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    assert_close(frechet_distance(Gaussian.of(x), Gaussian.of(y)), float(expected), rtol=1e-7, atol=1e-7)


def test_distance_of_singular_covariances():
    """Constant features count through their mean only, with or without a known number of samples."""
    x, y = normal(200, 8, seed=1), normal(300, 8, seed=2) * 1.5
    expected = frechet_distance(Gaussian.of(x), Gaussian.of(y))
    pad = [torch.cat([z, torch.full((len(z), 5), value)], 1) for z, value in ((x, 3.0), (y, 5.0))]
    spin = torch.linalg.qr(normal(13, 13, seed=3)).Q
    a, b = (Gaussian.of(z @ spin) for z in pad)
    assert_close(frechet_distance(a, b), expected + 5 * 4, rtol=1e-6, atol=1e-6)
    unknown = Gaussian(a.mean, a.covariance), Gaussian(b.mean, b.covariance)
    assert_close(frechet_distance(*unknown), expected + 5 * 4, rtol=1e-6, atol=1e-6)
    nothing = Gaussian(torch.zeros(13).double(), torch.zeros(13, 13).double(), 7)
    assert frechet_distance(nothing, nothing) == 0.0
    trace = float(a.covariance.trace() + a.mean.square().sum())
    assert_close(frechet_distance(a, nothing), trace, rtol=1e-9, atol=0)


@pytest.mark.parametrize("n", [5, 20, 40, 64, 65, 400])
def test_identical_sets_are_at_distance_zero(n):
    x = normal(n, 64, seed=1) * torch.logspace(1, -4, 64).double() + 50
    assert frechet_distance(Gaussian.of(x), Gaussian.of(x.flip(0))) == 0.0
    streamed = score(reference_of(x.float()), x.float(), ("fd",), batch=7)["fd"]
    assert streamed.value == 0.0
    assert streamed.interval is None or 0 <= streamed.interval[0] <= streamed.interval[1] < math.inf


def test_large_means_cost_no_digits():
    """Sums are taken relative to the reference's mean: around 1e6 a spread of 1 keeps its covariance."""
    x, y = normal(500, 5, seed=1), normal(400, 5, seed=2) * 2
    distance = score(reference_of(x.float()), y.float(), ("fd",))["fd"].value
    offset = Gaussian(Gaussian.of(x.float()).mean + 2.0**20, Gaussian.of(x.float()).covariance, 500)
    metric = FrechetDistance(ReferenceStatistics(offset, None), 400)
    metric.update(torch.arange(400), y.float().double() + 2.0**20)
    assert_close(metric.compute()["fd"].value, distance, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dimension", [1, 5, 128, 129, 300])
def test_packing_is_lossless(dimension):
    rows = normal(2, 9, dimension)
    packed = torch.zeros(2, frechet.packed_size(dimension), dtype=torch.float64)
    for block in range(2):
        for part in rows[block].split(4):
            frechet.add_outer_(packed[block], part)
    weights = torch.tensor([1.0, 0.0]).double()
    assert_close(frechet.unpack(packed, weights, dimension), rows[0].T @ rows[0])
    assert_close(frechet.unpack(packed, weights + 1 - weights, dimension), sum(x.T @ x for x in rows))


def test_floor_is_what_two_samples_of_one_gaussian_score():
    scale = torch.logspace(0, -1, 32).double()
    observed = []
    for seed in range(30):
        x, y = normal(5000, 32, seed=seed) * scale, normal(6000, 32, seed=seed + 1000) * scale
        observed.append(frechet_distance(Gaussian.of(x), Gaussian.of(y)))
    exact = Gaussian(torch.zeros(32).double(), torch.diag(scale**2), 6000)
    assert_close(frechet_floor(exact, 5000), float(np.mean(observed)), rtol=0.05, atol=0)
    assert frechet_floor(Gaussian(exact.mean, exact.covariance), 5000) is None


# The interval


def test_students_quantile():
    assert_close(frechet.T_QUANTILE, float(scipy.stats.t.ppf(0.975, BLOCKS - 1)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("n", [80, 1000, 5003, 50_000])
def test_blocks_are_even_and_blind_to_periods(n):
    block = block_of(torch.arange(n), n)
    sizes = torch.bincount(block, minlength=BLOCKS)
    assert sizes.min() >= 0.6 * n / BLOCKS
    assert sizes.max() <= 1.4 * n / BLOCKS
    if n >= 5000:  # neither cycling labels nor a sorted folder ends up in few blocks
        for labels in (torch.arange(n) % 10, torch.arange(n) * 10 // n):
            table = torch.stack([torch.bincount(block[labels == c], minlength=BLOCKS) for c in range(10)])
            assert table.min() >= 0.3 * n / 100
            assert table.max() <= 2.0 * n / 100


def test_jackknife_of_a_mean_is_students_interval():
    x = normal(200, seed=4)
    parts = x.split(20)
    means = torch.stack([part.mean() for part in parts])
    without = [float((x.sum() - part.sum()) / 180) for part in parts]
    low, high = scipy.stats.t.interval(0.95, BLOCKS - 1, loc=means.mean(), scale=means.std() / BLOCKS**0.5)
    for halves in (None, (float(means[0::2].mean()), float(means[1::2].mean()))):
        interval = jackknife(float(x.mean()), [20] * BLOCKS, without, halves)
        assert_close(interval, (float(low), float(high)), rtol=1e-5, atol=1e-6)


def test_jackknife_removes_a_bias_of_two_orders():
    """1/n and 1/n^2 go exactly, whatever the sizes of the blocks; without the halves the 1/n does."""
    sizes = [10, 12, 9, 10, 11, 10, 8, 10, 10, 10]
    n, even = sum(sizes), sum(sizes[0::2])

    def first(n: float) -> float:
        return 3 + 5 / n

    low, high = jackknife(first(n), sizes, [first(n - size) for size in sizes])
    assert_close((low + high) / 2, 3.0, rtol=1e-9, atol=0)

    def second(n: float) -> float:
        return 3 + 5 / n + 40 / n**2

    equal = [10] * BLOCKS
    low, high = jackknife(second(100), equal, [second(90)] * BLOCKS, (second(50), second(50)))
    assert_close((low + high) / 2, 3.0, rtol=1e-9, atol=0)
    low, high = jackknife(first(n), sizes, [first(n - s) for s in sizes], (first(even), first(n - even)))
    assert_close((low + high) / 2, 3.0, rtol=1e-9, atol=0)


def coverage(dimension: int, n: int, repetitions: int) -> tuple[float, float]:
    """How often the interval, and its width about the raw value, hold the distance of the distributions."""
    scale = torch.logspace(0, -1, dimension).double()
    reference = Gaussian.of(normal(4 * n, dimension, seed=1) * scale)
    mixing = torch.eye(dimension).double() + 0.1 * normal(dimension, dimension, seed=2) / dimension**0.5
    mixing, mean = mixing * scale, 0.05 * normal(dimension, seed=3)
    truth = frechet_distance(Gaussian(mean, mixing.T @ mixing), reference)
    block = torch.nn.functional.one_hot(block_of(torch.arange(n), n), BLOCKS).double()
    held = raw = 0
    for seed in range(repetitions):
        samples = normal(n, dimension, seed=seed + 10) @ mixing + mean

        def value(kept: torch.Tensor, samples: torch.Tensor = samples) -> float:
            return frechet_distance(Gaussian.of(samples[(block @ kept) > 0]), reference)

        everything = value(torch.ones(BLOCKS).double())
        low, high = block_interval(everything, block.sum(0), value, second_order=True)
        held += low <= truth <= high
        raw += abs(everything - truth) <= (high - low) / 2
    return held / repetitions, raw / repetitions


@pytest.mark.long
def test_interval_covers_where_the_raw_value_does_not():
    held, raw = coverage(16, 500, 60)
    assert held >= 0.85
    assert raw <= 0.5


@pytest.mark.slow
def test_interval_coverage():
    held, _ = coverage(64, 5000, 200)
    assert 0.90 <= held <= 0.99


def test_interval_of_a_share():
    expected = scipy.stats.binomtest(37, 50).proportion_ci(0.95, "wilson")
    assert_close(share_interval(37 / 50, 50), (expected.low, expected.high), rtol=1e-6, atol=0)


def test_a_share_of_none_or_all_lies_in_its_interval():
    """Rounding once gave 200 right of 200 the interval up to 1 - 1e-16, and so another value than 1."""
    for n in range(1, 2000):
        assert share_interval(1.0, n)[1] == 1
        assert share_interval(0.0, n)[0] == 0


# The other metrics


def test_the_reference_s_own_pairs_are_summed_once(monkeypatch):
    """In all evaluations of a training; a copy with other features starts anew."""
    summed, original = [], pairs.sum_within
    monkeypatch.setattr(pairs, "sum_within", lambda *given: summed.append(1) or original(*given))
    reference, rows = toy_reference(), toy_samples(300)
    block = torch.arange(300) % BLOCKS
    first, second = (pairs.measure_kid(rows, block, reference)["kid"] for _ in range(2))
    assert (first, len(summed)) == (second, 1)
    fewer = dataclasses.replace(reference, features=reference.features[:200])
    other = pairs.measure_kid(rows, block, fewer)["kid"]
    assert len(summed) == 2
    assert other.value != first.value


def float32_error(real, fake):
    """What float32 can change in the kernel distance: four terms, each of the slope of (p + 1)^3 times the
    error of a product of rows from their mean, D roundings of |u| |v| at most, over D."""
    centred = torch.cat([real, fake]).double() - real.double().mean(0)
    largest = torch.cat([real, fake]).double().square().sum(1).max() / real.shape[1]
    rounding = torch.finfo(torch.float32).eps * centred.square().sum(1).max()
    return float(4 * 3 * (largest + 1) ** 2 * rounding)


@pytest.mark.parametrize("mean", [0, 100])
def test_kid_of_float32_rows_loses_nothing_by_a_large_mean(mean):
    """Products of whole rows would: relative to D mean^2, float32 leaves nothing of a distance near 0."""
    real, fake = normal(200, 64, seed=1).float() + mean, normal(150, 64, seed=2).float() + mean
    member = torch.nn.functional.one_hot(torch.arange(150) % BLOCKS, BLOCKS)
    rounded = kernel_distance(real, fake, member)(torch.ones(BLOCKS))
    exact = kernel_distance(real.double(), fake.double(), member)(torch.ones(BLOCKS))
    # Errors average out over the pairs: far below the bound for one of them.
    assert abs(rounded - exact) < float32_error(real, fake) / 100


def test_kid_is_torchmetrics_estimator_over_all_pairs():
    reference, fake = toy_reference(), toy_samples(300)
    real = reference.features
    result = score(reference, fake, ("kid",))["kid"]
    expected = float(poly_mmd(real.double(), fake.double()))
    assert_close(result.value, expected, rtol=0, atol=float32_error(real, fake))
    assert result.interval[0] < result.value < result.interval[1]
    # torchmetrics takes sets of equal size: 300 samples less two blocks are 240. float64 stays float64.
    block = torch.arange(300) % BLOCKS
    distance = kernel_distance(real[:240].double(), fake.double(), torch.nn.functional.one_hot(block, BLOCKS))
    kept = torch.ones(BLOCKS)
    kept[[2, 5]] = 0
    expected = float(poly_mmd(real[:240].double(), fake[kept[block] > 0].double()))
    assert_close(distance(kept), expected, rtol=1e-10, atol=1e-12)


class Identity(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore`", "ignore:std")
def test_inception_score_is_the_mean_over_the_blocks():
    samples = toy_samples(203)
    block = block_of(torch.arange(203), 203)
    scores = []
    for number in range(BLOCKS):
        oracle = TorchmetricsInceptionScore(feature=Identity(), splits=1)
        oracle.update(logits_of(samples[block == number]))
        scores.append(float(oracle.compute()[0]))
    results = score(toy_reference(), samples, ("is",))
    assert_close(results["is"].value, float(np.mean(scores)), rtol=1e-5, atol=0)
    assert_close(results["is_std"].value, float(np.std(scores)), rtol=1e-3, atol=0)


def test_precision_recall_density_coverage_are_their_definitions():
    real, fake = normal(70, 3, seed=1).numpy(), normal(90, 3, seed=2).numpy() * 1.3 + 0.2

    def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))

    def radius(x: np.ndarray, k: int) -> np.ndarray:
        return np.sort(distances(x, x), axis=1)[:, k]

    across = distances(real, fake)
    inside = across <= radius(real, 5)[:, None]
    expected = {
        "precision": (across <= radius(real, 3)[:, None]).any(0).mean(),
        "recall": (across <= radius(fake, 3)[None]).any(1).mean(),
        "density": inside.sum() / (5 * 90),
        "coverage": inside.any(1).mean(),
    }
    result = score(reference_of(torch.from_numpy(real)), torch.from_numpy(fake), ("prdc",))
    assert {name: each.value for name, each in result.items()} == pytest.approx(expected, abs=1e-12)
    same = score(reference_of(torch.from_numpy(real)), torch.from_numpy(real), ("prdc",))
    assert [same[name].value for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    assert same["coverage"].interval[1] == 1


@pytest.mark.long
@pytest.mark.parametrize("name", ["precision", "density", "coverage"])
def test_intervals_of_the_shares_hold_what_other_samples_score(name):
    """The mean over many sets lies in 95% of the intervals."""
    reference, n = reference_of(normal(200, 3, seed=1)), 200
    sets = [normal(n, 3, seed=seed) * 1.2 + 0.2 for seed in range(10, 90)]
    measured = [score(reference, samples, ("prdc",))[name] for samples in sets]
    truth = np.mean([each.value for each in measured])
    held = np.mean([each.interval[0] <= truth <= each.interval[1] for each in measured])
    assert held >= 0.88
    widths = np.mean([(each.interval[1] - each.interval[0]) / 2 for each in measured])
    assert widths <= 3 * np.std([each.value for each in measured])


def test_chunks_change_nothing(monkeypatch):
    real, fake = normal(70, 3, seed=1), normal(90, 3, seed=2)
    member = torch.nn.functional.one_hot(torch.arange(90) % BLOCKS, BLOCKS)

    def everything() -> tuple:
        kid = kernel_distance(real, fake, member)(torch.ones(BLOCKS))
        return *manifolds(real, fake, member), kid, nearest(fake, real)

    whole = everything()
    monkeypatch.setattr("trilemma.eval.metrics.pairwise.CHUNK", 13)
    parts = everything()
    assert_close(whole, parts)
    assert_close(whole[-1], torch.cdist(fake, real).min(1).values)


@pytest.mark.parametrize("mean", [0, 1000])
def test_distances_of_equal_rows_are_equal_and_of_copies_zero(mean):
    """Else rounding, which depends on where a row stands, would decide what lies nearer."""
    real, rows = (normal(n, 64, seed=n).float() + mean for n in (1100, 700))
    order = torch.randperm(700, generator=rng(3))
    found = nearest(rows, real)
    assert torch.equal(nearest(rows[order], real), found[order])
    assert torch.equal(nearest(rows[:1], real), found[:1])
    assert nearest(real[order], real).max() == 0
    exact = torch.cdist(rows.double(), real.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert_close(found, exact.min(1).values, rtol=1e-12, atol=0)


def test_memorization_tells_copies_from_new_images():
    reference = toy_reference()
    fresh = score(reference, normal(200, D, seed=9).float(), ("memorization",))
    assert fresh["copying"].value == pytest.approx(0.5, abs=0.1)
    copies = score(reference, reference.features[:200], ("memorization",))
    assert copies["copying"].value == 1.0
    assert copies["nearest_p50"].value == 0 < copies["nearest_p50_heldout"].value
    assert score(reference, reference.heldout, ("memorization",))["copying"].value == pytest.approx(0.5)
    far = score(reference, normal(200, D, seed=9).float() + 20, ("memorization",))
    assert far["copying"].value == 0.0


def test_diversity_is_a_ratio_of_mean_squared_distances():
    samples, reference = toy_samples(), toy_reference()

    def spread(x: torch.Tensor) -> float:
        return float(torch.pdist(x.double()).square().mean())

    result = score(reference, samples, ("diversity",))["diversity"]
    assert_close(result.value, spread(samples) / spread(reference.features), rtol=1e-10, atol=0)
    assert result.interval[0] < result.value < result.interval[1]
    assert score(reference, samples[:1].repeat(50, 1), ("diversity",))["diversity"].value == pytest.approx(0)


def test_class_accuracy_and_modes_count():
    reference = dataclasses.replace(toy_reference(), class_counts=torch.tensor([50.0, 50, 100, 0]).double())
    metrics = build_metrics(("class_accuracy", "modes"), reference, 8)
    predicted = torch.tensor([0, 0, 0, 0, 0, 0, 2, 2])
    logits = 10.0 * torch.nn.functional.one_hot(predicted, K)
    logits[0] = torch.tensor([1.0, 0, 0, 0])
    metrics["class_accuracy"].update(torch.arange(8), logits, torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]))
    metrics["modes"].update(torch.arange(8), logits)
    accuracy, modes = metrics["class_accuracy"].compute()["class_accuracy"], metrics["modes"].compute()
    assert accuracy.value == 0.75
    assert (modes["modes"].value, modes["modes"].floor) == (2, 3)
    expected = 0.75 * math.log(0.75 / (50.5 / 202)) + 0.25 * math.log(0.25 / (100.5 / 202))
    assert modes["modes_kl"].value == pytest.approx(expected)
    assert modes["confident_share"].value == 7 / 8
    sure, unsure = math.exp(10) / (math.exp(10) + 3), math.e / (math.e + 3)
    assert modes["confidence"].value == pytest.approx((7 * sure + unsure) / 8)


def test_worse_images_score_worse():
    """Pixels of digits: unseen ones, then blurred ones, then noise."""
    with np.load(Path(__file__).parent.parent / "training" / "images" / "digits.npz") as file:
        images = torch.from_numpy(file["images"]).double().reshape(-1, 1, 8, 8)
    images = images[torch.randperm(len(images), generator=rng(5))]
    train, unseen = images[:1000], images[1000:1700]
    blurred = torch.nn.functional.avg_pool2d(unseen, 3, 1, 1, count_include_pad=False)
    noise = torch.rand(unseen.shape, generator=rng(6), dtype=torch.float64) * images.max()
    reference = reference_of(train.flatten(1).float())
    names = ("fd", "kid", "prdc", "diversity")
    good, worse, worst = (score(reference, x.flatten(1).float(), names) for x in (unseen, blurred, noise))
    for name in ("fd", "kid"):
        assert good[name].value < worse[name].value < worst[name].value
        assert good[name].interval[1] < worse[name].interval[0]
    assert good["coverage"].value > worse["coverage"].value > worst["coverage"].value
    assert good["diversity"].value > worse["diversity"].value
    assert good["fd"].value < 2 * good["fd"].floor


# Counting samples

SHARDED = 211


@pytest.fixture(scope="module")
def whole() -> Results:
    """Enough samples for an interval of each class, and for more than one cell."""
    return score(toy_reference(), toy_samples(SHARDED))


def test_the_sharded_set_has_cells_and_intervals_of_classes(whole):
    assert whole["ct"].value != pytest.approx(whole["ct_worst"].value)
    assert all(whole[f"{k}_class_energy"].interval for k in range(K))
    assert whole["class_energy"].interval
    assert None not in whole["fd"]  # floor and debiased value included


def test_order_and_batches_change_nothing(whole):
    samples = toy_samples(SHARDED)
    metrics = build_metrics(OF_SAMPLES, toy_reference(), len(samples))
    order = torch.randperm(len(samples), generator=rng(3))
    feed(metrics, samples, [order[:1], order[1:1], order[1:50], order[50:]])
    assert_same({k: v for m in metrics.values() for k, v in m.compute().items()}, whole)
    for metric in metrics.values():
        metric.reset()
    feed(metrics, samples, [order])
    assert_same({k: v for m in metrics.values() for k, v in m.compute().items()}, whole)


SHARDS = {
    1: [torch.arange(SHARDED)],
    2: [torch.arange(0, 130), torch.arange(130, SHARDED)],
    3: [torch.arange(0, SHARDED, 2), torch.arange(1, SHARDED, 2), torch.arange(0)],
}


def score_shards(rank: int, folder: str) -> None:
    """In a process of its own, which keeps nothing of its groups."""
    with closing_groups():
        _score_shards(rank, folder)


def _score_shards(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
    groups = {1: dist.new_group([0]), 2: dist.new_group([0, 1]), 3: dist.group.WORLD}
    reference, samples = toy_reference_sharded(rank), toy_samples(SHARDED)
    for world, shards in SHARDS.items():
        if rank < world:
            metrics = build_metrics(OF_SAMPLES, reference, len(samples))
            for metric in metrics.values():
                metric.process_group = groups[world]
            if len(shards[rank]):
                feed(metrics, samples, list(shards[rank].split(23)))
            results = {k: v for m in metrics.values() for k, v in m.compute().items()}
            torch.save({k: tuple(v) for k, v in results.items()}, f"{folder}/{world}-{rank}.pt")
    if rank == 0:
        doubled = FrechetDistance(reference, 10)
        doubled.process_group = groups[2]
        doubled.update(torch.arange(10), samples[:10])
    if rank == 1:
        doubled = FrechetDistance(reference, 10)
        doubled.process_group = groups[2]
        doubled.update(torch.arange(3), samples[:3])
    if rank < 2:
        with pytest.raises(ValueError, match=r"3 of 10 samples were not scored exactly once.*scored 2 times"):
            doubled.compute()
    dist.barrier()


def toy_reference_sharded(rank: int) -> ReferenceStatistics:
    features, heldout = normal(300, D, seed=1).float(), normal(HELDOUT, D, seed=2).float()
    collector = ReferenceCollector(300, D, K, keep=ALL_IMAGES)
    index = torch.arange(rank, 300, 3)
    collector.update(index, features[index], logits_of(features[index]))
    protocol = ReferenceProtocol("pixels", None, "none", "uint8", "toy", "train", "0", False, 300)
    labels = (torch.arange(300) % K)[collector.subset.members]
    return dataclasses.replace(collector.statistics(protocol), heldout=heldout, labels=labels)


@pytest.mark.distributed
def test_shards_change_nothing(tmp_path, whole):
    """One to three processes, uneven, the last with nothing; a sample that two scored is an error."""
    torch.multiprocessing.spawn(score_shards, (str(tmp_path),), nprocs=3)
    for world in SHARDS:
        for rank in range(world):
            results = torch.load(tmp_path / f"{world}-{rank}.pt")
            assert_same({k: Measurement(*v) for k, v in results.items()}, whole)


def test_cmmd_is_its_definition():
    """All pairs of features of length 1, in numpy."""
    reference, fake = toy_reference(), toy_samples(90)
    x, y = (rows.double().numpy() for rows in (reference.features, fake))
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))

    def mean(a, b):
        kernel = np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * 10**2))
        return kernel[~np.eye(len(a), dtype=bool)].mean() if a is b else kernel.mean()

    result = score(reference, fake, ("cmmd",))["cmmd"]
    # Kernels of nearly 1000 are added up: what is left of 16 digits.
    assert_close(result.value, 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)), rtol=1e-8, atol=1e-9)
    assert result.interval[0] < result.value < result.interval[1]
    longer = score(reference_of(reference.features * 7), fake * 3, ("cmmd",))["cmmd"]
    assert_close(longer.value, result.value, rtol=1e-4, atol=1e-6)  # float32 features


def test_distances_of_classes_are_those_of_their_images_alone():
    reference, fake = toy_reference(), toy_samples(240)
    results = score(reference, fake, ("class_energy",))
    each = []
    for k in range(K):
        alone = reference_of(reference.features[reference.labels == k])
        own = results[f"{k}_class_energy"]
        expected = score(alone, fake[k::K], ("energy",))["energy"]
        assert_close(own.value, expected.value, rtol=1e-9, atol=1e-9)
        assert (own.n, own.floor) == (60, 0.0)
        each.append(own)
    whole = results["class_energy"]
    assert_close(whole.value, sum(own.value for own in each) / K, rtol=1e-12, atol=0)
    # Classes are independent, and so their variances add up: of 20 blocks of three, to 60% or better.
    widths = [(own.interval[1] - own.interval[0]) for own in each]
    expected = sum(width**2 for width in widths) ** 0.5 / K
    assert whole.interval[1] - whole.interval[0] == pytest.approx(expected, rel=0.6)


def test_a_class_that_draws_another_s_images_is_found():
    """The whole set is as before, and so is its distance: only the classes tell."""
    reference = toy_reference()
    shift = 4.0 * torch.eye(D)[:K][reference.labels]
    shifted = dataclasses.replace(reference, features=reference.features + shift)
    fake = normal(400, D, seed=3).float() + 4.0 * torch.eye(D)[torch.arange(400) % K]
    swapped = fake.clone()
    swapped[0::K], swapped[1::K] = fake[1::K], fake[0::K]
    good, bad = (score(shifted, samples, ("energy", "class_energy")) for samples in (fake, swapped))
    assert_close(good["energy"].value, bad["energy"].value, rtol=1e-6, atol=1e-6)
    for k in range(K):
        changed = bad[f"{k}_class_energy"].interval[0] > good[f"{k}_class_energy"].interval[1]
        assert changed == (k < 2)


def test_classes_without_images_are_left_out_or_named():
    reference = toy_reference()
    only = dataclasses.replace(reference, labels=reference.labels.clamp_max(1))
    assert score(only, toy_samples(80), ("class_energy",)).keys() == {
        "class_energy", "0_class_energy", "1_class_energy",
    }  # fmt: skip
    none = dataclasses.replace(reference, labels=reference.labels + 100)
    with pytest.raises(ValueError, match="two samples and two reference images of a class"):
        score(none, toy_samples(80), ("class_energy",))
    with pytest.raises(ValueError, match="--metrics class_energy needs the classes of the reference"):
        score(dataclasses.replace(reference, labels=None), toy_samples(80), ("class_energy",))


def test_sums_stay_float64():
    metrics = build_metrics(OF_SAMPLES, toy_reference(), 101)
    module = torch.nn.ModuleList(metrics.values()).half().float().to("cpu").bfloat16()
    feed(metrics, toy_samples(), [torch.arange(101)])
    for metric in module:
        for name, state in metric.metric_state.items():
            assert state.dtype == (torch.float32 if name == "rows" else torch.float64)


def test_miscounted_samples_are_errors():
    reference, samples = toy_reference(), toy_samples(10)
    metric = FrechetDistance(reference, 10)
    with pytest.raises(ValueError, match=r"must lie in 0\.\.9"):
        metric.update(torch.arange(1, 11), samples)
    metric.update(torch.arange(9), samples[:9])
    with pytest.raises(ValueError, match=r"1 of 10 samples.*sample 9, scored 0 times"):
        metric.compute()
    metric.update(torch.tensor([9, 9]), samples[:2])
    with pytest.raises(ValueError, match="sample 9, scored 2 times"):
        metric.compute()


# class_accuracy only compares the largest logit: there a wrong class is no error.
@pytest.mark.parametrize("name", sorted({*OF_SAMPLES} - {"class_accuracy"}))
def test_bad_outputs_are_errors(name):
    samples = toy_samples(30)
    samples[4, 2] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        score(toy_reference(), samples, (name,))


def test_what_the_reference_lacks_is_named():
    bare = ReferenceStatistics(toy_reference().gaussian, None)
    assert set(build_metrics(("fd", "diversity"), bare, 10)) == {"fd", "diversity"}
    with pytest.raises(ValueError, match="--metrics kid needs the reference's features"):
        build_metrics(("fd", "kid"), bare, 10)
    with pytest.raises(ValueError, match="--metrics modes needs class predictions"):
        build_metrics(("modes",), bare, 10)
    with pytest.raises(ValueError, match="--metrics memorization needs real images"):
        build_metrics(("memorization",), dataclasses.replace(toy_reference(), heldout=None), 10)
    with pytest.raises(ValueError, match=r"\(B, 6\).*\(10, 5\).*--feature_extractor"):
        FrechetDistance(bare, 10).update(torch.arange(10), torch.zeros(10, 5))
    with pytest.raises(ValueError, match="--num_samples must be at least 2"):
        FrechetDistance(bare, 1)
    with pytest.raises(ValueError, match="prdc needs 6 images"):
        score(toy_reference(), toy_samples(5), ("prdc",))


def test_few_samples_have_no_interval():
    results = score(toy_reference(), toy_samples(7))
    for name in ("fd", "kid", "is", "diversity"):
        assert results[name].interval is None
        assert math.isfinite(results[name].value)


@pytest.mark.parametrize("name", OF_SAMPLES)
def test_a_row_names_the_measures_that_its_metric_gives(name):
    row = METRICS[name]
    measured = list(score(toy_reference(), toy_samples(), names=(name,)))
    assert measured[: len(row.measures)] == list(row.measures)
    assert all(row.terms and term.endswith(f"_{name}") for term in measured[len(row.measures) :])
    assert row.best is None or row.measures[row.best].better


def test_every_measure_belongs_to_one_metric():
    measures = [measure for row in METRICS.values() for measure in row.measures]
    assert len(measures) == len(set(measures))


def test_what_the_reference_alone_gives_is_computed_once_and_changes_nothing():
    """Three sets of samples against one reference, of which the last is of another size."""
    reference = toy_reference()
    for samples in (toy_samples(SHARDED), toy_samples(SHARDED), toy_samples(120)):
        before = dict(reference.derived)
        assert_same(score(reference, samples), score(toy_reference(), samples))
        for name, value in before.items():
            assert reference.derived[name] is value, name
    assert {"mind", "copies", "cell centres", "nearest to heldout"} <= reference.derived.keys()
    other = dataclasses.replace(reference, heldout=reference.heldout * 2)
    assert_same(
        score(other, samples), score(dataclasses.replace(toy_reference(), heldout=other.heldout), samples)
    )
