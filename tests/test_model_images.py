"""Which model is opened, and how it is drawn where no sampler is given."""

import pytest
import torch
import yaml
from accelerate import Accelerator
from conftest import TINY
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from trilemma.eval.evaluate import EvaluateConfig
from trilemma.eval.generate import GenerateConfig
from trilemma.eval.options import ModelConfig, SamplingConfig
from trilemma.eval.scoring.model_images import load_model, open_drawing
from trilemma.model_cards.hub.recheck import recheck
from trilemma.pipelines.files.hub import check_place
from trilemma.training.options.command_line import parse
from trilemma.training.options.parser import parse_flags

RUN = {"sampler": "dpmsolver++", "ddpm_num_inference_steps": 20}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A stock pipeline of 1,000 steps."""
    folder = tmp_path_factory.mktemp("model")
    network = UNet2DModel(sample_size=8, **TINY)
    DDPMPipeline(network, DDPMScheduler(timestep_spacing="trailing")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("options", "given", "expected"), [
    (None, {}, ("ddpm", 1000, "ddpm")),
    (RUN, {}, ("dpmsolver++", 20, "ddpm")),
    (RUN, {"num_inference_steps": 10}, ("dpmsolver++", 10, "ddpm")),
    (RUN, {"sampler": "ddim"}, ("ddim", 50, "ddim")),
    (RUN, {"sampler": "saved"}, ("ddpm", 1000, "ddpm")),
    (RUN, {"sampler": "ddpm", "num_inference_steps": 1000}, ("ddpm", 1000, "ddpm")),
    ({"sampler": "ddpm", "ddpm_num_inference_steps": None}, {}, ("ddpm", 1000, "ddpm")),
    ({"sampler": "shortcut"}, {}, ("ddpm", 1000, "ddpm")),
    ({"sampler": 5}, {}, ("ddpm", 1000, "ddpm")),
])  # fmt: skip
def test_a_model_is_drawn_as_its_run_drew_it_unless_a_sampler_is_given(
    model, capsys, options, given, expected
):
    """Bits per dimension are the saved pipeline's; a config.yaml that cannot be used changes nothing."""
    (model / "config.yaml").write_text(yaml.safe_dump(options or {}))
    drawing = open_drawing(ModelConfig(str(model)), SamplingConfig(**given), Accelerator(cpu=True))
    sampler, steps = drawing.pipeline.sampler, drawing.sampling.num_inference_steps
    assert (sampler, steps, (drawing.saved or drawing.pipeline).sampler) == expected
    said = capsys.readouterr().out
    if options == RUN and "sampler" not in given:
        assert f"Drawing with {sampler}, {steps} steps an image, as the run drew its own samples." in said
        assert "--sampler ddpm --num_inference_steps 1000" in said
    else:
        assert "Drawing" not in said


@pytest.mark.parametrize("place", ["./x", "/no/such", "~/x", "here/x", "a/b/c"])
def test_a_folder_that_is_not_there_is_not_asked_of_the_hub(tmp_path, monkeypatch, capsys, place):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("the Hub was asked"))
    for refused in (
        lambda: parse_flags(EvaluateConfig, "", ["--model", place]),
        lambda: parse_flags(GenerateConfig, "", ["--model", place]),
        lambda: parse("unconditional", "", ["--init_from", place]),
    ):
        with pytest.raises(SystemExit):
            refused()
        assert f"{place!r}: there is no such folder" in capsys.readouterr().err
    for refused in (lambda: load_model(place, torch.device("cpu")), lambda: recheck(place)):
        with pytest.raises(ValueError, match="there is no such folder"):
            refused()


@pytest.mark.parametrize("place", ["user/model", "model", "here", "./here", "here/inside"])
def test_what_may_be_a_model_of_the_hub_or_is_here_is_let_through(tmp_path, monkeypatch, place):
    (tmp_path / "here" / "inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    check_place(place, "--model")
