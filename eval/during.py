"""Evaluation while a model trains: the same yardsticks as after it, on the averaged weights, on every rank.

Numbers go to the trackers by way of the loop and to `results.jsonl`; the pipeline with the best first metric
so far is kept in `best/`.
"""

import os
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from diffusers import DiffusionPipeline

from trilemma.eval import results
from trilemma.eval.config import SamplingConfig
from trilemma.eval.drawing import Drawing, labels_like
from trilemma.eval.scoring import Reference, pick_extractor, result_lines, score, yardsticks
from trilemma.training.data import Images

HIGHER_IS_BETTER = (
    "is",
    "precision",
    "recall",
    "density",
    "coverage",
    "class_accuracy",
    "modes",
    "diversity",
)


class Evaluation:
    """Scores a pipeline during training; the reference's statistics are made at the first call, once."""

    def __init__(
        self,
        config,
        images: Images,
        held_out: Images | None,
        accelerator: Accelerator,
        save: Callable[[DiffusionPipeline, Path], None],
    ):
        self.config, self.accelerator, self.save = config, accelerator, save
        self.reference, self.sticks = Reference(images, held_out), None
        self.folder = Path(config.run.output_dir)

    def __call__(self, pipeline: DiffusionPipeline, sampled: DiffusionPipeline, step: int, images_seen: int):
        """Numbers by name for the trackers; pipeline is what would be published, sampled has the sampler."""
        wanted, log = self.config.evaluation, self.config.log
        if self.sticks is None:
            cache = self.config.data.cache_dir or os.environ.get("TRILEMMA_CACHE") or "~/.cache/trilemma"
            cache = Path(cache).expanduser()
            extractor = wanted.eval_feature_extractor or pick_extractor(self.reference, cache)
            self.sticks = yardsticks(wanted.eval_metrics, extractor, self.reference, self.accelerator, cache)
        sampling = SamplingConfig(
            num_samples=wanted.eval_num_samples,
            sampler=log.sampler,
            num_inference_steps=log.ddpm_num_inference_steps,
        )
        drawing = Drawing(sampled, self.folder.name, sampling, log.eval_batch_size, self.accelerator)
        drawing.labels = labels_like(drawing, self.reference.images)
        # A curve of small numbers is of use; each line says that it would have been refused.
        scores = score(self.sticks, drawing, wanted.eval_num_samples, self.accelerator, force=True)
        origin = drawing.origin(step, images_seen)
        told = result_lines(scores, origin, forced=True)
        first = next(iter(next(iter(scores.values()))))
        name = next(line["metric"] for line in told)
        best = self._best(name, first in HIGHER_IS_BETTER, told[0]["value"])
        if self.accelerator.is_main_process:
            results.append(self.folder / results.RESULTS, told)
        if best:
            self.save(pipeline, self.folder / "best")
        return {line["metric"]: line["value"] for line in told}

    def _best(self, name: str, higher: bool, value: float) -> bool:
        earlier = [
            line["value"] for line in results.read(self.folder / results.RESULTS) if line["metric"] == name
        ]
        self.accelerator.wait_for_everyone()  # before the main process adds to what the others read
        return not earlier or (value > max(earlier) if higher else value < min(earlier))
