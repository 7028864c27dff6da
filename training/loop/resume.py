"""Saving the state of a run and resuming it bit for bit; other flags or data are refused."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from trilemma.training.loop.checkpoints import find_checkpoint, save_checkpoint, set_newer_aside
from trilemma.training.loop.ema import EMA
from trilemma.training.loop.learning_rate import SHAPES
from trilemma.training.loop.method import Method
from trilemma.training.options.flags import flags_of, flatten
from trilemma.training.options.groups import Config


class Checkpoints:
    """Saves and restores the state of a run; refuses to resume with flags that change the result."""

    def __init__(
        self,
        folder: Path,
        method: Method,
        ema: EMA,
        accelerator: Accelerator,
        config: Config,
        fingerprint: str,
    ):
        self.folder, self.method, self.ema = folder, method, ema
        self.accelerator, self.config, self.fingerprint = accelerator, config, fingerprint

    def resume(self) -> tuple[int, float]:
        """Restore the checkpoint that the flags name; its step and seconds, or 0, 0 without one."""
        newest = find_checkpoint(self.folder, self.config.run.resume_from_checkpoint)
        steps = gather_object([0 if newest is None else newest[1]["step"]])
        if len(set(steps)) > 1:
            raise ValueError(
                f"processes see different checkpoints, of steps {steps}: machines must share --output_dir"
            )
        if newest is None:
            return 0, 0.0
        path, state = newest
        changed = changed_flags(state["config"], self.config)
        precision = self.accelerator.mixed_precision
        if state["precision"] != precision:
            changed.append(f"--mixed_precision: {state['precision']} then, {precision} now")
        if state["fingerprint"] != self.fingerprint:
            changed.append("the training images: not the same as then")
        if state["num_processes"] != self.accelerator.num_processes:
            changed.append(f"processes: {state['num_processes']} then, {self.accelerator.num_processes} now")
        if changed:
            raise ValueError(
                f"{path} was trained with other settings, so resuming it would give the result of neither: "
                + "; ".join(changed)
                + ". Use the old settings, or another --output_dir (with --init_from to start from the "
                "weights of a finished model), or --overwrite_output_dir to start over."
            )
        if self.accelerator.is_main_process:
            set_newer_aside(self.folder, state["step"])
        self.method.load_state_dict(state["method"])
        self.ema.load_state_dict(state["ema"])
        set_rng_state(state["rng"][self.accelerator.process_index], self.accelerator.device)
        self.accelerator.print(f"Resuming from {path} at step {state['step']}.")
        return state["step"], state["seconds"]

    def save(self, step: int, seconds: float) -> None:
        """Write the checkpoint of a step; every rank takes part, for its random state."""
        rng = gather_object([rng_state(self.accelerator.device)])
        failure: list[Exception | None] = [None]
        if self.accelerator.is_main_process:
            state = {
                "step": step,
                "seconds": seconds,
                "config": plain(flatten(self.config)),
                "num_processes": self.accelerator.num_processes,
                "precision": self.accelerator.mixed_precision,
                "fingerprint": self.fingerprint,
                "method": self.method.state_dict(),
                "ema": self.ema.state_dict(),
                "rng": rng,
            }
            try:
                save_checkpoint(self.folder, step, state, self.config.run.checkpoints_total_limit)
            except OSError as problem:
                failure = [problem]
        # A rank that failed alone would leave the others waiting for it.
        failure = [f for f in gather_object(failure) if f]
        if failure:
            raise failure[0]


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, as YAML and weights-only loading know them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def changed_flags(before: dict[str, Any], config: Config) -> list[str]:
    """'--flag: old then, new now' for each flag that would change the weights of a resumed run."""
    flags, now = flags_of(type(config)), plain(flatten(config))
    free = {name for name, flag in flags.items() if flag.meta["free"]}
    if not SHAPES[now["lr_scheduler"]].ends:
        free |= {"max_train_steps", "num_epochs"}
    return [
        f"--{name}: {before[name]} then, {now[name]} now"
        for name in now
        if name not in free and name in before and before[name] != now[name]
    ]


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """This rank's random state, on the CPU and on its device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore a random state."""
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"], device)
