"""Who owns what in training: an Objective turns a clean batch into losses, a Method them into weights.

The loop (`training/loop/loop.py`) owns time and calls a Method; `GradientDescent` is the Method of every
Objective. A method with two optimizers, such as a GAN, implements the protocol itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from trilemma.training.devices.memory import forward_in_parts
from trilemma.training.devices.precision import Updates
from trilemma.training.loop.learning_rate import rate
from trilemma.training.loop.machine import distribute
from trilemma.training.options.flags import Config
from trilemma.training.options.groups import OptimConfig

Logs = dict[str, Tensor]
"""Name -> value per example (B,), or one value; NaN where a name does not apply to an example."""

SKIPPED = "skipped"
"""In the logs of fp16 alone, and no number to average: a bool (), whether the update of the averaged network
was skipped because its gradient had overflowed."""


class Objective(nn.Module, ABC):
    """Clean batch -> per-example loss. Owns every parameter that gets a gradient."""

    net: nn.Module
    """What is averaged, sampled and published."""
    num_classes: int | None = None
    """Number of classes K of a class-conditional model."""
    passes: tuple[str, ...] = ()
    """Attributes that are the network's forward passes: validation computes them in parts of a batch."""

    @abstractmethod
    def forward(
        self, x0: Tensor, labels: Tensor | None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Logs]:
        """Losses (B,) float32 and logs for x0 (B, C, H, W) in [-1, 1] and labels (B,) int64 or None.

        With a generator, everything random (t, noise) comes from it, so that the same one gives the same
        losses.
        """

    @abstractmethod
    def pipeline(self, net: nn.Module) -> DiffusionPipeline:
        """A pipeline that samples from `net`."""

    @abstractmethod
    def compile(self, required: bool = True) -> None:
        """Compile the network's forward pass; names in the state dict stay as they are.

        required: whether it is an error where that fails.
        """


class Method(Protocol):
    """What the loop needs: it owns gradients, the loop owns time."""

    net: nn.Module
    num_classes: int | None

    def step(self, x0: Tensor, labels: Tensor | None) -> Logs:
        """Train on one micro-batch; logs hold `loss`."""

    def validate(self, x0: Tensor, labels: Tensor | None, generator: torch.Generator) -> Logs:
        """Logs on held-out images, with t and noise from the generator and no gradients."""

    def compile(self, required: bool = True) -> None:
        """Compile the network's forward pass; required: whether it is an error where that fails."""

    def healthy(self) -> bool:
        """Whether these weights are worth a checkpoint; the same on every rank."""

    def skipped_steps(self) -> int | None:
        """Updates that were skipped because fp16 overflowed; None for other precisions."""

    def pipeline(self, net: nn.Module) -> DiffusionPipeline:
        """A pipeline that samples from `net`."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to continue bit for bit."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore that state."""


class GradientDescent:
    """AdamW on one objective: accumulation, clipping, mixed precision, rates counted in optimizer steps."""

    def __init__(self, objective: Objective, accelerator: Accelerator, config: OptimConfig, total_steps: int):
        self.objective, self.accelerator, self.max_norm = objective, accelerator, config.max_grad_norm
        self.net, self.num_classes = objective.net, objective.num_classes
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self.peak, self.factor = config.learning_rate, rate(config, total_steps)
        self.forward_batch = config.forward_batch
        optimizer = adamw(self.parameters, self.peak, config)
        self.module, self.optimizer = distribute(accelerator, objective), accelerator.prepare(optimizer)
        self.updates = Updates(self.optimizer, accelerator.scaler)

    def step(self, x0: Tensor, labels: Tensor | None) -> Logs:
        """One micro-batch: forward, backward and, when gradients are complete, clip and update."""
        accelerator = self.accelerator
        with accelerator.accumulate(self.module):
            losses, logs = self.module(x0, labels)
            logs = {"loss": losses.detach(), **logs}
            accelerator.backward(losses.mean())
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(self.parameters, self.max_norm or float("inf"))
                learning_rate = self.peak * self.factor(self.updates.done())
                set_rate(self.optimizer, learning_rate)
                logs["learning_rate"] = torch.full((), learning_rate, device=losses.device)
                skipped = self.updates.step(losses.device)
                logs |= norm_log("gradient_norm", norm, skipped)
                if skipped is not None:
                    logs[SKIPPED] = skipped
            self.optimizer.zero_grad()
        return logs

    @torch.no_grad()
    def validate(self, x0: Tensor, labels: Tensor | None, generator: torch.Generator) -> Logs:
        """Held-out losses, through the bare objective, since ranks may have different numbers of batches."""
        self.objective.eval()
        parts = forward_in_parts(self.objective, self.objective.passes, self.forward_batch)
        with self.accelerator.autocast(), parts:
            losses, logs = self.objective(x0, labels, generator)
        self.objective.train()
        return {"loss": losses, **logs}

    def compile(self, required: bool = True) -> None:
        """Compile the objective."""
        self.objective.compile(required)

    def healthy(self) -> bool:
        """Always: the loop itself checks that the loss is finite."""
        return True

    def skipped_steps(self) -> int | None:
        """Steps that were skipped because fp16 overflowed."""
        self.updates.done()
        return None if self.accelerator.scaler is None else self.updates.skipped

    def pipeline(self, net: nn.Module) -> DiffusionPipeline:
        """A pipeline that samples from `net`."""
        return self.objective.pipeline(net)

    def state_dict(self) -> dict[str, Any]:
        """Raw weights, optimizer, count of its steps and, under fp16, the loss scaler."""
        scaler = self.accelerator.scaler
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {"last_epoch": self.updates.done(), "skipped": self.updates.skipped},
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; ValueError when its weights have other names or shapes."""
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates.restore(state["schedule"]["last_epoch"], state["schedule"].get("skipped", 0))
        if state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def descend(
    objective: Objective, config: Config, accelerator: Accelerator, total_steps: int
) -> GradientDescent:
    """Gradient descent on an objective, compiled if the flags ask for it."""
    if config.run.compile:
        objective.compile()
    return GradientDescent(objective, accelerator, config.optim, total_steps)


def adamw(parameters: Iterable[nn.Parameter], peak: float, config: OptimConfig) -> torch.optim.AdamW:
    """The optimizer of the flags; peak: its learning rate, until `set_rate` sets another."""
    return torch.optim.AdamW(
        parameters,
        lr=peak,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
        fused=True,
    )


def norm_log(name: str, norm: Tensor, skipped: Tensor | None) -> Logs:
    """The norm of a gradient under its name; NaN, which does not count, where the update was skipped."""
    return {name: norm if skipped is None else norm.masked_fill(skipped, torch.nan)}


def set_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """The learning rate of the steps that follow."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
