"""Distance of a pipeline's samples to its data, one way for all that benchmarks compare."""

from accelerate import Accelerator
from diffusers import DiffusionPipeline

from trilemma.eval.features.judge_files import BY_DATA, JudgeChoice
from trilemma.eval.options import SamplingConfig
from trilemma.eval.scoring.model_images import Drawing
from trilemma.eval.scoring.yardsticks import Reference, score, yardsticks
from trilemma.training.images.image_set import Images, cache_folder


class Judge:
    """Frechet distance of samples to the images under a classifier that comes with trilemma.

    judge: the classifier's name; by default that of the images.
    """

    def __init__(self, images: Images, samples: int, judge: str | None = None):
        self.accelerator, self.samples = Accelerator(cpu=True), samples
        choice = JudgeChoice(name=judge) if judge else BY_DATA
        reference, cache = Reference(images), cache_folder(None)
        self.sticks = yardsticks(("fd",), "classifier", reference, self.accelerator, cache, judge=choice)

    def __call__(self, pipeline: DiffusionPipeline, steps: int) -> float:
        """The plain value, with its bias: all are of the same number of samples, of seeds 0, 1, ..."""
        pipeline.set_progress_bar_config(disable=True)
        sampling = SamplingConfig(num_samples=self.samples, num_inference_steps=steps)
        drawing = Drawing(pipeline, "model", sampling, 250, self.accelerator)
        scores = score(self.sticks, drawing, self.samples, self.accelerator, force=True)
        return next(iter(scores.values()))["fd"].value
