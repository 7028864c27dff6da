"""Learning rates as a function of the step: diffusers' schedules to the bit, and milestones."""

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch.optim.lr_scheduler import LambdaLR

from trilemma.training.loop.learning_rate import SHAPES, WITH_WARMUP, rate
from trilemma.training.loop.method import adamw, set_rate
from trilemma.training.options.groups import OptimConfig

PEAK = 3e-4


def config_of(name, warmup, **options):
    milestones = (7, 9, 30) if name == "multistep" else None
    return OptimConfig(
        learning_rate=PEAK, lr_scheduler=name, lr_warmup_steps=warmup, lr_milestones=milestones, **options
    )


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)


def course(schedule, count):
    """Rates of the optimizer steps 0, 1, ..., as a scheduler of torch sets them."""
    rates = []
    for _ in range(count):
        rates.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("name", sorted(set(SHAPES) - {"multistep"}))
@pytest.mark.parametrize(("warmup", "total"), [(0, 40), (10, 40), (13, 57), (40, 30), (1, 2)])
def test_shapes_are_those_of_diffusers_to_the_bit(name, warmup, total):
    theirs = get_scheduler(name, optimizer(), num_warmup_steps=warmup, num_training_steps=total)
    factor = rate(config_of(name, warmup), total)
    assert [PEAK * factor(step) for step in range(total + 5)] == course(theirs, total + 5)


@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_milestones_count_also_during_the_warm_up(warmup):
    def by_hand(step):
        warm = min(1.0, step / warmup) if warmup else 1.0
        return warm * 0.5 ** sum(step >= milestone for milestone in (7, 9, 30))

    factor = rate(config_of("multistep", warmup), 40)
    assert [PEAK * factor(step) for step in range(40)] == course(LambdaLR(optimizer(), by_hand), 40)


def test_warm_up_is_offered_where_it_has_an_effect():
    for name in SHAPES:
        changed = rate(config_of(name, 10), 40)(3) != rate(config_of(name, 0), 40)(3)
        assert changed == (name in WITH_WARMUP)


def test_only_shapes_that_end_depend_on_the_number_of_all_steps():
    for name, shape in SHAPES.items():
        short, long = (rate(config_of(name, 5), total) for total in (40, 80))
        assert shape.ends == any(short(step) != long(step) for step in range(40))


def test_the_rate_that_is_set_is_that_of_every_parameter():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    made = adamw(groups, PEAK, OptimConfig(adam_beta1=0.7, adam_weight_decay=0.1))
    assert all((g["lr"], g["betas"][0], g["weight_decay"]) == (PEAK, 0.7, 0.1) for g in made.param_groups)
    set_rate(made, 0.25)
    assert [g["lr"] for g in made.param_groups] == [0.25, 0.25]
