"""Saving the state of a run and resuming it bit for bit; other flags or data are refused.

Data and network configurations may have moved meanwhile: the fingerprint tells whether the images are the
same, and configurations are compared by what they hold.
"""

import json
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
from trilemma.training.networks.build import load_network_config
from trilemma.training.options.flags import flags_of, flatten
from trilemma.training.options.groups import Config

DATA_PLACES = {"dataset_name", "dataset_config_name", "dataset_revision", "train_data_dir"}
"""Flags that say where the training images are; their fingerprint is compared in place of these."""
NETWORK = "model_config_name_or_path"


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
        self.network_config = network_config(flatten(config).get(NETWORK))

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
        changed = changed_flags(state["config"], self.config, state.get("network_config"))
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
                "network_config": self.network_config,
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


def network_config(place: str | None) -> dict[str, Any] | None:
    """What the network configuration at this place holds; None where there is none now."""
    if place is None:
        return None
    try:
        values = load_network_config(place)
    except (OSError, ValueError):
        return None
    return json.loads(json.dumps({k: v for k, v in values.items() if not k.startswith("_")}))


def changed_flags(
    before: dict[str, Any], config: Config, network_before: dict[str, Any] | None = None
) -> list[str]:
    """'--flag: old then, new now' for each flag that would change the weights of a resumed run.

    network_before: what the network configuration held; None: look where it was.
    """
    flags, now = flags_of(type(config)), plain(flatten(config))
    free = DATA_PLACES | {NETWORK} | {name for name, flag in flags.items() if flag.meta["free"]}
    if not SHAPES[now["lr_scheduler"]].ends:
        free |= {"max_train_steps", "num_epochs"}
    changed = [
        f"--{name}: {before[name]} then, {now[name]} now"
        for name in now
        if name not in free and name in before and before[name] != now[name]
    ]
    places = before.get(NETWORK), now.get(NETWORK)
    network_before, network_now = network_before or network_config(places[0]), network_config(places[1])
    if places != (None, None) and (network_before is None or network_before != network_now):
        changed.append(f"--{NETWORK}: {places[0]} then, {places[1]} now, perhaps another network")
    return changed


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
