"""The metrics of `eval/metrics/kept` against their definitions in numpy, closed forms and simulation."""

import numpy as np
import pytest
import scipy.stats
import torch
from test_metrics import normal, reference_of, score, toy_reference, toy_samples
from torch.testing import assert_close

from trilemma.eval.metrics.frechet import BLOCKS, jackknife
from trilemma.eval.metrics.kept.clipped import expected_coverage, inverse
from trilemma.eval.metrics.kept.copies import cell_centres
from trilemma.eval.metrics.kept.likelihood import fit_widths, log_likelihoods, nll
from trilemma.eval.metrics.kept.mind import Steps
from trilemma.eval.metrics.kept.vendi import vendi
from trilemma.eval.metrics.pairwise import neighbours
from trilemma.eval.metrics.sample_metric import FixedSubset
from trilemma.eval.metrics.table import PAIR_IMAGES

REPETITIONS = 60
"""Sets of samples behind a mean or a share of intervals."""


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))


# Clipped density and coverage


@pytest.mark.parametrize("m", [70, 71, 90, 131])
def test_clipped_shares_are_their_definitions(m):
    reference = reference_of(normal(m, 3, seed=1))
    real, fake = reference.features.double().numpy(), normal(90, 3, seed=2).numpy() * 1.3 + 0.2
    within, across = distances(real, real), distances(real, fake)
    radius = np.sort(within, axis=1)[:, 5]
    clipped = np.minimum(radius, np.median(radius))
    usual = np.minimum(((within <= clipped[:, None]).sum(0) - 1) / 5, 1).mean()
    density = np.minimum((across <= clipped[:, None]).sum(0) / 5, 1).mean() / usual
    some = min(m, 90)  # no more real images than samples; with fewer of them, more samples fill a ball
    full = {70: 6, 71: 6}.get(m, 5)
    radius = np.sort(within[:some, :some], axis=1)[:, 5]
    covered = np.minimum((across[:some] <= radius[:, None]).sum(1) / full, 1).mean()
    result = score(reference, torch.from_numpy(fake), ("clipped",))
    assert result["clipped_density"].value == pytest.approx(density, abs=1e-12)
    chance = [scipy.stats.betabinom(k, 5, some - 5).pmf(range(k + 1)) for k in range(91)]
    expected = [(np.minimum(range(k + 1), full) * chance[k]).sum() / full for k in range(91)]
    assert_close(expected_coverage(some, 90, full).numpy(), np.array(expected), rtol=0, atol=1e-12)
    share = np.interp(covered, expected, np.arange(91) / 90)
    assert result["clipped_coverage"].value == pytest.approx(share, abs=1e-10)


def test_expected_coverage_can_be_inverted():
    for real, samples in ((6, 6), (300, 40), (10_000, 10_000)):
        expected = expected_coverage(real, samples)
        assert expected[0] == pytest.approx(0, abs=1e-12)
        assert (expected.diff() > 0).all()
        for m in range(0, samples + 1, max(1, samples // 10)):
            assert inverse(expected, float(expected[m])) == pytest.approx(m / samples, abs=1e-9)
        assert inverse(expected, 1.0) == 1.0


def test_a_share_of_bad_samples_lowers_the_clipped_shares_by_as_much():
    """Half of the samples far away: 0.5; none: 1, less what the clip at 1 takes off."""
    reference, bad = reference_of(normal(300, 3, seed=1)), torch.arange(300) % 2 == 0
    halves, wholes = [], []
    for seed in range(10, 22):
        samples = normal(300, 3, seed=seed)
        wholes.append(score(reference, samples, ("clipped",)))
        samples[bad] += 100
        halves.append(score(reference, samples, ("clipped",)))
    for name in ("clipped_density", "clipped_coverage"):
        half, whole = (np.array([one[name].value for one in of]) for of in (halves, wholes))
        error = 3 * half.std() / len(half) ** 0.5
        assert half.mean() == pytest.approx(0.5, abs=error + 0.05)  # of what 300 images say of all
        assert 0.9 <= whole.mean() <= 1.0
        assert all(one[name].floor == 1.0 for one in halves)


@pytest.mark.parametrize("name", ["clipped_density", "clipped_coverage"])
def test_intervals_hold_what_other_samples_score(name):
    """The mean over many sets lies in 95% of the intervals: fewer than 51 of 60 hold it in one case of a
    thousand.
    """
    reference = reference_of(normal(200, 3, seed=1))
    sets = [normal(200, 3, seed=seed) * 1.2 + 0.6 for seed in range(10, 10 + REPETITIONS)]
    measured = [score(reference, samples, ("clipped",))[name] for samples in sets]
    truth = np.mean([one.value for one in measured])
    held = np.mean([one.interval[0] <= truth <= one.interval[1] for one in measured])
    assert held >= 51 / REPETITIONS
    widths = np.mean([(one.interval[1] - one.interval[0]) / 2 for one in measured])
    assert widths <= 3 * np.std([one.value for one in measured])


@pytest.mark.parametrize(("images", "samples"), [(3000, 300), (600, 600), (150, 600)])
def test_half_of_the_kinds_missing_shows_with_any_number_of_images(images, samples):
    """Two kinds, and samples of one: 0.5, up to three standard deviations of the kinds of 150 images."""
    real = normal(images, 4, seed=1)
    real[::2] += 20
    measured = score(reference_of(real), normal(samples, 4, seed=2), ("clipped",))
    assert measured["clipped_coverage"].value == pytest.approx(0.5, abs=0.12)
    assert measured["clipped_density"].value > 0.9


@pytest.mark.parametrize("scale", [1.0, 0.8])
def test_intervals_of_good_models_have_a_width(scale):
    """Samples of the law itself, and of a narrower one: the value is cut at 1, and the spread is not. One end
    is then certain, so all but 2.5% may miss: of 40, four do in one case of a hundred.
    """
    reference = reference_of(normal(300, 4, seed=1))
    sets = [scale * normal(200, 4, seed=seed) for seed in range(10, 50)]
    measured = [score(reference, samples, ("clipped",)) for samples in sets]
    for name in ("clipped_density", "clipped_coverage"):
        truth = np.mean([one[name].value for one in measured])
        ends = [one[name].interval for one in measured]
        assert all(high - low > 0.02 for low, high in ends)
        assert sum(not low <= truth <= high for low, high in ends) <= 4


def test_clipped_shares_of_few_or_equal_images():
    with pytest.raises(ValueError, match=r"--metrics clipped needs 6 images .* of each kind; got 300 and 5"):
        score(toy_reference(), toy_samples(5), ("clipped",))
    equal = score(reference_of(torch.zeros(20, 3)), torch.zeros(20, 3), ("clipped",))
    assert [one.value for one in equal.values()] == [1, 1]


# Copies


def test_neighbours_are_the_nearest_rows():
    x, y = normal(40, 5, seed=1), normal(1300, 5, seed=2)
    y[7] = y[9] = x[3]
    found, row = neighbours(x, y, 3)
    exact = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    assert_close(found, exact.sort(dim=1).values[:, :3], rtol=1e-12, atol=0)
    assert_close(exact.gather(1, row), found, rtol=1e-12, atol=0)
    assert set(row[3, :2].tolist()) == {7, 9}


def test_copies_are_counted_by_their_definitions():
    real, held, fake = (normal(n, 3, seed=n).numpy() for n in (150, 60, 110))
    fake[:40] = real[:40] + fake[:40] * np.linspace(0, 0.3, 40)[:, None]

    def shares(x: np.ndarray) -> tuple[float, float]:
        across, within = distances(x, real), distances(real, real) + np.diag(np.full(len(real), np.inf))
        first, second = np.sort(across, axis=1)[:, :2].T
        authentic = first > within.min(1)[across.argmin(1)]
        return 100 * authentic.mean(), (first < second / 3).mean()

    reference = reference_of(torch.from_numpy(real), heldout=torch.from_numpy(held))
    result = score(reference, torch.from_numpy(fake), ("copies",))
    values = [(one.value, one.floor) for one in result.values()]
    assert values == [pytest.approx(pair) for pair in zip(shares(fake), shares(held), strict=True)]
    copies = scipy.stats.binomtest(round(result["near_copies"].value * 110), 110)
    interval = copies.proportion_ci(method="wilson")
    assert result["near_copies"].interval == pytest.approx((interval.low, interval.high), abs=1e-6)


@pytest.mark.parametrize("planted", [0.0, 0.1, 0.3])
def test_a_known_share_of_copies_is_found(planted):
    """A copy is a near copy and not authentic; the other samples are as held-out images are."""
    real, held, fake = (normal(n, 8, seed=n).float() for n in (1000, 3000, 2000))
    copies = round(planted * len(fake))
    fake[:copies] = real[torch.arange(copies) % 1000]
    result = score(reference_of(real, heldout=held), fake, ("copies",))
    for name, share in (("authpct", 0.0), ("near_copies", 1.0)):
        one, unit = result[name], 100 if name == "authpct" else 1
        expected = unit * planted * share + (1 - planted) * one.floor
        error = unit * 0.02  # of the floor: two deviations of a share of 3,000 held-out images
        assert one.interval[0] - error < expected < one.interval[1] + error


def test_cells_are_those_of_k_means():
    """Of clusters far apart they are the clusters, and each centre is the mean of its own."""
    middles = torch.tensor([[0.0, 0], [100, 0], [0, 100]]).double()
    points = normal(300, 2, seed=1) + middles[torch.arange(300) % 3]
    found = cell_centres(points, 3)
    means = torch.stack([points[c::3].mean(0) for c in range(3)])
    assert_close(found, means, rtol=1e-12, atol=0)
    assert_close(cell_centres(points, 1), points.mean(0, keepdim=True), rtol=1e-12, atol=1e-12)


def test_ct_is_the_mean_of_mann_whitneys_z_over_cells():
    middles, place = torch.tensor([[0.0, 0], [100, 0]]), lambda n: torch.arange(n) % 2
    real, held, fake = (normal(n, 2, seed=n).float() + middles[place(n)] for n in (200, 150, 130))
    held = held[torch.arange(150) != 1]  # the two cells weigh 75 and 74
    fake[1::2] = (fake[1::2] - middles[1]) * 0.5 + middles[1]  # nearer to training images
    expected = []
    for cell in (0, 1):
        mine = [x[(x[:, 0] > 50) == bool(cell)].numpy() for x in (fake, held)]
        n, m = map(len, mine)
        nearest = [distances(x, real[cell::2].numpy()).min(1) for x in mine]
        pairs = scipy.stats.mannwhitneyu(*nearest).statistic
        expected.append((pairs - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12))
    result = score(reference_of(real, heldout=held), fake, ("ct",))
    assert result["ct"].value == pytest.approx((75 * expected[0] + 74 * expected[1]) / 149)
    assert result["ct_worst"].value == pytest.approx(min(expected))
    assert result["ct"].interval[0] < result["ct"].value < result["ct"].interval[1]


# MIND


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 7), (6, 15), (15, 6), (8, 9)])
def test_wasserstein_distance_of_any_two_numbers_of_points(n, m):
    """Each point of one sample repeated as often as the other has points: then they pair off in order."""
    x, y = (normal(3, k, seed=k).sort(dim=1).values + k for k in (n, m))
    paired = (x.repeat_interleave(m, 1) - y.repeat_interleave(n, 1)).square().mean(1)
    ones = torch.ones_like(x).long()
    assert_close(Steps.of(y).squared_wasserstein(x, ones, n), paired, rtol=1e-10, atol=1e-12)
    taken = torch.tensor([1, 0, 1, 1]).repeat(n)[:n].expand(3, n)
    part, count = x[:, taken[0] > 0], int(taken[0].sum())
    alone = Steps.of(y).squared_wasserstein(part, ones[:, :count], count)
    assert_close(Steps.of(y).squared_wasserstein(x, taken, count), alone, rtol=1e-10, atol=1e-12)


def test_mind_of_a_shift_is_three_times_its_square():
    """(s . v)^2 of random unit v has the mean |s|^2 / D and at most the deviation 2^0.5 |s|^2 / D."""
    real, shift = normal(50, 6, seed=1), normal(6, seed=2)
    result = score(reference_of(real + 1000), real + shift + 1000, ("mind",))["mind"]
    error = 4 * (2 / 1000) ** 0.5
    assert result.value == pytest.approx(3 * float(shift.square().sum()), rel=error)
    assert score(reference_of(real), real, ("mind",))["mind"].value == pytest.approx(0, abs=1e-9)


def test_intervals_of_mind_hold_the_value_of_many_samples(monkeypatch):
    monkeypatch.setattr("trilemma.eval.metrics.kept.mind.DIRECTIONS", 20)
    reference = reference_of(normal(1000, 4, seed=1))
    for scale, shift in ((1.0, 0.0), (1.2, 0.2)):
        many = score(reference, normal(10_000, 4, seed=9) * scale + shift, ("mind",))
        truth = np.mean(many["mind"].interval)
        sets = [normal(300, 4, seed=seed) * scale + shift for seed in range(10, 10 + REPETITIONS)]
        measured = [score(reference, samples, ("mind",))["mind"] for samples in sets]
        assert np.mean([one.interval[0] <= truth <= one.interval[1] for one in measured]) >= 51 / REPETITIONS
        spread = np.std([one.value for one in measured])
        assert np.mean([(one.interval[1] - one.interval[0]) / 2 for one in measured]) <= 3 * spread


def test_the_floor_of_mind_is_what_other_samples_of_the_data_score(monkeypatch):
    monkeypatch.setattr("trilemma.eval.metrics.kept.mind.DIRECTIONS", 20)
    pairs = [(normal(400, 4, seed=seed), normal(150, 4, seed=1000 + seed)) for seed in range(REPETITIONS)]
    measured = [score(reference_of(real), samples, ("mind",))["mind"] for real, samples in pairs]
    difference = np.array([one.value - one.floor for one in measured])
    assert difference.mean() == pytest.approx(0, abs=3 * difference.std() / REPETITIONS**0.5)


# Feature likelihood


def mixture(centres: torch.Tensor, width: torch.Tensor) -> torch.distributions.Distribution:
    """Gaussians of equal weight, from torch."""
    each = torch.distributions.Normal(centres, (width / 2).exp()[:, None].expand_as(centres))
    weight = torch.distributions.Categorical(logits=torch.zeros_like(width))
    return torch.distributions.MixtureSameFamily(weight, torch.distributions.Independent(each, 1))


def test_likelihoods_are_those_of_torchs_mixture():
    x, centres, width = normal(600, 5, seed=1), normal(40, 5, seed=2), normal(40, seed=3)
    member = torch.nn.functional.one_hot(torch.arange(40) % 4, 4)
    by_block, sizes = log_likelihoods(x, centres, width, member), torch.full((4,), 10.0).double()
    assert_close(nll(by_block, sizes), -float(mixture(centres, width).log_prob(x).mean()), rtol=1e-10, atol=0)
    sizes[1], kept = 0, torch.arange(40) % 4 != 1
    expected = -float(mixture(centres[kept], width[kept]).log_prob(x).mean())
    assert_close(nll(by_block, sizes), expected, rtol=1e-10, atol=0)


def test_fitted_widths_are_stationary_and_better_than_one_width(monkeypatch):
    """The gradient of the likelihood vanishes at them, up to what the last round gained."""
    monkeypatch.setattr("trilemma.eval.metrics.kept.likelihood.CLOSE", 1e-12)
    monkeypatch.setattr("trilemma.eval.metrics.kept.likelihood.ROUNDS", 2000)
    x, centres = normal(300, 3, seed=1), normal(20, 3, seed=2) * 1.2
    width = fit_widths(x, centres)
    everything = torch.cat([centres, x.mean(0, keepdim=True)])
    last = torch.zeros(1).double()  # the width of the one more Gaussian, which is not returned
    for _ in range(2000):
        joint = mixture(everything, torch.cat([width, last]))
        logs = joint.component_distribution.log_prob(x[:, None])
        share = logs.softmax(1)[:, -1]
        last = ((share * (x - everything[-1]).square().sum(1)).sum() / (3 * share.sum())).log()[None]
    widths = torch.cat([width, last]).requires_grad_()
    mixture(everything, widths).log_prob(x).mean().backward()
    assert widths.grad.abs().max() < 1e-5
    fitted = mixture(centres, width).log_prob(x).mean()
    assert all(
        fitted > mixture(centres, torch.full((20,), s).double()).log_prob(x).mean() for s in (-2, -1, 0, 1)
    )


def test_feature_likelihood_is_worse_for_wrong_samples_and_tells_copies():
    train, held, new = (normal(n, 8, seed=n).float() for n in (600, 500, 601))
    reference = reference_of(train * 3 + 5, heldout=held * 3 + 5)
    half = torch.cat([train[:300], new[300:600]])
    sets = {"new": new[:600], "wide": new[:600] * 2, "shifted": new[:600] + 1, "half copies": half}
    found = {name: score(reference, x * 3 + 5, ("fld",)) for name, x in sets.items()}
    new_fld, new_gap = found["new"].values()
    assert new_fld.n == 300  # half of the training images: the other mixture has them as its centres
    assert new_fld.interval[0] <= 0 <= new_fld.interval[1]
    assert new_gap.floor < new_gap.value < 0  # fitted to 600 training images, the other mixture to 300
    for name in ("wide", "shifted", "half copies"):
        assert found[name]["fld"].interval[0] > new_fld.interval[1]
    assert found["half copies"]["fld_gap"].interval[1] < -50
    assert found["wide"]["fld_gap"].value > -5


def test_too_few_images_for_a_feature_likelihood_are_named():
    reference = reference_of(normal(3, 2).float(), heldout=normal(9, 2).float())
    with pytest.raises(ValueError, match=r"fld needs 4 images or more .* got 3 and 9"):
        score(reference, normal(10, 2).float(), ("fld",))


# Diversity within classes


@pytest.mark.parametrize(("n", "d"), [(30, 7), (7, 30), (1, 4)])
def test_vendi_score_is_its_definition(n, d):
    rows = normal(n, d, seed=1).numpy()
    cosines = rows @ rows.T / np.outer(np.linalg.norm(rows, axis=1), np.linalg.norm(rows, axis=1))
    shares = np.linalg.eigvalsh(cosines / n).clip(1e-300)
    unit = torch.nn.functional.normalize(torch.from_numpy(rows), dim=1)
    assert vendi(unit) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)


def test_vendi_score_counts_different_images_of_each_class():
    """Labels are the index modulo 4: class c has c + 1 directions at right angles, as often each."""
    samples = torch.zeros(240, 6)
    index = torch.arange(240)
    samples[index, index // 4 % (index % 4 + 1)] = 3.0
    results = score(toy_reference(), samples, ("class_vendi",))
    result = results["class_vendi"]
    assert result.value == pytest.approx((1 + 2 + 3 + 4) / 4, rel=1e-6)
    for k in range(4):
        own = results[f"{k}_class_vendi"]
        assert (own.value, own.n) == (pytest.approx(k + 1, rel=1e-6), 60)
    samples[::8] = 0
    with_zeros = score(toy_reference(), samples, ("class_vendi",))["class_vendi"]
    assert with_zeros.value == pytest.approx(result.value, rel=1e-6)
    samples[::4] = 0
    without = score(toy_reference(), samples, ("class_vendi",))
    assert without["class_vendi"].value == pytest.approx((2 + 3 + 4) / 3, rel=1e-6), "class 0 has no image"
    assert "0_class_vendi" not in without
    same = score(toy_reference(), torch.ones(240, 6), ("class_vendi",))["class_vendi"]
    assert same.value == pytest.approx(1)


def test_the_interval_of_a_class_is_that_of_its_samples_alone():
    samples, kept = toy_samples(240), FixedSubset(240, PAIR_IMAGES).members
    index = kept[kept % 4 == 1]
    own = score(toy_reference(), samples, ("class_vendi",))["1_class_vendi"]
    alone = torch.nn.functional.normalize(samples[index].double(), dim=1)
    block = torch.arange(len(alone)) % BLOCKS
    without = [vendi(alone[block != one]) for one in range(BLOCKS)]
    low, high = jackknife(vendi(alone), block.bincount(minlength=BLOCKS).tolist(), without)
    half = (high - low) / 2
    assert own.interval == pytest.approx((own.value - half, own.value + half), rel=1e-9)
