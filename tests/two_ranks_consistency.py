"""Run by `torchrun` in test_consistency.py: trains through the real loop and writes what each rank saw."""

import sys

import torch
from two_ranks import train_and_report

from trilemma.training import families
from trilemma.training.options.command_line import parse


def main(report: str, *flags: str) -> None:
    config = parse("consistency", "", list(flags))
    seen = {"noise": [], "gaps": []}
    build = families.family("consistency").build

    def make_method(config, images, accelerator, total_steps):
        assert accelerator.num_processes == 2
        method = build(config, images, accelerator, total_steps)
        process = method.objective.process
        diffuse = process.diffuse

        def watched_diffuse(x0, t, noise):
            seen["noise"].append(float(noise.double().sum()))
            if method.objective.training:  # only the first rank has held-out images
                seen["gaps"].append(method.objective.gap)
            return diffuse(x0, t, noise)

        process.diffuse = watched_diffuse
        seen["networks"] = {"weights": method.net}
        return method

    train_and_report(report, config, "consistency", make_method, seen)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
