"""What a run says while it trains, and what an evaluation says of itself."""

import time
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import patch

import torch
from accelerate import Accelerator

from trilemma.eval.metrics.sample_metric import Measurement
from trilemma.eval.scoring import results
from trilemma.eval.scoring.naming import number
from trilemma.eval.scoring.protocol import ReferenceProtocol
from trilemma.eval.scoring.while_training import Evaluation, in_a_line
from trilemma.training.loop.loop import Loop
from trilemma.training.loop.records import RunLog
from trilemma.training.loop.stop import StopSignal
from trilemma.training.networks.rows import network_name
from trilemma.training.options.command_line import parse
from trilemma.training.output_folder import OutputFolder
from trilemma.training.run import Budget, draw_sheet, first_line

PROTOCOL = ReferenceProtocol("classifier", "ab", "none", "uint8", "shapes", "train", "0", False, 3000, True)


def measured(step, **values):
    """Lines of an evaluation at a step."""
    origin = results.Origin(
        "run", 500, sampler="ddim", num_inference_steps=50, nfe=100, guidance_scale=2.0, step=step,
        images_seen=32 * step,
    )  # fmt: skip
    return results.lines(
        {name: Measurement(value, 500, (value - 1, value + 1), 0.25) for name, value in values.items()},
        origin,
        PROTOCOL,
        commit=None,
    )


def test_an_evaluation_is_a_line():
    first, second = measured(1000, fd=12.5, precision=0.5), measured(2000, fd=20.0, precision=0.25)
    assert in_a_line(first[0], first[0], first) == (
        "Step 1,000: fd_classifier 12.5, 95% interval 11.5 .. 13.5, floor 0.25, best so far; "
        "precision_classifier 0.5"
    )
    assert ", best so far 12.5 at step 1,000; precision" in in_a_line(second[0], first[0], second)


def test_a_table_is_headed_by_what_was_measured():
    assert results.heading(measured(1000, fd=12.5)) == (
        "run at step 1,000; ddim in 50 steps, 100 calls of the network; guidance 2; against 3,000 images "
        "of shapes (train); classifier features"
    )
    assert results.heading([]) == ""


def test_rounding_noise_is_zero():
    assert [number(value) for value in (8.674e-19, -2e-17, 0.0, 1.5e-7, 0.25)] == [
        "0", "0", "0", "1.5e-07", "0.25",
    ]  # fmt: skip
    assert "e-19" not in results.table(measured(1, kid=8.674e-19))


def test_the_network_of_a_run_has_a_name():
    options = {"net": None, "model_config_name_or_path": None, "init_from": None}
    assert network_name(options, 16) == "unet_16"
    assert network_name(options, None) == "by the resolution"
    assert network_name(options | {"net": "unet_8", "init_from": "x"}, 16) == "unet_8"
    assert network_name(options | {"init_from": "parent"}, 16) == "of parent"
    assert network_name({}, 16) is None


def finished_run(path):
    """The files of a run that a reader of `best/` looks up."""
    (path / "best").mkdir(parents=True)
    (path / "config.yaml").write_text("dataset_name: digits\nseed: 3\n")
    (path / "run.json").write_text('{"family": "vae", "steps": 9, "images_seen": 90, "commit": null}')
    (path / "judge-ab.safetensors").touch()
    (path / "logs").mkdir()
    (path / "logs" / "scalars.jsonl").write_text("".join(f'{{"step": {k}}}\n' for k in range(10)))
    return OutputFolder(path / "best")


def test_best_of_an_older_run_is_read_with_its_run(tmp_path):
    best = finished_run(tmp_path / "run")
    assert best.read_config() == {"dataset_name": "digits", "seed": 3}
    assert best.read_run() == {"family": "vae", "commit": None}  # its own step is not known
    assert best.judges() == [tmp_path / "run" / "judge-ab.safetensors"]
    assert best.name == "run/best"
    assert OutputFolder(tmp_path / "run").name == "run"
    assert OutputFolder(tmp_path / "run" / "logs").read_config() == {}


def test_best_says_what_it_is(tmp_path):
    best = finished_run(tmp_path / "run")
    flags = ["--preset", "digits", "--output_dir", str(tmp_path / "run"), "--eval_steps", "1"]
    config = parse("unconditional", "", flags)
    evaluation = Evaluation(config, None, None, Accelerator(cpu=True), None, StopSignal())
    evaluation._describe_best("unconditional", measured(4, fd=1.0))
    assert best.read_config()["output_dir"] == str(tmp_path / "run")
    assert best.read_run()["steps"] == 4
    assert [line.value for line in results.read(best.results)] == [1.0]
    assert [line["step"] for line in best.read_scalars()] == [0, 1, 2, 3, 4]


def test_the_first_line_names_size_classes_network_and_precision():
    config = parse("unconditional", "", ["--train_data_dir", "shapes"])
    facts = {"resolution": 16, "channels": 3, "points": False, "name": "shapes"}
    images = type("Some", (), facts | {"__len__": lambda self: 3000})()
    method = SimpleNamespace(num_classes=4, net=torch.nn.Linear(2, 1))
    line = first_line(config, images, method, Budget(64, 47, 940), Accelerator(cpu=True))
    assert line == (
        "3,000 images of shapes (16x16 RGB), 4 classes; network unet_16 (3 parameters, fp32); 940 steps of "
        "64 images on 1 x cpu"
    )


def test_a_sheet_is_drawn_again_while_the_model_trains(tmp_path):
    """The loop shows its sheet and step; the sheet is the picture of the folder, and kept by its step."""
    seen, sheet = [], torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    method, images = SimpleNamespace(num_classes=None), SimpleNamespace(points=False)
    folder = OutputFolder(tmp_path)
    draw_sheet(sheet, method, images, folder.sheet(3), folder.samples)
    kept = (tmp_path / "sheets" / "step-00000003.png").read_bytes()
    assert (tmp_path / "samples.png").read_bytes() == kept
    loop = object.__new__(Loop)
    loop.method = loop.ema = loop.accelerator = loop.config = loop.stop = None
    loop.step, loop.data = 3, images
    loop.runlog = SimpleNamespace(images=lambda *_: None)
    loop.hooks = SimpleNamespace(show=lambda *shown: seen.append(shown))
    with (
        patch("trilemma.training.loop.loop.published", lambda *_: nullcontext()),
        patch("trilemma.training.loop.loop.draw", lambda *_: sheet),
    ):
        loop._sample()
    assert seen == [(sheet, 3)]


def test_images_per_second_leave_out_what_is_done_between_steps(tmp_path):
    config = parse("unconditional", "", ["--preset", "digits", "--output_dir", str(tmp_path)])
    runlog = RunLog(Accelerator(cpu=True), OutputFolder(tmp_path), config, "unconditional")
    runlog.start(0, 10, 0.0)
    with runlog.aside("evaluate", 5):
        time.sleep(0.5)
    assert runlog.throughput(5, 10) > 5 * 10 / 0.4
    runlog.write_run(5, 50)
    runlog.close()
    run = OutputFolder(tmp_path).read_run()
    assert run["evaluation_seconds"] >= 0.5
    assert run["images_per_second"] > 50 / run["seconds"]
    again = RunLog(Accelerator(cpu=True), OutputFolder(tmp_path), config, "unconditional")
    again.start(5, 10, 1.0)
    assert again.seconds_aside == run["evaluation_seconds"]
    again.close()
