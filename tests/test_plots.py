"""Pictures for people: labelled rows of classes, different images, plain numbers on axes."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_card import result

from trilemma.eval.plots import axes, charts, curves
from trilemma.eval.plots.guidance import SCALES, guidance
from trilemma.eval.plots.process import process, states_shown
from trilemma.eval.plots.sheets import Subject, sheet, short_name
from trilemma.eval.studies.questions import Point, own_sweep, with_seeds
from trilemma.eval.studies.repeats import mean_interval
from trilemma.training.images.image_set import Images


def labels_of(axis, side="y"):
    """The numbers that are drawn on an axis, where it shows them."""
    axis.figure.draw_without_rendering()
    low, high = sorted(getattr(axis, f"get_{side}lim")())
    ticks = getattr(axis, f"{side}axis").get_major_ticks()
    return [tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high]


def images(labels):
    count = 6 if labels is None else len(labels)
    pixels, digests = np.zeros((count, 1, 2, 2), np.uint8), np.zeros((count, 32), np.uint8)
    labels = None if labels is None else np.array(labels)
    return Images(pixels, digests, np.arange(count), labels, None, "x", "train")


@pytest.mark.parametrize(("labels", "count", "shown"), [
    ([0, 0, 0, 1, 1, 2], 3, [0, 3, 5]),
    ([0, 0, 0, 1, 1, 1], 4, [0, 3, 1, 4]),
    ([2, 2, 0, 0, 0, 0], 5, [2, 0, 3, 1, 4]),
    ([1, 1], 4, [0, 1]),
    (None, 3, [0, 2, 4]),
])  # fmt: skip
def test_images_of_different_classes(labels, count, shown):
    assert images(labels).different(count) == shown


@pytest.mark.parametrize(("number", "written"), [
    (0, "0"), (0.00002, "0.00002"), (0.55, "0.55"), (21.5, "21.5"), (20000, "20,000"), (1.5e6, "1.5M"),
    (1e8, "100M"), (-5, "-5"),
])  # fmt: skip
def test_numbers_are_plain(number, written):
    assert axes.plain(number) == written


@pytest.mark.parametrize(("values", "scale"), [
    ([0.6, 0.674], "linear"), ([4.3, 42.9], "linear"), ([4.2, 42.9], "log"), ([0.02, 3], "log"),
    ([1e-6, 1e3], "log"), ([0, 1e3], "linear"), ([-1, 5], "linear"), ([3.0], "linear"),
])  # fmt: skip
def test_a_loss_has_plain_numbers_that_do_not_collide(values, scale):
    axis = curves.losses([{"step": k, "loss": value} for k, value in enumerate(values, 1)]).axes[0]
    assert axis.get_yscale() == scale
    written = labels_of(axis)
    assert 2 <= len(written) <= 8
    assert len(set(written)) == len(written)
    assert not any("$" in text or "e" in text for text in written)
    assert all(float(text).is_integer() for text in labels_of(axis, "x"))


def test_curves_of_the_loss_are_named_by_what_they_are():
    figure = curves.losses([{"step": 9, "loss": 1.0, "validation_loss": 1.1, "loss_q1": 2.0, "loss_q4": 0.1}])
    whole, parts = ([text.get_text() for text in axis.get_legend().get_texts()] for axis in figure.axes)
    assert whole == ["training images", "held-out images"]
    assert parts == ["t/T up to 0.25 (least noise)", "t/T above 0.75 (most noise)"]
    assert [curves.curve_name(name) for name in ("loss_generator", "prior_bpd")] == ["generator", "prior"]
    figure.draw_without_rendering()
    for axis in figure.axes:
        assert axis.get_legend().get_window_extent().x0 >= axis.get_window_extent().x1, "beside the data"
    curves.losses([]).draw_without_rendering()


def test_intervals_of_two_series_stand_side_by_side():
    lines = [
        replace(result(v, "fd", interval=(v - 1, v + 1)), images_seen=seen)
        for v, seen in ((5.0, 1), (6.0, 9))
    ]
    pixels = [replace(line, metric="fd_pixels") for line in lines]
    first, second = curves.scores([*lines, *pixels]).axes[0].lines
    assert not set(first.get_xdata()) & set(second.get_xdata())
    points = [
        (Point(None, {"net": net, "seed": str(seed)}), {"fd": lines[0]}) for net in "ab" for seed in (5, 500)
    ]
    figure = charts.sweep(points, ["fd"], "seed", "?")
    first, second = figure.axes[0].lines[:2]
    assert max(abs(np.log(first.get_xdata() / second.get_xdata()))) > 0.05
    assert figure.axes[0].get_xscale() == "log"
    assert labels_of(figure.axes[0], "x") == ["10", "100"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "floor"]


def test_repeated_trainings_are_one_mark_with_the_values_of_their_seeds():
    """Of a row for each point, and of a curve; the interval is that of the table."""
    row = with_seeds(own_sweep(["loss_type=l2,l1", "snr_gamma=1,5"], "unconditional"), (0, 7, 3), None)
    points = row.points()
    lines = [replace(result(1.0 + k, "fd"), floor=0.5) for k in range(len(points))]
    drawn = [(point, {"fd": line}) for point, line in zip(points, lines, strict=True)]
    rows, curve = (charts.sweep(drawn, ["fd"], x, "?") for x in (None, "snr_gamma"))
    names = [text.get_text() for text in rows.axes[0].get_yticklabels()]
    assert names == ["l2 1", "l2 5", "l1 1", "l1 5"]
    assert [text.get_text() for text in rows.legends[0].get_texts()] == ["one seed", "mean, 95%", "floor"]
    assert {"l2", "l1"} < {text.get_text() for text in curve.legends[0].get_texts()}
    mean, _, half = mean_interval((1.0, 2.0, 3.0))
    seeds, middle = rows.axes[0].lines[:2]
    assert (list(seeds.get_xdata()), list(middle.get_xdata())) == ([1.0, 2.0, 3.0], [mean])
    assert rows.axes[0].collections[0].get_segments()[0][:, 0] == pytest.approx([mean - half, mean + half])
    assert list(curve.axes[0].lines[0].get_ydata()) == [2.0, 5.0]
    assert curve.axes[0].collections[0].get_segments()[0][:, 1] == pytest.approx([mean - half, mean + half])


def test_a_sheet_has_a_labelled_row_for_each_class():
    """Image i is of class i modulo K; here it has the brightness of its class."""
    drawn = torch.tensor([40, 90, 140] * 4 + [40]).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    whole = np.array(sheet(drawn, class_names=["cat", "dog", "a\nname $$ that is much too long"]))
    assert whole.shape[0] == 3 * 50
    margin = whole.shape[1] - 4 * 50  # the 13th image would make one row longer
    for row, brightness in enumerate((40, 90, 140)):
        here = whole[row * 50 + 1 : row * 50 + 49]
        assert (here[:, margin + 1 : margin + 49] == brightness).all()
        assert (here[:, :margin] < 128).any(), "its name"
    many = sheet(drawn[:1].expand(64, 1, 8, 8), class_names=[str(k) for k in range(100)])
    assert many.width < 2 * many.height < 4 * many.width, "many short rows stand side by side"
    assert short_name("a\n\x1b[2Jb" + "c" * 20) == "a ?[2Jb" + "c" * 8 + "\N{HORIZONTAL ELLIPSIS}"


def test_rows_of_the_process_have_their_classes():
    states = torch.zeros(2, 3, 1, 4, 4, dtype=torch.uint8)
    figure = process(states, states, [0, 0.5, 1], names=["cat", "$\\frac$"])
    figure.draw_without_rendering()
    assert [axis.get_ylabel() for axis in figure.axes[::3]] == [
        "forward\ncat", "$\\frac$", "reverse\ncat", "$\\frac$"
    ]  # fmt: skip


class Guided:
    """A pipeline whose image of a class has the brightness 0.05 scale + class / 20."""

    class_names = tuple(map(str, range(12)))
    sampler = "ddim"

    def __call__(self, *, seeds, class_labels, guidance_scale, **options):
        values = [0.05 * guidance_scale + label / 20 for label in class_labels]
        self.batches.append(list(seeds))
        return SimpleNamespace(images=torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 4, 4))


def test_guidance_is_a_row_for_each_scale_with_the_same_seeds_and_classes():
    pipeline = Guided()
    pipeline.batches = []
    subject = Subject(pipeline, torch.zeros(4, 1, 4, 4), 5, [0], False, guidable=True, at_once=8)
    figure = guidance(subject)
    assert pipeline.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] * len(SCALES), "half of at_once"
    shown = np.array([axis.images[0].get_array()[0, 0] for axis in figure.axes]).reshape(len(SCALES), 10)
    wanted = [[round(255 * (0.05 * scale + label / 20)) for label in range(10)] for scale in SCALES]
    assert abs(shown.astype(float) - wanted).max() <= 1
    assert [axis.get_title() for axis in figure.axes[:10]] == list("0123456789")
    assert [axis.get_ylabel() for axis in figure.axes[::10]] == [f"guidance {scale:g}" for scale in SCALES]
    assert guidance(subject._replace(guidable=False)) is guidance(subject._replace(points=True)) is None


def test_a_process_of_1000_steps_is_shown_at_every_hundredth():
    assert torch.linspace(0, 1000, states_shown(1000)).tolist() == list(range(0, 1001, 100))
    assert states_shown(4) == 5
