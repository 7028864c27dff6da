"""Full disks: a command writes to a disk that is too small, the disk grows, and the command is run again.

Where file systems may be mounted, the disk is a small tmpfs. Elsewhere no file may grow beyond a limit.
"""

import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from hazards.kills import Uncut, difference, family_flags
from hazards.runs import ROOT, Outcome, run
from hazards.world import DRAW, World

FAMILY = "unconditional"
ROOMY = "200M"


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a tmpfs."""
    try:
        with _small_disk(folder, 64):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def _small_disk(folder: Path, kibibytes: int):
    """A disk of this size in an empty folder; yields what makes it roomy."""
    folder.mkdir(parents=True, exist_ok=True)
    _mount(folder, f"size={kibibytes}k")
    try:
        yield lambda: _mount(folder, f"remount,size={ROOMY}")
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def _mount(folder: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


def full(
    world: World, folder: Path, whole: Uncut, rng: random.Random, mounting: bool
) -> tuple[str, str, str]:
    """One command on a disk that is too small, and again with room: (what, a verdict, what was wrong)."""
    name = rng.choice(sorted(WRITERS))
    script, flags, size, compare = WRITERS[name](world, folder / "disk", whole)
    kibibytes = rng.randint(8, max(16, round(1.1 * size / 1024)))
    what = f"{name}, {kibibytes} KiB"
    if mounting:
        with _small_disk(folder / "disk", kibibytes) as grow:
            first = run(script, flags, folder)
            grow()
            return what, *_ended(first, run(script, flags, folder), compare)
    (folder / "disk").mkdir()
    limited = f'ulimit -f {kibibytes}; exec "$@"'
    command = ["bash", "-c", limited, "-", sys.executable, str(ROOT / script), *flags]
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace")
    first = Outcome(done.returncode, done.stdout + done.stderr, 0.0)
    return what, *_ended(first, run(script, flags, folder), compare)


def _ended(first: Outcome, second: Outcome, compare: Callable[[], str]) -> tuple[str, str]:
    if first.code is None or second.code is None:
        return "hang", ""
    for outcome in (first, second):
        if outcome.code < 0 or "Traceback (most recent call last)" in outcome.output:
            return "traceback", f"{outcome.code} {outcome.output.strip().splitlines()[-1:]}"
    if first.code and "disk/" not in first.output and "disk'" not in first.output:
        return "unnamed", first.output.strip().splitlines()[-1]
    if second.code:
        return "half-written", second.output.strip().splitlines()[-1]
    if wrong := compare():
        return "half-written" if first.code else "silent", wrong
    return ("refused" if first.code else "right"), ""


def _training(world: World, disk: Path, whole: Uncut):
    flags = (*family_flags(world, FAMILY), "--output_dir", str(disk / "out"))
    size = sum(file.stat().st_size for file in whole.folder.rglob("*") if file.is_file())
    script = f"training/train_{FAMILY}.py"
    return script, flags, size, lambda: difference(disk / "out", whole.folder)


def _array(world: World, disk: Path, whole: Uncut):
    flags = ("--model", str(world.run), *DRAW, "--output", str(disk / "x.npy"))

    def wrong() -> str:
        return "" if (disk / "x.npy").read_bytes() == world.image_file.read_bytes() else "other images"

    return "eval/generate.py", flags, 4096, wrong


def _pictures(world: World, disk: Path, whole: Uncut):
    flags = ("--model", str(world.run), *DRAW, "--output", str(disk / "drawn"))

    def wrong() -> str:
        suffixes = [file.suffix for file in (disk / "drawn").iterdir() if not file.name.startswith(".")]
        return "" if suffixes.count(".png") == 16 else f"{suffixes}"

    return "eval/generate.py", flags, 40_000, wrong


def _results(world: World, disk: Path, whole: Uncut):
    flags = ("--model", str(world.run), *world.scoring(), "--cache_dir", str(disk / "cache"))
    flags += ("--output", str(disk / "r.jsonl"), "--save_reference", str(disk / "reference.safetensors"))

    def wrong() -> str:
        lines = len((disk / "r.jsonl").read_text(encoding="utf-8").splitlines())
        return "" if lines in (1, 2) else f"{lines} lines"

    return "eval/evaluate.py", flags, 120_000, wrong


def _comparison(world: World, disk: Path, whole: Uncut):
    flags = ("--models", str(world.run), "--output_dir", str(disk / "out"))

    def wrong() -> str:
        return (
            ""
            if (disk / "out" / "comparison.md").read_text(encoding="utf-8").strip()
            else "comparison.md is empty"
        )

    return "eval/compare.py", flags, 120_000, wrong


WRITERS = {
    "training": _training,
    "images in one file": _array,
    "images in a folder": _pictures,
    "results and statistics": _results,
    "comparison": _comparison,
}
"""What writes -> its command, the bytes that it writes, and what is wrong with what it wrote at last."""
