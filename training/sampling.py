"""Drawing images from a pipeline: the samplers by name, and each process its share of the seeds.

An image depends on its seed alone (see pipelines/), so shares, batches and their order are free choices.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    ModelMixin,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

from trilemma.training.images.image_set import to_uint8

ALL_TARGETS = ("epsilon", "sample", "v_prediction")


class Sampler(NamedTuple):
    """A scheduler of diffusers, the options that make it this sampler, the network outputs it understands."""

    scheduler: type[SchedulerMixin]
    options: Mapping[str, Any] = {}
    targets: tuple[str, ...] = ALL_TARGETS


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(DDPMScheduler),
    "ddim": Sampler(DDIMScheduler),
    "dpmsolver++": Sampler(DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "sde-dpmsolver++": Sampler(
        DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
    ),
    "unipc": Sampler(UniPCMultistepScheduler, {"solver_order": 2}),
    "heun": Sampler(HeunDiscreteScheduler),
    "euler": Sampler(EulerDiscreteScheduler),
    "euler_ancestral": Sampler(EulerAncestralDiscreteScheduler, targets=("epsilon", "v_prediction")),
}


class OwnSamplers(NamedTuple):
    """How a pipeline without a scheduler samples.

    configs: name of a sampler -> the entries of the pipeline's configuration that choose it. steps: how many
    it usually takes, and most: how many it may take; None for any number.
    """

    configs: Mapping[str, Mapping[str, Any]]
    steps: int
    most: int | None = None


OWN_SAMPLERS: dict[str, OwnSamplers] = {
    "VDMPipeline": OwnSamplers({name: {"chain": name} for name in ("ancestral", "shortcut")}, steps=250),
    "VAEPipeline": OwnSamplers({"decoder": {}}, steps=1, most=1),
}
"""Class of a pipeline without a scheduler, by its name: a class that was loaded from a folder is another
object."""

SAMPLER_NAMES = {*SAMPLERS, *(name for own in OWN_SAMPLERS.values() for name in own.configs)}
"""Everything that `with_sampler` may be asked for."""


def own_samplers(pipeline: DiffusionPipeline) -> OwnSamplers | None:
    """The samplers of a pipeline without a scheduler; None for one that has a scheduler."""
    return OWN_SAMPLERS.get(type(pipeline).__name__)


def network_of(pipeline: DiffusionPipeline) -> ModelMixin:
    """The network of a pipeline, each has one, whatever the pipeline calls it."""
    return next(part for part in pipeline.components.values() if isinstance(part, ModelMixin))


def sampler_name(pipeline: DiffusionPipeline) -> str:
    """What results call the sampler that a pipeline has: a name of its own, or the class of its scheduler."""
    own = own_samplers(pipeline)
    if own is None:
        return type(pipeline.scheduler).__name__
    return next(name for name, config in own.configs.items() if config.items() <= pipeline.config.items())


def with_sampler(pipeline: DiffusionPipeline, name: str) -> DiffusionPipeline:
    """The same pipeline with another sampler of the same noise schedule; the one given stays as it is."""
    own = own_samplers(pipeline)
    if own is not None:
        if name not in own.configs:
            raise ValueError(
                f"--sampler must be one of {', '.join(own.configs)} for a {type(pipeline).__name__}; "
                f"got {name!r}"
            )
        other = copy.copy(pipeline)
        other.register_to_config(**own.configs[name])
        return other
    if name not in SAMPLERS:
        raise ValueError(f"--sampler must be one of {', '.join(SAMPLERS)}; got {name!r}")
    row, config = SAMPLERS[name], pipeline.scheduler.config
    if config.prediction_type not in row.targets:
        able = ", ".join(other for other in SAMPLERS if config.prediction_type in SAMPLERS[other].targets)
        raise ValueError(f"--sampler {name} cannot sample {config.prediction_type} models; these can: {able}")
    # from_config would replace what the old class left at its defaults by the new class's own, and some have
    # the betas of another noise schedule.
    values = {key: value for key, value in config.items() if key != "_use_default_values"}
    other = copy.copy(pipeline)
    other.register_modules(scheduler=row.scheduler.from_config(values, **row.options))
    return other


def usual_steps(pipeline: DiffusionPipeline) -> int:
    """All T steps for the ancestral sampler, else 50, or the largest divisor of T below; without a scheduler,
    those of the table.
    """
    own = own_samplers(pipeline)
    if own is not None:
        return own.steps
    steps = pipeline.scheduler.config.num_train_timesteps
    if isinstance(pipeline.scheduler, DDPMScheduler):
        return steps
    return next(n for n in range(min(50, steps), 0, -1) if steps % n == 0)


def check_steps(pipeline: DiffusionPipeline, num_inference_steps: int) -> None:
    """ValueError for a number of steps that the sampler does not have, before anything is drawn."""
    own = own_samplers(pipeline)
    if own is not None:
        if num_inference_steps < 1 or (own.most and num_inference_steps > own.most):
            wanted = f"in 1..{own.most}" if own.most else "at least 1"
            raise ValueError(f"--num_inference_steps must be {wanted}; got {num_inference_steps}")
        return
    steps, n = pipeline.scheduler.config.num_train_timesteps, num_inference_steps
    if not 1 <= n <= steps:
        raise ValueError(f"--num_inference_steps must be in 1..{steps}, the steps of training; got {n}")
    if isinstance(pipeline.scheduler, DDIMScheduler) and steps % n:
        near = [m for m in range(1, steps + 1) if steps % m == 0]
        fits = max(m for m in near if m < n), min(m for m in near if m > n)
        raise ValueError(
            f"DDIM takes a divisor of {steps} steps; got {n}, and {fits[0]} or {fits[1]} would do"
        )


def evaluations(pipeline: DiffusionPipeline, num_inference_steps: int) -> int:
    """How often an image goes through the network (NFE): 2N - 1 for N steps of Heun. Guidance doubles it."""
    if own_samplers(pipeline) is not None:
        return num_inference_steps
    scheduler = copy.deepcopy(pipeline.scheduler)
    scheduler.set_timesteps(num_inference_steps)
    return len(scheduler.timesteps)


def every_class(num_classes: int | None, count: int) -> list[int] | None:
    """Classes 0, 1, ... K-1, 0, ... for the images of a sheet; None for models without classes."""
    return None if num_classes is None else [i % num_classes for i in range(count)]


def shard(items: Sequence, rank: int, world: int) -> list:
    """This rank's items: every world-th, from its rank on. None twice, none left out, none added."""
    return list(items)[rank::world]


def draw_batches(
    pipeline: DiffusionPipeline,
    seeds: Sequence[int],
    *,
    batch_size: int,
    num_inference_steps: int | None = None,
    class_labels: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One image for each seed of this rank's share: positions (B,) and uint8 (B, C, H, W), on the CPU.

    class_labels: one for each seed, for pipelines that take them. options: further arguments of the
    pipeline's call, such as guidance_scale.
    """
    share = shard(range(len(seeds)), rank, world)
    for start in range(0, len(share), batch_size):
        rows = share[start : start + batch_size]
        per_image: dict[str, Any] = {"seeds": [seeds[row] for row in rows]}
        if class_labels is not None:
            per_image["class_labels"] = [class_labels[row] for row in rows]
        output = pipeline(
            **per_image, **(options or {}), num_inference_steps=num_inference_steps, output_type="pt"
        )
        yield torch.tensor(rows), to_uint8(output.images).cpu()


def sample(
    pipeline: DiffusionPipeline,
    seeds: Sequence[int],
    *,
    batch_size: int,
    num_inference_steps: int | None = None,
    class_labels: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
    rank: int = 0,
    world: int = 1,
) -> Tensor:
    """`draw_batches` in one: this rank's share in its order, uint8 (n, C, H, W) on the CPU."""
    parts = draw_batches(
        pipeline,
        seeds,
        batch_size=batch_size,
        num_inference_steps=num_inference_steps,
        class_labels=class_labels,
        options=options,
        rank=rank,
        world=world,
    )
    images = [part for _, part in parts]
    if images:
        return torch.cat(images)
    # The shape of no images is known from an image.
    labels = None if class_labels is None else class_labels[:1]
    one = draw_batches(
        pipeline, seeds[:1], batch_size=1, num_inference_steps=1, class_labels=labels, options=options
    )
    return next(one)[1][:0]


def gather_in_order(share: Tensor) -> Tensor:
    """All ranks' shares of different sizes (n_rank, ...) -> the whole (n, ...) in the order before `shard`.

    Every rank must call it and gets it all.
    """
    shares = gather_object([share])
    whole = torch.empty(sum(map(len, shares)), *share.shape[1:], dtype=share.dtype)
    for rank, part in enumerate(shares):
        whole[rank :: len(shares)] = part
    return whole


def sample_everywhere(
    pipeline: DiffusionPipeline,
    seeds: Sequence[int],
    accelerator: Accelerator,
    *,
    batch_size: int = 64,
    num_inference_steps: int | None = None,
    class_labels: Sequence[int] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Tensor:
    """`sample` with each process doing its share, then all images on every process: uint8 (N, C, H, W)."""
    share = sample(
        pipeline,
        seeds,
        batch_size=batch_size,
        num_inference_steps=num_inference_steps,
        class_labels=class_labels,
        options=options,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    return gather_in_order(share)
