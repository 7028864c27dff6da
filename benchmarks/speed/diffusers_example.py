"""The loop that most users of diffusers start from: its unconditional example, rebuilt from what it does.

An image is a PNG in a data set of the Hub's library, decoded and transformed by PIL for every batch in a
DataLoader; `add_noise`, a mean squared error, AdamW, a cosine rate, `EMAModel`, and a log line every step.
The numbers are the example's defaults. torchvision's transforms are written out here, so that it need not be
installed: Resize and CenterCrop to the size that the images have leave them as they are.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from datasets import Dataset, Features
from datasets import Image as ImageColumn
from diffusers import DDPMPipeline, DDPMScheduler, ModelMixin
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from tqdm.auto import tqdm

from trilemma.training.images.image_set import Images, load_images
from trilemma.training.options.groups import DataConfig

BATCH, EPOCHS, RATE, WARMUP = 16, 100, 1e-4, 500


def as_pil(images: Images) -> list[Image.Image]:
    """The same pixels as PIL images, grey or RGB."""
    pixels, _ = images.__getitems__(range(len(images)))
    arrays = pixels.permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in arrays]


def enlarged(side: int, mode: str = "L") -> list[Image.Image]:
    """Pictures of any size that need no download: the 1,797 digits at this size, grey ("L") or RGB."""
    digits = as_pil(load_images(DataConfig(dataset_name="digits")))
    return [each.resize((side, side), Image.Resampling.BILINEAR).convert(mode) for each in digits]


def folder_of(pictures: list[Image.Image], folder: Path) -> Path:
    """Write them as PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number:05d}.png")
    return folder


def as_dataset(pictures: list[Image.Image]) -> Dataset:
    """A data set of PNGs, as a parquet file of the Hub holds them."""
    data = Dataset.from_dict({"image": pictures}, features=Features({"image": ImageColumn()}))
    return transformed(data, pictures[0].size[0], pictures[0].mode)


def transformed(data: Dataset, side: int, mode: str) -> Dataset:
    """The same data set, which decodes and transforms an image each time it is read."""

    def transform(picture: Image.Image) -> torch.Tensor:
        picture = picture.convert(mode)
        if picture.size != (side, side):
            picture = picture.resize((side, side), Image.Resampling.BILINEAR)
        array = np.asarray(picture)
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        return (torch.from_numpy(np.array(array)).float().div(255) - 0.5) / 0.5

    return data.with_transform(lambda rows: {"input": [transform(each) for each in rows["image"]]})


class DiffusersLoop:
    """One optimizer step each time `step` is called; `pipeline` is what it would publish."""

    def __init__(
        self, net: ModelMixin, data: Dataset, folder: Path, *, batch: int = BATCH, precision: str = "no",
        epochs: int = EPOCHS,
    ):  # fmt: skip
        self.accelerator = Accelerator(
            mixed_precision=precision,
            log_with="tensorboard",
            project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder / "logs")),
        )
        self.noise_scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        optimizer = torch.optim.AdamW(
            net.parameters(), lr=RATE, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        loader = torch.utils.data.DataLoader(data, batch_size=batch, shuffle=True, num_workers=0)
        self.total = len(loader) * epochs
        rate = get_scheduler("cosine", optimizer, num_warmup_steps=WARMUP, num_training_steps=self.total)
        self.ema = EMAModel(
            net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75,
            model_cls=type(net), model_config=net.config,
        )  # fmt: skip
        self.net, self.optimizer, self.loader, self.rate = self.accelerator.prepare(
            net, optimizer, loader, rate
        )
        self.accelerator.init_trackers("example")
        self.global_step = self.images_seen = 0
        self.bar = tqdm(total=len(loader), disable=True)
        self.batches = self._forever()

    def _forever(self) -> Iterator[torch.Tensor]:
        while True:
            for rows in self.loader:
                yield rows["input"]

    def step(self) -> None:
        """One batch: forward, backward, update, average, log."""
        clean = next(self.batches)
        noise = torch.randn(clean.shape, dtype=clean.dtype)
        steps = self.noise_scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, steps, (len(clean),)).long()
        noisy = self.noise_scheduler.add_noise(clean, noise, timesteps)
        with self.accelerator.accumulate(self.net):
            output = self.net(noisy, timesteps).sample
            loss = F.mse_loss(output.float(), noise.float())
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimizer.step()
            self.rate.step()
            self.optimizer.zero_grad()
        self.ema.step(self.net.parameters())
        self.bar.update(1)
        self.global_step += 1
        self.images_seen += len(clean)
        logs = {"loss": loss.detach().item(), "lr": self.rate.get_last_lr()[0], "step": self.global_step}
        logs["ema_decay"] = self.ema.cur_decay_value
        self.bar.set_postfix(**logs)
        self.accelerator.log(logs, step=self.global_step)

    def pipeline(self) -> DDPMPipeline:
        """The averaged weights, as the example saves them at its end."""
        net = self.accelerator.unwrap_model(self.net)
        self.ema.store(net.parameters())
        self.ema.copy_to(net.parameters())
        net.eval()
        return DDPMPipeline(unet=net, scheduler=self.noise_scheduler)
