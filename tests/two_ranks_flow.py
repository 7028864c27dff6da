"""Run by `torchrun` in test_flow.py: trains a flow through the real loop and writes what each rank saw."""

import sys

import torch
from two_ranks import train_and_report

from trilemma.training.loop.method import GradientDescent
from trilemma.training.networks.build import make_net
from trilemma.training.objectives.flow import Flow
from trilemma.training.options.command_line import parse


def main(report: str, *flags: str) -> None:
    config = parse("flow", "", list(flags))
    seen = {"x_s": [], "times": []}

    def make_method(config, images, accelerator, total_steps):
        assert accelerator.num_processes == 2
        objective = Flow(make_net(config, images), config.objective)
        velocity = objective.velocity

        def watched(x_s, time_steps, labels):
            seen["x_s"].append(float(x_s.double().sum()))
            seen["times"].append(float(time_steps.double().sum()))
            return velocity(x_s, time_steps, labels)

        objective.velocity = watched
        seen["networks"] = {"weights": objective.net}
        return GradientDescent(objective, accelerator, config.optim, total_steps)

    train_and_report(report, config, "flow", make_method, seen)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
