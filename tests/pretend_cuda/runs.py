"""Whole runs of the entry points on the pretended device; prints what each left behind as JSON.

Arguments: a folder to work in, then runs as `<family>|<precision>`, or `<family>|float32-only` for a device
without float64.
"""

import contextlib
import json
import sys
import traceback
import warnings
from pathlib import Path
from unittest import mock

from device import CUDA, ROOT, cuda_accelerator, pretend_cuda

warnings.filterwarnings("ignore")
sys.path.insert(0, str(ROOT / "tests"))

from accelerate.utils import ProjectConfiguration  # noqa: E402
from conftest import TINY  # noqa: E402

from trilemma.training import entry, run  # noqa: E402
from trilemma.training.loop import method, resume  # noqa: E402
from trilemma.training.objectives import ddgan  # noqa: E402

SCORED = ["--eval_steps", "2", "--eval_num_samples", "20", "--eval_feature_extractor", "pixels"]
FLAGS = {
    "unconditional": [*SCORED, "--eval_metrics", "fd", "kid"],
    "class_conditional": [*SCORED, "--eval_metrics", "energy"],
    "vdm": [],
    "vae": ["--vae_channels", "8", "8", "--lr_warmup_steps", "0"],
    "ddgan": ["--discriminator_channels", "8", "8", "--watchdog_steps", "1"],
}


def train(family: str, precision: str, float64: bool, work: Path) -> dict:
    """Two steps of the digits with sheets, validation, evaluation, a checkpoint and pictures."""
    out, tiny = work / f"{family}-{precision}-{float64}", work / "tiny.json"
    tiny.write_text(json.dumps(TINY))
    net = [] if family == "vae" else ["--model_config_name_or_path", str(tiny)]
    steps = [] if family in ("vae", "ddgan") else ["--ddpm_num_inference_steps", "4"]
    argv = [
        "train", "--preset", "digits", "--output_dir", str(out), "--max_train_steps", "2",
        "--logging_steps", "1", "--validation_steps", "1", "--validation_size", "20", "--sample_steps", "2",
        "--checkpointing_steps", "2", "--eval_batch_size", "4", "--train_batch_size", "8",
        "--cache_dir", str(work / "cache"), *net, *steps, *FLAGS[family],
    ]  # fmt: skip
    checkpoints = []

    def accelerator(config):
        logs = ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "logs"))
        return cuda_accelerator(precision, log_with="tensorboard", project_config=logs)

    def descent(objective, *arguments):
        return real_descent(objective.to(CUDA), *arguments)

    def gan(net, discriminator, *arguments):
        return real_gan(net.to(CUDA), discriminator.to(CUDA), *arguments)

    real_descent, real_gan = method.GradientDescent, ddgan.DDGAN
    replaced = [
        mock.patch.object(run, "make_accelerator", accelerator),
        mock.patch.object(method, "GradientDescent", descent),
        mock.patch.object(ddgan, "DDGAN", gan),
        # What needs values, which there are none of.
        mock.patch.object(run, "save_bundle"),
        mock.patch.object(run, "write_card"),
        mock.patch.object(resume, "save_checkpoint", lambda folder, step, *_: checkpoints.append(step)),
        mock.patch("trilemma.training.loop.records.Means.check"),
        mock.patch("trilemma.training.loop.watchdog.SIGNS", {}),
        mock.patch("trilemma.eval.metrics.sample_metric.SampleMetric.check_complete"),
        mock.patch("sys.argv", argv),
    ]
    with contextlib.ExitStack() as stack:
        stack.enter_context(pretend_cuda(float64))
        for patch in replaced:
            stack.enter_context(patch)
        entry.main(family, "A test.")
    lines = [json.loads(line) for line in (out / "logs" / "scalars.jsonl").read_text().splitlines()]
    results = out / "results.jsonl"
    return {
        "checkpoints": checkpoints,
        "pictures": sorted(path.name for path in out.glob("*.png")),
        "logged": sorted({name for line in lines for name in line}),
        "results": len(results.read_text().splitlines()) if results.exists() else 0,
    }


def main(work: Path, runs: list[str]) -> None:
    """Each run, or its error."""
    results = {}
    for name in runs:
        family, kind = name.split("|")
        float64 = kind != "float32-only"
        try:
            results[name] = train(family, kind if float64 else "no", float64, work)
        except BaseException as problem:
            cause = problem.__cause__ or problem
            results[name] = {"error": "".join(traceback.format_exception(cause))[-3000:]}
    print("RESULTS " + json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
