"""Saving the state of a run and resuming it bit for bit; other flags or data are refused.

Data and network configurations may have moved meanwhile: the fingerprint says whether the images are the
same, and a checkpoint holds the configuration of its network.
"""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from trilemma.pipelines.files.reading import check_types
from trilemma.training.devices.ranks import decided
from trilemma.training.images.shards.batches import Place
from trilemma.training.loop.checkpoints import (
    checkpoint_path,
    damaged,
    find_same,
    save_checkpoint,
    set_newer_aside,
)
from trilemma.training.loop.ema import EMA
from trilemma.training.loop.learning_rate import SHAPES
from trilemma.training.loop.method import Method
from trilemma.training.networks.build import load_network_config
from trilemma.training.options import plugins
from trilemma.training.options.flags import Config, flags_of, flatten

logger = logging.getLogger(__name__)

DATA_PLACES = {"dataset_name", "dataset_config_name", "dataset_revision", "train_data_dir"}
"""Flags that say where the training images are; their fingerprint is compared in place of these."""
NETWORK = "model_config_name_or_path"
PRECISION = "mixed_precision"
"""A flag that may be left open: what it became is compared."""
FINISHED = "finished"
"""An empty file in the folder of a checkpoint: what was left to do after its step is done."""

ENTRIES = {
    "step": int, "seconds": float, "config": dict, "network": dict, "num_processes": int, "precision": str,
    "fingerprint": str, "method": dict, "ema": list, "rng": list, "left": tuple[str, ...],
    "plugins": dict[str, str], "places": list[list[int]], "tracks": list[list],
}  # fmt: skip
OPTIONAL = {"network", "left", "plugins", "places", "tracks"}
"""What a state holds; that of version 0.1 has nothing OPTIONAL; places are of a stream of shards, tracks of
--ema_snapshot_steps."""


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
        place: Place | None = None,
    ):
        self.folder, self.method, self.ema, self.place = folder, method, ema, place
        self.accelerator, self.config, self.fingerprint = accelerator, config, fingerprint
        self.network = configuration(method.net)

    def resume(self) -> tuple[int, float, list[str]]:
        """Restore the checkpoint that the flags name: its step, seconds, and what was left to do after that
        step; 0, 0 and nothing without one.

        With 'latest', one that cannot be restored leads to the one before it.
        """
        name, unusable = self.config.run.resume_from_checkpoint, []
        while newest := find_same(self.folder, name, self.accelerator, unusable):
            path, state = newest
            fault = self._attempt(lambda: check_entries(state, path))  # noqa: B023 (called at once)
            if fault is None:
                self._refuse_other_settings(path, state)
                fault = self._attempt(lambda: self._restore(state))  # noqa: B023
            if fault is None:
                decided(self.accelerator, lambda: set_newer_aside(self.folder, state["step"]))  # noqa: B023
                self.accelerator.print(f"Resuming from {path} at step {state['step']}.")
                done = decided(self.accelerator, (path / FINISHED).exists)
                return state["step"], state["seconds"], [] if done else list(state.get("left", []))
            problem = damaged(path, fault)
            if name != "latest":
                raise problem
            logger.warning("%s; trying the one before it", problem)
            unusable.append(path)
        return 0, 0.0, []

    def _attempt(self, work: Callable[[], None]) -> str | None:
        """None, or what went wrong on the first process where it did, the same on all; collective."""
        fault = None
        try:
            work()
        except Exception as problem:  # what a state with other entries makes of torch and of our code
            fault = f"{type(problem).__name__} {problem}"
        return next((one for one in gather_object([fault]) if one is not None), None)

    def _refuse_other_settings(self, path: Path, state: dict[str, Any]) -> None:
        """ValueError that names every flag and whatever else would change the result."""
        changed = changed_flags(state["config"], self.config)
        if "network" in state:
            changed += changed_network(state["network"], self.network)
        else:
            changed += moved_network(state["config"], self.config)
        changed += changed_plugins(state.get("plugins", {}), plugins.digests())
        precision = self.accelerator.mixed_precision
        if state["precision"] != precision:
            changed.append(f"--mixed_precision: {state['precision']} then, {precision} now")
        if state["fingerprint"] != self.fingerprint:
            changed.append("the training images: not the same as then")
        if state["num_processes"] != self.accelerator.num_processes:
            changed.append(f"processes: {state['num_processes']} then, {self.accelerator.num_processes} now")
        if self.ema.tracks and not state.get("tracks"):
            every = self.config.ema.ema_snapshot_steps
            changed.append(f"--ema_snapshot_steps: 0 then, {every} now, and its averages begin at step 1")
        if changed:
            raise ValueError(
                f"{path} was trained with other settings, so resuming it would give the result of neither: "
                + "; ".join(changed)
                + ". Use the old settings, or another --output_dir (with --init_from to start from the "
                "weights of a finished model), or --overwrite_output_dir to start over."
            )

    def _restore(self, state: dict[str, Any]) -> None:
        if self.place is not None:
            self.place.go_to(state["places"][self.accelerator.process_index])
        self.method.load_state_dict(state["method"])
        self.ema.load_state_dict(state["ema"])
        for track, average in zip(self.ema.tracks, state.get("tracks", []), strict=False):
            track.load_state_dict(average)
        set_rng_state(state["rng"][self.accelerator.process_index], self.accelerator.device)

    def finished(self, step: int) -> None:
        """Note beside the checkpoint of a step that what was left to do after it is done."""
        if self.accelerator.is_main_process:
            (checkpoint_path(self.folder, step) / FINISHED).touch()

    def save(self, step: int, seconds: float, left: list[str]) -> None:
        """Write the checkpoint of a step, and what is left to do after it; every rank takes part, for its
        random state and its place in a stream.
        """
        rng = gather_object([rng_state(self.accelerator.device)])
        places = gather_object([self.place.state()]) if self.place is not None else None

        def write() -> None:
            state = {
                "step": step,
                "seconds": seconds,
                "config": plain(flatten(self.config)),
                "network": self.network,
                "num_processes": self.accelerator.num_processes,
                "precision": self.accelerator.mixed_precision,
                "fingerprint": self.fingerprint,
                "method": self.method.state_dict(),
                "ema": self.ema.state_dict(),
                "tracks": [track.state_dict() for track in self.ema.tracks],
                "rng": rng,
                "left": list(left),
                "plugins": plugins.digests(),
            }
            state |= {"places": places} if places else {}
            save_checkpoint(self.folder, step, state, self.config.run.checkpoints_total_limit)

        decided(self.accelerator, write)


def check_entries(state: dict[str, Any], path: Path) -> None:
    """ValueError unless a state has the entries of a run, and is of the step that its folder is named for."""
    if missing := ENTRIES.keys() - OPTIONAL - state.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    check_types(state, ENTRIES)
    if path.name.startswith("step-") and path.name != checkpoint_path(path.parent, state["step"]).name:
        raise ValueError(f"it is of step {state['step']}")


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, as YAML and weights-only loading know them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def configuration(net: nn.Module) -> dict[str, Any]:
    """What the network was made from, as plain values; its weights and its place are not part of it."""
    values = {"_class_name": type(net).__name__, **without_notes(net.config)}
    return json.loads(json.dumps(values))


def without_notes(config: Mapping[str, Any]) -> dict[str, Any]:
    """A network's configuration without the entries in which diffusers notes versions and places."""
    return {name: value for name, value in config.items() if name[0] != "_"}


def changed_flags(before: dict[str, Any], config: Config) -> list[str]:
    """'--flag: old then, new now' for each flag that would change the weights of a resumed run."""
    flags, now = flags_of(type(config)), plain(flatten(config))
    free = {
        *DATA_PLACES,
        NETWORK,
        PRECISION,
        "plugin",
        *(name for name, flag in flags.items() if flag.meta["free"]),
    }
    if not SHAPES[now["lr_scheduler"]].ends:
        free |= {"max_train_steps", "num_epochs"}
    return [
        f"--{name}: {before[name]} then, {now[name]} now"
        for name in now
        if name not in free and name in before and before[name] != now[name]
    ]


def changed_plugins(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """'--plugin x.py: 0123abcd then, none now' for each plug-in with other contents; they may have moved."""
    return [
        f"--plugin {name}: {before.get(name, 'none')[:8]} then, {now.get(name, 'none')[:8]} now"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]


def changed_network(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """'the network's x: old then, new now' for each entry of its configuration that differs."""
    return [
        f"the network's {name.strip('_')}: {before.get(name)} then, {now.get(name)} now"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]


def moved_network(before: dict[str, Any], config: Config) -> list[str]:
    """What `changed_flags` would say of the network's configuration, for a checkpoint that does not hold it.

    Two files are compared by what they hold; one that is no longer there counts as another.
    """
    old, new = before.get(NETWORK), flatten(config).get(NETWORK)
    if old == new:
        return []
    try:
        if old and new and _network_at(old) == _network_at(new):
            return []
    except (OSError, ValueError):
        pass
    return [f"--{NETWORK}: {old} then, {new} now"]


def _network_at(place: str) -> dict[str, Any]:
    values = load_network_config(place)
    return {"_class_name": values.get("_class_name", "UNet2DModel"), **without_notes(values)}


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
