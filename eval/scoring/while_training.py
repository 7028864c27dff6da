"""Evaluation while a model trains: the same yardsticks as after it, on the averaged weights, on every rank.

Numbers go to the trackers by way of the loop and to `results.jsonl`; the pipeline with the best first metric
so far is kept in `best/`.
"""

from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from diffusers import DiffusionPipeline

from trilemma.eval.options import SamplingConfig
from trilemma.eval.scoring import results
from trilemma.eval.scoring.model_images import Drawing, labels_like
from trilemma.eval.scoring.yardsticks import (
    BATCH,
    Reference,
    Yardstick,
    pick_extractor,
    result_lines,
    score,
    yardsticks,
)
from trilemma.training.images.image_set import Images, cache_folder

BEST = {
    "fd": ("fd", min),
    "kid": ("kid", min),
    "energy": ("energy", min),
    "is": ("is", max),
    "prdc": ("coverage", max),
    "class_accuracy": ("class_accuracy", max),
    "modes": ("modes_kl", min),
}
"""What the first of --eval_metrics chooses the best model by: its measurement, and which end is better."""


class Evaluation:
    """Scores a pipeline during training, with the same seeds each time; the reference is measured once.

    save(pipeline, folder) is called on every rank.
    """

    def __init__(
        self,
        config,
        images: Images,
        held_out: Images | None,
        accelerator: Accelerator,
        save: Callable[[DiffusionPipeline, Path], None],
    ):
        self.config, self.accelerator, self.save = config, accelerator, save
        self.reference = Reference(images, held_out)
        self.folder = Path(config.run.output_dir)
        self.sticks: list[Yardstick] = []
        first = config.evaluation.eval_metrics[0]
        if first not in BEST:
            raise ValueError(
                f"the first of --eval_metrics chooses the best model and must be one of {', '.join(BEST)}; "
                f"got {first!r}"
            )

    def prepare(self) -> None:
        """Make or load everything that scoring needs; collective."""
        wanted, cache = self.config.evaluation, cache_folder(self.config.data.cache_dir)
        extractor = wanted.eval_feature_extractor or pick_extractor(self.reference, cache)
        self.sticks = yardsticks(wanted.eval_metrics, extractor, self.reference, self.accelerator, cache)

    def __call__(
        self, pipeline: DiffusionPipeline, sampled: DiffusionPipeline, step: int, images_seen: int
    ) -> dict[str, float]:
        """Numbers by name; `pipeline` is what would be published, `sampled` the same with the sampler."""
        wanted, sheet = self.config.evaluation, self.config.sheet
        sampling = SamplingConfig(
            num_samples=wanted.eval_num_samples,
            sampler=sheet.sampler,
            num_inference_steps=sampled.steps(sheet.ddpm_num_inference_steps),
        )
        drawing = Drawing(sampled, self.folder.name, sampling, BATCH, self.accelerator)
        drawing.labels = labels_like(drawing, self.reference.images)
        # A curve of small numbers is of use; a line that would have been refused says so.
        scores = score(self.sticks, drawing, wanted.eval_num_samples, self.accelerator, force=True)
        told = result_lines(scores, drawing.origin(step, images_seen), forced=True)
        best = self._is_best(told)
        if self.accelerator.is_main_process:
            results.append(self.folder / results.RESULTS, told)
        if best:
            self.save(pipeline, self.folder / "best")
        return {line["metric"]: line["value"] for line in told}

    def _is_best(self, told: list[dict]) -> bool:
        """Whether these lines beat all earlier ones of this run that were measured alike."""
        wanted, better = BEST[self.config.evaluation.eval_metrics[0]]
        stem = "fid" if wanted == "fd" else wanted
        line = next(t for t in told if t["metric"].startswith((wanted, stem)))
        alike = ("metric", "n", "seeds", *results.SAMPLING, "extractor_sha256")
        earlier = [
            other["value"]
            for other in results.read(self.folder / results.RESULTS)
            if all(other.get(key) == line[key] for key in alike)
        ]
        self.accelerator.wait_for_everyone()  # before the main process adds to what the others read
        return not earlier or better(line["value"], *earlier) == line["value"]
