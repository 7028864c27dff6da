"""The denoising-diffusion GAN: a few large denoising steps, each learned against a discriminator.

Xiao, Kreis & Vahdat 2022 (arXiv 2112.07804), algorithm 1. A step back is x0_hat = tanh(net(x_t, t, z)) and
x_{t-1} ~ q(x_{t-1} | x_t, x0_hat), so that p(x_{t-1} | x_t) can have many modes. Every batch trains the
discriminator and then the generator, each on pairs (x_{t-1}, x_t) of its own.
"""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from trilemma.pipelines.ddgan import DDGANPipeline
from trilemma.training.devices.compiled import compiled_forward
from trilemma.training.devices.memory import forward_in_parts
from trilemma.training.devices.precision import Updates
from trilemma.training.diffusion.few_steps import Pairs, few_step_scheduler, vp_process
from trilemma.training.families.ddgan import DDGANConfig, GANOptimConfig
from trilemma.training.loop.learning_rate import rate
from trilemma.training.loop.machine import distribute
from trilemma.training.loop.method import SKIPPED, Logs, adamw, norm_log, set_rate
from trilemma.training.loop.watchdog import Watchdog
from trilemma.training.networks.discriminator import GROUP, Discriminator


class DiscriminatorTurn(nn.Module):
    """The discriminator's loss; its parameters are the only ones here."""

    def __init__(self, discriminator: Discriminator, pairs: Pairs, r1_gamma: float):
        super().__init__()
        self.discriminator, self.judge = discriminator, discriminator.forward
        self.pairs, self.r1_gamma = pairs, r1_gamma

    def forward(
        self,
        x0: Tensor,
        labels: Tensor | None,
        penalise: bool,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Logs]:
        """Losses (B,) for x0 (B, C, H, W): softplus(-D) of real and softplus(D) of generated pairs, and R1.

        Both halves go through the network in one batch. penalise: add gamma / 2 |grad D|^2 with respect to
        the real x_{t-1} (Mescheder et al. 2018, arXiv 1801.04406, equation 9), in float32.
        """
        pairs = self.pairs
        t = pairs.times(x0, generator)
        real, x_t = pairs.real(x0, t, generator)
        with torch.no_grad():
            _, fake = pairs.generated(x_t, t, labels, generator)
        real.requires_grad_(penalise)
        both = None if labels is None else torch.cat([labels, labels])
        exact = torch.autocast(x0.device.type, enabled=False) if penalise else nullcontext()
        with exact:
            logits = self.judge(torch.cat([real, fake]), torch.cat([x_t, x_t]), torch.cat([t, t]), both)
            on_real, on_fake = logits.float().chunk(2)
            if penalise:
                (gradient,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
                penalty = gradient.square().sum((1, 2, 3))
        losses = F.softplus(-on_real) + F.softplus(on_fake)
        logs = {
            "loss_discriminator": losses.detach(),
            "loss_generator": generator_losses(on_fake).detach(),  # in training, the next turn has its own
            "logit_gap": (on_real - on_fake).detach(),
            "logit_spread": logits.detach().float().std(),
        }
        for k in range(1, pairs.process.steps + 1):
            logs[f"accuracy_real_t{k}"] = torch.where(t == k, (on_real > 0).float(), torch.nan)
            logs[f"accuracy_fake_t{k}"] = torch.where(t == k, (on_fake < 0).float(), torch.nan)
        if penalise:
            losses = losses + self.r1_gamma / 2 * penalty
            logs["r1"] = penalty.detach()
        return losses, logs


class GeneratorTurn(nn.Module):
    """The generator's loss; its parameters are the only ones here."""

    def __init__(self, net: UNet2DModel, discriminator: Discriminator, pairs: Pairs):
        super().__init__()
        self.net, self.pairs = net, pairs
        self.judge = (discriminator,)  # a tuple: its parameters are not this module's

    def forward(self, x0: Tensor, labels: Tensor | None) -> tuple[Tensor, Logs]:
        """Losses (B,) for x0 (B, C, H, W)."""
        pairs, (discriminator,) = self.pairs, self.judge
        t = pairs.times(x0)
        _, x_t = pairs.real(x0, t)
        x0_hat, fake = pairs.generated(x_t, t, labels)
        losses = generator_losses(discriminator(fake, x_t, t, labels))
        return losses, {"loss_generator": losses.detach()} | compare(
            x0_hat.detach(), x0, t == pairs.process.steps, labels, pairs.num_classes
        )


def generator_losses(on_fake: Tensor) -> Tensor:
    """softplus(-D) of the logits of generated pairs, which does not saturate where D is certain."""
    return F.softplus(-on_fake.float())


def compare(
    x0_hat: Tensor, x0: Tensor, noisiest: Tensor, labels: Tensor | None = None, num_classes: int = 0
) -> Logs:
    """What collapse looks like, for generated and real images (B, C, H, W) in [-1, 1]; noisiest (B,) bool.

    contrast: deviation of the pixels within an image, as a share of the data's. diversity: deviation of a
    pixel over the batch, as a share of the data's, among images made from (nearly) pure noise; with labels
    (B,) int64 in 0..num_classes-1, among those of one class, since one image for each class would differ
    enough.
    """
    weights = noisiest / noisiest.sum()
    labels = torch.zeros_like(noisiest, dtype=torch.long) if labels is None else labels
    kinds = F.one_hot(labels, max(1, num_classes)).to(weights)
    shares = weights[:, None] * kinds
    shares = (shares / shares.sum(0)).nan_to_num()  # of each image in the mean of its kind

    def spread(x: Tensor) -> Tensor:
        x = x.flatten(1)
        mean = kinds @ (shares.T @ x)
        return (weights @ (x - mean).square()).sqrt().mean()

    return {
        "contrast": x0_hat.flatten(1).std(1).mean() / x0.flatten(1).std(1).mean(),
        "diversity": spread(x0_hat) / spread(x0),
        "saturated": (x0_hat.abs() > 0.99).float().mean((1, 2, 3)),
        "saturated_data": (x0.abs() > 0.99).float().mean((1, 2, 3)),
    }


class DDGAN:
    """The Method of two networks, each with its Adam; the generator is averaged and published.

    class_names: of a class-conditional model, one for each class, or None for a model without classes.
    """

    def __init__(
        self,
        net: UNet2DModel,
        discriminator: Discriminator,
        accelerator: Accelerator,
        config: DDGANConfig,
        optim: GANOptimConfig,
        total_steps: int,
        class_names: tuple[str, ...] | None = None,
    ):
        self.net, self.discriminator, self.accelerator = net, discriminator, accelerator
        self.class_names, self.num_classes = class_names, len(class_names) if class_names else None
        self.max_norm, self.r1_interval = optim.max_grad_norm, config.r1_interval
        self.discriminator_steps = config.discriminator_steps
        process = vp_process(config.ddpm_num_steps, config.beta_min, config.beta_max)
        self.scheduler = few_step_scheduler(process)
        self.pairs = Pairs(net, process.to(accelerator.device), len(class_names or ()))
        self.watchdog, self.steps = Watchdog(config.watchdog_steps, accelerator), 0
        turns = (
            DiscriminatorTurn(discriminator, self.pairs, config.r1_gamma),
            GeneratorTurn(net, discriminator, self.pairs),
        )
        self.peaks = (config.discriminator_learning_rate, optim.learning_rate)
        optimizers = [adamw(t.parameters(), peak, optim) for t, peak in zip(turns, self.peaks, strict=True)]
        self.factors = [
            rate(stretched(optim, peak, updates), updates * total_steps)
            for peak, updates in zip(self.peaks, (config.discriminator_steps, 1), strict=True)
        ]
        self.forward_batch = optim.forward_batch
        self.turns = [distribute(accelerator, turn) for turn in turns]
        self.optimizers = [accelerator.prepare(optimizer) for optimizer in optimizers]
        self.updates = [Updates(optimizer, accelerator.scaler) for optimizer in self.optimizers]

    def compile(self, required: bool = True) -> None:
        """Compile the generator's forward pass; compiled code cannot be differentiated twice, as R1 needs."""
        self.pairs.denoise = compiled_forward(self.net.forward, required)

    def step(self, x0: Tensor, labels: Tensor | None) -> Logs:
        """The discriminator's updates, then the generator's, each with its own times and noise."""
        labels = labels if self.class_names else None
        self.steps += 1
        logs: Logs = {}
        for turn in range(self.discriminator_steps):
            penalise = turn == 0 and self.steps % self.r1_interval == 0
            losses, turn_logs = self.turns[0](x0, labels, penalise)
            logs |= turn_logs | self._update(0, losses)
        self.discriminator.requires_grad_(False)
        losses, turn_logs = self.turns[1](x0, labels)
        logs |= turn_logs | self._update(1, losses)
        self.discriminator.requires_grad_(True)
        logs["loss"] = logs["loss_discriminator"] + logs["loss_generator"]
        upcoming = self.peaks[1] * self.factors[1](self.updates[1].expected())
        logs["learning_rate"] = torch.full((), upcoming, device=x0.device)
        self.watchdog.watch(logs, self.steps)
        return logs

    def learning_rate(self, turn: int) -> float:
        """The rate of the next update of the discriminator (0) or the generator (1)."""
        return self.peaks[turn] * self.factors[turn](self.updates[turn].done())

    def _update(self, turn: int, losses: Tensor) -> Logs:
        """One step of one optimizer; logs the norm of the gradient, and whether fp16 skipped the step."""
        self.accelerator.backward(losses.mean())
        norm = self._clip(turn)
        set_rate(self.optimizers[turn], self.learning_rate(turn))
        skipped = self.updates[turn].step(losses.device)
        self.optimizers[turn].zero_grad()
        logs = norm_log(f"gradient_norm_{('discriminator', 'generator')[turn]}", norm, skipped)
        return logs if skipped is None else {**logs, SKIPPED: skipped}  # the generator's comes last

    def _clip(self, turn: int) -> Tensor:
        """Clip one network's gradient, and return its norm."""
        # accelerator.clip_grad_norm_ would unscale the other optimizer too, which has no gradient now.
        self.accelerator.unscale_gradients(self.optimizers[turn])
        return nn.utils.clip_grad_norm_(self.turns[turn].parameters(), self.max_norm or float("inf"))

    @torch.no_grad()
    def validate(self, x0: Tensor, labels: Tensor | None, generator: torch.Generator) -> Logs:
        """Both losses on held-out images: the discriminator's far above that in training, it overfits."""
        labels = labels if self.class_names else None
        whole = len(x0) // GROUP * GROUP or len(x0)  # no group of the minibatch deviation holds both kinds
        x0, labels = x0[:whole], None if labels is None else labels[:whole]
        bare = self.accelerator.unwrap_model(self.turns[0], keep_torch_compile=False)
        size = self.forward_batch
        judged = 2 * max(GROUP, size // GROUP * GROUP)  # pairs of both kinds, in whole groups
        denoise = forward_in_parts(self.pairs, ("denoise",), size)
        judge = forward_in_parts(bare, ("judge",), judged)
        with denoise, judge:
            losses, logs = bare(x0, labels, False, generator)
        return {"loss": losses + logs["loss_generator"], **logs}

    def healthy(self) -> bool:
        """Whether these weights are worth a checkpoint."""
        return self.watchdog.calm

    def skipped_steps(self) -> int | None:
        """Updates of either network that were skipped because fp16 overflowed."""
        for updates in self.updates:
            updates.done()
        return None if self.accelerator.scaler is None else sum(u.skipped for u in self.updates)

    def pipeline(self, net: UNet2DModel) -> DDGANPipeline:
        """A pipeline that samples from `net`."""
        return DDGANPipeline(net, self.scheduler, self.class_names)

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimizers, counts of their steps, of all steps (for R1) and, under fp16, the scaler."""
        scaler = self.accelerator.scaler
        return {
            "generator": self.net.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedules": [updates.done() for updates in self.updates],
            "skipped": [updates.skipped for updates in self.updates],
            "steps": self.steps,
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; ValueError when its weights have other names or shapes."""
        self.net.load_state_dict(state["generator"])
        self.discriminator.load_state_dict(state["discriminator"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.steps = state["steps"]
        skipped = state.get("skipped", (0, 0))
        for updates, done, lost in zip(self.updates, state["schedules"], skipped, strict=True):
            updates.restore(done, lost)
        if state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def stretched(optim: GANOptimConfig, peak: float, updates: int) -> GANOptimConfig:
    """The options of an optimizer that makes this many updates in a step, so that rates change together."""
    milestones = optim.lr_milestones and tuple(updates * milestone for milestone in optim.lr_milestones)
    return replace(
        optim,
        learning_rate=peak,
        lr_warmup_steps=updates * optim.lr_warmup_steps,
        lr_milestones=milestones,
    )
