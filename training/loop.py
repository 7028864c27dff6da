"""When things happen: steps, the moving average, logs, samples, evaluation, checkpoints, stopping.

One loop for every method. The loop owns time, the method owns gradients, and whatever lies in a higher layer
reaches the loop as a callable. Collectives run on every rank; only writing is left to the main process.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import DiffusionPipeline
from torch import Tensor

from trilemma.training.checkpoints import find_checkpoint, save_checkpoint, set_newer_aside
from trilemma.training.config import EMAConfig, EvalConfig, LogConfig, OptimConfig, RunConfig
from trilemma.training.data import Images, to_float
from trilemma.training.ema import EMA, ema_decay
from trilemma.training.methods import Method
from trilemma.training.options import flags_of, flatten
from trilemma.training.runlog import Means, RunLog
from trilemma.training.sampling import check_steps, every_class, sample_everywhere, usual_steps, with_sampler

INTERRUPTED = 75
"""Exit code after SIGTERM or SIGUSR1: a checkpoint was written, unless the run shows a sign of failure; run
the same command again (EX_TEMPFAIL)."""

VALIDATION_SEED = 20201216
VALIDATION_BATCH = 256

Batch = tuple[Tensor, Tensor | None]
Evaluate = Callable[[DiffusionPipeline, DiffusionPipeline, int, int], dict[str, float]]
"""(pipeline as published, the same with the sampler of the flags, step, images seen) -> numbers to log."""


class Config(Protocol):
    """The groups of options that the loop reads; every family's configuration has them."""

    optim: OptimConfig
    ema: EMAConfig
    run: RunConfig
    log: LogConfig
    evaluation: EvalConfig


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
    check_steps(
        sampling_pipeline(method, log), sheet_steps(method, log)
    )  # an error now, not at the first sheet
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
    pipeline = with_sampler(method.pipeline(method.net), log.sampler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sheet_steps(method: Method, log: LogConfig) -> int:
    """Steps of the sampler that sheets and evaluation use."""
    return log.ddpm_num_inference_steps or usual_steps(sampling_pipeline(method, log))


def draw(method: Method, accelerator: Accelerator, log: LogConfig) -> Tensor:
    """A sheet's worth of images from fixed seeds, every rank its share: uint8 (N, C, H, W), on every rank."""
    return sample_everywhere(
        sampling_pipeline(method, log),
        range(log.eval_batch_size),
        accelerator,
        num_inference_steps=sheet_steps(method, log),
        class_labels=every_class(method.num_classes, log.eval_batch_size),
    )


class Checkpoints:
    """Saves and restores all that a run consists of; refuses to go on with flags that change the result."""

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

    def resume(self) -> tuple[int, float]:
        """Step and seconds that the run stands at: those of the checkpoint it took up, or 0, 0."""
        found = find_checkpoint(self.folder, self.config.run.resume_from_checkpoint)
        steps = gather_object([0 if found is None else found[1]["step"]])
        if len(set(steps)) > 1:
            raise ValueError(
                f"processes found different checkpoints, {steps}: machines must share --output_dir"
            )
        if found is None:
            return 0, 0.0
        path, state = found
        changed = changed_flags(state["config"], self.config)
        precision = self.accelerator.mixed_precision
        if state["precision"] != precision:
            changed.append(f"--mixed_precision: {state['precision']} then, {precision} now")
        if state["fingerprint"] != self.fingerprint:
            changed.append("the training images: others then")
        if state["num_processes"] != self.accelerator.num_processes:
            changed.append(f"processes: {state['num_processes']} then, {self.accelerator.num_processes} now")
        if changed:
            raise ValueError(
                f"{path} was trained with other settings, so going on would give neither run's result: "
                + "; ".join(changed)
                + ". Take the old settings, or another --output_dir (a finished model gives its weights "
                "with --init_from), or --overwrite_output_dir to begin anew."
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


def changed_flags(before: dict[str, Any], config: Config) -> list[str]:
    """'--flag: old then, new now' for each flag that would change the weights of a resumed run."""
    flags, now = flags_of(type(config)), plain(flatten(config))
    free = {name for name, flag in flags.items() if flag.meta["free"]}
    if now["lr_scheduler"] in ("constant", "constant_with_warmup", "multistep"):
        free |= {"max_train_steps", "num_epochs"}  # These rates do not depend on how long the run will be.
    return [
        f"--{name}: {before[name]} then, {now[name]} now"
        for name in now
        if name not in free and name in before and before[name] != now[name]
    ]


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """This rank's random state, on the CPU and on its device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Take up a random state."""
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"], device)


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
