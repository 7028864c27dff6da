"""The moving average of the weights, which is what gets sampled, scored and published.

Beside it, if the flags ask for them, two tracks: averages of fixed lengths whose snapshots are kept in the
output folder, and from which `training/average.py` makes the average of any length.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.profiler import record_function

from trilemma.pipelines.files.arrays import read_safetensors
from trilemma.pipelines.files.reading import FileError
from trilemma.pipelines.files.writing import remove, written
from trilemma.training.devices.profile import EMA as EMA_RANGE
from trilemma.training.options.groups import EMAConfig
from trilemma.training.post_hoc import TRACKS, Profile, decay_of, power_of

RAMP_UP = 0.05
"""Longest half-life as a share of the images seen so far; Karras et al. 2022, `ema_rampup_ratio`."""


def ema_decay(config: EMAConfig, images_per_step: int) -> Callable[[int], float]:
    """Decay after optimizer step 1, 2, ...: diffusers' power warm-up, a half-life in images, a share of the
    run, or 0.
    """

    def power(step: int) -> float:
        return min(1 - (1 + (step - 1) / config.ema_inv_gamma) ** -config.ema_power, config.ema_max_decay)

    def half_life(step: int) -> float:
        return 0.5 ** (images_per_step / min(config.ema_halflife_images, RAMP_UP * step * images_per_step))

    if not config.use_ema:
        return lambda step: 0.0
    if config.ema_std:
        return partial(decay_of, power_of(config.ema_std))
    return half_life if config.ema_halflife_images else power


class EMA:
    """Averaged copy of a network's parameters, in their order.

    tracks: two more averages, of the lengths TRACKS, which no step leaves out.
    """

    def __init__(self, net: nn.Module, decay: Callable[[int], float], tracks: bool = False):
        self.names, self.parameters = zip(*net.named_parameters(), strict=True)
        self.average = [p.detach().clone() for p in self.parameters]
        self.decay = decay
        self.tracks = [EMA(net, partial(decay_of, power_of(std))) for std in TRACKS if tracks]

    @record_function(EMA_RANGE)
    @torch.no_grad()
    def update(self, step: int, skipped: Tensor | None = None) -> None:
        """Move the average towards the weights that optimizer step `step` (1, 2, ...) produced.

        skipped: a bool () on the device, True for a step that changed no weights and so no average.
        """
        for track in self.tracks:
            track.update(step)
        weights, share = [p.detach() for p in self.parameters], 1 - self.decay(step)
        if skipped is None or share == 1:
            torch._foreach_lerp_(self.average, weights, share)
            return
        change = torch._foreach_sub(weights, self.average)
        torch._foreach_mul_(change, torch.where(skipped, 0.0, share))
        torch._foreach_add_(self.average, change)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The network holds the averaged weights inside the block, and exactly its own after it."""
        own = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, own)

    def state_dict(self) -> list[torch.Tensor]:
        """The averaged tensors."""
        return self.average

    def load_state_dict(self, average: list[torch.Tensor]) -> None:
        """Averaged tensors of an earlier run of the same network."""
        torch._foreach_copy_(
            self.average, [a.to(p.device) for a, p in zip(average, self.average, strict=True)]
        )


def ema_of(net: nn.Module, config: EMAConfig, images_per_step: int) -> EMA:
    """The average of a network that the flags ask for, with its tracks."""
    return EMA(net, ema_decay(config, images_per_step), tracks=bool(config.ema_snapshot_steps))


def save_snapshot(folder: Path, step: int, ema: EMA) -> None:
    """Write the tracks as they are after a step, in float16, which rounds a weight by about 0.02%."""
    tensors = {
        f"{std} {name}": average.to("cpu", torch.float16)
        for std, track in zip(TRACKS, ema.tracks, strict=True)
        for name, average in zip(ema.names, track.average, strict=True)
    }
    with written(_snapshot(folder, step)) as file:
        file.write(save(tensors))


def snapshot_steps(folder: Path) -> list[int]:
    """Steps that `folder` has snapshots of, ascending."""
    return sorted(int(path.stem[5:]) for path in folder.glob("step-*.safetensors") if path.stem[5:].isdigit())


def drop_snapshots(folder: Path, after: int) -> None:
    """Delete the snapshots of steps later than `after`, from which a run continues."""
    for step in snapshot_steps(folder):
        if step > after:
            remove(_snapshot(folder, step))


def kept_profiles(folder: Path) -> list[Profile]:
    """The averages of all snapshots, in the order in which `weighted_sum` takes their weights."""
    return [Profile(power_of(std), step) for step in snapshot_steps(folder) for std in TRACKS]


def weighted_sum(folder: Path, weights: list[float]) -> dict[str, Tensor]:
    """Sum of the snapshots' averages, by the name of the parameter, float32; one file is read at a time."""
    total: dict[str, Tensor] = {}
    each = iter(weights)
    for step in snapshot_steps(folder):
        path, shares = _snapshot(folder, step), {str(std): next(each) for std in TRACKS}
        remedy = "restore it from a copy, or delete it and average those that are left"
        tensors, _ = read_safetensors(path, remedy)
        for key, tensor in tensors.items():
            std, _, name = key.partition(" ")
            if std not in shares or not tensor.isfinite().all():
                raise FileError(path, f"has a {key!r} that no snapshot has, or that is not finite", remedy)
            total[name] = total.get(name, 0) + shares[std] * tensor.double()
    return {name: tensor.float() for name, tensor in total.items()}


def _snapshot(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"
