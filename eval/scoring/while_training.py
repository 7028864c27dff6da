"""Evaluation while a model trains: the same yardsticks as after it, on the averaged weights, on every rank.

Numbers go to the trackers by way of the loop and to `results.jsonl`. The pipeline that scored best so far on
the first metric is kept in `best/`.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from diffusers import DiffusionPipeline

from trilemma.eval.features.judge_files import JudgeChoice, keep_judges
from trilemma.eval.metrics.build import build_metrics
from trilemma.eval.metrics.table import METRICS, measure_row
from trilemma.eval.options import SamplingConfig
from trilemma.eval.scoring import results
from trilemma.eval.scoring.model_images import Drawing, labels_like
from trilemma.eval.scoring.naming import number
from trilemma.eval.scoring.results import ResultLine
from trilemma.eval.scoring.yardsticks import (
    BATCH,
    Reference,
    Yardstick,
    pick_extractor,
    result_lines,
    score,
    yardsticks,
)
from trilemma.pipelines.files.writing import write_json, write_text
from trilemma.training.devices.precision import check_half
from trilemma.training.devices.ranks import decided
from trilemma.training.images.image_set import Images, cache_folder
from trilemma.training.loop.machine import commit, hardware, versions
from trilemma.training.loop.stop import StopSignal
from trilemma.training.options.flags import to_yaml
from trilemma.training.options.in_memory import in_memory
from trilemma.training.output_folder import OutputFolder
from trilemma.training.progress import say

logger = logging.getLogger(__name__)

ALIKE = ("metric", "n", "seeds", *results.SAMPLING, "extractor_sha256")
"""What must agree before an evaluation can beat an earlier one."""

LEAST_REFERENCE = 4
"""Images below which no distance to them says anything."""


class Evaluation:
    """Scores a pipeline during training, with the same seeds each time; the reference is measured once.

    save(pipeline, folder) is called on every rank. stop: the signals that abandon an evaluation between two
    batches, on every rank.
    """

    def __init__(
        self,
        config,
        images: Images,
        held_out: Images | None,
        accelerator: Accelerator,
        save: Callable[[DiffusionPipeline, Path], None],
        stop: StopSignal,
    ):
        self.config, self.accelerator, self.save, self.stop = config, accelerator, save, stop
        self.reference = Reference(images, held_out)
        self.folder = OutputFolder(Path(config.run.output_dir))
        self.sticks: list[Yardstick] = []
        self.best = METRICS[config.evaluation.eval_metrics[0]].best

    def prepare(self) -> None:
        """Compute or load everything that scoring needs; collective."""
        images = self.reference.images
        if len(images) < LEAST_REFERENCE:
            raise ValueError(
                f"--eval_steps needs at least {LEAST_REFERENCE} training images to compare samples with, and "
                f"{images.name} has {len(images)}: take more, hold out fewer, or leave out --eval_steps"
            )
        options, cache = self.config.evaluation, cache_folder(self.config.data.cache_dir)
        check_half(options.eval_mixed_precision, self.accelerator.device, "--eval_mixed_precision")
        judge = JudgeChoice(options.eval_judge, folder=self.folder.path, option="--eval_judge")
        extractor = options.eval_feature_extractor or decided(
            self.accelerator, lambda: pick_extractor(self.reference, cache, judge)
        )
        with _flags_of_training():
            self.sticks = yardsticks(
                options.eval_metrics, extractor, self.reference, self.accelerator, cache, judge=judge
            )

    def check_metrics(self, conditional: bool) -> None:
        """ValueError for metrics that cannot be measured of this model with this reference."""
        options = self.config.evaluation
        with _flags_of_training():
            for stick in self.sticks:
                build_metrics(stick.names, stick.reference, options.eval_num_samples)
        for name in options.eval_metrics:
            if "labels" in METRICS[name].needs and not conditional:
                raise ValueError(f"--eval_metrics {name} needs a model with classes, and this one has none")

    def __call__(
        self, pipeline: DiffusionPipeline, sampled: DiffusionPipeline, step: int, images_seen: int
    ) -> dict[str, float]:
        """Numbers by name; `pipeline` is what would be published, `sampled` the same with the sampler."""
        options, sheet = self.config.evaluation, self.config.sheet
        sampling = SamplingConfig(
            num_samples=options.eval_num_samples,
            sampler=sheet.sampler,
            num_inference_steps=sampled.steps(sheet.ddpm_num_inference_steps),
            mixed_precision=options.eval_mixed_precision,
        )
        at_once = min(BATCH, self.config.optim.forward_batch)
        drawing = Drawing(sampled, self.folder.path.name, sampling, at_once, self.accelerator)
        drawing.labels = labels_like(drawing, self.reference.images)
        # During training even a number of few samples is of use; its line is marked as forced.
        batches = self.stop.each(drawing)
        scores = score(self.sticks, batches, options.eval_num_samples, self.accelerator, force=True)
        new = result_lines(scores, drawing.origin(step, images_seen), forced=True)
        is_best, said = decided(self.accelerator, lambda: self._record(new))
        if self.accelerator.is_main_process:
            say(said)
        if is_best:
            self.save(pipeline, self.folder.best)
            decided(self.accelerator, lambda: self._describe_best(pipeline.family, new))
        return {line.metric: line.value for line in new}

    def _describe_best(self, family: str, new: list[ResultLine]) -> None:
        """Write what `best/` is evaluated and compared by: flags, progress and results at its step."""
        best, line = OutputFolder(self.folder.best), new[0]
        best.path.mkdir(exist_ok=True)
        write_text(best.config, to_yaml(self.config))
        facts = {"family": family, "steps": line.step, "images_seen": line.images_seen}
        if in_memory(self.config):
            facts["in_memory"] = {"network": type(self.config.net.module).__name__}
        facts |= {"hardware": hardware(self.accelerator), "versions": versions(), "commit": commit()}
        write_json(best.run, facts)
        write_text(best.results, results.as_text(new))
        keep_judges(best, (stick.extractor.file for stick in self.sticks))

    def _record(self, new: list[ResultLine]) -> tuple[bool, str]:
        """Add these lines to the results; whether they beat all earlier ones that were measured alike, and
        what to tell the user.
        """
        line = next(line for line in new if line.measure == self.best)
        better = max if measure_row(self.best).better == "higher" else min
        before = results.read(self.folder.results, damaged=lambda fault: logger.warning("%s", fault))
        earlier = [other for other in before if other.key(ALIKE) == line.key(ALIKE)]
        results.append(self.folder.results, new)
        keep_judges(self.folder, (stick.extractor.file for stick in self.sticks))
        best = better([line, *earlier], key=lambda each: each.value)
        return best is line, in_a_line(line, best, new)


@contextmanager
def _flags_of_training() -> Iterator[None]:
    """An error names the flags of the training script, where the same check serves `evaluate`."""
    try:
        yield
    except ValueError as problem:
        said = re.sub(r"--(?=(metrics|feature_extractor|num_samples)\b)", "--eval_", str(problem))
        raise ValueError(said) from problem


def in_a_line(line: ResultLine, best: ResultLine, all_lines: list[ResultLine]) -> str:
    """An evaluation in a line of text: the number that chooses the best model, then the others.

    best: of the evaluations so far.
    """
    so_far = "" if best is line else f" {number(best.estimate)} at step {best.step or 0:,}"
    others = "".join(f"; {each.metric} {number(each.estimate)}" for each in all_lines if each is not line)
    return f"Step {line.step:,}: {results.in_words(line)}, best so far{so_far}{others}"
