"""The cost model: what it counts is what is there, its formulas hold, and the page has what it writes."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from entry import ROOT


@pytest.fixture
def cost(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import cost_model

    yield cost_model
    for name in [
        name for name in sys.modules if name.split(".")[0] in ("speed", "kept_table", "cost", "cost_model")
    ]:
        del sys.modules[name]


@pytest.fixture
def model(cost):
    return sys.modules["cost.model"]


class TwoConvolutions(torch.nn.Module):
    """In place of a row of NETS."""

    def __init__(self, channels: int, middle: int):
        super().__init__()
        self.first = torch.nn.Conv2d(channels, middle, 3, padding=1)
        self.second = torch.nn.Conv2d(middle, channels, 3, padding=1)

    def forward(self, x, t):
        return SimpleNamespace(sample=self.second(self.first(x)))


def test_convolutions_are_counted_as_by_hand(model, monkeypatch):
    monkeypatch.setattr(model, "build_network", lambda *_, **__: TwoConvolutions(3, 5))
    work = model.count("unet_8", side=8, channels=3)
    # A product and a sum for each weight of a kernel, at each pixel of each output channel.
    assert work.forward == 2 * 2 * (3 * 5 * 9) * 8 * 8
    assert work.parameters == 2 * (3 * 5 * 9) + 5 + 3
    # The backward pass needs the input of each convolution; weights are no activations.
    assert work.activations == 4 * (3 + 5) * 8 * 8
    assert work.gradient_bytes == 4 * work.parameters


def test_a_step_is_three_forward_passes(model):
    """The counter over a backward pass: only the gradient for the images themselves is not needed."""
    from torch.utils.flop_counter import FlopCounterMode

    from trilemma.training.networks.build import build_network
    from trilemma.training.networks.rows import NETS

    work = model.count("unet_8", side=8, channels=1)
    with torch.device("meta"):
        net = build_network(NETS["unet_8"], channels=1, resolution=8)
        with FlopCounterMode(display=False) as flops:
            net(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long)).sample.sum().backward()
    assert work.parameters == sum(weight.numel() for weight in net.parameters())
    first = net.conv_in.weight.numel() * 2 * 8 * 8
    embedding = net.time_embedding.linear_1.weight.numel() * 2  # nor the gradient for the time
    assert flops.get_total_flops() == 3 * work.forward - first - embedding


def test_gradients_go_in_a_ring(model):
    """Parts go around a ring, first to be added up, then as results: count what each process sends."""
    for processes in (1, 2, 5, 8):
        parts = [[10**rank] * processes for rank in range(processes)]  # rank -> its part of each place
        sent = [0] * processes
        for turn in range(2 * (processes - 1)):
            before = [list(row) for row in parts]
            for rank in range(processes):
                place, to = (rank - turn) % processes, (rank + 1) % processes
                adding = turn < processes - 1
                parts[to][place] = before[rank][place] + (before[to][place] if adding else 0)
                sent[rank] += 1
        assert {number for row in parts for number in row} == {sum(10**rank for rank in range(processes))}
        assert {model.ring_volume(processes, processes)} == set(sent)


def test_buckets_have_all_gradients(model):
    for size in (1, model.FIRST_BUCKET, model.FIRST_BUCKET + 1, 3 * model.BUCKET):
        sizes = model.buckets(size)
        assert sum(sizes) == size
        assert min(sizes) > 0
        assert max(sizes) <= model.BUCKET


def test_the_utilisation_is_what_the_paper_reports(model, cost):
    """21 steps a second of 128 images on four chips of 123 TFLOP/s."""
    kept = json.loads(cost.KEPT.read_text())
    forward = kept["presets"]["cifar10"]["work"]["forward"]
    assert 21 * 128 * 3 * forward / (4 * 123e12) == pytest.approx(model.UTILISATION, rel=0.05)


def test_more_gpus_never_make_a_step_shorter(model, cost):
    kept = json.loads(cost.KEPT.read_text())
    work = model.Work(**kept["presets"]["cifar10"]["work"])
    for hardware in model.HARDWARE:
        steps = [model.step(work, hardware, gpus, 16) for gpus in cost.GPUS]
        assert steps[0].reduce == steps[0].exposed == 0
        assert [one.seconds for one in steps] == sorted(one.seconds for one in steps)
        for one in steps[1:]:
            assert one.latency < one.reduce
            assert one.exposed <= one.reduce


def test_two_processes_are_predicted_from_one(cost):
    check, model = sys.modules["cost.check"], sys.modules["cost.model"]
    work = model.Work(parameters=250_000, forward=100, operations=1, activations=1)  # 1 MB of gradients
    here = {
        "runs": [["net", 10, 1, 2.0], ["net", 20, 1, 5.0], ["net", 10, 2, 3.0]],
        "latency": 0.25,
        "bandwidth": 4e6,
    }
    one, double, two = check.compared(here, {"net": work})
    assert (one.predicted, one.flops) == (None, 3 * 100 * 10 / 2.0)
    assert (double.predicted, double.measured, double.reduce) == (4.0, 5.0, 0.0)
    # Two processes: 2 seconds of one, one bucket's latency, and 1 MB at 4 MB/s.
    assert two.predicted == pytest.approx(2.0 + 0.25 + 0.25)
    assert two.reduce == pytest.approx(0.5 / 2.5)


def test_the_page_has_what_the_script_writes(cost, tmp_path):
    kept = json.loads(cost.KEPT.read_text())
    text = cost.section(kept)
    assert cost.PART.read() == f"\n{text}\n\n"

    page, copy = cost.PART.page.read_text(), tmp_path / "scaling.md"
    copy.write_text(page)
    part = cost.PART._replace(page=copy)
    part.write(part.read())
    assert copy.read_text() == page
    copy.write_text("no markers")
    with pytest.raises(SystemExit, match="needs the lines"):
        part.write(text)


def test_kept_numbers_are_of_the_presets(cost, monkeypatch):
    """Network, batch and steps; what is counted of a network is compared above."""
    kept = json.loads(cost.KEPT.read_text())["presets"]
    monkeypatch.setattr(cost, "count", lambda *shape: shape)
    new = {name: cost.recipe(name) for name in cost.PRESETS}
    assert {name: (one["batch"], one["steps"]) for name, one in kept.items()} == {
        name: (one.batch, one.steps) for name, one in new.items()
    }
    assert new["cifar10"].work == ("unet_cifar10", 32, 3, 3)
    assert new["imagenet-64"].work == ("unet_64", 64, 3, 6)  # the hybrid loss predicts variances too
