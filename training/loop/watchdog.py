"""Signs that training has failed, as means over a window of steps, and what to do about them.

The losses do not show it: those of a GAN stay small or fall while every image is black. Statistics of the
images and the logits do. The signs in this file are those of a GAN; other methods have theirs in their own. A
sign that shows in several consecutive windows stops the run.
"""

import logging
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from accelerate import Accelerator

from trilemma.training.loop.method import Logs
from trilemma.training.loop.records import Means

GRACE = 5
"""Windows at the start in which no run is stopped, because every generator begins with grey images."""

PATIENCE = 3
"""Consecutive windows with one sign that stop a run; while a window shows one, no checkpoint is written."""

COIN = 2 * math.log(2)
"""The discriminator's loss if every logit is 0."""

Numbers = dict[str, float]

logger = logging.getLogger(__name__)


class CollapsedRun(ValueError):
    """Training that will not recover."""


class Sign(NamedTuple):
    """shows(means of a window) -> whether the window shows it; its meaning; what to try."""

    shows: Callable[[Numbers], bool]
    meaning: str
    remedy: str


_WEAKER = "lower --discriminator_learning_rate or --discriminator_steps, or raise --r1_gamma"

SIGNS: dict[str, Sign] = {
    "contrast": Sign(
        lambda m: m["contrast"] < 0.1,
        "the images are nearly constant: the deviation of their pixels is below a tenth of the data's",
        f"{_WEAKER}; or lower --learning_rate",
    ),
    "diversity": Sign(
        lambda m: m["diversity"] < 0.1,
        "the images are nearly alike: their deviation over a batch is below a tenth of the data's",
        f"{_WEAKER}; or raise --train_batch_size or --ddpm_num_steps",
    ),
    "saturated": Sign(
        lambda m: m["saturated"] > m["saturated_data"] + 0.6 * (1 - m["saturated_data"]),
        "far more pixels than in the data are pure black or white",
        f"{_WEAKER}; or lower --learning_rate",
    ),
    "logit_spread": Sign(
        lambda m: m["logit_spread"] < 0.01,
        "the discriminator gives every image the same logit, so the generator learns nothing",
        "raise --discriminator_learning_rate or --discriminator_channels, or lower --r1_gamma",
    ),
    "loss_discriminator": Sign(
        lambda m: m["loss_discriminator"] > 2 * COIN,
        "the discriminator's loss is over twice that of random guessing: each of its steps undoes the last",
        _WEAKER,
    ),
    "loss_generator": Sign(
        lambda m: m["loss_generator"] > 4,
        "the discriminator has outrun the generator: it gives its images a probability below 1/50",
        f"{_WEAKER}; or raise --learning_rate",
    ),
}
"""Name of the log that shows it -> sign."""


class Watchdog:
    """Checks the logs of all ranks for signs every `period` steps; 0 for never."""

    def __init__(self, period: int, accelerator: Accelerator, signs: Mapping[str, Sign] = SIGNS):
        self.period, self.accelerator, self.signs = period, accelerator, signs
        self.means = Means(accelerator.device)
        self.strikes = dict.fromkeys(signs, 0)

    def watch(self, logs: Logs, step: int) -> None:
        """Take in the logs of step 1, 2, ...; CollapsedRun, on every rank, when a sign has stayed."""
        if not self.period:
            return
        self.means.add(logs, step)
        if step % self.period:
            return
        numbers = self.means.reduce(self.accelerator)
        for name, sign in self.signs.items():
            # Small batches may have had no image from which to compute it.
            shows = name in numbers and sign.shows(numbers)
            self.strikes[name] = self.strikes[name] + 1 if shows else 0
            if not shows:
                continue
            what = f"{sign.meaning} ({name} {numbers[name]:.3g} for {self.strikes[name] * self.period} steps)"
            if self.strikes[name] >= PATIENCE and step > GRACE * self.period:
                raise CollapsedRun(
                    f"the run has collapsed by step {step}: {what}. To try: {sign.remedy}. If there is a "
                    "checkpoint, other flags need another --output_dir or --overwrite_output_dir. No "
                    "checkpoint was written since the sign showed; --watchdog_steps 0 turns this check off."
                )
            logger.warning("step %d: %s. While this lasts, no checkpoint is written.", step, what)

    @property
    def calm(self) -> bool:
        """Whether the last window showed no sign; the same on every rank."""
        return not any(self.strikes.values())
