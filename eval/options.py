"""The options that entry points of this folder share; no torch here."""

from dataclasses import dataclass

from trilemma.training.options.flags import option


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and how it is run."""

    model: str | None = option(None, "model folder or Hub id")
    trust_remote_code: bool = option(False, "run the Python file that comes with a model from the Hub")
    batch_size: int = option(250, "images per process and forward pass", low=1)
    cpu_threads: int = option(0, "threads of a process on CPU; 0 for its share of the cores", low=0)


@dataclass(frozen=True)
class SamplingConfig:
    """How images are drawn. An image depends on its seed alone."""

    num_samples: int = option(10_000, "images to draw or to score", low=1)
    seed: int = option(0, "first seed; images have the seeds from here on", low=0)
    sampler: str | None = option(None, "a row of SAMPLERS, such as ddim; the model's own if not given")
    num_inference_steps: int | None = option(None, "steps of the sampler; its default if not given", low=1)
    guidance_scale: float | None = option(
        None, "diffusers' scale: 1 + w of the paper; class-conditional models"
    )
    classes: tuple[str, ...] | None = option(None, "draw only these classes, by name or number")


@dataclass(frozen=True)
class ScoreConfig:
    """What is measured."""

    feature_extractor: str | None = option(
        None,
        "inception, dinov2, clip, classifier or pixels; inception if its weights are there, else classifier",
    )
    extractor_weights: str | None = option(None, "file, folder or Hub id of the extractor's weights")
    metrics: tuple[str, ...] = option(("fd", "kid", "prdc"), "metrics of docs/metrics.md")
    bpd_timesteps: int | None = option(None, "noise levels drawn per image for bpd; all if not given", low=1)
    bpd_images: int | None = option(None, "images of each split for bpd; all if not given", low=2)
    force: bool = option(False, "measure what would mean little, and mark it so")
