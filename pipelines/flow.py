"""Sampling from a flow: the ordinary differential equation from noise at s = 1 to images at s = 0.

Its network predicts the velocity noise - x_0 at x_s = (1 - s) x_0 + s noise and the time step 1000 s, as
diffusers' `FlowMatchEulerDiscreteScheduler` defines them. Apart from its samplers, such a model is sampled
as one that denoises. Without classes and with a network of diffusers it is on disk a stock `DDPMPipeline`;
with classes, it brings its code.
"""

from diffusers import DDPMPipeline, DiffusionPipeline, SchedulerMixin

from trilemma.pipelines.class_conditional import ClassConditionalPipeline
from trilemma.pipelines.samplers import is_flow
from trilemma.pipelines.unconditional import UnconditionalPipeline


class FlowPipeline(UnconditionalPipeline):
    """Noise -> image: a network that predicts velocities, and a scheduler of flows."""

    family = "flow"


class ClassConditionalFlowPipeline(ClassConditionalPipeline):
    """Class labels -> images, with classifier-free guidance of the velocity."""

    family = "flow"


def is_stock(kind: type[DiffusionPipeline], scheduler: SchedulerMixin | None) -> bool:
    """Whether a stock pipeline of this class and with this scheduler is a model of this family."""
    return kind is FlowPipeline.saved_as and scheduler is not None and is_flow(scheduler)


def from_stock(pipeline: DDPMPipeline) -> FlowPipeline:
    """The pipeline of a model that was saved: a stock one with the same components."""
    return FlowPipeline(unet=pipeline.unet, scheduler=pipeline.scheduler)
