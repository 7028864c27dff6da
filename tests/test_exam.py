"""The exam of the measures: what it does to samples, its rules, and a whole one of a few harms."""

import json
import re

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor

from trilemma.eval.exams import report
from trilemma.eval.exams.harms import HARMS, Harm
from trilemma.eval.exams.sets import LEAST, REPEATS, TRAINING, split
from trilemma.eval.exams.verdicts import T, judge, move
from trilemma.eval.metrics.sample_metric import Measurement, SampleMetric
from trilemma.eval.metrics.table import METRICS, Measure, Metric
from trilemma.training.images.image_set import images_of, load_images
from trilemma.training.options.groups import DataConfig


@pytest.fixture(scope="module")
def digits():
    return load_images(DataConfig(dataset_name="digits"))


@pytest.fixture(scope="module")
def draw(digits):
    return split(digits, 100, 0)[1][1]


def rows_of(pixels: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in pixels}


def test_roles_are_disjoint_parts_of_their_sizes():
    numbered = np.zeros((1200, 1, 2, 2), np.uint8)
    numbered[:, 0, 0] = np.stack([np.arange(1200) // 256, np.arange(1200) % 256], 1)
    reference, draws = split(images_of(numbered, None, None, "numbers"), 110, 3)
    parts = [reference.images, reference.held_out]
    sets = [rows_of(part.__getitems__(range(len(part)))[0]) for part in parts]
    sets += [rows_of(draw.own.pixels) for draw in draws]
    assert [len(one) for one in sets] == [TRAINING * 110, 110, *[110] * REPEATS]
    assert len(set.union(*sets)) == (TRAINING + 1 + REPEATS) * 110
    assert rows_of(draws[0].pool.pixels) == set.union(*sets[2:])


def test_few_images_make_smaller_sets_or_an_error(digits):
    assert split(digits, 500, 0)[1][0].n == len(digits) // 10
    with pytest.raises(ValueError, match=r"--reference: the exam needs 400 images or more.*got 399 images"):
        split(digits.subset(range(399)), LEAST, 0)


def test_a_harm_leaves_its_promised_share_alone(draw):
    own, labels = draw.own.pixels, draw.own.labels
    for share in HARMS["copied"].levels:
        made = HARMS["copied"].make(draw, share)
        copies = [image.numpy().tobytes() in rows_of(draw.training.pixels) for image in made.pixels]
        twins = len(rows_of(own) & rows_of(draw.training.pixels))
        assert round(share * 100) <= sum(copies) <= round(share * 100) + twins
    for share in HARMS["invented"].levels:
        made = HARMS["invented"].make(draw, share).pixels
        changed = (made != own).flatten(1).any(1)
        assert changed.sum() == round(share * 100)
        assert torch.equal(made[changed], 255 - own[changed])
    for share in HARMS["mislabelled"].levels:
        made = HARMS["mislabelled"].make(draw, share)
        assert torch.equal(made.pixels, own)
        assert (made.labels != labels).sum() == round(share * 100)
    for share in HARMS["repeated"].levels:
        assert len(rows_of(HARMS["repeated"].make(draw, share).pixels)) == round((1 - share) * 100)


def test_images_are_harmed_as_their_rows_say(draw):
    own = draw.own.pixels.numpy()

    def made(name):
        return {level: HARMS[name].make(draw, level).pixels.numpy() for level in HARMS[name].levels}

    mean = ndimage.uniform_filter(own.astype(float), (1, 1, 3, 3), mode="nearest")
    for share, images in made("blurred").items():
        assert np.abs(images - (own + share * (mean - own))).max() <= 1  # rounded twice
    for places, images in made("shifted").items():
        assert (images == own[..., np.maximum(np.arange(8) - places, 0)]).all()
    black = own == 0
    for deviation, images in made("noisy").items():
        # The positive half of a normal number: its mean, and five standard errors of it.
        error = deviation * (0.5 - 0.5 / np.pi) ** 0.5 / black.sum() ** 0.5
        assert images[black].mean() == pytest.approx(deviation / (2 * np.pi) ** 0.5, abs=5 * error)
    losses = [np.abs(images - own.astype(float)).mean() for images in made("jpeg").values()]
    assert losses[0] > 0
    assert losses == sorted(losses)
    for count, images in made("outlier").items():
        assert (images != own).any((1, 2, 3)).sum() == count


@pytest.mark.parametrize("name", ["copied", "fewer", "repeated", "dropped", "reweighted"])
def test_images_keep_their_labels(name, draw):
    parts = [(part.pixels, part.labels) for part in (draw.training, draw.pool)]
    known = {image.numpy().tobytes(): int(y) for part in parts for image, y in zip(*part, strict=True)}
    made = HARMS[name].make(draw, HARMS[name].levels[-1])
    labels = [known.get(image.numpy().tobytes(), int(y)) for image, y in zip(*made, strict=True)]
    assert made.labels.tolist() == labels


def test_kinds_are_dropped_and_reweighted_and_nothing_is_drawn_twice(draw):
    for share in HARMS["dropped"].levels:
        made = HARMS["dropped"].make(draw, share)
        assert len(made.labels.unique()) == 10 - round(share * 10)
        assert len(rows_of(made.pixels)) == len(made.pixels) == 100
    often = draw.pool.labels[draw.rank % 2 == 0].unique()
    shares = [
        torch.isin(HARMS["reweighted"].make(draw, level).labels, often).double().mean()
        for level in (0, *HARMS["reweighted"].levels)
    ]
    assert shares == sorted(shares)
    assert shares[0] < 0.7 < 0.9 < shares[-1]


def test_kinds_of_images_without_labels_are_cells(digits):
    alone = split(images_of(digits.__getitems__(range(len(digits)))[0].numpy(), None, None, "x"), 100, 0)
    draw = alone[1][0]
    assert draw.kinds > 5
    assert len(HARMS["dropped"].make(draw, 0.3).pixels) == 100
    purity = [
        torch.bincount(digits_of(digits, draw.pool.pixels[draw.rank == kind])).max()
        / (draw.rank == kind).sum()
        for kind in range(draw.kinds)
    ]
    assert np.mean(purity) > 0.5  # a random partition of ten classes would have about 0.2


def test_labels_of_one_class_are_none(digits):
    """No judge can learn from them, and no label is wrong."""
    pixels, labels = digits.__getitems__(range(len(digits)))
    one = images_of(pixels.numpy(), np.zeros(len(labels), int), ["digit"], "one class")
    reference, draws = split(one, 100, 0)
    assert reference.images.labels is reference.held_out.labels is draws[0].pool.labels is None
    assert torch.equal(draws[0].pool.pixels, split(digits, 100, 0)[1][0].pool.pixels)


def digits_of(digits, pixels: Tensor) -> Tensor:
    known = digits.__getitems__(range(len(digits)))
    label = {image.numpy().tobytes(): int(one) for image, one in zip(*known, strict=True)}
    return torch.tensor([label[image.numpy().tobytes()] for image in pixels])


@pytest.mark.parametrize("name", HARMS)
def test_harms_are_images_and_the_same_each_time(name, draw):
    harm = HARMS[name]
    for level in harm.levels:
        one, again = harm.make(draw, level), harm.make(draw, level)
        assert torch.equal(one.pixels, again.pixels)
        assert torch.equal(one.labels, again.labels)
        assert one.pixels.dtype == torch.uint8
        assert one.pixels.shape[1:] == (1, 8, 8)
        assert len(one.labels) == len(one.pixels) == (round(level * 100) if harm.of_n else 100)
    if name == "rounding":
        assert (one.pixels.int() - draw.own.pixels.int()).abs().max() == 1


def test_the_threshold_is_students():
    assert abs(T - stats.t.ppf(0.975, REPEATS - 1)) < 1e-6


def test_equal_sets_differ_rarely_and_a_shift_of_twice_the_noise_mostly():
    random = np.random.default_rng(0)
    equal, shifted = random.normal(size=(2, 1000, REPEATS))
    moved = np.array([abs(move(a, b, 10**9)) for a, b in zip(equal, shifted, strict=True)])
    # The difference of means has 1/REPEATS of the variance: beyond T sqrt(REPEATS) of Student's t with at
    # least REPEATS - 1 degrees of freedom.
    assert (moved > 1).mean() <= 2 * stats.t.sf(T * REPEATS**0.5, REPEATS - 1) + 3 / 1000**0.5 * 0.1
    assert (
        np.mean([move(a, b + 2 * T * 2**0.5, 10**9) > 1 for a, b in zip(equal, shifted, strict=True)]) > 0.9
    )


def test_one_sample_of_n_is_no_difference():
    assert move([1.0] * 5, [0.99] * 5, 100) >= -1 > move([1.0] * 5, [0.98] * 5, 100)
    assert move([0.0] * 5, [0.0] * 5, 100) == 0


LOOK = Harm(None, (1, 2, 3), "{:g}", "look", "")
PLAIN = Measure("lower")


@pytest.mark.parametrize(
    ("measure", "harm", "means", "said", "passed"),
    [
        (PLAIN, LOOK, (0, 0, 5, 9), "2", True),
        (PLAIN, LOOK, (0, 5, 0.5, 9), "turns back", False),
        (PLAIN, LOOK, (0, 0, 0, 0), "not seen", False),
        (PLAIN, LOOK, (0, 0, 0, -9), "rewarded", False),
        (Measure("higher"), LOOK, (0, -5, -9, -9), "1", True),
        (Measure("higher", sees=("kinds",)), LOOK, (0, -5, 0, -9), "not rewarded", True),
        (Measure("higher", sees=("kinds",)), LOOK, (0, 0, 5, 0), "rewarded from 2", False),
        (Measure(sees=("look",)), LOOK, (0, -5, -9, -15), "1", True),
        (Measure(sees=("look",)), LOOK, (0, -5, 5, 15), "turns back", False),
        (Measure(sees=("copies",)), LOOK, (0, -5, 5, 15), "", None),
        (PLAIN, LOOK._replace(hurts=None), (0, 0, 0.1, 0), "still", True),
        (PLAIN, LOOK._replace(hurts=None), (0, 0, -5, 0), "moves", False),
        (PLAIN, LOOK._replace(hurts=None, of_n=True), (0, 0, -5, 0), "moves", None),
        (Measure("lower", False), LOOK._replace(hurts=None, of_n=True), (0, 0, -5, 0), "moves", False),
    ],
)
def test_rules(measure, harm, means, said, passed):
    spread = np.linspace(-0.1, 0.1, REPEATS)
    assert judge(measure, harm, [list(mean + spread) for mean in means], 10**9) == (said, passed)


def test_the_page_and_the_line_count_what_the_verdicts_say(monkeypatch):
    """Of measures that are to show something; a term of a metric, or a number beside it, is none."""
    for name in set(HARMS) - {"invented", "copied"}:
        monkeypatch.delitem(HARMS, name)
    means = {"fd": 1, "recall": 9, "is_std": 1, "3_class_energy": 1}
    spread = np.linspace(-0.1, 0.1, REPEATS)

    def values(**changed):
        return {"pixels": {name: list(mean + spread) for name, mean in (means | changed).items()}}

    cases = {report.PERFECT: values()}
    cases |= {report.case_of("invented", level): values(fd=9) for level in HARMS["invented"].levels}
    cases |= {report.case_of("copied", level): values(fd=-5, recall=8) for level in HARMS["copied"].levels}
    exam = report.Exam({"num_samples": 10**9, "reference": "numbers"}, cases)
    header, _, *rows = report.table(exam, "pixels").splitlines()
    assert header == "| measure | invented | copied | passed |"
    assert rows == ["| `fd` | 5% | **rewarded from 1%** | 1 of 2 |", "| `recall` | - | - | 2 of 2 |"]
    assert exam.summary() == "pixels: failed checks: recall 0, fd 1"
    drawn = {}
    monkeypatch.setattr(report, "draw_moves", lambda *given: drawn.update(columns=given[0], **given[1]))
    report.figure(exam)
    harms = [name for name, _ in drawn["columns"]]
    for measure, copied in (("fd", -1), ("recall", 1)):  # to its worse end, to its better end
        signs = {(name, np.sign(one)) for name, one in zip(harms, drawn["pixels"][measure], strict=True)}
        assert signs == {("copied", copied), ("invented", 1 if measure == "fd" else 0)}


class Darkness(SampleMetric):
    """A new measure: the distance of the mean of all features from the reference's."""

    def __init__(self, reference, num_samples):
        super().__init__(num_samples)
        self.usual = float(reference.gaussian.mean.mean())
        self.add_sum("total", 1)

    def update(self, index, features):
        self.mark(index)
        self.total += features.double().mean(1).sum()

    def compute(self):
        self.check_complete(self.total)
        return {
            "darkness": Measurement(abs(float(self.total) / self.num_samples - self.usual), self.num_samples)
        }


def test_an_exam_from_the_command_line_with_a_new_measure(monkeypatch, tmp_path, capsys):
    """A row of METRICS is enough; a second run scores nothing, and other settings are refused."""
    from trilemma.eval import exam
    from trilemma.eval.exams import run

    monkeypatch.setitem(METRICS, "darkness", Metric(f"{__name__}:Darkness", {"darkness": Measure("lower")}))
    for name in set(HARMS) - {"invented", "shifted", "copied", "rounding", "fewer"}:
        monkeypatch.delitem(HARMS, name)
    flags = [
        "--cpu_threads", "1", "--feature_extractor", "pixels", "--cache_dir", str(tmp_path / "cache"),
        "--num_samples", "100", "--output_dir", str(tmp_path / "out"),
    ]  # fmt: skip
    exam.main([*flags, "--metrics", "darkness", "copies", "is", "--dry_run"])
    assert "left out: is of pixels" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    exam.main([*flags, "--metrics", "darkness", "copies"])
    kept = json.loads((tmp_path / "out" / "exam.json").read_text())
    said = kept["verdicts"]["pixels"]
    assert said["darkness"]["invented"]["passed"] is True
    assert said["darkness"]["rounding"] == {"said": "still", "passed": True}
    assert said["near_copies"]["copied"] == {"said": "1%", "passed": True}
    page = (tmp_path / "out" / "exam.md").read_text()
    assert "| `darkness` |" in page
    assert (tmp_path / "out" / "exam.png").read_bytes().startswith(b"\x89PNG")

    del kept["values"]["copied 50%"]  # as if it had been stopped there
    verdicts = kept.pop("verdicts")
    (tmp_path / "out" / "exam.json").write_text(json.dumps(kept))
    scored = []
    monkeypatch.setattr(run, "score", lambda *a, then=run.score: scored.append(1) or then(*a))
    exam.main([*flags, "--metrics", "darkness", "copies"])
    assert len(scored) == REPEATS
    assert json.loads((tmp_path / "out" / "exam.json").read_text())["verdicts"] == verdicts
    with pytest.raises(SystemExit, match="another choice of measures or extractors: give another folder"):
        exam.main([*flags, "--metrics", "darkness"])


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--metrics", "fdd"], "--metrics must be one of .*Did you mean fd"),
        (["--metrics", "bpd"], "--metrics bpd needs a model"),
        (["--feature_extractor", "pixel"], "--feature_extractor must be one of .*pixels"),
        (["--num_samples", "39"], "--num_samples must be at least 40; got 39"),
    ],
)
def test_mistyped_flags_are_errors_at_once(flags, error, capsys):
    from trilemma.eval.exam import main

    with pytest.raises(SystemExit):
        main(flags)
    assert re.search(error, capsys.readouterr().err)
