"""Names that files bring lead nowhere outside their folder; pickles and foreign code are told apart."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from conftest import TINY
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from trilemma.eval.scoring.model_images import load_model
from trilemma.eval.studies.models import read_model
from trilemma.model_cards.hub.bundle import save_bundle
from trilemma.model_cards.rendering.render import render_card
from trilemma.pipelines import as_ours
from trilemma.pipelines.files.names import below, inside
from trilemma.pipelines.files.reading import FileError
from trilemma.pipelines.files.saved import foreign_code, read_index
from trilemma.pipelines.unconditional import UnconditionalPipeline
from trilemma.training.networks.init_from import saved_config
from trilemma.training.output_folder import OutputFolder

BAD = [
    "../victim", "..", ".", "", "/abs", "a/b", "a/../../b", "a\\b", "..\\b", "C:\\b", "\\\\host\\b", "a\0b",
    "a\nb", "x" * 256, "\u00e9" * 128, None, 3, ["a"],
]  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_names_that_are_no_plain_names(tmp_path, name):
    with pytest.raises(FileError, match=r"^index\.json names ") as refused:
        inside(tmp_path, name, "index.json")
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("name", ["unet", "a b", "model.v2", "..x", "~", "-", "caf\u00e9", "a:b c", "\udcff"])
def test_plain_names(tmp_path, name):
    assert inside(tmp_path, name, "index.json") == tmp_path / name


@pytest.mark.parametrize(("path", "parts"), [
    ("a.png", ["a.png"]), ("a/b.png", ["a", "b.png"]), ("./a//b.png", ["a", "b.png"]),
    ("a\\b.png", ["a", "b.png"]),
    ("x/../a.png", ["a.png"]),
])  # fmt: skip
def test_paths_below_a_folder(tmp_path, path, parts):
    assert below(tmp_path, path, "metadata.csv") == tmp_path.joinpath(*parts)


@pytest.mark.parametrize(
    "path", ["../a", "a/../../b", "/a", "a\\..\\..\\b", "\\\\host\\a", "", ".", "//a", "file:///a", None, 1]
)
def test_paths_that_leave_the_folder(tmp_path, path):
    with pytest.raises(FileError, match=r"^metadata\.csv names "):
        below(tmp_path, path, "metadata.csv")


INDEX = {
    "_class_name": "DDPMPipeline",
    "unet": ["diffusers", "UNet2DModel"],
    "scheduler": ["diffusers", "DDPMScheduler"],
}
HOSTILE = {
    "a folder above": {"../victim": ["diffusers", "UNet2DModel"]},
    "an absolute folder": {"/abs": ["diffusers", "UNet2DModel"]},
    "a folder there and back": {"a/../../victim": ["diffusers", "UNet2DModel"]},
    "a file of code above": {"_class_name": ["../evil", "Pipeline"]},
    "a component's code above": {"unet": ["../../evil", "Net"]},
    "no class": {"_class_name": None},
    "a class that is a path": {"_class_name": "../x"},
    "a list of one": {"unet": ["diffusers"]},
    "a component of numbers": {"unet": [1, 2]},
}


def unet():
    torch.manual_seed(0)
    config = {key: value for key, value in TINY.items() if key != "_class_name"}
    return UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **config)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A saved model."""
    folder = tmp_path_factory.mktemp("source") / "out"
    DDPMPipeline(unet(), DDPMScheduler(10)).save_pretrained(folder)
    return folder


@pytest.fixture
def model(source, tmp_path):
    """A copy of it, and beside it what must stay as it is."""
    folder = tmp_path / "models" / "out"
    for path in source.rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    (folder.parent / "victim").mkdir()
    (folder.parent / "victim" / "config.json").write_text("{}")
    (folder.parent / "evil.py").write_text("raise SystemExit('this ran')")
    return folder


def set_index(folder, **changes):
    (folder / "model_index.json").write_text(json.dumps(INDEX | changes))


def beside(folder):
    return {path: path.read_bytes() for path in folder.parent.rglob("*")
            if path.is_file() and not path.is_relative_to(folder)}  # fmt: skip


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("use", [
    lambda folder: read_index(folder / "model_index.json"),
    lambda folder: load_model(str(folder), torch.device("cpu")),
    lambda folder: saved_config(str(folder)),
    lambda folder: read_model(OutputFolder(folder), "x"),
    render_card,
], ids=["read_index", "load_model", "init_from", "read_model", "card"])  # fmt: skip
def test_a_folder_with_hostile_names_is_refused(model, changes, use):
    set_index(model, **changes)
    before = beside(model)
    with pytest.raises(ValueError, match=r"model_index\.json"):
        use(model)
    assert beside(model) == before


@pytest.mark.parametrize("index", [
    *(json.dumps(INDEX | changes) for changes in HOSTILE.values()),
    "", "[]", "null", "{}", "{", "[" * 100_000,
])  # fmt: skip
def test_saving_over_a_hostile_or_damaged_index_touches_nothing_outside(model, index, caplog):
    """The run that was trained for is saved all the same."""
    (model / "model_index.json").write_text(index)
    before = beside(model)
    save_bundle(UnconditionalPipeline(unet(), DDPMScheduler(10)), model)
    assert beside(model) == before
    assert "what it may have named is left where it is" in caplog.text
    load_model(str(model), torch.device("cpu"))


@pytest.mark.parametrize("name", ["checkpoints", "logs", "best", "results.jsonl", "config.yaml", "README.md"])
def test_an_index_cannot_name_the_files_of_a_run_as_parts(model, name):
    place = model / name if "." in name else model / name / "kept"
    place.parent.mkdir(exist_ok=True)
    place.write_text("kept")
    set_index(model, **{name: ["diffusers", "UNet2DModel"]})
    save_bundle(UnconditionalPipeline(unet(), DDPMScheduler(10)), model)
    assert place.read_text() == "kept"


def test_a_linked_part_is_replaced_and_what_it_leads_to_stays(model, tmp_path):
    (model / "unet").rename(tmp_path / "elsewhere")
    (model / "unet").symlink_to(tmp_path / "elsewhere")
    save_bundle(UnconditionalPipeline(unet(), DDPMScheduler(10)), model)
    assert not (model / "unet").is_symlink()
    assert (tmp_path / "elsewhere" / "config.json").is_file()


class Payload:
    def __reduce__(self):
        return exec, ("raise SystemExit('this ran')",)


@pytest.mark.parametrize("name", [
    "diffusion_pytorch_model.bin", "diffusion_pytorch_model.ckpt", "model.pt", "DIFFUSION_PYTORCH_MODEL.BIN"
])  # fmt: skip
@pytest.mark.parametrize("use", [
    lambda folder: load_model(str(folder), torch.device("cpu")), lambda folder: saved_config(str(folder))
], ids=["load_model", "init_from"])  # fmt: skip
def test_pickled_weights_are_refused_with_the_remedy(model, name, use):
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (model / "unet" / name).write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match=f"{name} is a pickle.*safe_serialization=True"):
        use(model)


def test_a_pickle_beside_the_weights_is_not_read(model):
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    load_model(str(model), torch.device("cpu"))


@pytest.mark.parametrize("changes", [
    {"unet": ["evil_module", "Net"]}, {"_class_name": ["evil_module", "Pipeline"]},
    {"unet": ["antigravity", "Net"]},
])  # fmt: skip
def test_code_that_is_not_in_the_folder_is_not_looked_up_elsewhere(model, changes, monkeypatch):
    """diffusers would import any module of this name, the current folder's too."""
    set_index(model, **changes)
    (model.parent / "evil_module.py").write_text("raise SystemExit('this ran')")
    monkeypatch.syspath_prepend(str(model.parent))
    with pytest.raises(ValueError, match=r"\.py, which is not there"):
        load_model(str(model), torch.device("cpu"))


def test_the_code_of_the_toolkit_is_recognised(tmp_path):
    from test_bundle import every_family

    for name, (pipeline, _) in every_family(tmp_path).items():
        folder = save_bundle(pipeline, tmp_path / name)
        foreign = foreign_code(read_index(folder / "model_index.json"), folder)
        ours = [file for file in folder.rglob("*.py") if file not in foreign]
        assert bool(foreign) == (name == "toy"), "whose class is none of ours"
        for file in ours:
            file.write_text(file.read_text() + "import os\n")
        foreign = foreign_code(read_index(folder / "model_index.json"), folder)
        assert set(foreign) == set(folder.rglob("*.py"))


@pytest.mark.parametrize("family", ["../x", "networks.vae_model", "a.b.c", "", 3, None, ["vdm"]])
def test_a_family_that_a_file_names_is_a_plain_name(source, family):
    pipeline = DDPMPipeline.from_pretrained(source)
    try:
        assert as_ours(pipeline, family).family
    except ValueError as refused:
        assert "not a pipeline of this toolkit's families" in str(refused)  # noqa: PT017
    assert Path(source).is_dir()
