"""Files are replaced whole or not at all: every writer on a full disk, kills between the moves of a save."""

import ast
import errno
import os
import resource
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from entry import ROOT
from PIL import Image
from test_architecture import SOURCES
from test_reference_stats import statistics

from trilemma.eval.features.classifier import ClassifierNet, save_classifier
from trilemma.eval.features.judge_files import Trained, keep_judges
from trilemma.model_cards.hub.bundle import save_bundle
from trilemma.pipelines.files import writing
from trilemma.pipelines.files.staging import NEW, finish_stages, put_in_place, stage_in
from trilemma.pipelines.files.writing import (
    append_lines,
    aside_of,
    keep_lines,
    target_of,
    write_json,
    write_text,
    written,
)
from trilemma.training.images.decode import decode_once
from trilemma.training.images.sources import open_source
from trilemma.training.loop.checkpoints import save_checkpoint
from trilemma.training.options.groups import DataConfig
from trilemma.training.output_folder import OutputFolder


@contextmanager
def resource_limit(size):
    """No file may grow beyond `size` bytes: what stands in for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def tree(folder):
    """Every file and its bytes, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def picture(path):
    with written(path) as file:
        Image.effect_noise((64, 64), 50).save(file, format="png")


def array(path):
    with written(path) as file:
        np.save(file, np.zeros(1000))


def long_lines(path):
    append_lines(path, '{"step": 1, "text": "' + "x" * 200 + '"}\n')


def dropped(path):
    if path.exists():
        keep_lines(path, lambda line: "step" not in line)


def judge(path):
    """The name of a classifier's file is made from its content."""
    torch.manual_seed(0)
    save_classifier(ClassifierNet(1, 2), Trained("", 1, 8, 2, 0, 0, 0.5), path.parent, path.name)


def kept_judge(path):
    source = path.parent.parent / "classifier-0123456789abcdef.safetensors"
    keep_judges(OutputFolder(path.parent), [source])


def model(path):
    torch.manual_seed(0)
    net = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **TINY)
    save_bundle(DDPMPipeline(net, DDPMScheduler(10)), path)


def decoded(path):
    pictures = path.parent.parent / "pictures"
    pictures.mkdir(exist_ok=True)
    for level in range(3):
        Image.new("L", (8, 8), level).save(pictures / f"{level}.png")
    decode_once(open_source(DataConfig(train_data_dir=str(pictures)), "train"), None, None, path)


WRITERS = {
    "text": lambda path: write_text(path, "x" * 200),
    "JSON": lambda path: write_json(path, {"x": "y" * 200}),
    "lines added": long_lines,
    "lines dropped": dropped,
    "picture": picture,
    "array": array,
    "statistics": lambda path: statistics().save(path),
    "statistics for others": lambda path: statistics().save_npz(path),
    "judge": judge,
    "judge of a model": kept_judge,
    "model": model,
    "checkpoint": lambda path: save_checkpoint(path, 1, {"x": torch.zeros(1000)}, keep=1),
    "decoded images": decoded,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_on_a_full_disk_the_old_is_whole_and_the_error_names_it(tmp_path, monkeypatch, name, number):
    """Half-way through the file, and at its very end, where only syncing tells it."""
    folder, write = tmp_path / "out", WRITERS[name]
    folder.mkdir()
    path = folder / "written"
    if name in ("lines added", "lines dropped"):
        path.write_text('{"step": 0}\n' + "{}\n" * 100)
    if name in ("text", "JSON", "picture", "array", "statistics", "statistics for others"):
        path.write_bytes(b"old")
    if name in ("checkpoint", "decoded images"):
        path.mkdir()
    (tmp_path / "classifier-0123456789abcdef.safetensors").write_bytes(b"x" * 200)
    before = tree(folder)

    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    limit = resource_limit(100) if number == errno.EFBIG else nullcontext()
    with monkeypatch.context() as patch, limit:
        if number == errno.ENOSPC:
            patch.setattr(writing.os, "fsync", full)
        with pytest.raises(OSError) as refused:
            write(path)
    message = str(refused.value)
    assert str(folder) in message
    assert "\n" not in message
    assert "free some space" in message or "limit" in message.lower()
    assert tree(folder) == before
    write(path)
    assert tree(folder) != before
    assert not [path for path in folder.rglob("*") if target_of(path.name)]


def test_an_old_model_stays_until_the_new_one_is_whole(tmp_path):
    model(tmp_path / "m")
    before = tree(tmp_path / "m")
    with resource_limit(100), pytest.raises(OSError, match=r"/m could not be written .*: raise the limit"):
        model(tmp_path / "m")
    assert tree(tmp_path / "m") == before


def test_a_torn_line_takes_no_other_with_it(tmp_path):
    path = tmp_path / "results.jsonl"
    append_lines(path, '{"step": 1}\n')
    with open(path, "a") as file:
        file.write('{"step": 2, "va')
    append_lines(path, '{"step": 3}\n')
    assert path.read_text() == '{"step": 1}\n{"step": 2, "va\n{"step": 3}\n'
    assert keep_lines(path, lambda line: line["step"] < 9, tmp_path / "dropped") == 1
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'
    assert (tmp_path / "dropped").read_text() == '{"step": 2, "va\n'


@pytest.mark.parametrize("line", [b"\xff\xfe", b'{"step": ' + b"[" * 100_000, b"1" * 5000, b'{"a'])
def test_lines_that_are_not_json_are_dropped_and_kept_aside(tmp_path, line):
    path, aside = tmp_path / "lines", tmp_path / "aside"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": "x"}\n3\n')
    assert keep_lines(path, lambda line: True, aside) == 1
    assert path.read_text() == '{"step": 1}\n{"step": "x"}\n3\n'
    assert aside.exists()


def test_only_names_that_are_surely_ours_are_taken_for_leftovers(tmp_path):
    assert target_of(aside_of(tmp_path / "a.b c").name) == "a.b c"
    for name in (".a.partial", "a.0123456789abcdef.partial", ".0123456789abcdef.partial", ".a.xyz.partial"):
        assert target_of(name) is None


# Stages


class Killed(BaseException):
    """What no code catches, as a SIGKILL."""


def stage(folder, entries, leaving=()):
    """Put files with these contents in place."""
    with stage_in(folder) as place:
        for name, text in entries.items():
            (place / NEW / name).parent.mkdir(exist_ok=True)
            (place / NEW / name).write_text(text)
        put_in_place(place, leaving, last="index")


OLD_MODEL = {"index": "old", "unet/w": "old", "vae/w": "old", "code.py": "old"}
NEW_MODEL = {"index": "new", "unet/w": "new", "text/w": "new"}


def content(folder):
    return {name: text.decode("latin-1") for name, text in tree(folder).items() if text is not None}


@pytest.mark.parametrize("moves", range(9))
def test_a_save_that_was_killed_between_its_moves_is_finished(tmp_path, monkeypatch, moves):
    folder = tmp_path / "m"
    stage(folder, OLD_MODEL)
    (folder / "results.jsonl").write_text("kept")
    rename, count = Path.rename, iter(range(moves))

    def rename_or_die(self, target):
        if next(count, None) is None:
            raise Killed
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_or_die)
    with pytest.raises(Killed) if moves < 7 else nullcontext():
        stage(folder, NEW_MODEL, ["unet", "vae", "code.py"])
    monkeypatch.undo()
    if (folder / "index").exists():  # whatever was done, a folder with an index is whole
        assert content(folder).items() >= (OLD_MODEL if moves == 0 else NEW_MODEL).items()
    finish_stages(folder)
    assert content(folder) == {**NEW_MODEL, "results.jsonl": "kept"}
    assert sorted(path.name for path in folder.iterdir()) == ["index", "results.jsonl", "text", "unet"]


def test_a_stage_that_was_never_whole_is_deleted_and_the_folder_stays(tmp_path):
    stage(tmp_path, OLD_MODEL)
    (aside_of(tmp_path / "stage") / NEW).mkdir(parents=True)
    (tmp_path / ".mine").mkdir()
    finish_stages(tmp_path)
    assert content(tmp_path) == OLD_MODEL
    assert (tmp_path / ".mine").exists()


@pytest.mark.skipif(os.name != "posix", reason="elsewhere files have no modes")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_a_saved_model_is_as_readable_as_other_new_files(tmp_path, umask):
    """safetensors writes its files for this user alone."""
    net = UNet2DModel(block_out_channels=(4,), norm_num_groups=1, down_block_types=("DownBlock2D",),
                      up_block_types=("UpBlock2D",), layers_per_block=1, sample_size=4)  # fmt: skip
    before = os.umask(umask)
    try:
        save_bundle(DDPMPipeline(net, DDPMScheduler()), tmp_path / "model")
        write_text(tmp_path / "model" / "README.md", "text")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".md"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}


def test_a_stage_moves_nothing_out_of_its_folder(tmp_path):
    (tmp_path / "victim").mkdir()
    left = aside_of(tmp_path / "m" / "stage")
    (left / NEW).mkdir(parents=True)
    write_json(left / "moves.json", {"out": ["../victim"], "in": []})
    finish_stages(tmp_path / "m")
    assert (tmp_path / "victim").exists()
    assert [path.name for path in (tmp_path / "m").iterdir()] == [f"left{left.name.removesuffix('.partial')}"]


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"out": null, "in": []}', '{"out": [1], "in": []}', "", "\x00"]
)
def test_a_stage_with_a_damaged_list_is_put_aside(tmp_path, text, caplog):
    left = aside_of(tmp_path / "stage")
    (left / NEW).mkdir(parents=True)
    (left / NEW / "weights").write_text("1")
    (left / "moves.json").write_text(text)
    finish_stages(tmp_path)
    (aside,) = tmp_path.iterdir()
    assert (aside / NEW / "weights").read_text() == "1"
    assert "moves.json" in caplog.text


@pytest.mark.parametrize("link", ["stage", NEW, "old", "moves.json"])
def test_a_stage_with_a_link_moves_nothing(tmp_path, link):
    home, folder = tmp_path / "home", tmp_path / "m"
    for place in (home / NEW, home / "old", folder):
        place.mkdir(parents=True)
    (home / NEW / "id_rsa").write_text("secret")
    write_json(home / "moves.json", {"out": ["notes"], "in": ["id_rsa"]})
    (folder / "notes").write_text("mine")
    left = aside_of(folder / "stage")
    if link == "stage":
        left.symlink_to(home)
    else:
        left.mkdir()
        write_json(left / "moves.json", {"out": ["notes"], "in": ["id_rsa"]})
        (left / link).unlink(missing_ok=True)
        (left / link).symlink_to(home / link)
    finish_stages(folder)
    assert (home / NEW / "id_rsa").read_text() == "secret"
    assert (folder / "notes").read_text() == "mine"
    assert not (folder / "id_rsa").exists()


MAY_WRITE = {
    "writing.py": "the writer",
    "shared.py": "into a stage",
    "bundle.py": "into a stage",
    "own_folder.py": "the lock",
    "decode.py": "into a folder that is renamed when it is whole",
    "image_output.py": "parts, whose records have checksums",
    "processes.py": "what a process prints",
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_written_in_one_place(path):
    """No other file opens one for writing, or hands a name to something that does."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    for call in calls:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        opens = name == "open" and any(set(mode) & set("wax+") and len(mode) < 4 for mode in modes)
        writes = isinstance(call.func, ast.Attribute) and name in ("write_text", "write_bytes")
        assert path.name in MAY_WRITE or not (opens or writes or name in ("save_file", "memmap_w")), (
            f"{path}, line {call.lineno}: use trilemma.pipelines.files.writing"
        )
