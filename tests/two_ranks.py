"""Run by `torchrun` in test_distributed.py: trains a little through the real loop and writes what each rank
saw.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from trilemma.pipelines.unconditional import UnconditionalPipeline
from trilemma.training import families
from trilemma.training import run as launch
from trilemma.training.diffusion.process import noise_schedule
from trilemma.training.loop.machine import closing_groups
from trilemma.training.loop.method import GradientDescent
from trilemma.training.networks.build import make_net
from trilemma.training.objectives.ddpm import DDPM
from trilemma.training.options.command_line import parse


def main(report: str, *flags: str) -> None:
    seen = {"x0": [], "noise": [], "rates": []}
    config = parse("unconditional", "", list(flags))

    def make_method(config, images, accelerator, total):
        assert accelerator.num_processes == int(flags[-1])
        net, schedule = make_net(config, images), noise_schedule("linear", 1000)
        objective = DDPM(net, schedule, config.objective, UnconditionalPipeline)
        method = GradientDescent(objective, accelerator, config.optim, total)
        step, diffuse = method.step, objective.process.diffuse

        def watched_step(x0, labels):
            seen["x0"].append(float(x0.double().sum()))
            logs = step(x0, labels)
            if "learning_rate" in logs:
                seen["rates"].append(float(logs["learning_rate"]))
            return logs

        def watched_diffuse(x0, t, noise):
            seen["noise"].append(float(noise.double().sum()))
            return diffuse(x0, t, noise)

        method.step, objective.process.diffuse = watched_step, watched_diffuse
        seen["networks"] = {"weights": objective.net}
        return method

    train_and_report(report, config, "unconditional", make_method, seen)


def train_and_report(report: str, config, family: str, build, seen: dict) -> None:
    """Train, and write what each rank has seen: `seen` with the weights of its `networks`, name -> module.

    What accelerate or torch says is deprecated is an error.
    """
    warnings.filterwarnings("error", category=FutureWarning)
    warnings.filterwarnings("error", module=r"accelerate\.|torch\.distributed|torch\.nn\.parallel")
    with closing_groups():  # what holds the groups is local to the function
        _train_and_report(report, config, family, build, seen)
    assert not [file for file in Path("/proc/self/task").glob("*/comm") if "gloo" in file.read_text()]


def _train_and_report(report: str, config, family: str, build, seen: dict) -> None:
    launch.draw_pictures = launch.save_bundle = launch.write_card = lambda *arguments: None
    row = families.family(family)._replace(build=build)
    families.family = lambda name: row
    launch.train_and_save(config, family)
    for name, network in seen.pop("networks").items():
        seen[name] = [float(p.double().sum()) for p in network.parameters()]
    everyone = gather_object([seen])
    if PartialState().is_main_process:
        Path(report).write_text(json.dumps(everyone))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
