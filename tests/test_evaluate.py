"""The evaluation entry points, end to end: models, files, several processes, bad input, during training."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY
from diffusers import DDPMScheduler, UNet2DModel
from entry import ROOT, command, environment, run
from PIL import Image
from test_distributed import TORCHRUN

from trilemma.eval import generate
from trilemma.eval.bounds.bits_per_dim import Likelihood
from trilemma.eval.evaluate import EvaluateConfig
from trilemma.eval.metrics.sample_metric import Measurement, SampleMetric
from trilemma.eval.metrics.table import METRICS, Measure, Metric, measure_row, metric_of
from trilemma.eval.options import SamplingConfig, check_choices
from trilemma.eval.scoring import after_training
from trilemma.eval.scoring.model_images import labels_like
from trilemma.eval.scoring.naming import metric_name
from trilemma.eval.scoring.protocol import ReferenceProtocol
from trilemma.eval.scoring.results import Origin, ResultLine, lines, read
from trilemma.eval.studies.grid import columns_of
from trilemma.model_cards.hub.bundle import save_bundle
from trilemma.pipelines.ddgan import DDGANPipeline
from trilemma.pipelines.networks.vae_model import VAEModel
from trilemma.pipelines.networks.vdm_model import VDMModel
from trilemma.pipelines.vae import VAEPipeline
from trilemma.pipelines.vdm import VDMPipeline
from trilemma.training.images.image_set import load_images
from trilemma.training.loop.machine import evaluation_accelerator
from trilemma.training.options.groups import DataConfig
from trilemma.training.options.parser import parse_flags
from trilemma.training.output_folder import OutputFolder

EVALUATE, GENERATE, TRAIN = "eval/evaluate.py", "eval/generate.py", "training/train_unconditional.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model after a few steps, evaluated twice while it trained."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    flags = ["--model_config_name_or_path", str(folder / "tiny.json"), "--train_batch_size", "8"]
    flags += ["--eval_batch_size", "16", "--ddpm_num_inference_steps", "5", "--max_train_steps", "6"]
    flags += ["--eval_steps", "4", "--eval_num_samples", "70", "--eval_metrics", "fd", "modes"]
    run(TRAIN, *flags, "--output_dir", str(folder / "out"), "--cache_dir", str(folder / "cache"))
    return folder


def scored(model, tmp_path, *flags, check=True):
    output = tmp_path / "results.jsonl"
    done = run(EVALUATE, *flags, "--output", str(output), "--cache_dir", str(model / "cache"), check=check)
    if not check:
        return done
    return {line["metric"]: line for line in map(json.loads, output.read_text().splitlines())}


def model_flags(model, n=80):
    sampler = ["--sampler", "ddim", "--num_inference_steps", "4"]
    return ["--model", str(model / "out"), "--num_samples", str(n), "--batch_size", "32", *sampler]


def test_training_scored_twice_and_kept_the_best(model):
    out = model / "out"
    told = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    distances = [line for line in told if line["metric"] == "fd_classifier"]
    assert [line["step"] for line in distances] == [4, 6], "every four steps, and at the end"
    assert [line["images_seen"] for line in distances] == [32, 48]
    assert all(line["seeds"] == "0..69" and line["nfe"] == 5 for line in distances)
    scalars = [json.loads(line) for line in (out / "logs" / "scalars.jsonl").read_text().splitlines()]
    assert [line["fd_classifier"] for line in scalars if "fd_classifier" in line] == [
        d["value"] for d in distances
    ]
    assert (out / "best" / "model_index.json").is_file()
    assert (out / "scores.png").is_file()


def test_a_line_says_everything_that_a_comparison_needs(model, tmp_path):
    scores = scored(model, tmp_path, *model_flags(model))
    names = {"fd", "kid", "precision", "coverage", "clipped_density"}
    assert {f"{name}_classifier" for name in names} <= scores.keys()
    assert "fid" not in str(scores.keys())
    line = scores["fd_classifier"]
    assert line["n"] == 80
    assert line["reference_n"] == 1797 - 64  # what was held out is not what it was trained on
    assert (line["sampler"], line["num_inference_steps"], line["nfe"]) == ("ddim", 4, 4)
    assert (line["feature_extractor"], line["reference"], line["step"]) == ("classifier", "digits", 6)
    assert line["interval"][0] < line["interval"][1]
    assert len(line["extractor_sha256"]) == len(line["data_fingerprint"]) == 64
    assert line["seconds_per_image"] > 0
    assert not line["forced"]


def test_two_processes_score_what_one_does(model, tmp_path):
    metrics = ["--metrics", "fd", "kid", "prdc", "modes", "bpd", "--bpd_timesteps", "3", "--bpd_images", "21"]
    one = scored(model, tmp_path, *model_flags(model, 71), *metrics)
    both = [*command(EVALUATE, *model_flags(model, 71), *metrics)[1:], "--cache_dir", str(model / "cache")]
    subprocess.run(
        [*TORCHRUN, "2", *both, "--output", str(tmp_path / "two.jsonl")],
        check=True,
        capture_output=True,
        env=environment(ACCELERATE_USE_CPU="true"),
    )
    for line in map(json.loads, (tmp_path / "two.jsonl").read_text().splitlines()):
        # Images are drawn in other batches, whose rounding may differ by a grey level.
        assert line["value"] == pytest.approx(one[line["metric"]]["value"], rel=0.02, abs=1e-3)
        assert line["n"] == one[line["metric"]]["n"]


def test_generated_files_score_as_the_model_does(model, tmp_path):
    digits = ["--reference", "digits", "--metrics", "fd", "modes"]
    direct = scored(model, tmp_path, *model_flags(model), *digits)
    for output in ("images", "images.npy"):
        run(GENERATE, *model_flags(model), "--output", str(tmp_path / output))
        flags = ["--images", str(tmp_path / output), *digits]
        place = tmp_path / f"scores-of-{output}"
        place.mkdir()
        files = scored(model, place, *flags)
        assert files["modes"]["value"] == direct["modes"]["value"]
        assert files["fd_classifier"]["source"].endswith(output)
    array = np.load(tmp_path / "images.npy")
    assert (array.shape, array.dtype) == ((80, 8, 8, 1), np.uint8)
    picture = np.asarray(Image.open(tmp_path / "images" / "00000007.png"))
    assert np.abs(picture.astype(int) - array[7, ..., 0]).max() <= 1


def test_a_sheet_has_the_images_in_their_order(model, tmp_path, capsys):
    flags = model_flags(model, 5)
    for name in ("images.npy", "sheet.png"):
        run(GENERATE, *flags, "--output", str(tmp_path / name))
    shown = np.asarray(Image.open(tmp_path / "sheet.png"))[..., 0]  # grey as RGB
    side, columns, enlarged = 8 * 6 + 2, 3, 6  # of a digit with its edge; images in a row; pixels of a pixel
    assert shown.shape == (2 * side, columns * side)
    for number, image in enumerate(np.load(tmp_path / "images.npy")):
        top, left = number // columns * side + 1, number % columns * side + 1
        inner = shown[top : top + side - 2 : enlarged, left : left + side - 2 : enlarged]
        assert (inner == image[..., 0]).all()
    assert not (tmp_path / "sheet.png.npy").exists()
    with pytest.raises(SystemExit) as end:
        generate.main([*flags, "--output", "sheet.png", "--num_samples", "1001"])
    assert end.value.code == 2
    message = "--output sheet.png is one sheet, of at most 1000 images: give --num_samples"
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        generate.main([*flags, "--output", "images.npz"])
    assert "--output images.npz must be a folder, or end in .png" in capsys.readouterr().err


def test_generate_goes_on_where_it_was_cut(model, tmp_path):
    flags = [*model_flags(model, 20), "--output", str(tmp_path / "images")]
    run(GENERATE, *flags)
    kept = tmp_path / "images" / "00000003.png"
    before = kept.stat().st_mtime_ns
    content = (tmp_path / "images" / "00000011.png").read_bytes()
    (tmp_path / "images" / "00000011.png").unlink()
    run(GENERATE, *flags)
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "images" / "00000011.png").read_bytes() == content


def test_saved_statistics_give_the_same_number_and_refuse_another_protocol(model, tmp_path):
    file = tmp_path / "digits.safetensors"
    flags = [*model_flags(model), "--metrics", "fd"]
    direct = scored(model, tmp_path, *flags, "--save_reference", str(file))
    (tmp_path / "again").mkdir()
    again = scored(model, tmp_path / "again", *flags, "--reference", str(file))  # it names its classifier
    assert again["fd_classifier"]["extractor_sha256"] == direct["fd_classifier"]["extractor_sha256"]
    assert again["fd_classifier"]["value"] == pytest.approx(direct["fd_classifier"]["value"], rel=1e-9)
    refused = scored(
        model, tmp_path, *flags, "--reference", str(file), "--feature_extractor", "pixels", check=False
    )
    assert refused.wait() != 0


def test_real_images_rank_as_they_must(model, tmp_path):
    images = load_images(DataConfig(dataset_name="digits", cache_dir=str(model / "cache")))
    pixels, _ = images.__getitems__(range(900))
    rng = np.random.default_rng(0)
    smooth = torch.nn.functional.avg_pool2d(pixels.float(), 3, 1, 1)
    sets = {
        "real": pixels.permute(0, 2, 3, 1).numpy(),
        "a little blurred": (0.6 * pixels + 0.4 * smooth).round().byte().permute(0, 2, 3, 1).numpy(),
        "blurred": smooth.round().byte().permute(0, 2, 3, 1).numpy(),
        "noise": rng.integers(0, 256, (900, 8, 8, 1), dtype=np.uint8),
    }
    values = {}
    for name, array in sets.items():
        (tmp_path / name).mkdir()
        np.save(tmp_path / f"{name}.npy", array)
        flags = ["--images", str(tmp_path / f"{name}.npy"), "--reference", "digits", "--metrics", "fd", "kid"]
        values[name] = scored(model, tmp_path / name, *flags)
    for metric in ("fd_classifier", "kid_classifier"):
        real, little, blurred, noise = (values[name][metric]["value"] for name in sets)
        assert real < little < blurred
        assert real < little < noise


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p.mkdir(), "holds no PNG"),
        (lambda p: None, "does not exist"),
        (lambda p: (p.mkdir(), [png(p / f"{i}.png", 8) for i in range(6)], png(p / "6.png", 9)), "one size"),
        (lambda p: (p.mkdir(), [png(p / f"{i}.png", 8) for i in range(7)], cut(p / "6.png")), "cannot be"),
        (lambda p: (p.mkdir(), Image.new("L", (8, 8)).save(p / "a.jpg")), "JPEG"),
        (lambda p: (p.mkdir(), Image.new("RGBA", (8, 8)).save(p / "a.png")), "8-bit grey or RGB"),
    ],
)
def test_bad_image_sets_are_refused_by_name(model, tmp_path, make, words):
    path = tmp_path / "images"
    make(path)
    flags = ["--images", str(path), "--reference", "digits", "--force"]
    done = scored(model, tmp_path, *flags, check=False)
    assert done.wait() != 0
    assert words in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 8, 8, 1), np.float32), "uint8"),
        (np.zeros((4, 8, 8), np.uint8), "(4, 8, 8)"),
        (np.array([{"a": 1}], dtype=object), "pickles are never read"),
    ],
)
def test_bad_arrays_are_refused(model, tmp_path, array, words):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    flags = ["--images", str(tmp_path / "a.npy"), "--reference", "digits"]
    done = scored(model, tmp_path, *flags, check=False)
    assert done.wait() != 0
    assert words in done.output


def test_too_few_samples_are_refused_unless_forced(model, tmp_path):
    flags = [*model_flags(model, 30), "--metrics", "fd"]
    done = scored(model, tmp_path, *flags, check=False)
    assert "--force" in done.output
    assert not (tmp_path / "results.jsonl").exists()
    assert scored(model, tmp_path, *flags, "--force")["fd_classifier"]["forced"]


def png(path, side):
    Image.new("L", (side, side)).save(path)


def cut(path):
    path.write_bytes(path.read_bytes()[:45])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("fd", "inception", 50_000, "train"), "fid"),
        (("fd", "inception", 49_999, "train"), "fid_49999"),
        (("fd", "inception", 10_000, "train"), "fid_10k"),
        (("fd", "inception", 50_000, "test"), "fid_50k_vs_test"),
        (("fd", "dinov2", 50_000, "train"), "fd_dinov2"),
        (("kid", "inception", 10_000, "train"), "kid"),
        (("kid", "classifier", 10_000, "train"), "kid_classifier"),
        (("class_accuracy", "classifier", 100, "train"), "class_accuracy"),
        (("bpd", None, 100, "test"), "bpd_test"),
        (("prior_bpd", None, 100, "train"), "bpd_train_prior"),
    ],
)
def test_names_are_honest(arguments, name):
    assert metric_name(*arguments, whole=True) == name


def test_lines_keep_the_number_of_each_measurement():
    protocol = ReferenceProtocol("pixels", None, "none", "uint8", "toy", "train", "0", False, 10)
    (line,) = lines({"kid": Measurement(1.0, 7)}, Origin("x", 10), protocol, commit=None)
    assert (line.n, line.measure, line.metric) == (7, "kid", "kid_pixels")
    assert json.loads(json.dumps(line.to_json()))["interval"] is None


def test_generate_does_not_mix_models_or_samplers_in_one_place(model, tmp_path):
    for output in ("images", "images.npy"):
        flags = [*model_flags(model, 4), "--output", str(tmp_path / output)]
        run(GENERATE, *flags)
    other = [*model_flags(model, 4), "--sampler", "heun", "--output", str(tmp_path / "images")]
    done = run(GENERATE, *other, check=False)
    assert done.wait() != 0
    assert "drawn with other settings" in done.output
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    png(foreign / "00000000.png", 8)
    done = run(GENERATE, *model_flags(model, 4), "--output", str(foreign), check=False)
    assert "not drawn here" in done.output


def test_flags_of_conditional_models_are_refused_elsewhere(model, tmp_path):
    for flag in (["--guidance_scale", "2"], ["--classes", "3"]):
        done = run(GENERATE, *model_flags(model, 4), *flag, "--output", str(tmp_path / "x"), check=False)
        assert done.wait() != 0
        assert "class-conditional" in done.output
        assert "Traceback" not in done.output


def test_guidance_is_refused_where_the_pipeline_has_none():
    pipeline = SimpleNamespace(family="ddgan", class_names=("a",), default_guidance=None)
    drawing = SimpleNamespace(pipeline=pipeline, sampling=SamplingConfig(guidance_scale=2.0))
    with pytest.raises(ValueError, match="--guidance_scale has no effect: ddgan models have no guidance"):
        labels_like(drawing, None)


def test_models_without_classes_have_no_guidance_by_default():
    row = {
        "_class_name": "UNet2DModel", "block_out_channels": (4,), "norm_num_groups": 4,
        "add_attention": False, "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",),
    }  # fmt: skip
    for classes, scale in ((None, None), (["a", "b"], 1.0)):
        model = VDMModel(row, sample_size=8, in_channels=1, num_class_embeds=classes and 3)
        assert VDMPipeline(model, classes).default_guidance == scale


def test_a_part_of_the_split_is_not_the_literatures_reference():
    assert metric_name("fd", "inception", 50_000, "train", whole=False) == "fid_50k_vs_part_of_train"


@pytest.mark.parametrize("path", sorted((ROOT / "model_cards" / "zoo").glob("*/results.jsonl")), ids=str)
def test_results_of_the_zoo_are_read_and_written_as_they_are(path):
    """Lines of the version before `measure` and `whole` were recorded."""
    for text, line in zip(path.read_text().splitlines(), read(path), strict=True):
        before, after = json.loads(text), line.to_json()
        assert {**before, "sampler": None} == {**{key: after[key] for key in before}, "sampler": None}
        assert ResultLine.from_json(json.loads(json.dumps(after))) == line
        assert line.sampler not in ("DDPMScheduler", "DDIMScheduler")
        name = metric_name(line.measure, line.feature_extractor, line.n, line.reference_split, line.whole)
        assert name == line.metric


def test_what_the_reference_was_is_kept_and_told_of_older_lines():
    protocol = ReferenceProtocol("inception", "0", "x", "uint8", "toy", "train", "0", False, 10, whole=False)
    (line,) = lines({"fd": Measurement(1.0, 50_000)}, Origin("x", 50_000), protocol, commit=None)
    assert (line.metric, line.whole) == ("fid_50k_vs_part_of_train", False)
    older = {key: value for key, value in line.to_json().items() if key not in ("measure", "whole")}
    assert ResultLine.from_json(older) == line
    assert ResultLine.from_json({**older, "metric": "fid"}).whole
    assert ResultLine.from_json({**older, "metric": "fd_pixels", "feature_extractor": "pixels"}).whole is None


def test_the_number_of_a_sweep_keeps_what_the_sweep_added():
    protocol = ReferenceProtocol("pixels", None, "none", "uint8", "toy", "train", "0", False, 10)
    (line,) = lines({"kid": Measurement(1.0, 7)}, Origin("x", 7), protocol, commit=None)
    swept = ResultLine.from_json({**line.to_json(), "point": "a=1", "lines": 1})
    assert swept.extra == {"point": "a=1", "lines": 1}
    assert swept.to_json()["point"] == "a=1"


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        (EVALUATE, ["--metrics", "fd", "fdd"], "--metrics must be one of fd, .*; got 'fdd'. Did you mean fd"),
        (EVALUATE, ["--feature_extractor", "incepton"], "got 'incepton'. Did you mean inception"),
        (EVALUATE, ["--sampler", "dimm"], "--sampler must be one of .*; got 'dimm'. Did you mean ddim"),
        (GENERATE, ["--sampler", "dimm"], "--sampler must be one of .*; got 'dimm'. Did you mean ddim"),
        ("eval/sweep.py", ["--question", "losses", "--sampler", "dimm"], "got 'dimm'. Did you mean ddim"),
        (TRAIN, ["--dry_run", "--eval_steps", "1", "--eval_metrics", "fdd"], "got 'fdd'. Did you mean fd"),
        (TRAIN, ["--dry_run", "--eval_steps", "1", "--eval_metrics", "diversity"], "chooses the best model"),
        (
            TRAIN,
            ["--dry_run", "--eval_steps", "1", "--eval_metrics", "fd", "bpd"],
            "and bpd is not one",
        ),
        (TRAIN, ["--dry_run", "--eval_steps", "1", "--eval_feature_extractor", "vgg"], "got 'vgg'"),
    ],
)
def test_a_mistyped_name_is_refused_before_torch_is_imported(script, flags, message):
    code = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path(sys.argv[0], run_name='__main__')"
    code = code.replace("sys.argv[0]", repr(str(ROOT / script)))
    start = [sys.executable, "-c", f"import sys; sys.argv[0] = {script!r}; {code}"]
    done = subprocess.run([*start, *flags], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr)


def test_a_family_without_a_bound_is_refused_before_anything_is_drawn():
    pipeline = SimpleNamespace(family="ddgan")
    message = "ddgan models have no bound .* class_conditional, flow, unconditional, vae, vdm"
    with pytest.raises(ValueError, match=message):
        Likelihood(pipeline, None, 250)


def test_bits_per_dimension_of_a_denoising_gan_end_before_the_data_are_opened(tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("the data were opened")

    network = UNet2DModel(sample_size=8, **{**TINY, "class_embed_type": "identity"})
    gan = DDGANPipeline(network, DDPMScheduler(num_train_timesteps=4, prediction_type="sample"))
    save_bundle(gan, tmp_path / "gan")
    monkeypatch.setattr(after_training, "open_reference", never)
    flags = ["--model", str(tmp_path / "gan"), "--metrics", "fd", "bpd", "--reference", "digits"]
    config = parse_flags(EvaluateConfig, "", [*flags, "--output", str(tmp_path / "results.jsonl")])
    with pytest.raises(ValueError, match="ddgan models have no bound"):
        after_training.evaluate(config)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A model, and 24 images of each of three splits; `config.yaml` is left to the tests."""
    root = tmp_path_factory.mktemp("splits")
    generator = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        (root / "data" / split).mkdir(parents=True)
        for i in range(24):
            pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "data" / split / f"{i}.png")
    save_bundle(VAEPipeline(VAEModel(8, 1, 4, (8, 16))), root / "out")
    return root


@pytest.mark.parametrize(
    ("trained_with", "flags", "expected"),
    [
        ({}, [], {"bpd_train": 24, "bpd_test": 24}),
        ({"validation_size": 8}, [], {"bpd_train": 16, "bpd_test": 8}),
        ({"validation_size": 8}, ["--split", "train"], {"bpd_train": 16}),
        ({"validation_size": 8}, ["--split", "test"], {"bpd_test": 24}),
        ({"validation_size": 8}, ["--split", "validation"], {"bpd_validation": 24}),
        (
            {"validation_size": 8, "validation_split": "validation"},
            ["--split", "validation"],
            {"bpd_validation": 24},
        ),
    ],
)
def test_each_image_is_measured_once_under_the_name_of_its_split(
    autoencoder, tmp_path, trained_with, flags, expected
):
    """A metric that is named twice is measured once, and nothing is held out of a split not trained on."""
    values = {"train_data_dir": str(autoencoder / "data"), "seed": 0, **trained_with}
    OutputFolder(autoencoder / "out").config.write_text(json.dumps(values))
    flags = ["--model", str(autoencoder / "out"), "--metrics", "bpd", "bpd", *flags, "--cpu_threads", "1"]
    flags += ["--output", str(tmp_path / "results.jsonl"), "--cache_dir", str(autoencoder / "cache")]
    after_training.evaluate(parse_flags(EvaluateConfig, "", flags))
    numbers = read(tmp_path / "results.jsonl")
    assert {line.metric: line.n for line in numbers if line.measure == "bpd"} == expected
    assert {line.metric: line.reference_n for line in numbers if line.measure == "bpd"} == expected
    assert len(numbers) == 3 * len(expected), "the bound and its two terms"
    assert all(line.seeds == f"0..{line.n - 1}" for line in numbers)
    assert all((line.interval is not None) == (line.n >= 20) for line in numbers)


def test_flags_without_an_effect_on_what_is_scored_are_refused(tmp_path):
    images = ["--images", str(tmp_path / "a.npy"), "--metrics", "fd"]
    model = ["--model", str(tmp_path), "--metrics", "bpd"]
    for flags, message in (
        ([*images, "--num_samples", "9"], "--num_samples is for images that a --model draws"),
        ([*images, "--sampler", "ddim"], "--sampler is for images that a --model draws"),
        ([*model, "--compile"], "--compile has no effect on --metrics bpd"),
        ([*model, "--mixed_precision", "bf16"], "--mixed_precision has no effect on --metrics bpd"),
    ):
        with pytest.raises(ValueError, match=message):
            after_training.evaluate(parse_flags(EvaluateConfig, "", flags))


def test_a_bound_beside_samples_in_half_precision_is_recorded_as_float32(model, tmp_path):
    flags = [
        *model_flags(model, 40),
        "--metrics",
        "energy",
        "bpd",
        "--bpd_timesteps",
        "2",
        "--bpd_images",
        "4",
    ]
    found = scored(model, tmp_path, *flags, "--mixed_precision", "bf16")
    assert found["energy_classifier"]["mixed_precision"] == "bf16"
    assert found["bpd_train"]["mixed_precision"] is None
    assert found["bpd_train"]["seeds"] == "0..3"


def test_errors_of_the_reference_name_the_flag_that_was_typed(tmp_path):
    (tmp_path / "empty").mkdir()
    for place, message in (("empty", "has no images"), ("missing/of/this", "there is no such folder")):
        flags = ["--images", str(tmp_path), "--reference", str(tmp_path / place), "--metrics", "fd"]
        with pytest.raises(ValueError, match=f"--reference '.*{message}"):
            after_training.evaluate(parse_flags(EvaluateConfig, "", flags))


@pytest.mark.parametrize(
    ("flags", "side"),
    [([], 4), (["--resolution", "2"], 2), (["--reference", "data"], 8), (["--reference=~/data"], 8)],
)
def test_the_side_of_the_references_images(autoencoder, tmp_path, monkeypatch, capsys, flags, side):
    """As the help says: --resolution, else that of the training, or of the files of --reference."""
    with pytest.raises(SystemExit):
        parse_flags(EvaluateConfig, "", ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "side of the reference's images; if not given, that of the training, or with --reference" in text
    monkeypatch.chdir(autoencoder)
    monkeypatch.setenv("HOME", str(autoencoder))
    values = {"train_data_dir": "data", "resolution": 4, "seed": 0}
    OutputFolder(autoencoder / "out").config.write_text(json.dumps(values))
    flags = ["--model", "out", *flags, "--cache_dir", str(tmp_path)]
    config = parse_flags(EvaluateConfig, "", flags)
    accelerator = evaluation_accelerator(1)
    assert after_training.open_reference(config, accelerator).images.resolution == side


def test_the_sampler_of_a_new_line_is_read_as_it_was_written():
    """The class of a scheduler that is no row of SAMPLERS; older files have classes for rows."""
    origin = Origin("x", 7, sampler="DPMSolverMultistepScheduler")
    protocol = ReferenceProtocol("pixels", None, "none", "uint8", "toy", "train", "0", False, 10)
    (line,) = lines({"kid": Measurement(1.0, 7)}, origin, protocol, commit=None)
    assert ResultLine.from_json(json.loads(json.dumps(line.to_json()))) == line
    older = {key: value for key, value in line.to_json().items() if key not in ("measure", "whole")}
    assert ResultLine.from_json(older).sampler == "dpmsolver++"


def test_a_bound_may_have_terms_of_any_name():
    assert metric_of("kl_bpd") == metric_of("bpd") == "bpd"
    assert measure_row("kl_bpd").of_split
    assert metric_name("kl_bpd", None, 100, "test", None) == "bpd_test_kl"
    assert metric_of("kl") is None
    assert not measure_row("kl").of_split
    protocol = ReferenceProtocol(None, None, None, None, "toy", "test", "0", False, 10)
    measured = {name: Measurement(1.0, 7) for name in ("bpd", "prior_bpd")}
    for line in lines(measured, Origin("x", 7), protocol, commit=None):
        older = {key: value for key, value in line.to_json().items() if key not in ("measure", "whole")}
        assert ResultLine.from_json(older).measure == line.measure


class Brightness(SampleMetric):
    """Mean grey level of the samples over the reference's: a metric of these tests."""

    def __init__(self, reference, num_samples):
        super().__init__(num_samples)
        self.level = float(reference.gaussian.mean.mean())
        self.add_sum("total", 1)

    def update(self, index, features):
        self.mark(index)
        self.total += features.mean(1).sum().to(self.total)

    def compute(self):
        self.check_complete(self.total)
        return {
            "brightness": Measurement(float(self.total) / self.num_samples / self.level, self.num_samples)
        }


def test_a_new_metric_is_one_row_and_its_class(tmp_path, monkeypatch, capsys):
    row = Metric(
        f"{__name__}:Brightness", {"brightness": Measure(better="lower", shown=True)}, best="brightness"
    )
    monkeypatch.setitem(METRICS, "brightness", row)
    images = load_images(DataConfig(dataset_name="digits", cache_dir=str(tmp_path)))
    pixels, _ = images.__getitems__(range(len(images)))
    np.save(tmp_path / "a.npy", (pixels // 2).permute(0, 2, 3, 1).numpy())
    flags = ["--images", str(tmp_path / "a.npy"), "--reference", "digits", "--cache_dir", str(tmp_path)]
    flags += ["--metrics", "brightness", "--feature_extractor", "pixels", "--cpu_threads", "1"]
    config = parse_flags(EvaluateConfig, "", [*flags, "--output", str(tmp_path / "results.jsonl")])
    after_training.evaluate(config)
    (line,) = read(tmp_path / "results.jsonl")
    assert (line.metric, line.measure) == ("brightness_pixels", "brightness")
    assert line.value == pytest.approx(0.48, abs=0.03)
    assert columns_of([line]) == {"brightness": False}
    check_choices(metrics=["brightness"], in_training=True)
    with pytest.raises(SystemExit):
        parse_flags(EvaluateConfig, "", ["--metrics", "brightnes"])


def test_a_dry_run_refuses_what_the_evaluation_would(model, tmp_path):
    output = tmp_path / "results.jsonl"
    flags = [*model_flags(model), "--dry_run", "--output", str(output), "--cache_dir", str(model / "cache")]
    assert "--metrics fd can be measured" in run(EVALUATE, *flags, "--metrics", "fd").output
    refused = run(EVALUATE, *flags, "--metrics", "class_accuracy", check=False)
    assert "--metrics class_accuracy needs labels, and there are none" in refused.output
    assert "drawing" not in refused.output
    assert not output.exists()
