"""Sampling points in few steps, and a bound against the true likelihood: `python benchmarks/points.py`.

`swirl` asks whether training a shortcut chain helps to sample in few steps. It trains a variational diffusion
model (VDM) with T = 200, and models with a shortcut chain of K steps besides, all with the same number of
optimizer steps and the same batches. Then it measures the energy distance between the points of each chain
and the true distribution, which 4,880 points of the test split represent, in grey levels (the square is 255
wide): the mean over SETS sets of points, one seed each. Fresh points of the true distribution, which no model
can beat, are scored too. `spread` is the standard deviation of the points over that of the true distribution.
`results/points.json` keeps each number as soon as it is there; `few_steps_page.py` writes the table.

`mixture` trains in continuous time on the mixture, and prints the bound and the true negative log-likelihood
of the same test points. Models that are in the output folder are not trained again; figures are saved there.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor

from trilemma.eval.bounds.precise import precise_bpd
from trilemma.eval.metrics.pairwise import NEGATIVE_DISTANCE, kernel_distance
from trilemma.eval.metrics.sample_metric import NORMAL_QUANTILE
from trilemma.eval.plots.points import chain, fields, scatters, ways
from trilemma.eval.scoring.model_images import load_model
from trilemma.pipelines.files.writing import write_json
from trilemma.training.images.image_set import to_float, to_uint8
from trilemma.training.images.points import MIXTURE, POINTS
from trilemma.training.loop.machine import commit, hardware
from trilemma.training.output_folder import OutputFolder

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "points.json"
SETS, SET_SIZE = 10, 512
LEVELS = (-6.0, -2.0, 0.0)
"""gamma of the figures of the predicted noise."""
BOUND_POINTS, BOUND_TIMES = 4000, 400


class Run(NamedTuple):
    """A training on the swirl, by the flags of its command line, and the (chain, steps) that are scored."""

    flags: str
    chains: tuple[tuple[str, int], ...]


_LENGTH = "--max_train_steps 400 --train_batch_size 32"
_SHORT = (("ancestral", 10), ("shortcut", 10))
_ALL = (*_SHORT, ("ancestral", 200), ("shortcut", 200))
RUNS = {
    "VDM": Run(f"--preset swirl {_LENGTH}", _ALL),
    "K = 10": Run(f"--preset swirl-shortcut {_LENGTH}", _ALL),
    "K = 200": Run(f"--preset swirl-shortcut --shortcut_steps 200 {_LENGTH}", _ALL),
    "K = 10, weight 0.1": Run(f"--preset swirl-shortcut --fidelity_weight 0.1 {_LENGTH}", _SHORT),
    "K = 10, weight 10": Run(f"--preset swirl-shortcut --fidelity_weight 10 {_LENGTH}", _SHORT),
    "K = 1": Run(f"--preset swirl-shortcut --shortcut_steps 1 {_LENGTH}", _SHORT),
    "K = 1, weight 10": Run(
        f"--preset swirl-shortcut --shortcut_steps 1 --fidelity_weight 10 {_LENGTH}", _SHORT
    ),
}
FRESH = "fresh points"


def train(folder: Path, flags: str) -> DiffusionPipeline:
    """The model of a command line, trained unless the folder has it."""
    if not OutputFolder(folder).index.is_file():
        script = [sys.executable, str(ROOT / "training" / "train_vdm.py"), *flags.split()]
        subprocess.run([*script, "--output_dir", str(folder), "--cpu_threads", "1"], check=True)
    pipeline = load_model(str(folder), torch.device("cpu"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def energy(points: Tensor, law: Tensor) -> float:
    """Energy distance to `law`, mean over SETS consecutive sets in `points`."""
    member = torch.eye(SETS).repeat_interleave(len(points) // SETS, 0)
    of_sets = kernel_distance(law.flatten(1), points.flatten(1), member, NEGATIVE_DISTANCE)
    return sum(of_sets(one) for one in torch.eye(SETS)) / SETS


def deviation(points: Tensor) -> float:
    """Root of the mean squared distance of points (N, 2, 1, 1) to their mean."""
    return float(points.flatten(1).double().var(0).sum().sqrt())


def draw(pipeline: DiffusionPipeline, steps: int, sets: int = SETS) -> Tensor:
    """Sets of points with seeds 0, 1, ..., uint8 (sets * SET_SIZE, 2, 1, 1)."""
    drawn = []
    for seed in range(sets):
        generator = torch.Generator().manual_seed(seed)
        made = pipeline(SET_SIZE, generator=generator, num_inference_steps=steps, output_type="pt")
        drawn.append(to_uint8(made.images))
    return torch.cat(drawn)


def score_swirl(output: Path, seeds: list[int]) -> None:
    """Train what is missing on the swirl, and measure what is not measured yet."""
    law = torch.from_numpy(POINTS["swirl"].split("test")[0])
    fresh, law = law[: SETS * SET_SIZE], law[SETS * SET_SIZE :]
    kept: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    cells = kept.setdefault("cells", [])

    def measure(cell: dict[str, Any], made: Callable[[], Tensor]) -> None:
        if any(cell.items() <= other.items() for other in cells):
            return
        points = made()
        numbers = {"energy": energy(points, law), "spread": deviation(points) / deviation(law)}
        cells.append(cell | numbers | {"commit": commit()})
        kept.update(hardware=hardware(Accelerator(cpu=True)), torch=torch.__version__)
        write_json(RESULTS, kept)
        print(cells[-1], flush=True)

    measure({"model": FRESH, "flags": "", "seed": 0, "chain": "", "steps": 0}, lambda: fresh)
    for name, run in RUNS.items():
        for seed in seeds:
            pipeline = train(output / f"{name} {seed}", f"{run.flags} --seed {seed}")
            for kind, steps in run.chains:
                cell = {"model": name, "flags": run.flags, "seed": seed, "chain": kind, "steps": steps}
                measure(cell, partial(draw, pipeline.with_sampler(kind), steps))


def draw_swirl(output: Path) -> None:
    """Figures of the models of seed 0: points, predicted noise, and the way of points in ten steps."""
    data = torch.from_numpy(POINTS["swirl"].split("train")[0])
    panels, lines = {}, {}
    for name, run in RUNS.items():
        pipeline = train(output / f"{name} 0", f"{run.flags} --seed 0")
        for kind, steps in _SHORT:
            sampler = pipeline.with_sampler(kind)
            panels[f"{name}: {kind}, {steps} steps"] = draw(sampler, steps, sets=2)
            lines[f"{name}: {kind}, {steps} steps"] = chain(sampler, range(200), steps)
        noise = {
            f"gamma = {level:g}": partial(predict, pipeline.unet, torch.tensor(level, dtype=torch.float64))
            for level in LEVELS
        }
        fields(noise, data).savefig(output / f"field {name}.png", dpi=80)
    scatters(panels, data).savefig(output / "samples.png", dpi=80)
    ways(lines, data).savefig(output / "ways.png", dpi=80)


@torch.no_grad()
def predict(net: ModelMixin, gamma: Tensor, z: Tensor) -> Tensor:
    """Predicted noise in z (N, 2, 1, 1) at level gamma ()."""
    return net(z, gamma.expand(len(z)))


def score_mixture(output: Path, steps: int) -> None:
    """Train on the mixture, print its bound and the truth for the same points, save a figure."""
    pipeline = train(output / "mixture", f"--preset mixture --max_train_steps {steps}")
    points = torch.from_numpy(POINTS["mixture"].split("test")[0])[:BOUND_POINTS]
    truth = float(MIXTURE.true_bpd(points).mean())
    bound, error = precise_bpd(pipeline.unet, to_float(points), times=BOUND_TIMES)
    half, (start, end) = NORMAL_QUANTILE * error, pipeline.unet.gamma.ends().tolist()
    print(f"Mixture, bits per dimension of {len(points)} test points: truth {truth:.4f}, bound {bound:.4f}")
    print(f"bound - truth {bound - truth:.4f} +- {half:.4f}; gamma {start:.2f} .. {end:.2f}", flush=True)
    drawn = draw(pipeline, 200)
    scatters({"test points": points, "200 steps": drawn}, points).savefig(output / "mixture.png", dpi=80)


def main() -> None:
    """Run the studies that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", choices=("swirl", "mixture"))
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/points"), help="of the models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training, on the swirl")
    parser.add_argument("--mixture_steps", type=int, default=6000, help="optimizer steps on the mixture")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if options.data == "mixture":
        score_mixture(options.output_dir, options.mixture_steps)
    else:
        score_swirl(options.output_dir, options.seeds)
        draw_swirl(options.output_dir)


if __name__ == "__main__":
    main()
