"""Run by `torchrun` in test_ranks.py: two processes, each in a folder of its own, as on machines without a
shared disk; writes what each of them saw.
"""

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate.utils import gather_object
from entry import signal_after

from trilemma.eval.metrics.sample_metric import Measurement
from trilemma.eval.scoring import results, while_training
from trilemma.eval.scoring.protocol import ReferenceProtocol
from trilemma.training import entry
from trilemma.training.devices import ranks
from trilemma.training.devices.ranks import agreement, decided, on_all, require_same, share_folder
from trilemma.training.loop import machine
from trilemma.training.loop.checkpoints import find_same, save_checkpoint
from trilemma.training.loop.stop import Stopped, StopSignal
from trilemma.training.options.command_line import parse

SCORES = {1: 3.0, 2: 2.0, 3: 5.0, 4: 1.0}
"""Of the evaluation at each step: the third is not the best so far."""


def outcome(work) -> str:
    try:
        return f"returned {work()}"
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"


def fail(when: bool) -> str:
    if when:
        raise OSError("the disk is gone")
    return "done"


def evaluations_that_were_kept(accelerator) -> list[int]:
    """Steps at which this process took part in saving the best model."""
    protocol = ReferenceProtocol("pixels", None, "none", "uint8", "toy", "train", "0", False, 10)

    def lines(scores, step, forced):
        origin = results.Origin("x", 10, step=step)
        return results.lines({"fd": Measurement(SCORES[step], 10)}, origin, protocol, commit=None)

    while_training.Drawing = lambda *_: SimpleNamespace(origin=lambda step, images_seen: step)
    while_training.labels_like = while_training.score = lambda *_, **__: None
    while_training.result_lines = lines
    kept: list[int] = []
    config = parse(
        "unconditional", "", ["--preset", "digits", "--output_dir", "evaluated", "--eval_steps", "1"]
    )
    keep, stop = lambda *_: kept.append(step), StopSignal(agreement(accelerator))
    evaluate = while_training.Evaluation(config, None, None, accelerator, keep, stop)
    Path("evaluated").mkdir()
    for step in SCORES:
        published = SimpleNamespace(family="unconditional")
        evaluate(published, SimpleNamespace(steps=lambda number: 1), step, 10 * step)
    return kept


def resumed(accelerator) -> tuple[int, str]:
    """The step that is resumed where process 1 sees one more, and the error where it sees one less."""
    rank = accelerator.process_index
    for step in (1, 2, 3)[: 2 + rank]:
        save_checkpoint(Path("one more"), step, {"step": step}, keep=9)
    for step in (1, 2)[: 2 - rank]:
        save_checkpoint(Path("one less"), step, {"step": step}, keep=9)
    _, state = find_same(Path("one more"), "latest", accelerator)
    return state["step"], outcome(lambda: find_same(Path("one less"), "latest", accelerator))


def stopped(accelerator) -> list:
    """What each process did when process 1 alone was told to stop, while it made its second item of three.

    The other has one item more. Then in work that is not split: process 0 is told before it.
    """
    rank, seen = accelerator.process_index, []

    def make(item: int) -> int:
        if rank == 1 and item == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
            seen.append("went on")
        return item

    with StopSignal(agreement(accelerator)) as stop:
        seen += list(stop.each(range(4 - rank)))
        try:
            for item in stop.each(make(item) for item in range(4 - rank)):
                seen.append(item)
        except Stopped as problem:
            seen.append(f"code {problem.code}")
    with StopSignal(agreement(accelerator)) as stop:
        if rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            stop.attempt(lambda: seen.append("worked"))
        except Stopped as problem:
            seen.append(f"code {problem.code}")
    return seen


def other_code(accelerator) -> str:
    versions = ranks.versions
    ranks.versions = lambda: {**versions(), "torch": f"2.{accelerator.process_index}"}
    try:
        return outcome(lambda: ranks.require_same_code(accelerator))
    finally:
        ranks.versions = versions


def check(accelerator, shared: Path) -> dict:
    rank = accelerator.process_index
    seen = {
        "decided": decided(accelerator, lambda: rank),
        "main fails": outcome(lambda: decided(accelerator, lambda: fail(True))),
        "one fails": outcome(lambda: on_all(accelerator, lambda: fail(rank == 1), local_main_first=True)),
        "none fails": outcome(lambda: on_all(accelerator, lambda: fail(False), local_main_first=True)),
        "differ": outcome(lambda: require_same(accelerator, {"--a": 1, "--seed": rank}, "sow the same")),
        "one has more": outcome(lambda: require_same(accelerator, dict([("--b", 1)][:rank]), "sow the same")),
        "code": other_code(accelerator),
        "same code": outcome(lambda: ranks.require_same_code(accelerator)),
        "stopped": stopped(accelerator),
        "same": outcome(lambda: require_same(accelerator, {"--a": 1}, "sow the same")),
        "shared": outcome(lambda: share_folder(shared / "both", accelerator, "--output")),
        "apart": outcome(lambda: share_folder(Path("a", "b"), accelerator, "--output")),
    }
    seen["left"] = sorted(path.name for path in (*Path().iterdir(), *shared.rglob("*")))
    seen["kept"] = evaluations_that_were_kept(accelerator)
    seen["resumed"], seen["not there"] = resumed(accelerator)
    return seen


def main(folder: Path, report: str) -> None:
    machine.PROCESS_GROUP.timeout = timedelta(minutes=20)  # who is left alone does not wait for hours
    own = folder / os.environ["RANK"]
    own.mkdir()
    os.chdir(own)
    shared = folder / "shared"
    shared.mkdir(exist_ok=True)
    with machine.closing_groups():
        accelerator = machine.evaluation_accelerator(1)
        everyone = gather_object([check(accelerator, shared)])
        if accelerator.is_main_process:
            Path(report).write_text(json.dumps(everyone))


def start(folder: Path, *flags: str) -> None:
    """A training, as each of two machines without a shared disk starts it; {rank} in flags is the rank."""
    own = folder / os.environ["RANK"]
    own.mkdir()
    os.chdir(own)
    sys.argv = ["train", *(flag.format(rank=os.environ["RANK"]) for flag in flags)]
    entry.main("unconditional", "")


def notice(folder: Path, *flags: str) -> None:
    """A training of which one process alone receives a scheduler's notice, after step 5."""
    if os.environ["RANK"] == "1":
        signal_after(5, signal.SIGUSR1)
    start(folder, *flags)


if __name__ == "__main__":
    torch.set_num_threads(1)
    mode, folder, *rest = sys.argv[1:]
    {"check": main, "start": start, "notice": notice}[mode](Path(folder), *rest)
