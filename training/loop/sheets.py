"""Sample sheets: the images that show how training goes, drawn from the same seeds each time."""

from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch import Tensor

from trilemma.training.loop.method import Method
from trilemma.training.loop.stop import StopSignal
from trilemma.training.options.flags import Config
from trilemma.training.options.groups import SheetConfig
from trilemma.training.sampling import Share, every_class, gather_in_order, sample

MOST_AT_ONCE = 64
"""Images in one forward pass, unless --eval_forward_batch or the batches of training are smaller."""


def sampling_pipeline(method: Method, sheet: SheetConfig) -> DiffusionPipeline:
    """The method's pipeline with the sampler of sheets and of evaluation."""
    pipeline = method.pipeline(method.net).with_sampler(sheet.sampler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def images_at_once(config: Config) -> int:
    """Images of a sheet, or of a picture, in one forward pass."""
    return min(MOST_AT_ONCE, config.optim.forward_batch)


def draw(method: Method, accelerator: Accelerator, config: Config, stop: StopSignal) -> Tensor:
    """One sheet of images from fixed seeds, every rank its share: uint8 (N, C, H, W), on every rank.

    Stopped, on every rank, if any receives a signal.
    """
    sheet = config.sheet
    pipeline = sampling_pipeline(method, sheet)
    share = stop.attempt(
        lambda: sample(
            pipeline,
            range(sheet.eval_batch_size),
            batch_size=images_at_once(config),
            num_inference_steps=pipeline.steps(sheet.ddpm_num_inference_steps),
            class_labels=every_class(method.num_classes, sheet.eval_batch_size),
            share=Share.of(accelerator),
        )
    )
    return gather_in_order(share)
