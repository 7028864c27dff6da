"""When things happen: steps, the moving average, logs, samples, evaluation, checkpoints, stopping.

One loop for every method. The loop owns time, the method owns gradients, and whatever lies on a higher floor
reaches the loop as a callable. Collectives run on every rank; only the main process writes files.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.profiler import record_function

from trilemma.training.devices.memory import saying_what_to_lower
from trilemma.training.devices.profile import STEP
from trilemma.training.devices.ranks import decided
from trilemma.training.images.image_set import Images, to_float
from trilemma.training.images.shards.batches import Place
from trilemma.training.loop.ema import EMA, ema_of, save_snapshot
from trilemma.training.loop.method import SKIPPED, Method
from trilemma.training.loop.records import Means, RunLog
from trilemma.training.loop.resume import Checkpoints
from trilemma.training.loop.sheets import draw, sampling_pipeline
from trilemma.training.loop.stop import Stopped, StopSignal
from trilemma.training.options.flags import Config

VALIDATION_SEED = 20201216
VALIDATION_BATCH = 256
"""Images that share one draw of times and noise; the network sees --eval_forward_batch of them at once."""

TRAINING_REMEDY = (
    "lower --train_batch_size, and raise --gradient_accumulation_steps by the same factor to keep the "
    "number of images in a step, or take a smaller network"
)
FORWARD_REMEDY = "lower --eval_forward_batch, which is --train_batch_size if not given"
"""What helps where memory runs out in training; in validation, sampling and evaluation."""

Batch = tuple[Tensor, Tensor | None]
Evaluate = Callable[[DiffusionPipeline, DiffusionPipeline, int, int], dict[str, float]]
"""(pipeline as published, the same with the sampler of the flags, step, images seen) -> numbers to log."""


@dataclass(frozen=True)
class Data:
    """What a method trains on.

    stream(k): endless micro-batches (x0 in [-1, 1], labels or None) from the k-th on. points: whether the
    images are points of the plane. place: of shards, where the stream goes on; it follows what was given.
    """

    stream: Callable[[int], Iterator[Batch]]
    held_out: Images | None
    steps_per_epoch: int
    fingerprint: str
    points: bool = False
    place: Place | None = None


@dataclass(frozen=True)
class Hooks:
    """What is done with a pipeline over the averaged weights; all are called on every rank.

    save: write it to the output folder during training. evaluate: score it. finish: what follows training.
    show: keep a sheet of samples of a step. stop: the signals that abandon all of these, and the training.
    """

    save: Callable[[DiffusionPipeline], None]
    finish: Callable[[DiffusionPipeline], None]
    stop: StopSignal
    show: Callable[[Tensor, int], None]
    evaluate: Evaluate | None = None


def train(
    method: Method, data: Data, hooks: Hooks, runlog: RunLog, accelerator: Accelerator, config: Config,
    total_steps: int,
) -> None:  # fmt: skip
    """Train to `total_steps` optimizer steps, from the newest checkpoint if there is one.

    SystemExit after a signal, with its exit code and a line that says where to go on; FloatingPointError on a
    loss that is not finite, OSError when a checkpoint cannot be written.
    """
    loop = Loop(method, data, hooks, runlog, accelerator, config)
    loop.start(total_steps)
    try:
        if loop.left:
            loop.finish_step()
        while loop.step < total_steps:
            loop.advance()
            runlog.tick()
            loop.finish_step()
        loop.end()
    except Stopped as stopped:
        accelerator.print(loop.where_to_go_on(), flush=True)
        raise SystemExit(stopped.code) from None
    finally:
        runlog.close_bar()


class Loop:
    """The state of a training run, and what is done after each step."""

    def __init__(
        self,
        method: Method,
        data: Data,
        hooks: Hooks,
        runlog: RunLog,
        accelerator: Accelerator,
        config: Config,
    ):
        self.method, self.data, self.hooks, self.runlog = method, data, hooks, runlog
        self.accelerator, self.config, optim = accelerator, config, config.optim
        self.micro_batches = optim.gradient_accumulation_steps
        self.images_per_step = optim.train_batch_size * self.micro_batches * accelerator.num_processes
        self.ema = ema_of(method.net, config.ema, self.images_per_step)
        self.means, self.step, self.stop = Means(accelerator.device), 0, hooks.stop
        self.kept, self.left = 0, []  # newest checkpoint; what is still to be done after this step

    @property
    def images_seen(self) -> int:
        """Images of all ranks so far, those of earlier runs of the same folder included."""
        return self.step * self.images_per_step

    def start(self, total_steps: int) -> None:
        """Take up the newest checkpoint, open the records and the stream of batches."""
        folder, data = self.runlog.folder, self.data
        self.checkpoints = Checkpoints(
            folder.checkpoints, self.method, self.ema, self.accelerator, self.config,
            data.fingerprint, data.place,
        )  # fmt: skip
        self.step, seconds, self.left = self.checkpoints.resume()
        self.kept = self.step
        if self.step > total_steps:
            raise ValueError(
                f"{folder.path} is already at step {self.step}, past the requested {total_steps}"
            )
        # A number of steps that the sampler does not have is an error now, not at the first sheet.
        sheet = self.config.sheet
        sampling_pipeline(self.method, sheet).steps(sheet.ddpm_num_inference_steps)
        self.runlog.start(self.step, total_steps, seconds, self.left)
        evaluates, validates = self.hooks.evaluate is not None, data.held_out is not None
        self.due = Calendar(self.config, data.steps_per_epoch, total_steps, evaluates, validates)
        self.batches = data.stream(self.step * self.micro_batches)
        self.method.net.train()

    @record_function(STEP)
    def advance(self) -> None:
        """One optimizer step."""
        self.step += 1
        for _ in range(self.micro_batches):
            with record_function("data"):
                batch = next(self.batches)
            with saying_what_to_lower(TRAINING_REMEDY):
                logs = self.method.step(*batch)
            self.means.add(logs, self.step)
        self.ema.update(self.step, logs.get(SKIPPED))
        self.left = self.due.tasks(self.step)

    def finish_step(self) -> None:
        """Log, validate, draw, evaluate, save and keep a checkpoint, as far as this step is due for it.

        Stopped, on every rank, after a signal, with a checkpoint that says what is left to do.
        """
        tasks = {"validate": self._validate, "sample": self._sample}
        tasks |= {"evaluate": self._evaluate, "save": self._save, "snapshot": self._snapshot}
        if self.due.log(self.step) and self.means.sums:
            self._write_means()
        try:
            self.stop.check_after_step(due=bool(self.left) or self.due.checkpoint(self.step))
            while self.left:
                with saying_what_to_lower(FORWARD_REMEDY), self.runlog.aside(self.left[0], self.step):
                    tasks[self.left[0]]()
                del self.left[0]
        except Stopped:
            if self.means.sums:
                self._write_means()
            if self.kept < self.step:
                self._keep()
            self.runlog.close()
            raise
        if self.kept == self.step:
            self.checkpoints.finished(self.step)
        elif self.due.checkpoint(self.step):
            self._keep()

    def _validate(self) -> None:
        with published(self.method, self.ema):
            values = validate(self.method, self.data.held_out, self.accelerator, self.stop)
        self.runlog.write(values, self.step)

    def _sample(self) -> None:
        with published(self.method, self.ema):
            images = draw(self.method, self.accelerator, self.config, self.stop)
        self.runlog.images("samples", images, self.step, self.data.points)
        self.hooks.show(images, self.step)

    def _evaluate(self) -> None:
        with published(self.method, self.ema) as pipeline:
            sampled = sampling_pipeline(self.method, self.config.sheet)
            values = self.hooks.evaluate(pipeline, sampled, self.step, self.images_seen)
        self.runlog.write(values, self.step)

    def _save(self) -> None:
        self.means.check(self.accelerator)
        with published(self.method, self.ema) as pipeline:
            self.hooks.save(pipeline)

    def _snapshot(self) -> None:
        decided(self.accelerator, lambda: save_snapshot(self.runlog.folder.averages, self.step, self.ema))

    def _write_means(self) -> None:
        self.means.check(self.accelerator)
        values = self.means.reduce(self.accelerator) | {
            "ema_decay": self.ema.decay(self.step),
            "images_per_second": self.runlog.throughput(self.step, self.images_per_step),
            "images_seen": self.images_seen,
        }
        if (skipped := self.method.skipped_steps()) is not None:
            values["skipped_steps"] = skipped
        self.runlog.write(values, self.step, show=("loss", "images_per_second", "learning_rate"))

    def _keep(self) -> None:
        """Write a checkpoint, if the run shows no sign of failure."""
        if self.method.healthy():
            self.means.check(self.accelerator)  # never keep weights that a bad loss has touched
            self.checkpoints.save(self.step, self.runlog.seconds, self.left)
            self.kept = self.step
            self.runlog.write_run(self.step, self.images_seen)

    def where_to_go_on(self) -> str:
        """What to tell the user after a signal."""
        if self.kept == self.step:
            return f"Checkpoint at step {self.step}; run the same command again."
        last = f"the last one is of step {self.kept}" if self.kept else "there is none before it"
        return f"No checkpoint of step {self.step}, since the run shows a sign of failure; {last}."

    def end(self) -> None:
        """Close the records and hand over the finished pipeline."""
        self.runlog.write_run(self.step, self.images_seen)
        self.runlog.close()
        with published(self.method, self.ema) as pipeline, saying_what_to_lower(FORWARD_REMEDY):
            self.hooks.finish(pipeline)


@contextmanager
def published(method: Method, ema: EMA) -> Iterator[DiffusionPipeline]:
    """The pipeline as it is published, over averaged weights and without dropout, inside the block.

    After it the network has its own weights and trains again, also where the block failed.
    """
    with ema.applied():
        method.net.eval()
        try:
            yield method.pipeline(method.net)
        finally:
            method.net.train()


class Calendar:
    """Which steps do what. Epochs are turned into steps here, once."""

    def __init__(self, config: Config, steps_per_epoch: int, total: int, evaluates: bool, validates: bool):
        log, run, snapshots = config.log, config.run, config.ema.ema_snapshot_steps
        sample = log.sample_steps or (log.save_images_epochs or 0) * steps_per_epoch
        self.total = total
        self.log = self._every(log.logging_steps, last=True)
        self.periods = {
            "validate": self._every(log.validation_steps if validates else 0, last=validates),
            "sample": self._every(sample),
            "evaluate": self._every(config.evaluation.eval_steps if evaluates else 0, last=evaluates),
            "save": self._every((log.save_model_epochs or 0) * steps_per_epoch),
            "snapshot": self._every(snapshots, last=bool(snapshots)),
        }
        self.checkpoint = self._every(run.checkpointing_steps, last=True)

    def tasks(self, step: int) -> list[str]:
        """What is done after this step, in this order."""
        return [task for task, due in self.periods.items() if due(step)]

    def _every(self, period: int | None, last: bool = False) -> Callable[[int], bool]:
        return lambda step: (bool(period) and step % period == 0) or (last and step == self.total)


def validate(
    method: Method, held_out: Images, accelerator: Accelerator, stop: StopSignal
) -> dict[str, float]:
    """Held-out means on a fixed set of (t, noise): batch i has the same seed on any number of ranks."""
    means = Means(accelerator.device)
    starts = range(0, len(held_out), VALIDATION_BATCH)
    for i in stop.each(range(accelerator.process_index, len(starts), accelerator.num_processes)):
        rows = range(starts[i], min(starts[i] + VALIDATION_BATCH, len(held_out)))
        images, labels = held_out.__getitems__(rows)
        labels = None if labels is None else labels.to(accelerator.device)
        generator = torch.Generator().manual_seed(VALIDATION_SEED + i)
        means.add(method.validate(to_float(images).to(accelerator.device), labels, generator), 0)
    return {f"validation_{name}": value for name, value in means.reduce(accelerator).items()}
