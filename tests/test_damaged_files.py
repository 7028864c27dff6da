"""(kind of file) x (kind of damage): one line that names the file, or the right result. Never a traceback."""

import dataclasses
import json
import logging
import shutil
import struct
import time
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file, save_file

from trilemma.eval.features.classifier import load_classifier
from trilemma.eval.features.judge_files import find_judge, read_trained, shipped_judge
from trilemma.eval.scoring import results
from trilemma.eval.scoring.file_images import open_images
from trilemma.eval.scoring.model_images import load_model
from trilemma.eval.scoring.protocol import ReferenceProtocol
from trilemma.eval.scoring.reference import (
    ReferenceCollector,
    cache_path,
    cached_reference,
    load_reference,
)
from trilemma.eval.scoring.results import ENTRIES, ResultLine
from trilemma.eval.studies.models import parameters
from trilemma.training.images.decode import decode_once
from trilemma.training.images.sources import Source, open_source
from trilemma.training.loop.checkpoints import checkpoint_path, find_checkpoint, save_checkpoint
from trilemma.training.loop.resume import Checkpoints
from trilemma.training.networks.build import load_network_config
from trilemma.training.networks.init_from import take_weights
from trilemma.training.options.command_line import parse
from trilemma.training.options.groups import DataConfig
from trilemma.training.options.yaml_file import read_options
from trilemma.training.output_folder import OutputFolder
from trilemma.training.sampling import sample

CPU, JUDGE = torch.device("cpu"), shipped_judge("digits")
LINE = dict.fromkeys(ENTRIES) | {
    "metric": "fd_pixels", "measure": "fd", "value": 1.0, "source": "m", "n": 10, "created": "2025",
    "forced": False,
}  # fmt: skip
FACTS = {"steps": 5, "images_seen": 9, "seconds": 1.5, "images_per_second": 2}
PROTOCOL = ReferenceProtocol("pixels", "none", "none", "uint8", "digits", "train", "abc", False, 50)


def statistics(keep=20):
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    collector = ReferenceCollector(50, 4, num_classes=3, keep=keep)
    collector.update(torch.arange(50), x, x[:, :3])
    return collector.statistics(PROTOCOL)


def network():
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        add_attention=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with a file of every kind, none of them damaged."""
    folder = tmp_path_factory.mktemp("whole")
    DDPMPipeline(network(), DDPMScheduler()).save_pretrained(folder / "model")
    model = OutputFolder(folder / "model")
    model.run.write_text(json.dumps({"family": "unconditional"} | FACTS))
    model.config.write_text("dataset_name: digits\nseed: 0\nlogging_dir: logs\nresolution: null\n")
    model.results.write_text(json.dumps(LINE) + "\n")
    model.logs.mkdir()
    model.scalars.write_text('{"step": 1, "seconds": 0.5, "loss": 1.0}\n')
    statistics().save(folder / "stats.safetensors")
    statistics().save_npz(folder / "stats.npz")
    np.save(folder / "images.npy", np.zeros((2, 8, 8, 1), np.uint8))
    np.savez(folder / "images.npz", np.zeros((2, 8, 8, 1), np.uint8))
    (folder / "pictures").mkdir()
    for i in range(2):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(folder / f"pictures/{i}.png")
    shutil.copy(JUDGE, folder)
    (folder / "options.yaml").write_text("seed: 1\nclasses: [a, b]\n")
    save_checkpoint(folder / "checkpoints", 1, {"step": 1}, 1)
    return folder


def model(folder):
    return load_model(str(folder / "model"), CPU)


def checkpoint(folder):
    return find_checkpoint(folder / "checkpoints", "step-00000001")


READERS = {
    "model/model_index.json": lambda folder: (OutputFolder(folder / "model").read_index(), model(folder)),
    "model/run.json": lambda folder: (OutputFolder(folder / "model").read_run(), model(folder)),
    "model/config.yaml": lambda folder: OutputFolder(folder / "model").read_config(),
    "model/results.jsonl": lambda folder: results.read(folder / "model/results.jsonl"),
    "model/logs/scalars.jsonl": lambda folder: OutputFolder(folder / "model").read_scalars(),
    "model/unet/config.json": lambda folder: (model(folder), load_network_config(str(folder / "model"))),
    "model/scheduler/scheduler_config.json": model,
    "model/unet/diffusion_pytorch_model.safetensors": lambda folder: (
        parameters(OutputFolder(folder / "model")),
        model(folder),
    ),
    "stats.safetensors": lambda folder: load_reference(folder / "stats.safetensors"),
    "stats.npz": lambda folder: load_reference(folder / "stats.npz"),
    "images.npy": lambda folder: open_images(str(folder / "images.npy")).read(range(2)),
    "images.npz": lambda folder: open_images(str(folder / "images.npz")).read(range(2)),
    "pictures/1.png": lambda folder: open_images(str(folder / "pictures")).read(range(2)),
    JUDGE.name: lambda folder: (read_trained(folder / JUDGE.name), load_classifier(folder / JUDGE.name)),
    "options.yaml": lambda folder: read_options(folder / "options.yaml"),
    "checkpoints/step-00000001/manifest.json": checkpoint,
    "checkpoints/step-00000001/state.pt": checkpoint,
}

STILL_RIGHT = {
    ("model/results.jsonl", "empty"),  # no measurements yet
    ("model/logs/scalars.jsonl", "empty"),
    ("stats.npz", "latin-1"),  # something after the end, which nothing reads
    ("images.npy", "latin-1"),
    ("images.npz", "latin-1"),
    ("pictures/1.png", "latin-1"),
    ("pictures/1.png", "a byte short"),  # of the last checksum, after all pixels
}

DAMAGE = {
    "empty": lambda content: b"",
    "cut in the middle": lambda content: content[: len(content) // 2],
    "a byte short": lambda content: content.rstrip()[:-1],
    "a list": lambda content: b"[]",
    "null": lambda content: b"null",
    "zeros": lambda content: bytes(len(content)),
    "not text": lambda content: b"\xff\xfe\xfd" + content,
    "utf-16": lambda content: content.decode("latin-1").encode("utf-16"),
    "latin-1": lambda content: content + b'\n"\xe9"',
    "deep": lambda content: b"[" * 200_000,
    "absurd header": lambda content: (2**62).to_bytes(8, "little") + b"{" * 1000,
    "folder": None,
}


CASES = [
    (kind, damage)
    for kind in READERS
    for damage in DAMAGE
    if (kind, damage) != ("pictures/1.png", "folder")  # a folder among pictures holds pictures
]


@pytest.mark.parametrize(("kind", "damage"), CASES)
def test_a_damaged_file_is_named_in_one_line(whole, tmp_path, kind, damage):
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    file = folder / kind
    content = file.read_bytes()
    if DAMAGE[damage] is None:
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(DAMAGE[damage](content))
    began = time.monotonic()
    if (kind, damage) in STILL_RIGHT:
        READERS[kind](folder)
        return
    with pytest.raises((ValueError, OSError)) as error:
        READERS[kind](folder)
    assert time.monotonic() - began < 20
    assert file.name in str(error.value) or (damage == "folder" and file.parent.name in str(error.value))
    assert len(str(error.value)) < 1500
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", READERS)
def test_a_whole_file_is_read(whole, kind):
    READERS[kind](whole)


# Entries of the wrong type

WRONG = {int: ["1", 1.5, True, [1]], float: ["1", True, [1]], str: [1, ["a"], {}], bool: ["no", 1]}


def wrong_entries():
    for entry in dataclasses.fields(ResultLine):
        if entry.name == "interval":
            yield from ((entry.name, value) for value in ([1], [1, "2"], 5, {"a": 1}, [1, None]))
        for kind in WRONG:
            if entry.name in ENTRIES and results.TYPES[entry.name] in (kind, kind | None):
                yield from ((entry.name, value) for value in WRONG[kind])


NULLS = [("value", None), ("n", None), ("metric", None)]


@pytest.mark.parametrize(("name", "value"), [*wrong_entries(), *NULLS])
def test_an_entry_of_a_result_of_the_wrong_type_is_named_with_its_line(tmp_path, name, value):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE | {name: value}) + "\n")
    with pytest.raises(ValueError, match=rf"results\.jsonl, line 2 has {name} .*; delete the line"):
        results.read(path)


@pytest.mark.parametrize("number", ["1" + 400 * "0", "1e400", "1" + 9999 * "0"], ids=len)
def test_a_number_that_no_computer_has_is_named(tmp_path, number):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(LINE)[:-1] + f', "value": {number}}}\n')
    with pytest.raises(ValueError, match=r"results\.jsonl, line 1 "):
        results.read(path)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("run.json", FACTS | {"steps": "5"}), ("run.json", FACTS | {"family": ["x"]}),
        ("run.json", FACTS | {"seconds": None}),
        ("run.json", FACTS | {"hardware": {"name": 5}}),
        ("model_index.json", {"_class_name": 5}), ("model_index.json", {}),
        ("model_index.json", {"class_names": ["a"], "_class_name": "X"}),
        ("model_index.json", {"class_names": {"x": "a"}, "_class_name": "X"}),
        ("config.yaml", {"seed": "x"}), ("config.yaml", {"classes": 5}), ("config.yaml", {"channels": 2}),
        ("config.yaml", {"logging_dir": 7}),
    ],
)  # fmt: skip
def test_an_entry_of_the_wrong_type_names_its_file(tmp_path, file, values):
    (tmp_path / file).write_text(json.dumps(values))  # which is YAML, too
    folder = OutputFolder(tmp_path)
    readers = (folder.read_run, folder.read_index, folder.read_config)
    read = dict(zip(("run.json", "model_index.json", "config.yaml"), readers, strict=True))
    with pytest.raises(ValueError, match=file):
        read[file]()


# What is written after damage


def test_a_torn_line_swallows_no_measurement(tmp_path):
    """A run that was killed while it wrote left half a line; the next measurement is on its own line."""
    path, line = tmp_path / "results.jsonl", ResultLine.from_json(LINE)
    results.append(path, [line])
    path.write_bytes(path.read_bytes() + path.read_bytes()[:40])
    results.append(path, [dataclasses.replace(line, value=2.0)])
    with pytest.raises(ValueError, match=r"results\.jsonl, line 2 is not JSON.*; delete the line"):
        results.read(path)
    faults = []
    assert [one.value for one in results.read(path, damaged=faults.append)] == [1.0, 2.0]
    assert len(faults) == 1
    path.write_bytes(path.read_bytes().replace(path.read_bytes().splitlines()[1] + b"\n", b"").rstrip())
    results.append(path, [line])  # a last line that is whole but for its end
    assert [one.value for one in results.read(path)] == [1.0, 2.0, 1.0]


# Caches


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "no checksum", "another's", "fewer features"])
def test_a_cached_reference_that_is_damaged_is_named_and_not_believed(tmp_path, caplog, damage):
    path = cache_path(tmp_path, PROTOCOL, 20)
    statistics().save(path)
    assert cached_reference(path, PROTOCOL, 20) is not None
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-100] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-8])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "no checksum":
        protocol = json.dumps(dataclasses.asdict(PROTOCOL))
        save_file(load_file(path), path, {"format": "trilemma-reference-1", "protocol": protocol})
        assert load_reference(path).protocol == PROTOCOL  # a file of version 0.1 that somebody names is read
    elif damage == "another's":
        dataclasses.replace(statistics(), protocol=dataclasses.replace(PROTOCOL, data="mnist")).save(path)
    else:
        statistics(keep=10).save(path)
    assert cached_reference(path, PROTOCOL, 20) is None
    assert f"{path} " in caplog.text
    assert "computed again" in caplog.text


def test_a_statistics_file_without_its_parts_is_named(tmp_path):
    protocol = json.dumps(dataclasses.asdict(PROTOCOL))
    whole = {"mean": torch.zeros(4).double(), "covariance": torch.eye(4).double()}
    for tensors, metadata in (
        ({"mean": whole["mean"]}, {"protocol": protocol}),
        (whole | {"other": torch.zeros(1)}, {"protocol": protocol}),
        (whole | {"features": torch.zeros(5, 3)}, {"protocol": protocol}),
        (whole | {"features": torch.full((5, 4), torch.nan)}, {"protocol": protocol}),
        ({name: tensor.long() for name, tensor in whole.items()}, {"protocol": protocol}),
        (whole, {}),
        (whole, {"protocol": "[]"}),
        (whole, {"protocol": protocol.replace("50", '"x"')}),
        (whole, {"protocol": "{}"}),
    ):
        save_file(tensors, tmp_path / "s.safetensors", {"format": "trilemma-reference-1"} | metadata)
        with pytest.raises(ValueError, match=r"s\.safetensors "):
            load_reference(tmp_path / "s.safetensors")


def source(count=5):
    pixels = [Image.fromarray(np.full((4, 4), 10 * i, np.uint8)) for i in range(count)]
    read = pixels.__getitem__
    return Source("x", "train", "key", lambda rows: [*map(read, rows)], np.arange(count), None, None)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("images.uint8", "flipped"), ("images.uint8", "cut"), ("images.uint8", "gone"),
        ("digests.npy", "flipped"), ("digests.npy", "cut"), ("digests.npy", "gone"),
        ("about.json", "cut"), ("about.json", "gone"),
        ("about.json", "[]"), ("about.json", '{"shape": [5, 1, 4, 4]}'), ("about.json", '{"shape": 5}'),
    ],
)  # fmt: skip
def test_a_damaged_cache_of_images_is_named_and_made_again(tmp_path, caplog, file, damage):
    first = decode_once(source(), None, None, tmp_path)
    pixels, digests = np.array(first.pixels[np.arange(5)]), first.digests
    path = next(tmp_path.iterdir()) / file
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-3] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-5])
    elif damage == "gone":
        path.unlink()
    else:
        path.write_text(damage)
    with caplog.at_level(logging.WARNING):
        again = decode_once(source(), None, None, tmp_path)
    assert str(path) in caplog.text
    assert "decoded again" in caplog.text
    assert (again.pixels[np.arange(5)] == pixels).all()
    assert (again.digests == digests).all()
    assert [place.name for place in tmp_path.iterdir()] == [path.parent.name]
    caplog.clear()
    decode_once(source(), None, None, tmp_path)
    assert not caplog.text


def test_a_cache_of_images_of_an_earlier_version_is_read(tmp_path, caplog):
    decode_once(source(), None, None, tmp_path)
    path = next(tmp_path.iterdir()) / "about.json"
    about = json.loads(path.read_text())
    del about["stored"], about["digests"]
    path.write_text(json.dumps(about))
    decode_once(source(), None, None, tmp_path)
    assert not caplog.text


def test_a_damaged_judge_in_the_cache_is_named_and_trained_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("trilemma.eval.features.judge_files.cache_stem", lambda images: "v1-x-10")
    monkeypatch.setattr("trilemma.eval.features.judge_files._shipped", lambda: iter(()))
    folder = tmp_path / "classifiers"
    folder.mkdir()
    kept = folder / f"v1-x-10-{JUDGE.stem.rpartition('-')[2]}.safetensors"
    shutil.copy(JUDGE, kept)
    images = SimpleNamespace(labels=None)
    assert find_judge(images, tmp_path) == kept
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    assert find_judge(images, tmp_path) is None
    assert str(kept) in caplog.text
    assert not kept.exists()


# Checkpoints


class Counter:
    """A method whose state is one number."""

    def __init__(self):
        self.net, self.value = network(), None

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"] + 0


class NoAverage:
    tracks = ()

    def state_dict(self):
        return []

    load_state_dict = staticmethod(len)


def checkpoints(folder):
    config = parse("unconditional", "", ["--dataset_name", "digits"])
    return Checkpoints(folder, Counter(), NoAverage(), Accelerator(cpu=True), config, "print")


class Boom:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)

    def __repr__(self):
        return "Boom()"


@pytest.mark.parametrize(
    "change",
    [
        *({name: None} for name in ("step", "seconds", "config", "method", "ema", "rng", "fingerprint")),
        {"step": "2"}, {"step": 7}, {"method": {}}, {"method": {"value": "x"}}, {"rng": []}, {"rng": [{}]},
        {"left": 5}, {"left": [5]},
        {"extra": Boom()}, [], 5,
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_with_a_right_hash_and_wrong_contents_leads_to_the_one_before(tmp_path, caplog, change):
    saved = checkpoints(tmp_path)
    for step in (1, 2):
        saved.method.value = step
        saved.save(step, 0.5, [])
    state = torch.load(checkpoint_path(tmp_path, 2) / "state.pt", weights_only=True)
    if isinstance(change, dict):
        state |= change
        state = {name: value for name, value in state.items() if value is not None}
    else:
        state = change
    save_checkpoint(tmp_path, 2, state, 5)
    resumed = checkpoints(tmp_path)
    assert resumed.resume() == (1, 0.5, [])
    assert resumed.method.value == 1
    assert "step-00000002 is damaged" in caplog.text
    assert "trying the one before it" in caplog.text


def test_without_another_checkpoint_damage_is_an_error_with_a_way_out(tmp_path):
    saved = checkpoints(tmp_path)
    saved.method.value = "x"
    saved.save(1, 0.5, [])
    with pytest.raises(ValueError, match="--overwrite_output_dir"):
        checkpoints(tmp_path).resume()


MANIFESTS = ["[]", "null", "5", '{"size": "x", "sha256": 5}', "{}", "[" * 100_000, "\xff"]


@pytest.mark.parametrize("text", MANIFESTS, ids=len)
def test_a_damaged_manifest_leads_to_the_one_before(tmp_path, text):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"step": step}, 5)
    (checkpoint_path(tmp_path, 2) / "manifest.json").write_text(text, encoding="latin-1")
    assert find_checkpoint(tmp_path, "latest")[1]["step"] == 1


# Models


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_weights_that_are_missing_or_not_finite_are_refused(whole, tmp_path, value):
    shutil.copytree(whole / "model", tmp_path / "model")
    file = tmp_path / "model/unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    if value is None:
        del weights["conv_in.weight"]
    else:
        weights["conv_in.weight"][0, 0, 0, 0] = value
    save_file(weights, file)
    words = "lacks the weights conv_in.weight" if value is None else "not finite, such as conv_in.weight"
    with pytest.raises(ValueError, match=rf"model/unet .*{words}"):
        load_model(str(tmp_path / "model"), CPU)
    with pytest.raises(ValueError, match=words):
        take_weights(network(), str(tmp_path / "model"))


def test_an_image_that_is_not_finite_is_never_drawn(whole):
    pipeline = load_model(str(whole / "model"), CPU)
    pipeline.unet.conv_out.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="image of seed 3 is not finite"):
        sample(pipeline, [3, 4], batch_size=2, num_inference_steps=1)


# Pictures that are bombs


def huge_png(path, side):
    """A PNG of side x side pixels, 1 bit each, all black; compressed, they take little."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    row = bytes(1 + -(-side // 8))
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


@pytest.mark.parametrize("name", ["0.png", "9.png"])
def test_a_picture_of_400_megapixels_is_named_and_not_decoded(whole, tmp_path, name):
    shutil.copytree(whole / "pictures", tmp_path / "pictures")
    huge_png(tmp_path / "pictures" / name, 20_000)
    began = time.monotonic()
    with pytest.raises(ValueError, match=name):
        open_images(str(tmp_path / "pictures")).read(range(3))
    config = DataConfig(train_data_dir=str(tmp_path / "pictures"), resolution=8)
    decoded = decode_once(open_source(config, "train"), 1, 8, tmp_path / "cache")
    assert name in next(iter(decoded.bad.values()))
    assert time.monotonic() - began < 20
