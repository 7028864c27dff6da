"""What the toolkit does with bad inputs, kills and full disks: `python benchmarks/campaign.py`.

`--bad_inputs N` runs N commands on damaged pictures, tables, configurations, flags, results, statistics,
model folders, caches, checkpoints, and against a Hub that fails. `--kills N` kills runs of every family, or
of `--families`, N times at random moments and compares the end with an uncut run's, bit by bit. `--full_disks
N` runs N commands on disks that are too small, and again when there is room. Everything follows from
`--seed`, except the moment within a run that a kill meets, which depends on the machine.

Each trial ends as one of: right (the result that an undamaged input gives), refused (a message that names the
thing, and nothing was changed), or wrong: traceback, hang, unnamed (a message that does not name the thing),
half-written (files were left or changed), silent (exit code 0 with another result). Trials are added to
`trials.jsonl` in `--output_dir`; a campaign that was cut goes on where it stopped. The table is written to
`campaign.md` there, and the exit code is 1 if anything was wrong.
"""

import argparse
import json
import platform
import random
import shutil
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from hazards import disks, hub, inputs, kills
from hazards.runs import BAD, VERDICTS, judge
from hazards.world import World, make

from trilemma.training.families import names

KINDS = {**inputs.KINDS, "answers of a Hub": (hub.answers, 4)}


class Campaign:
    """The trials of one seed, in a folder."""

    def __init__(self, folder: Path, seed: int, families: Collection[str]):
        self.folder, self.seed, self.families = folder, seed, families
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "trials.jsonl"
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        self.trials = {line["name"]: line for line in map(json.loads, lines) if line["seed"] == seed}
        self.world: World = make(folder / "world")
        self.uncut: dict[str, kills.Uncut] = {}

    def bad_input(self, number: int) -> None:
        """One damaged input."""
        rng = random.Random(f"{self.seed} input {number}")
        kind = rng.choices(list(KINDS), [share for _, share in KINDS.values()])[0]
        with self._trial(f"input {number}", kind) as trial:
            if trial:
                made = KINDS[kind][0](self.world, trial.folder, rng)
                verdict, outcome, word = judge(made, trial.folder)
                trial.end(made.what, verdict, word, outcome.output)

    def kill(self, number: int) -> None:
        """One run that is killed, up to three times, if its family is asked for."""
        family = sorted(names())[number % len(names())]
        if family not in self.families:
            return
        with self._trial(f"kill {number}", f"kills, {family}") as trial:
            if trial:
                rng = random.Random(f"{self.seed} kill {number}")
                times, word = kills.killed(self.world, family, self._uncut(family), trial.folder, rng)
                trial.end(f"{times} kills", "half-written" if word else "right", word, kills=times)

    def full_disk(self, number: int, mounting: bool) -> None:
        """One command on a disk that is too small."""
        with self._trial(f"disk {number}", "full disks") as trial:
            if trial:
                rng = random.Random(f"{self.seed} disk {number}")
                whole = self._uncut(disks.FAMILY)
                trial.end(*disks.full(self.world, trial.folder, whole, rng, mounting))

    def _uncut(self, family: str) -> kills.Uncut:
        if family not in self.uncut:
            self.uncut[family] = kills.uncut(self.world, family)
        return self.uncut[family]

    def _trial(self, name: str, kind: str) -> "_Trial":
        return _Trial(self, name, kind)

    def table(self) -> str:
        """Verdicts by kind, as Markdown, and what was wrong."""
        kinds = {kind: Counter() for kind in sorted({line["kind"] for line in self.trials.values()})}
        for line in self.trials.values():
            kinds[line["kind"]][line["verdict"]] += 1
        rows = [f"| kind | trials | {' | '.join(VERDICTS)} |", "|---" * (2 + len(VERDICTS)) + "|"]
        for kind, counts in [*kinds.items(), ("**all**", sum(kinds.values(), Counter()))]:
            cells = [str(counts[verdict]) for verdict in VERDICTS]
            rows.append(f"| {kind} | {counts.total()} | {' | '.join(cells)} |")
        wrong = [line for line in self.trials.values() if line["verdict"] in BAD]
        rows += [
            "",
            *(f"- {w['name']}: {w['verdict']}, {w['kind']}, {w['what']}: {w['word']}" for w in wrong),
        ]
        return "\n".join(rows).rstrip() + "\n"


class _Trial:
    """A trial in an empty folder, removed unless something was wrong; None where it was done before."""

    def __init__(self, campaign: Campaign, name: str, kind: str):
        self.campaign, self.name, self.kind = campaign, name, kind
        self.folder = campaign.folder / "trials" / name.replace(" ", "-")
        self.began = time.monotonic()

    def __enter__(self) -> "_Trial | None":
        if self.name in self.campaign.trials:
            return None
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        return self

    def end(self, what: str, verdict: str, word: str, output: str = "", kills: int = 0) -> None:
        """Record how the trial ended."""
        line = {
            "name": self.name, "seed": self.campaign.seed, "kind": self.kind, "what": what,
            "verdict": verdict, "word": word, "kills": kills,
            "seconds": round(time.monotonic() - self.began, 1),
        }  # fmt: skip
        self.campaign.trials[self.name] = line
        with self.campaign.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if verdict in BAD:
            (self.folder / "output.txt").write_text(output, encoding="utf-8", errors="replace")
            print(f"{self.name} ({self.kind}, {what}): {verdict}: {word}", flush=True)

    def __exit__(self, *problem) -> None:
        line = self.campaign.trials.get(self.name)
        if line and line["verdict"] not in BAD:
            shutil.rmtree(self.folder, ignore_errors=True)


def main() -> None:
    """Run what is missing of a campaign, and write its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bad_inputs", type=int, default=1000, help="damaged inputs (default: 1000)")
    parser.add_argument("--kills", type=int, default=100, help="kills of running trainings (default: 100)")
    parser.add_argument("--families", nargs="+", choices=names(), default=names(), help="(default: all)")
    parser.add_argument("--full_disks", type=int, default=50, help="commands on full disks (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/campaign"))
    arguments = parser.parse_args()
    began = time.monotonic()
    campaign = Campaign(arguments.output_dir.resolve(), arguments.seed, arguments.families)
    for number in range(arguments.bad_inputs):
        campaign.bad_input(number)
    number = 0
    while sum(line["kills"] for line in campaign.trials.values()) < arguments.kills:
        campaign.kill(number)
        number += 1
    mounting = disks.can_mount(arguments.output_dir.resolve() / "disk")
    for number in range(arguments.full_disks):
        campaign.full_disk(number, mounting)
    done = sum(line["kills"] for line in campaign.trials.values())
    seconds = sum(line["seconds"] for line in campaign.trials.values())
    heading = (
        f"Seed {arguments.seed}, {arguments.bad_inputs} bad inputs, {done} kills, "
        f"{arguments.full_disks} full disks ({'tmpfs' if mounting else 'limited files'}), "
        f"{seconds / 60:.0f} minutes of trials, {platform.machine()}, Python {platform.python_version()}.\n\n"
    )
    table = campaign.table()
    (arguments.output_dir / "campaign.md").write_text(heading + table, encoding="utf-8")
    print(heading + table + f"\n{time.monotonic() - began:.0f} s, in {arguments.output_dir}")
    if any(line["verdict"] in BAD for line in campaign.trials.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
