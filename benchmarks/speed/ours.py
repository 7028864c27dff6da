"""Our training as its entry point runs it, one step at a time."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import set_seed

from trilemma.training import families
from trilemma.training.devices.ranks import agreement
from trilemma.training.images.image_set import Images
from trilemma.training.loop.loop import Hooks, Loop
from trilemma.training.loop.machine import make_accelerator
from trilemma.training.loop.records import RunLog
from trilemma.training.loop.stop import StopSignal
from trilemma.training.options.command_line import parse
from trilemma.training.output_folder import OutputFolder
from trilemma.training.run import budget_of, data_of, load_data, with_warmup


def fresh_state() -> None:
    """Let the next Accelerator choose its precision: accelerate keeps the first one for the process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@contextmanager
def quietly() -> Iterator[None]:
    """Without the notices of a run."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class OurLoop:
    """`training/train_<family>.py` with these flags; `step` trains, logs and keeps checkpoints as it does."""

    def __init__(self, flags: Sequence[str], folder: Path, family: str = "unconditional", threads: int = 1):
        flags = [*flags, "--eval_steps", "0", "--validation_size", "0", "--cpu_threads", str(threads)]
        config = parse(family, "", [*flags, "--output_dir", str(folder)])
        accelerator = make_accelerator(config)
        images, held_out = load_data(config, accelerator)
        row = families.family(family)
        config = row.complete(config, (), images, accelerator, OutputFolder(folder), row.build)
        budget = budget_of(config, images, accelerator)
        config = with_warmup(config, budget.total, OutputFolder(folder), accelerator)
        set_seed(config.run.seed)
        method = row.build(config, images, accelerator, budget.total)
        hooks = Hooks(_nothing, _nothing, StopSignal(agreement(accelerator)), _nothing)
        data = data_of(config, images, held_out, budget, accelerator)
        runlog = RunLog(accelerator, OutputFolder(folder), config, family)
        self.loop = Loop(method, data, hooks, runlog, accelerator, config)
        self.loop.start(budget.total)
        self.loop.runlog.bar.closed.set()  # no lines of progress between those of the benchmark
        self.images: Images = images
        self.config, self.accelerator, self.total = config, accelerator, budget.total

    def step(self) -> None:
        """One optimizer step and what is due after it."""
        self.loop.advance()
        self.loop.finish_step()


def _nothing(*_arguments: object) -> None:
    return None
