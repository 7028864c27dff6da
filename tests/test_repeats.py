"""Repeated trainings: the interval over seeds, verdicts, and their place in a comparison."""

import json

import numpy as np
import pytest
import yaml
from scipy import stats
from test_compare import LINE, folder

from trilemma.eval.studies.model_table import repeated, standard_protocols
from trilemma.eval.studies.models import read_models
from trilemma.eval.studies.repeats import Row, mean_interval, section, t_quantile, tables, verdict, welch

VALUES = {"low": (0.1, 0.12, 0.11), "high": (0.7, 0.72, 0.69)}
REPETITIONS = 1000
SLACK = 3 * (0.95 * 0.05 / REPETITIONS) ** 0.5
"""Three standard deviations of a share of 95% in so many repetitions."""


@pytest.mark.parametrize("freedom", [1, 1.3, 2, 2.5, 3, 10, 200])
def test_t_is_scipy_s(freedom):
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-5)


@pytest.mark.parametrize(("training", "sampling"), [(1.0, 0.0), (1.0, 0.5), (0.1, 1.0)])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_the_interval_over_seeds_covers_the_mean_of_all_trainings(training, sampling, seeds):
    random = np.random.default_rng(seeds)
    covered = 0
    for _ in range(REPETITIONS):
        estimates = random.normal(0, training, seeds) + random.normal(0, sampling, seeds)
        mean, error, half = mean_interval(estimates.tolist())
        covered += abs(mean) <= half
        assert error == pytest.approx(estimates.std(ddof=1) / seeds**0.5)
    assert abs(covered / REPETITIONS - 0.95) <= SLACK


@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_the_interval_of_a_difference_covers_it(spread):
    """Welch's is exact for no numbers of seeds, and errs on the wide side for few of them."""
    random, covered = np.random.default_rng(1), 0
    for _ in range(REPETITIONS):
        difference, half = welch(random.normal(2, 1, 3).tolist(), random.normal(0, spread, 4).tolist())
        covered += abs(difference - 2) <= half
    assert 0.95 - SLACK <= covered / REPETITIONS <= 0.99


def test_verdicts():
    low, high, between = [1.0, 1.1, 0.9], [2.0, 2.2, 1.9], [0.5, 2.5, 1.6]
    assert verdict(low, high, "lower")[1] == verdict(high, low, "higher")[1] == "better"
    assert verdict(low, high, "higher")[1] == verdict(high, low, "lower")[1] == "worse"
    assert verdict(low, between, "lower")[1] == "inconclusive"
    assert verdict([1.0], high, "lower")[1] == "one training only"
    assert verdict([1.0, 1.0], [1.0, 1.0], "lower")[1] == "inconclusive"
    assert verdict([1.0, 1.0], [2.0, 2.0], "lower")[1] == "better"


def trained(tmp_path, name, value, reference="fp", **flags):
    line = {**LINE, "value": value, "interval": [value - 0.1, value + 0.1], "data_fingerprint": reference}
    path = folder(tmp_path, name, [line])
    run = json.loads((tmp_path / name / "run.json").read_text()) | {"family": "unconditional"}
    (tmp_path / name / "run.json").write_text(json.dumps(run))
    (tmp_path / name / "config.yaml").write_text(yaml.safe_dump({"learning_rate": 1e-3, "seed": 0} | flags))
    return path


def of(folders):
    models = read_models(folders)
    return section(repeated(models, standard_protocols(models)))


def test_models_that_differ_in_the_seed_alone_are_one_training(tmp_path):
    usual = [trained(tmp_path, f"usual{k}", 3 + k / 10, seed=k, output_dir=f"o{k}") for k in range(3)]
    fast = [trained(tmp_path, f"fast{k}", 1 + k / 10, seed=k, learning_rate=1e-2) for k in range(3)]
    once = [trained(tmp_path, "once", 2.0, learning_rate=1e-1)]
    text = of([*usual, *fast, *once])
    half = stats.t.ppf(0.975, 2) * 0.1 / 3**0.5  # of 3, 3.1 and 3.2
    mean = f"3.1 ({3.1 - half:.4g} .. {3.1 + half:.4g}) | {0.1 / 3**0.5:.4g}"
    assert f"| usual0 and 2 more | fd_classifier | 3 | {mean} |" in text
    wide = stats.t.ppf(0.975, 4) * (0.02 / 3) ** 0.5  # equal spreads: four degrees of freedom
    pair = f"fast0 and 2 more against usual0 and 2 more | -2 ({-2 - wide:.4g} .. {-2 + wide:.4g})"
    assert f"| fd_classifier | {pair} | better |" in text
    assert "| fd_classifier | fast0 and 2 more against once | -0.9 | one training only |" in text
    odd = trained(tmp_path, "odd", 3.05, seed=9, net="unet_8")
    assert of([*usual, odd]).count("| one training only |") == 1
    near = [trained(tmp_path, f"near{k}", 3.05 + k / 10, seed=k, adam_beta2=0.9) for k in range(3)]
    assert "| inconclusive |" in of([*usual, *near])


def test_a_copy_or_another_step_is_no_repetition(tmp_path):
    usual = [trained(tmp_path, f"usual{k}", 3 + k / 10, seed=k) for k in range(2)]
    copy = trained(tmp_path, "copy", 3.0, seed=0)
    early = trained(tmp_path, "early", 5.0, seed=2)
    run = json.loads((tmp_path / "early" / "run.json").read_text())
    (tmp_path / "early" / "run.json").write_text(json.dumps(run | {"steps": 50}))
    text = of([*usual, copy, early])
    assert "| usual0 and 1 more | fd_classifier | 2 |" in text
    assert "| copy | fd_classifier | 1 | 3 |" in text
    assert "| early | fd_classifier | 1 | 5 |" in text


def test_each_seed_may_hold_out_other_images(tmp_path):
    """They are then left out of the reference, whose fingerprint changes, as it does with other data."""

    def compared(name, **flags):
        values = {"a": 1.0, "b": 2.0}
        return of([
            trained(tmp_path, f"{name}{which}{k}", value + k / 10, f"{k}", seed=k, net=which, **flags)
            for which, value in values.items() for k in range(3)
        ])  # fmt: skip

    assert "| better |" in compared("random", validation_size=64)
    assert "| better |" not in compared("none", validation_size=0)
    assert "| better |" not in compared("split", validation_size=64, validation_split="test")


@pytest.mark.parametrize("known", [True, False])
def test_two_single_trainings_have_no_verdict(tmp_path, known):
    """Also without config.yaml. The better value stands first, whichever is named first."""
    paths = [trained(tmp_path, "a", 2.0), trained(tmp_path, "b", 1.0, net="unet_8")]
    if not known:
        for name in "ab":
            (tmp_path / name / "config.yaml").unlink()
    text = of(paths)
    assert "| fd_classifier | b against a | -1 | one training only |" in text
    assert "No model here was trained again" in text
    assert "| seeds |" not in text


def test_of_many_single_trainings_one_sentence_says_it(tmp_path):
    paths = [trained(tmp_path, f"m{k}", 1.0 + k, net=f"net{k}") for k in range(4)]
    text = of(paths)
    assert "the verdict on each pair is *one training only*" in text
    assert "|" not in text
    again = of([*paths, trained(tmp_path, "m0 again", 1.1, net="net0", seed=1)])
    assert again.count("| one training only |") == 3  # the pairs of the repeated training
    assert "Pairs that are not listed: *one training only* of both." in again


def test_without_two_trainings_nothing_is_said(tmp_path):
    assert of([trained(tmp_path, "a", 1.0)]) == ""
    odd = trained(tmp_path, "b", 2.0, "another reference", net="unet_8")
    assert of([str(tmp_path / "a"), odd]) == ""


def test_higher_is_better_first():
    rows = [Row(name, name, "recall", values, "higher") for name, values in VALUES.items()]
    (_, means), (_, pairs) = tables(rows)
    assert [row[0] for row in means] == ["low", "high"]
    assert [(row[1], row[3]) for row in pairs] == [("high against low", "better")]
