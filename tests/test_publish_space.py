"""`publish --space` to the loopback Hub: the Space's files, what is refused, a page by itself."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, constants
from loopback_hub import LoopbackHub
from test_compare import LINE
from test_shared_pipelines import make

from trilemma.model_cards.hub import upload
from trilemma.model_cards.hub.bundle import save_bundle
from trilemma.model_cards.hub.upload import PublishError, publish_space
from trilemma.model_cards.publish import main
from trilemma.model_cards.space import files
from trilemma.model_cards.space.files import INSTALLED, space_files

NAME, SPACE = "tester/model", "spaces/tester/model-demo"
VERSIONS = dict.fromkeys([*INSTALLED, "gradio"], "6.1.0") | {"torch": "2.9.0+cpu"}

WITH_CODE = [("unconditional", {"pipeline_unconditional.py"}), ("vae", set())]
"""A stock pipeline needs the code of its family, others bring theirs."""


@pytest.fixture
def hub(monkeypatch):
    with LoopbackHub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(upload, "HfApi", lambda token: HfApi(endpoint=hub.url, token=token))
        monkeypatch.setattr(files, "version", VERSIONS.__getitem__)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


def saved(folder: Path, family: str, card: str = "---\nlicense: mit\n---\n# A model\n") -> Path:
    save_bundle(make(family), folder)
    (folder / "README.md").write_text(card)
    return folder


def push(folder, *flags):
    main([str(folder), "--hub_model_id", "model", "--allow_unevaluated", *flags])


@pytest.mark.parametrize(("family", "code"), WITH_CODE)
def test_the_space_stands_beside_the_model(hub, tmp_path, capsys, family, code):
    folder = saved(tmp_path / "out", family)
    push(folder)
    assert list(hub.repos) == [NAME]
    push(folder, "--space")
    assert set(hub.repos) == {NAME, SPACE}
    assert f"{hub.url}/{NAME}\n" in capsys.readouterr().out
    space = hub.repos[SPACE].files()
    assert set(space) == {".gitattributes", "app.py", "page.py", "requirements.txt", "README.md"} | code
    front = yaml.safe_load(space["README.md"].decode().split("---")[1])
    assert front["sdk"] == "gradio"
    assert front["sdk_version"] == "6.1.0"
    assert front["models"] == [NAME]
    assert (front["app_file"], front["title"]) == ("app.py", "model: demo")
    assert b"torch==2.9.0\n" in space["requirements.txt"]
    assert f'MODEL = "{NAME}"'.encode() in space["app.py"]
    log = list(hub.repos[SPACE].log)
    push(folder, "--space")
    assert hub.repos[SPACE].log == log


@pytest.mark.parametrize("flag", ["--private", "--create_pr"])
def test_a_space_of_what_others_cannot_load_is_refused(hub, tmp_path, capsys, flag):
    with pytest.raises(SystemExit):
        push(tmp_path, "--space", flag)
    assert f"cannot be combined with {flag}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--verify", NAME, "--space"])
    assert "cannot be combined with --verify" in capsys.readouterr().err
    assert not hub.requests


def test_a_private_model_gets_no_space(hub, tmp_path):
    folder = saved(tmp_path / "out", "vae")
    push(folder, "--private")
    with pytest.raises(PublishError, match=f"{NAME} is private"):
        publish_space(folder, NAME)
    assert list(hub.repos) == [NAME]


def test_without_gradio_nothing_is_published(hub, tmp_path, monkeypatch, capsys):
    def missing(package):
        raise files.PackageNotFoundError(package)

    monkeypatch.setattr(files, "version", missing)
    with pytest.raises(SystemExit):
        push(saved(tmp_path / "out", "vae"), "--space")
    assert "pip install 'trilemma[demo]'" in capsys.readouterr().err
    assert not hub.requests


def test_a_hub_that_refuses_is_an_error_without_the_token(hub, tmp_path):
    folder = saved(tmp_path / "out", "vae")
    push(folder)
    hub.fail_after(0, r"POST /api/spaces/.*/commit", times=9, status=403)
    with pytest.raises(PublishError, match="model-demo was not made") as refused:
        publish_space(folder, NAME)
    assert hub.token not in str(refused.value)


def test_a_space_begins_with_how_the_best_result_was_sampled(hub, tmp_path):
    """And without results with how the run drew its own samples."""
    folder = saved(tmp_path / "out", "unconditional")
    (folder / "config.yaml").write_text(yaml.safe_dump({"sampler": "ddpm", "ddpm_num_inference_steps": 9}))
    assert b'Settings("ddpm", 9, None)' in space_files(folder, NAME)["app.py"]
    lines = [{**LINE, "value": value, "num_inference_steps": steps} for value, steps in ((3.0, 5), (2.0, 7))]
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert b'Settings("ddim", 7, None)' in space_files(folder, NAME)["app.py"]


def test_hostile_names_stay_words(hub, tmp_path):
    """A sampler's name from a file of the folder is a string of the program, whatever it holds."""
    folder = saved(tmp_path / "out", "vae")
    name = '"); import os; os.abort() #\n'
    (folder / "config.yaml").write_text(yaml.safe_dump({"sampler": name, "ddpm_num_inference_steps": 5}))
    app = space_files(folder, NAME)["app.py"].decode()
    settings = [word for word in compile(app, "app.py", "exec").co_consts if word == name]
    assert settings == [name]


@pytest.mark.long
@pytest.mark.parametrize("family", ["unconditional", "flow"])
def test_the_page_of_a_space_needs_no_trilemma(hub, tmp_path, family):
    """Its files in a process that cannot import the toolkit, with a stand-in for Gradio."""
    folder = saved(tmp_path / "out", family)
    place = tmp_path / "space"
    place.mkdir()
    for name, content in space_files(folder, NAME).items():
        (place / name).write_bytes(content)
    push(folder)
    (place / "gradio.py").write_text(GRADIO)
    printed = hub.python(PROGRAM.format(place=str(place)), tmp_path / "home")
    assert printed.splitlines()[-1] == "21 states of 2 images"


GRADIO = """
class Part:
    def __init__(self, *_, **__): pass
    def __getattr__(self, name): return lambda *_, **__: self
    def __enter__(self): return self
    def __exit__(self, *_): pass

def __getattr__(name):
    return Part
"""
PROGRAM = """
import sys
sys.modules["trilemma"] = None
sys.path.insert(0, {place!r})
import app
from page import Settings, draw
drawn = draw(app.pipeline, "0-1", Settings(steps=20))
print(len(drawn.states), "states of", len(drawn.states[-1]), "images")
"""
