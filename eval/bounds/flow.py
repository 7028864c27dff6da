"""The likelihood of a flow, along the path that its network's velocity gives: see `ode.py`."""

from diffusers import DiffusionPipeline
from torch import Tensor

from trilemma.eval.bounds.ode import ODETerms, Path, ode_terms
from trilemma.training.diffusion.flow import TIME_STEPS


def path(pipeline: DiffusionPipeline) -> Path:
    """The flow of a pipeline's network."""
    net = pipeline.network
    conditional = net.config.get("num_class_embeds") is not None

    def velocity(x: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        condition = (labels,) if conditional else ()
        return net(x.to(net.dtype), (s * TIME_STEPS).float().to(x.device), *condition).sample.float()

    return Path(velocity)


def terms(pipeline: DiffusionPipeline, timesteps: int | None, batch_size: int) -> ODETerms:
    """The terms of a pipeline's network."""
    return ode_terms(path(pipeline), timesteps, batch_size)
