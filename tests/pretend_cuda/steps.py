"""A step, a validation and an average of every method on the pretended device; prints what happened as JSON.

Arguments: precisions, or "float32-only" for a device without float64. All methods run in float32 on a device
with float64, one of each kind in the others.
"""

import json
import sys
import traceback
import warnings
from collections import Counter

from device import CUDA, cuda_accelerator, pretend_cuda

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from methods import METHODS, batch  # noqa: E402

from trilemma.training.loop.ema import EMA, ema_decay  # noqa: E402
from trilemma.training.loop.loop import published  # noqa: E402
from trilemma.training.loop.method import SKIPPED  # noqa: E402
from trilemma.training.loop.records import Means  # noqa: E402
from trilemma.training.options.groups import EMAConfig  # noqa: E402

ONE_OF_EACH = (
    "unconditional", "unconditional hybrid", "class-conditional", "vae", "vdm monotone", "vdm of T steps",
    "flow with classes", "consistency from a flow", "ddgan with classes",
)  # fmt: skip


def by_file(waits: Counter) -> dict[str, int]:
    """How often the host waited, by file of the project."""
    files: Counter[str] = Counter()
    for (_, line), count in waits.items():
        files[line.split(":")[0]] += count
    return dict(sorted(files.items()))


def run(name: str, precision: str, float64: bool) -> dict:
    """Two steps, of which the second is counted (and has R1), then validation and samples."""
    with pretend_cuda(float64) as device:
        method = METHODS[name](cuda_accelerator(precision))
        ema, means = EMA(method.net, ema_decay(EMAConfig(), 8)), Means(CUDA)
        method.net.train()
        for step in (1, 2):
            images, labels = batch(CUDA)
            device.waits.clear()
            logs = method.step(images, labels)
            means.add(logs, step)
            ema.update(step, logs.get(SKIPPED))
        waits = by_file(device.waits)
        with published(method, ema) as pipeline:
            generator = torch.Generator().manual_seed(0)
            held_out = method.validate(*batch(CUDA, 12), generator)
            means.add(held_out, 2)
            pipeline.set_progress_bar_config(disable=True)
            labels = {"class_labels": [0, 1]} if method.num_classes else {}
            steps = None if pipeline.family in ("ddgan", "vae") else 2
            options = {"num_inference_steps": steps, "output_type": "pt"}
            images = pipeline(seeds=[0, 1], **options, **labels).images
        logs.pop(SKIPPED, None)
        tensors = {"images": images, **logs, **{f"validation_{k}": v for k, v in held_out.items()}}
        tensors |= {f"weights {i}": p for i, p in enumerate(method.net.parameters())}
        tensors |= {f"average {i}": p for i, p in enumerate(ema.average)}
        odd = {k: f"{v.dtype} on {v.device}" for k, v in tensors.items() if not plain(v)}
        return {"waits": waits, "odd": odd, "validated": len(held_out["loss"])}


def plain(tensor: torch.Tensor) -> bool:
    """float32 on the device."""
    return tensor.dtype is torch.float32 and tensor.device.type == "cuda"


def main(kinds: list[str]) -> None:
    """Methods in the precisions that the arguments name."""
    results = {}
    for kind in kinds:
        for name in METHODS if kind == "no" else ONE_OF_EACH:
            float64 = kind != "float32-only"
            try:
                results[f"{name}|{kind}"] = run(name, kind if float64 else "no", float64)
            except Exception:
                results[f"{name}|{kind}"] = {"error": traceback.format_exc()[-2500:]}
    print("RESULTS " + json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
