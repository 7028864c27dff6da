"""--init_from takes over what the saved weights have learned, or is refused."""

import json

import pytest
import torch
import yaml
from diffusers import DDPMScheduler

from trilemma.training.options.command_line import parse

PARENT = {"prediction_type": "v_prediction", "ddpm_beta_schedule": "squaredcos_cap_v2", "ddpm_num_steps": 500}


def parent(folder, flags=None, **scheduler):
    """The files of a saved model that say how it was trained."""
    folder.mkdir(exist_ok=True)
    if flags is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump({"dataset_name": "digits", **flags}))
    if scheduler:
        DDPMScheduler(**scheduler).save_pretrained(folder / "scheduler")
    return ["--dataset_name", "user/data", "--init_from", str(folder)]


def cosine(folder, flags=PARENT):
    names = {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}
    return parent(folder, flags, num_train_timesteps=500, **names)


def refused(capsys, family, argv):
    with pytest.raises(SystemExit) as end:
        parse(family, "", argv)
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("family", ["unconditional", "class_conditional"])
@pytest.mark.parametrize("flags", [PARENT, None])
def test_target_schedule_and_steps_are_taken_over(tmp_path, capsys, family, flags):
    config = parse(family, "", cosine(tmp_path / "p", flags))
    assert config.objective.prediction_type == "v_prediction"
    assert (config.process.ddpm_beta_schedule, config.process.ddpm_num_steps) == ("squaredcos_cap_v2", 500)
    assert config.process.beta_start is config.process.beta_end is None
    said = capsys.readouterr().err
    assert "taken over from --init_from" in said
    assert "--prediction_type v_prediction" in said


def test_a_preset_gives_way_and_what_is_typed_alike_is_accepted(tmp_path):
    flags = parent(tmp_path / "p", None, num_train_timesteps=1000)[2:]
    config = parse("unconditional", "", [*flags, "--preset", "digits"])  # a cosine recipe, of v
    assert config.objective.prediction_type == "epsilon"
    assert config.process.ddpm_beta_schedule == "linear"
    alike = ["--prediction_type", "epsilon", "--ddpm_num_steps", "1000", "--beta_end", "0.02"]
    assert parse("unconditional", "", [*flags, *alike, "--dataset_name", "a/b"]).process.beta_end == 0.02


def test_what_is_typed_otherwise_is_refused_with_a_list(tmp_path, capsys):
    flags = cosine(tmp_path / "p")
    typed = ["--prediction_type", "epsilon", "--ddpm_num_steps", "1000"]
    said = refused(capsys, "unconditional", [*flags, *typed])
    assert "--prediction_type: v_prediction there, epsilon here" in said
    assert "--ddpm_num_steps: 500 there, 1000 here" in said
    assert "--ddpm_beta_schedule" not in said
    (tmp_path / "c.yaml").write_text("dataset_name: a/b\nprediction_type: epsilon\n")
    said = refused(capsys, "unconditional", [*flags[2:], "--config", str(tmp_path / "c.yaml")])
    assert "--prediction_type: v_prediction there, epsilon here" in said


def test_the_ends_of_the_schedule_are_taken_over(tmp_path, capsys):
    flags = parent(tmp_path / "p", None, beta_start=2e-4, beta_end=0.03)
    process = parse("unconditional", "", flags).process
    assert (process.beta_start, process.beta_end) == (2e-4, 0.03)
    said = refused(capsys, "unconditional", [*flags, "--beta_end", "0.02"])
    assert "--beta_end: 0.03 there, 0.02 here" in said
    usual = parent(tmp_path / "q", None, beta_start=5e-4, beta_end=0.1, num_train_timesteps=200)
    process = parse("unconditional", "", usual).process  # the usual ends at this T
    assert (process.ddpm_num_steps, process.beta_start, process.beta_end) == (200, None, None)


def test_a_process_that_no_flags_give_is_refused(tmp_path, capsys):
    flags = parent(tmp_path / "p", None, trained_betas=torch.linspace(1e-4, 0.02, 1000).tolist())
    assert "no flags give the noise schedule of its DDPMScheduler" in refused(capsys, "unconditional", flags)
    flags = parent(tmp_path / "q", None, rescale_betas_zero_snr=True)
    assert "no flags give the noise schedule" in refused(capsys, "unconditional", flags)


def test_other_families_take_over_theirs(tmp_path, capsys):
    flags = parent(tmp_path / "gan", {"ddpm_num_steps": 8, "beta_min": 0.2, "beta_max": 10.0})
    options = parse("ddgan", "", flags).objective
    assert (options.ddpm_num_steps, options.beta_min, options.beta_max) == (8, 0.2, 10.0)
    assert "--beta_max: 10.0 there, 20.0 here" in refused(capsys, "ddgan", [*flags, "--beta_max", "20"])
    flags = parent(tmp_path / "vdm", {"gamma": "monotone", "fourier_features": [3, 4]})
    options = parse("vdm", "", flags).objective
    assert (options.gamma, options.fourier_features) == ("monotone", (3, 4))
    parse("vae", "", parent(tmp_path / "vae", {"latent_dim": 8}))


def test_damaged_files_of_the_parent_are_named(tmp_path, capsys):
    flags = cosine(tmp_path / "p")
    (tmp_path / "p" / "scheduler" / "scheduler_config.json").write_text("{")
    assert "scheduler_config.json is not JSON" in refused(capsys, "unconditional", flags)
    scheduler = {"_class_name": "DDPMScheduler", "beta_schedule": "laplace", "num_train_timesteps": 500}
    (tmp_path / "p" / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    said = refused(capsys, "unconditional", flags)
    assert "ddpm_beta_schedule in scheduler/scheduler_config.json must be one of linear" in said


def test_a_run_does_not_start_from_its_own_folder(tmp_path, capsys):
    """The folder of a run on some data is also the default of a fine-tuning on the same data."""
    flags = ["--init_from", str(tmp_path / "x" / ".." / "out"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        parse("unconditional", "", flags)
    assert "is the --output_dir itself; give another --output_dir" in capsys.readouterr().err
