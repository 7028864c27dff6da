"""When things happen: steps, the moving average, logs, samples, evaluation, checkpoints, stopping.

One loop for every method. The loop owns time, the method owns gradients, and whatever lies in a higher layer
reaches the loop as a callable. Collectives run on every rank; only writing is left to the main process.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch import Tensor

from trilemma.training.images.image_set import Images, to_float
from trilemma.training.loop.ema import EMA, ema_decay
from trilemma.training.loop.method import Method
from trilemma.training.loop.records import Means, RunLog
from trilemma.training.loop.resume import Checkpoints
from trilemma.training.options.groups import Config, LogConfig
from trilemma.training.sampling import every_class, sample_everywhere

INTERRUPTED = 75
"""Exit code after SIGTERM or SIGUSR1: a checkpoint was written, unless the run shows a sign of failure; run
the same command again (EX_TEMPFAIL)."""

VALIDATION_SEED = 20201216
VALIDATION_BATCH = 256

Batch = tuple[Tensor, Tensor | None]
Evaluate = Callable[[DiffusionPipeline, DiffusionPipeline, int, int], dict[str, float]]
"""(pipeline as published, the same with the sampler of the flags, step, images seen) -> numbers to log."""


@dataclass(frozen=True)
class Data:
    """stream(k): endless micro-batches (x0 in [-1, 1], labels or None) from the k-th on."""

    stream: Callable[[int], Iterator[Batch]]
    held_out: Images | None
    steps_per_epoch: int
    fingerprint: str


def train(
    method: Method,
    data: Data,
    accelerator: Accelerator,
    config: Config,
    total_steps: int,
    save: Callable[[DiffusionPipeline], None],
    evaluate: Evaluate | None = None,
) -> DiffusionPipeline:
    """Train to `total_steps` optimizer steps, from the newest checkpoint if there is one.

    save writes a pipeline to the output folder and evaluate scores one; both are called on every rank.
    Returns the pipeline over the averaged weights. SystemExit(INTERRUPTED) after a signal, FloatingPointError
    on a loss that is not finite, OSError when a checkpoint cannot be written.
    """
    run, log = config.run, config.log
    folder = Path(run.output_dir)
    images_per_step = (
        config.optim.train_batch_size * config.optim.gradient_accumulation_steps * accelerator.num_processes
    )
    ema = EMA(method.net, ema_decay(config.ema, images_per_step))
    checkpoints = Checkpoints(folder / "checkpoints", method, ema, accelerator, config, data.fingerprint)
    step, seconds = checkpoints.resume()
    if step > total_steps:
        raise ValueError(f"{folder} is already at step {step}, past the {total_steps} that were asked for")
    sheet_steps(method, log)  # an error now, not at the first sheet
    runlog = RunLog(accelerator, folder, config, log.logging_dir)
    runlog.start(step, total_steps, seconds)
    stop, means = StopSignal(accelerator), Means(accelerator.device)
    due = Calendar(config, data.steps_per_epoch, total_steps, evaluate is not None, data.held_out is not None)
    batches = data.stream(step * config.optim.gradient_accumulation_steps)

    def write_means() -> None:
        means.check(accelerator)
        values = means.reduce(accelerator)
        rate = runlog.throughput(step, images_per_step)
        extra = {
            "ema_decay": ema.decay(step),
            "images_per_second": rate,
            "images_seen": step * images_per_step,
        }
        runlog.write(values | extra, step, show=("loss", "images_per_second", "learning_rate"))

    method.net.train()
    while step < total_steps:
        step += 1
        for _ in range(config.optim.gradient_accumulation_steps):
            means.add(method.step(*next(batches)), step)
        ema.update(step)
        runlog.tick()
        interrupted = stop.seen()
        if due.log(step) or interrupted:
            write_means()
        if due.validate(step):
            with published(method, ema):
                runlog.write(validate(method, data.held_out, accelerator), step)
        if due.sample(step):
            with published(method, ema):
                runlog.images("samples", draw(method, accelerator, log), step)
        if due.evaluate(step):
            with published(method, ema):
                pair = method.pipeline(method.net), sampling_pipeline(method, log)
                runlog.write(evaluate(*pair, step, step * images_per_step), step)
        if due.save(step):
            means.check(accelerator)
            with published(method, ema):
                save(method.pipeline(method.net))
        if (due.checkpoint(step) or interrupted) and method.healthy():
            means.check(accelerator)  # never keep weights that a bad loss has touched
            checkpoints.save(step, runlog.seconds)
            runlog.write_run(step, step * images_per_step)
        elif interrupted:
            accelerator.print(f"No checkpoint of step {step}: the run shows a sign of failure.")
        if interrupted and step < total_steps:
            runlog.close()
            raise SystemExit(INTERRUPTED)

    runlog.write_run(step, step * images_per_step)
    runlog.close()
    with torch.no_grad():
        torch._foreach_copy_(ema.parameters, ema.average)
    method.net.eval()
    return method.pipeline(method.net)


@contextmanager
def published(method: Method, ema: EMA) -> Iterator[None]:
    """The network as it will be published, averaged and without dropout, inside the block; then as before."""
    with ema.applied():
        method.net.eval()
        yield
        method.net.train()


class Calendar:
    """Which steps do what. Epochs are turned into steps here, once."""

    def __init__(self, config: Config, steps_per_epoch: int, total: int, evaluates: bool, validates: bool):
        log, run = config.log, config.run
        sample = log.sample_steps or (log.save_images_epochs or 0) * steps_per_epoch
        self.total = total
        self.log = self._every(log.logging_steps, last=True)
        self.validate = self._every(log.validation_steps if validates else 0, last=validates)
        self.sample = self._every(sample)
        self.evaluate = self._every(config.evaluation.eval_steps if evaluates else 0, last=evaluates)
        self.save = self._every((log.save_model_epochs or 0) * steps_per_epoch)
        self.checkpoint = self._every(run.checkpointing_steps, last=True)

    def _every(self, period: int | None, last: bool = False) -> Callable[[int], bool]:
        return lambda step: (bool(period) and step % period == 0) or (last and step == self.total)


def validate(method: Method, held_out: Images, accelerator: Accelerator) -> dict[str, float]:
    """Held-out means on a fixed set of (t, noise): batch i has the same seed on any number of ranks."""
    means = Means(accelerator.device)
    starts = range(0, len(held_out), VALIDATION_BATCH)
    for i in range(accelerator.process_index, len(starts), accelerator.num_processes):
        images, labels = held_out.__getitems__(
            range(starts[i], min(starts[i] + VALIDATION_BATCH, len(held_out)))
        )
        labels = None if labels is None else labels.to(accelerator.device)
        generator = torch.Generator().manual_seed(VALIDATION_SEED + i)
        means.add(method.validate(to_float(images).to(accelerator.device), labels, generator), 0)
    return {f"validation_{name}": value for name, value in means.reduce(accelerator).items()}


def sampling_pipeline(method: Method, log: LogConfig) -> DiffusionPipeline:
    """The method's pipeline with the sampler that sheets and evaluation use."""
    pipeline = method.pipeline(method.net).with_sampler(log.sampler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sheet_steps(method: Method, log: LogConfig) -> int:
    """Steps of the sampler that sheets and evaluation use."""
    return sampling_pipeline(method, log).steps(log.ddpm_num_inference_steps)


def draw(method: Method, accelerator: Accelerator, log: LogConfig) -> Tensor:
    """A sheet's worth of images from fixed seeds, every rank its share: uint8 (N, C, H, W), on every rank."""
    return sample_everywhere(
        sampling_pipeline(method, log),
        range(log.eval_batch_size),
        accelerator,
        num_inference_steps=sheet_steps(method, log),
        class_labels=every_class(method.num_classes, log.eval_batch_size),
    )


class StopSignal:
    """SIGTERM or SIGUSR1, noticed on any rank and agreed on by all at the same step."""

    def __init__(self, accelerator: Accelerator):
        received: list[int] = []
        self.received = received
        # A group of its own on the CPU, so that asking does not wait for the GPU.
        alone = accelerator.num_processes == 1
        self.group = None if alone else torch.distributed.new_group(backend="gloo")
        for name in (signal.SIGTERM, signal.SIGUSR1):
            # Not a method: handlers stay to the interpreter's end, and would keep the group's threads alive.
            signal.signal(name, lambda number, frame: received.append(number))

    def seen(self) -> bool:
        """Whether any rank was told to stop; collective."""
        if self.group is None:
            return bool(self.received)
        flag = torch.tensor([int(bool(self.received))])
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX, group=self.group)
        return bool(flag)
