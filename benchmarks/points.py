"""Sampling points in few steps, and a bound against the true likelihood: `python benchmarks/points.py`.

Trains the models that are missing in the output folder, each by its entry point. Three models of the swirl
use the same number of network calls: a variational diffusion model with T = 200 steps, one with the bound and
a shortcut chain of K = 10 (11 calls in an optimizer step), and one with K = 200. A fourth repeats the first
with the number of optimizer steps of K = 10. One model of the mixture is trained in continuous time.

For the swirl it prints the energy distance between the points of each chain and the true distribution, which
4,880 points of the test split represent, in grey levels (the square is 255 wide): the mean over SETS sets of
points, one seed each, and its 95% interval (Student's t). Fresh points of the true distribution, which no
model can beat, are scored too. For the mixture it prints the bound and the true negative log-likelihood of
the same test points. Figures are saved in the output folder.
"""

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor

from trilemma.eval.bounds.precise import precise_bpd
from trilemma.eval.metrics.frechet import BLOCKS, T_QUANTILE
from trilemma.eval.metrics.pairwise import kernel_distance, negative_distance
from trilemma.eval.metrics.sample_metric import NORMAL_QUANTILE
from trilemma.eval.plots.points import chain, fields, scatters, ways
from trilemma.eval.scoring.model_images import load_model
from trilemma.training.images.image_set import to_float, to_uint8
from trilemma.training.images.points import MIXTURE, POINTS
from trilemma.training.output_folder import OutputFolder

ROOT = Path(__file__).resolve().parent.parent
SETS = BLOCKS  # T_QUANTILE is for this number of groups
SET_SIZE = 512
LEVELS = (-6.0, -2.0, 0.0)
"""gamma of the figures of the predicted noise."""
BOUND_POINTS, BOUND_TIMES = 4000, 400


class Run(NamedTuple):
    """A training on the swirl.

    k: K of its shortcut chain, 0 for none. share: --network_calls divided by it is the number of optimizer
    steps. chains: the (name, steps) that are scored.
    """

    preset: str
    k: int
    share: int
    chains: tuple[tuple[str, int], ...]


RUNS = {
    "VDM": Run("swirl", 0, 1, (("ancestral", 10), ("ancestral", 200), ("shortcut", 10))),
    "VDM, 1/11": Run("swirl", 0, 11, (("ancestral", 10), ("ancestral", 200), ("shortcut", 10))),
    "K = 10": Run("swirl-shortcut", 10, 11, (("shortcut", 10), ("ancestral", 10), ("ancestral", 200))),
    "K = 200": Run("swirl-shortcut", 200, 201, (("shortcut", 10), ("shortcut", 200))),
}


def train(folder: Path, preset: str, steps: int, *flags: str) -> DiffusionPipeline:
    """The model of a preset after `steps` optimizer steps; trains it unless the folder has a model."""
    if not OutputFolder(folder).index.is_file():
        script = [sys.executable, str(ROOT / "training" / "train_vdm.py"), "--preset", preset]
        places = ["--output_dir", str(folder), "--max_train_steps", str(steps), "--cpu_threads", "1"]
        subprocess.run([*script, *places, *flags], check=True)
    return load_model(str(folder), torch.device("cpu"))


def energies(points: Tensor, law: Tensor) -> Tensor:
    """Energy distance to `law` of each of SETS consecutive sets in `points`: (SETS,)."""
    member = torch.eye(SETS).repeat_interleave(len(points) // SETS, 0)
    of_sets = kernel_distance(law.flatten(1), points.flatten(1), member, negative_distance)
    return torch.tensor([of_sets(one) for one in torch.eye(SETS)])


def row(name: str, how: str, values: Tensor) -> str:
    """One line of the table."""
    mean, half = float(values.mean()), T_QUANTILE * float(values.std()) / SETS**0.5
    return f"| {name} | {how} | {mean:.3f} | {mean - half:.3f} .. {mean + half:.3f} |"


def draw(pipeline: DiffusionPipeline, steps: int) -> Tensor:
    """SETS sets of points, uint8 (SETS * SET_SIZE, 2, 1, 1)."""
    sets = []
    for seed in range(SETS):
        generator = torch.Generator().manual_seed(seed)
        made = pipeline(SET_SIZE, generator=generator, num_inference_steps=steps, output_type="pt")
        sets.append(to_uint8(made.images))
    return torch.cat(sets)


def score_swirl(output: Path, calls: int) -> None:
    """Train the models of the swirl, sample and score them, and save figures."""
    data, law = (torch.from_numpy(POINTS["swirl"].split(split)[0]) for split in ("train", "test"))
    fresh, law = law[: SETS * SET_SIZE], law[SETS * SET_SIZE :]
    print("| model | chain | energy distance | 95% interval |\n| --- | --- | --- | --- |")
    print(row("fresh points of the true distribution", "", energies(fresh, law)), flush=True)
    panels, lines = {}, {}
    for name, run in RUNS.items():
        flags = ("--shortcut_steps", str(run.k)) if run.k else ()
        folder = f"swirl-{run.k}-{run.share}"
        pipeline = train(output / folder, run.preset, calls // run.share, *flags)
        for kind, steps in run.chains:
            sampler = pipeline.with_sampler(kind)
            sampler.set_progress_bar_config(disable=True)
            drawn = draw(sampler, steps)
            values = energies(drawn, law)
            print(row(name, f"{kind}, {steps} steps", values), flush=True)
            panels[f"{name}: {kind}, {steps} steps\n{float(values.mean()):.2f}"] = drawn[: 2 * SET_SIZE]
            if steps == 10:
                lines[f"{name}: {kind}, 10 steps"] = chain(sampler, range(200), 10)
        noise = {
            f"gamma = {level:g}": partial(predict, pipeline.unet, torch.tensor(level, dtype=torch.float64))
            for level in LEVELS
        }
        fields(noise, data).savefig(output / f"field-{run.k}-{run.share}.png", dpi=80)
    scatters(panels, data).savefig(output / "samples.png", dpi=80)
    ways(lines, data).savefig(output / "ways.png", dpi=80)


def predict(net: ModelMixin, gamma: Tensor, z: Tensor) -> Tensor:
    """Predicted noise in z (N, 2, 1, 1) at level gamma ()."""
    return net(z, gamma.expand(len(z)))


def score_mixture(output: Path, steps: int) -> None:
    """Train on the mixture, print its bound and the truth for the same points, save a figure."""
    pipeline = train(output / "mixture", "mixture", steps)
    points = torch.from_numpy(POINTS["mixture"].split("test")[0])[:BOUND_POINTS]
    truth = float(MIXTURE.true_bpd(points).mean())
    bound, error = precise_bpd(pipeline.unet, to_float(points), times=BOUND_TIMES)
    half, (start, end) = NORMAL_QUANTILE * error, pipeline.unet.gamma.ends().tolist()
    print(f"Mixture, bits per dimension of {len(points)} test points: truth {truth:.4f}, bound {bound:.4f}")
    print(f"bound - truth {bound - truth:.4f} +- {half:.4f}; gamma {start:.2f} .. {end:.2f}\n", flush=True)
    pipeline.set_progress_bar_config(disable=True)
    drawn = draw(pipeline, 200)
    scatters({"test points": points, "200 steps": drawn}, points).savefig(output / "mixture.png", dpi=80)


def main() -> None:
    """Run both studies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/points"))
    parser.add_argument("--network_calls", type=int, default=13_200, help="per training on the swirl")
    parser.add_argument("--mixture_steps", type=int, default=6000, help="optimizer steps on the mixture")
    given = parser.parse_args()
    given.output_dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with torch.no_grad():
        score_mixture(given.output_dir, given.mixture_steps)
        score_swirl(given.output_dir, given.network_calls)


if __name__ == "__main__":
    main()
