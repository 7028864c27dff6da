"""The interval of the Frechet distance from derivatives, against the distance itself and the jackknife."""

import math

import pytest
import torch
from torch.testing import assert_close

from trilemma.eval.metrics import expansion, frechet
from trilemma.eval.metrics.distances import EXPANDED, FrechetDistance
from trilemma.eval.metrics.frechet import BLOCKS, Gaussian, block_of, frechet_distance
from trilemma.eval.metrics.sample_metric import Measurement, block_interval, not_negative
from trilemma.eval.scoring.reference import ReferenceStatistics


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measured(samples: torch.Tensor, reference: Gaussian) -> Measurement:
    metric = FrechetDistance(ReferenceStatistics(reference, None), len(samples))
    for index in torch.arange(len(samples)).split(1000):
        metric.update(index, samples[index])
    return metric.compute()["fd"]


def exact_interval(samples: torch.Tensor, reference: Gaussian) -> tuple[float, float]:
    """The delete-one-block jackknife with halves, a distance for each."""
    block = torch.nn.functional.one_hot(block_of(torch.arange(len(samples)), len(samples)), BLOCKS).double()

    def value(kept: torch.Tensor) -> float:
        return frechet_distance(Gaussian.of(samples[(block @ kept) > 0]), reference)

    return block_interval(value(torch.ones(BLOCKS).double()), block.sum(0), value, second_order=True)


class Law:
    """Samples whose true distance to the reference is known; `shift` 0 is the reference's own law."""

    def __init__(self, dimension: int, shift: float):
        scale = torch.logspace(0, -1, dimension).double()
        self.reference = Gaussian.of(normal(20 * dimension, dimension, seed=1) * scale)
        self.mixing = torch.linalg.cholesky(self.reference.covariance).T
        self.mixing = self.mixing + shift * normal(dimension, dimension, seed=2) * scale / dimension**0.5
        self.mean = self.reference.mean + 0.5 * shift * normal(dimension, seed=3)
        law = Gaussian(self.mean, self.mixing.T @ self.mixing)
        self.distance = frechet_distance(law, self.reference)

    def draw(self, n: int, seed: int) -> torch.Tensor:
        return normal(n, len(self.mean), seed=seed + 10) @ self.mixing + self.mean


def test_inner_is_the_sum_of_the_products_of_all_entries():
    rows, matrix = normal(3, 7, 300), normal(300, 300, seed=1)
    packed = torch.zeros(3, frechet.packed_size(300), dtype=torch.float64)
    for part, one in zip(rows, packed, strict=True):
        frechet.add_outer_(one, part)
    expected = torch.stack([(part.T @ part * (matrix + matrix.T)).sum() for part in rows])
    assert_close(frechet.inner(packed, matrix + matrix.T), expected)


def test_orders_are_those_of_the_distance():
    """What four orders leave out falls with the fifth power of the step."""
    law, step = Law(6, 0.5), 0.2
    samples, other = Gaussian.of(law.draw(60, 0)), torch.cov(law.draw(20, 1).T)
    roots, basis = expansion._eigenbasis(
        frechet.congruence(law.reference.factor, samples.covariance), law.reference.factor
    )
    h = other - samples.covariance
    gradient = torch.eye(6).double() - (basis / roots) @ basis.T
    orders = [float((gradient * h).sum()), *expansion._higher_orders(roots, basis.T @ h @ basis)]
    value, left_out = frechet_distance(samples, law.reference), []
    for size in (step, step / 2, -step, -step / 2):
        moved = frechet_distance(Gaussian(samples.mean, samples.covariance + size * h), law.reference)
        series = sum(order * size**k for k, order in enumerate(orders, start=1))
        left_out.append(abs(moved - value - series))
    assert all(size > 1e-10 for size in left_out)  # above rounding
    assert 2**4 < left_out[0] / left_out[1] < 2**6
    assert 2**4 < left_out[2] / left_out[3] < 2**6


@pytest.mark.parametrize("block", range(0, BLOCKS, 3))
def test_first_order_without_a_block(block):
    law = Law(5, 0.5)
    x = law.draw(200, 0) - law.reference.mean
    number = block_of(torch.arange(200), 200)
    count, total = torch.bincount(number, minlength=BLOCKS).double(), torch.zeros(BLOCKS, 5).double()
    packed = torch.zeros(BLOCKS, frechet.packed_size(5), dtype=torch.float64)
    for one in range(BLOCKS):
        total[one] = x[number == one].sum(0)
        frechet.add_outer_(packed[one], x[number == one])
    gradient = normal(5, 5, seed=9)
    gradient = gradient + gradient.T
    every, without = Gaussian.of(x), Gaussian.of(x[number != block])
    expected = (gradient * (without.covariance - every.covariance)).sum()
    expected += without.mean.square().sum() - every.mean.square().sum()
    first = expansion._first_order(count, total, packed, gradient)
    assert_close(first[block], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("dimension", "ratio", "shift", "repetitions"),
    [(8, 5, 0.0, 40), (8, 5, 0.5, 40), (8, 40, 0.1, 40), (32, 2.5, 0.0, 40), (32, 2.5, 0.5, 40),
     (32, 10, 0.1, 40), (256, 6, 0.5, 3)],
)  # fmt: skip
def test_it_is_the_exact_jackknife_but_for_noise(dimension, ratio, shift, repetitions):
    """The same number on average, as closely as the repetitions can tell, and intervals as wide.

    (The order 1/n^3, in which they differ, grows with D: the next test.)

    The two take the curvature from other directions (halves and two blocks; halves and all blocks), so they
    differ by the noise of it, which is largest where the distance is nothing but noise.
    """
    law = Law(dimension, shift)
    n, rows = int(ratio * dimension), []
    for seed in range(repetitions):
        samples = law.draw(n, seed)
        sums = _sums(samples, law.reference)
        lower = frechet.congruence(law.reference.factor, Gaussian.of(samples).covariance)
        value = frechet_distance(Gaussian.of(samples), law.reference)
        rows.append((expansion.expansion_interval(value, sums, law.reference, lower),
                     exact_interval(samples, law.reference)))  # fmt: skip
    ours, exact = torch.tensor(rows, dtype=torch.float64).unbind(1)
    difference, half_width = (ours - exact).mean(1), (exact[:, 1] - exact[:, 0]) / 2
    standard_error = float(difference.std()) / math.sqrt(repetitions)
    assert abs(float(difference.mean())) < 4 * standard_error + 0.1 * float(half_width.mean())
    assert float(difference.square().mean().sqrt()) < float(half_width.mean())
    assert_close(float((ours[:, 1] - ours[:, 0]).mean() / 2), float(half_width.mean()), rtol=0.1, atol=0)
    if repetitions > 10:  # its estimate varies no more; F of 39 and 39 degrees at 0.999 is 2.8
        assert ours.mean(1).var() < 2.8 * exact.mean(1).var()


def test_of_few_samples_per_feature_it_is_nearer_to_the_truth():
    """At n = 2 D and many features the jackknife's halves are singular, and its interval lies above."""
    law, n = Law(256, 0.1), 512
    middles = []
    for seed in range(4):
        samples = law.draw(n, seed)
        both = measured(samples, law.reference).interval, exact_interval(samples, law.reference)
        middles.append([sum(interval) / 2 for interval in both])
    ours, exact = (torch.tensor(middles).mean(0) - law.distance).abs().tolist()
    assert ours < exact


def _sums(samples: torch.Tensor, reference: Gaussian) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    metric = FrechetDistance(ReferenceStatistics(reference, None), len(samples))
    metric.update(torch.arange(len(samples)), samples)
    return metric.count, metric.total, metric.moment


def test_few_samples_have_the_exact_jackknife_and_the_value_is_the_plain_distance():
    law = Law(24, 0.5)
    for n in (EXPANDED * 24 - 1, EXPANDED * 24):
        samples = law.draw(n, 0)
        result, exact = measured(samples, law.reference), exact_interval(samples, law.reference)
        assert_close(result.value, frechet_distance(Gaussian.of(samples), law.reference), rtol=1e-12, atol=0)
        same = all(math.isclose(a, b, rel_tol=1e-9) for a, b in
                   zip(result.interval, not_negative(0, n, exact, None).interval, strict=True))  # fmt: skip
        assert result.debiased == result.estimate == pytest.approx(sum(result.interval) / 2)
        assert same == (n < EXPANDED * 24)


@pytest.mark.parametrize("constant", ["samples", "both"])
def test_features_without_variance_change_nothing_but_the_value(constant):
    """Also where the reference has no full rank, and in directions that are none of the axes."""
    law = Law(8, 0.5)
    samples, real = law.draw(400, 0), normal(300, 8, seed=5)
    expected = measured(samples, Gaussian.of(real)).interval
    spin = torch.linalg.qr(normal(11, 11, seed=6)).Q
    padded = torch.cat([samples, torch.zeros(400, 3).double()], 1)
    varying = normal(300, 3, seed=7) * (constant == "samples")
    varying -= varying.mean(0)
    reference = Gaussian.of(torch.cat([real, varying], 1))
    if constant == "samples":  # no covariance of the old and the new features, so that tr C just grows
        reference.covariance[8:, :8] = 0
        reference.covariance[:8, 8:] = 0
    more = float(reference.covariance[8:, 8:].trace())
    turned = Gaussian(reference.mean @ spin, spin.T @ reference.covariance @ spin, 300)
    interval = measured(padded @ spin, turned).interval
    assert_close(interval, tuple(end + more for end in expected), rtol=1e-6, atol=1e-6)


def coverage(dimension: int, n: int, shift: float, repetitions: int) -> float:
    law = Law(dimension, shift)
    intervals = [measured(law.draw(n, seed), law.reference).interval for seed in range(repetitions)]
    return sum(low <= law.distance <= high for low, high in intervals) / repetitions


@pytest.mark.parametrize(("n", "shift"), [(40, 0.5), (160, 0.1), (800, 0.5)])
def test_coverage(n, shift):
    assert coverage(16, n, shift, 100) >= 0.86  # 0.95 less four standard errors


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("ratio", [2.5, 6, 40])
def test_coverage_at_length(ratio, shift):
    assert 0.92 <= coverage(24, int(ratio * 24), shift, 1000) <= 1.0
