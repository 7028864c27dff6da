"""Kill runs at random moments, start them again, and compare the end with an uncut run's.

The moments are spread over the whole run: the start, steps, saves, evaluations, drawing, the final save, the
card. A run may be killed up to three times.
"""

import json
import random
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import safetensors.torch

from hazards.runs import Outcome, run
from hazards.world import World

STEPS = 12

SMALL_VAE = ("--vae_channels", "8", "8", "--latent_dim", "4")
SMALL_GAN = ("--discriminator_channels", "8", "8", "--r1_interval", "3")
VARIES = ("created", "seconds_per_image", "seconds", "images_per_second", "commit")
"""Fields of a line that two equal runs do not share."""


class Uncut(NamedTuple):
    """A run that nothing disturbed: its folder, and its seconds."""

    folder: Path
    seconds: float


def family_flags(world: World, family: str) -> tuple[str, ...]:
    """Flags of a small run of a family, with checkpoints, evaluations and sheets."""
    network = list(world.network())
    if family == "vae":
        network = network[2:]
    if family in ("vae", "ddgan"):
        place = network.index("--ddpm_num_inference_steps")
        del network[place : place + 2]
    own = {"vae": SMALL_VAE, "ddgan": SMALL_GAN}.get(family, ())
    return (
        *network, *own, "--train_data_dir", str(world.photos), "--max_train_steps", str(STEPS),
        "--checkpointing_steps", "3", "--validation_steps", "4", "--sample_steps", "6", "--eval_steps", "6",
        "--eval_num_samples", "8", "--eval_metrics", "energy", "--eval_feature_extractor", "pixels",
    )  # fmt: skip


def uncut(world: World, family: str) -> Uncut:
    """Train a family without a kill."""
    folder = world.path / f"uncut-{family}" / "out"  # results name the folder, so all have one name
    shutil.rmtree(folder, ignore_errors=True)
    outcome = _train(world, family, folder)
    if outcome.code != 0:
        raise SystemExit(f"the uncut run of {family} failed:\n{outcome.output}")
    return Uncut(folder, outcome.seconds)


def killed(world: World, family: str, whole: Uncut, folder: Path, rng: random.Random) -> tuple[int, str]:
    """Kill a run one to three times, and let it end; (kills, what differs from the uncut run or '')."""
    kills, out = 0, folder / "out"
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        outcome = _train(world, family, out, kill_after=rng.uniform(0.2, 1.1) * whole.seconds)
        if outcome.code != -signal.SIGKILL:
            break
        kills += 1
    if not kills:
        return 0, ""
    outcome = _train(world, family, out)
    if outcome.code != 0:
        return kills, f"exit {outcome.code}: {outcome.output.strip().splitlines()[-1]}"
    return kills, difference(out, whole.folder)


def difference(folder: Path, whole: Path) -> str:
    """What two output folders differ in, but for times; '' where nothing does."""
    names, expected = _names(folder), _names(whole)
    if names != expected:
        return f"files {sorted(names ^ expected)}"
    for file in sorted(whole.rglob("*.safetensors")):
        ours, theirs = map(safetensors.torch.load_file, (folder / file.relative_to(whole), file))
        if ours.keys() != theirs.keys() or not all(ours[name].equal(theirs[name]) for name in theirs):
            return f"weights {file.relative_to(whole)}"
    for name in ("results.jsonl", "logs/scalars.jsonl"):
        if _lines(folder / name) != _lines(whole / name):
            return f"lines of {name}"
    return ""


def _names(folder: Path) -> set[str]:
    """Every path under a folder, hidden ones too.

    But for TensorBoard's, which are named after the time, and lines that a resumed run has put aside.
    """
    paths = {path.relative_to(folder) for path in folder.rglob("*")} - {Path("results.dropped.jsonl")}
    return {str(path) for path in paths if path.parts[0] != "logs" or path.name == "scalars.jsonl"}


def _lines(file: Path) -> list[dict]:
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in VARIES} for line in lines]


def _train(world: World, family: str, folder: Path, kill_after: float | None = None) -> Outcome:
    script = f"training/train_{family}.py"
    flags = (*family_flags(world, family), "--output_dir", str(folder))
    return run(script, flags, world.path, kill_after=kill_after)
