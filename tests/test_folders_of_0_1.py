"""Output folders that version 0.1 made (`data/folders_of_0.1.tar.xz`): they resume, load, evaluate, render.

Each is a run of four steps on the digits with a network of a few hundred weights: its checkpoint of step 2
(the autoencoder has none), results and card. A resumed run must end in the weights that version 0.1 ended in.
Bits are promised on one machine only, so weights are compared up to rounding.
"""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from entry import run
from safetensors.torch import load_file

from trilemma.model_cards.card import main as card
from trilemma.training.output_folder import OutputFolder

# The families of version 0.1; later ones have no folders of it.
FAMILIES = ("unconditional", "class_conditional", "ddgan", "vdm", "vae")
RESUMABLE = FAMILIES[:-1]
SETTINGS = {
    "unconditional": ["--sampler", "ddpm"],
    "class_conditional": ["--sampler", "ddpm"],
    "vdm": ["--sampler", "shortcut", "--num_inference_steps", "5"],
}
"""How the first line of results was drawn, where the run drew its own samples in another way."""


@pytest.fixture
def folder(tmp_path, request):
    """A copy of the folder of one family, and beside it the configuration of its network."""
    with tarfile.open(Path(__file__).parent / "data" / "folders_of_0.1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "outputs").mkdir()
    place = tmp_path / "outputs" / f"old-{request.param}"
    shutil.move(tmp_path / f"old-{request.param}", place)
    return OutputFolder(place)


def weights_of(folder: OutputFolder) -> dict[str, torch.Tensor]:
    return {
        f"{path.parent.name}/{name}": tensor
        for path in folder.path.glob("*/*.safetensors")
        for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize("folder", RESUMABLE, indirect=True)
def test_a_checkpoint_resumes_and_ends_in_the_same_weights(folder, tmp_path):
    family, before = folder.family, weights_of(folder)
    config = tmp_path / "config.yaml"
    shutil.copy(folder.config, config)
    done = run(f"training/train_{family}.py", "--config", str(config), "--cache_dir", str(tmp_path / "cache"),
               cwd=tmp_path)  # fmt: skip
    assert "at step 2" in done.output
    after = weights_of(folder)
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.allclose(after[name], tensor, rtol=1e-4, atol=1e-5), name
    assert folder.read_run()["steps"] == 4


@pytest.mark.parametrize("folder", FAMILIES, indirect=True)
def test_a_model_is_scored_again_with_the_same_result(folder, tmp_path):
    lines = [json.loads(line) for line in folder.results.read_text().splitlines()]
    flags = SETTINGS.get(folder.family, [])
    run("eval/evaluate.py", "--model", str(folder.path), "--feature_extractor", "pixels", "--metrics", "fd",
        "--num_samples", "64", "--cache_dir", str(tmp_path / "cache"), *flags)  # fmt: skip
    again = [json.loads(line) for line in folder.results.read_text().splitlines()]
    assert again[: len(lines)] == lines
    (new,) = again[len(lines) :]
    old = next(line for line in lines if line["metric"] == new["metric"])
    assert new["value"] == pytest.approx(old["value"], rel=1e-3)
    for name in ("n", "seeds", "num_inference_steps", "nfe", "guidance_scale", "data_fingerprint"):
        assert new[name] == old[name], name


@pytest.mark.parametrize("folder", FAMILIES, indirect=True)
def test_the_card_that_version_0_1_rendered_agrees_with_its_files(folder, capsys):
    """Its wording is older and the sampler has another name on it: neither is an edit."""
    card([str(folder.path), "--verify"])
    assert "only its facts were compared" in capsys.readouterr().out


@pytest.mark.parametrize("folder", FAMILIES, indirect=True)
def test_a_card_is_rendered_again_and_agrees_with_its_files(folder, capsys):
    card([str(folder.path)])
    card([str(folder.path), "--verify"])
    assert "in results.jsonl" in capsys.readouterr().out
    text = folder.card.read_text()
    assert f"training/train_{folder.family}.py" in text
    assert all(f"{json.loads(line)['value']:.5g}" in text for line in folder.results.read_text().splitlines())
