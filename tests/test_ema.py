"""The moving average against diffusers' EMAModel and the closed form of a half-life."""

import dataclasses

import pytest
import torch
from diffusers.training_utils import EMAModel

from trilemma.training.loop.ema import EMA, ema_decay
from trilemma.training.loop.loop import published
from trilemma.training.options.groups import EMAConfig


def steps(net, average, oracle=None, count=7):
    for step in range(1, count + 1):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        average.update(step)
        if oracle:
            oracle.step(net.parameters())


def test_power_warm_up_equals_diffusers():
    net = torch.nn.Linear(3, 2)
    config = EMAConfig(ema_power=0.75, ema_inv_gamma=2.0, ema_max_decay=0.6)
    ours = EMA(net, ema_decay(config, 128))
    theirs = EMAModel(net.parameters(), decay=0.6, use_ema_warmup=True, inv_gamma=2.0, power=0.75)
    steps(net, ours, theirs)
    for a, b in zip(ours.average, theirs.shadow_params, strict=True):
        torch.testing.assert_close(a, b)


def test_half_life_halves_after_its_images():
    decay = ema_decay(EMAConfig(ema_halflife_images=1000.0), images_per_step=10)
    late = 10_000_000
    assert abs(decay(late) ** 100 - 0.5) < 1e-9
    assert decay(1) < 1e-5  # the ramp: a young run forgets its first weights


def test_without_ema_the_average_is_the_weights():
    net = torch.nn.Linear(3, 2)
    ours = EMA(net, ema_decay(dataclasses.replace(EMAConfig(), use_ema=False), 1))
    steps(net, ours)
    for a, p in zip(ours.average, net.parameters(), strict=True):
        assert torch.equal(a, p)


class Fixed:
    """A method whose pipeline is its network."""

    def __init__(self, net):
        self.net = net

    def pipeline(self, net):
        return net


def test_an_error_while_the_average_is_published_leaves_the_raw_weights_and_the_training_mode():
    net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout())
    ours = EMA(net, lambda step: 0.5)
    steps(net, ours)
    own = [p.detach().clone() for p in net.parameters()]

    def fail(pipeline):
        assert pipeline is net
        assert not any(module.training for module in net.modules())
        assert all(torch.equal(p, a) for p, a in zip(net.parameters(), ours.average, strict=True))
        raise KeyError

    with pytest.raises(KeyError), published(Fixed(net), ours) as pipeline:
        fail(pipeline)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(p, o) for p, o in zip(net.parameters(), own, strict=True))


def test_applied_puts_the_average_in_and_the_own_weights_back_exactly():
    net = torch.nn.Linear(3, 2)
    ours = EMA(net, lambda step: 0.5)
    steps(net, ours)
    own = [p.detach().clone() for p in net.parameters()]
    try:
        with ours.applied():
            assert all(torch.equal(p, a) for p, a in zip(net.parameters(), ours.average, strict=True))
            raise KeyError
    except KeyError:
        pass
    assert all(torch.equal(p, o) for p, o in zip(net.parameters(), own, strict=True))
