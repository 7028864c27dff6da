"""The command line: every flag of diffusers' script, precedence, and errors that help."""

import re
import subprocess
import sys

import pytest
import yaml
from entry import ROOT

from trilemma.training import families
from trilemma.training.diffusion.losses import LOSSES
from trilemma.training.diffusion.process import SCHEDULES, TARGETS
from trilemma.training.options.command_line import parse
from trilemma.training.options.flags import flags_of, flatten, to_yaml

DIFFUSERS_FLAGS = """dataset_name dataset_config_name model_config_name_or_path train_data_dir output_dir
overwrite_output_dir cache_dir resolution center_crop random_flip train_batch_size eval_batch_size
dataloader_num_workers num_epochs save_images_epochs save_model_epochs gradient_accumulation_steps
learning_rate lr_scheduler lr_warmup_steps adam_beta1 adam_beta2 adam_weight_decay adam_epsilon use_ema
ema_inv_gamma ema_power ema_max_decay push_to_hub hub_token hub_model_id hub_private_repo logger logging_dir
local_rank mixed_precision prediction_type ddpm_num_steps ddpm_num_inference_steps ddpm_beta_schedule
checkpointing_steps checkpoints_total_limit resume_from_checkpoint
enable_xformers_memory_efficient_attention preserve_input_precision""".split()
"""Of examples/unconditional_image_generation/train_unconditional.py, diffusers 0.42."""

COMMAND_OF_ITS_README = """--dataset_name=huggan/flowers-102-categories --resolution=64 --center_crop
--random_flip --output_dir=ddpm-ema-flowers-64 --train_batch_size=16 --num_epochs=100
--gradient_accumulation_steps=1 --use_ema --learning_rate=1e-4 --lr_warmup_steps=500 --mixed_precision=no
--push_to_hub""".split()


def read(*argv):
    return parse("unconditional", "", list(argv))


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as end:
        read(*argv)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_every_flag_of_diffusers_script_exists():
    assert set(DIFFUSERS_FLAGS) <= set(flags_of(families.family("unconditional").config))


def test_the_command_of_diffusers_readme_parses():
    config = read(*COMMAND_OF_ITS_README)
    assert config.data.dataset_name == "huggan/flowers-102-categories"
    assert (config.data.resolution, config.optim.learning_rate, config.hub.push_to_hub) == (64, 1e-4, True)


def documented_rows():
    """The flags of each row of the table for those who come from diffusers' script."""
    table = (ROOT / "docs" / "from_diffusers.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `--")]
    return [(re.findall(r"--(\w+)", flags), what) for flags, what in rows]


def words_of(name):
    """A value for a flag, as diffusers' script takes it: its booleans have none."""
    flag = flags_of(families.family("unconditional").config)[name]
    if flag.kind is bool:
        return [f"--{name}"]
    value = {"use_ema": "", "dataset_name": "a/b", "hub_model_id": "a/b", "resume_from_checkpoint": "latest"}
    plain = {str: "word", int: "2", float: "0.5"}
    return [f"--{name}={flag.choices[0] if flag.choices else value.get(name, plain[flag.kind])}"]


@pytest.mark.parametrize(("flags", "what"), documented_rows())
def test_each_row_of_the_table_for_users_of_diffusers_holds(flags, what, capsys):
    if "refused" in what.split(",")[0].split(":")[0]:
        for name in flags:
            assert f"--{name}" in refused(capsys, *words_of(name))
        return
    data = [] if "dataset_name" in flags else ["--dataset_name=a/b"]
    read(*data, *(word for name in flags for word in words_of(name)))
    for name in flags:  # and each alone
        read(*words_of(name))


def test_the_readme_s_table_has_every_flag_of_diffusers_script():
    assert sorted(name for flags, _ in documented_rows() for name in flags) == sorted(DIFFUSERS_FLAGS)


@pytest.mark.parametrize(
    ("argv", "remark"),
    [
        (["--hub_model_id", "a/b"], "--hub_model_id has no effect without --push_to_hub"),
        (["--hub_token", "x"], "--hub_token has no effect without --push_to_hub"),
        (["--hub_private_repo"], "--hub_private_repo has no effect without --push_to_hub"),
        (["--train_data_dir", "p", "--dataset_config_name", "x"], "--dataset_config_name has no effect"),
        (["--lr_scheduler", "constant", "--lr_warmup_steps", "500"], "--lr_warmup_steps has no effect"),
    ],
)
def test_what_diffusers_script_accepts_without_effect_is_said_and_accepted(argv, remark, capsys, monkeypatch):
    read(*argv)
    assert capsys.readouterr().err.count(remark) == 1
    monkeypatch.setenv("RANK", "1")
    read(*argv)
    assert not capsys.readouterr().err


def test_bare_command_is_the_digits_preset():
    assert flatten(read()) == flatten(read("--preset", "digits"))
    assert read().data.dataset_name == "digits"


def test_a_recipe_s_warm_up_is_left_out_where_it_is_more_than_half_of_the_run():
    def warmup(*flags):
        return read("--preset", "mnist", *flags).optim.lr_warmup_steps

    assert warmup() == warmup("--max_train_steps", "1000") == 500
    assert warmup("--max_train_steps", "999") is None
    assert warmup("--max_train_steps", "20", "--lr_warmup_steps", "500") == 500
    assert read("--max_train_steps", "20").optim.lr_warmup_steps is None


def test_another_data_set_does_not_inherit_the_digits_recipe():
    config = read("--dataset_name", "someone/cats")
    assert (config.net.net, config.optim.train_batch_size, config.optim.learning_rate) == (None, 128, 2e-4)
    assert config.run.output_dir == "outputs/unconditional-cats"


@pytest.mark.parametrize("family", families.names())
def test_every_preset_parses_and_names_its_source(family):
    for name, preset in families.family(family).presets.items():
        config = flatten(parse(family, "", ["--preset", name]))
        assert {k: config[k] for k in preset.options} == preset.options
        assert len(preset.source) > 20


def test_precedence_and_round_trip_through_yaml(tmp_path):
    config = read("--preset", "cifar10", "--learning_rate", "3e-4", "--classes", "airplane", "3")
    assert (config.optim.learning_rate, config.data.random_flip) == (3e-4, True)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    again = read("--config", str(tmp_path / "config.yaml"))
    assert again == config
    assert read("--config", str(tmp_path / "config.yaml"), "--seed", "5").run.seed == 5


def test_a_flag_wins_over_what_a_preset_or_a_file_has_in_its_place(tmp_path):
    (tmp_path / "c.yaml").write_text("train_data_dir: p\nnet: unet_8\nsave_images_epochs: 3\n")
    file = ["--config", str(tmp_path / "c.yaml")]
    config = read("--preset", "digits", "--num_epochs", "5", "--save_images_epochs", "2")
    assert (config.run.num_epochs, config.run.max_train_steps) == (5, None)
    assert (config.log.save_images_epochs, config.log.sample_steps) == (2, None)
    assert read("--preset", "digits", "--num_epochs", "5", "--max_train_steps", "9").run.max_train_steps == 9
    config = read(*file, "--dataset_name", "a/b", "--sample_steps", "4")
    assert (config.data.dataset_name, config.data.train_data_dir) == ("a/b", None)
    assert (config.log.save_images_epochs, config.log.sample_steps) == (None, 4)
    assert read(*file, "--model_config_name_or_path", "x.json").net.net is None
    assert read(*file).log.save_images_epochs == 3


def test_token_never_reaches_a_file():
    assert "secret-token" not in to_yaml(read("--push_to_hub", "--hub_token", "secret-token"))


def test_dry_run_prints_yaml_and_stops(capsys):
    with pytest.raises(SystemExit) as end:
        read("--preset", "cifar10", "--dry_run")
    assert end.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["net"] == "unet_cifar10"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--learning_rat", "1"], ["--learning_rat", "Did you mean --learning_rate?"]),
        (["--preset", "cifar"], ["--preset", "cifar", "cifar10"]),
        (["--loss_type", "l3"], ["--loss_type", "l3", "huber"]),
        (["--train_batch_size", "0"], ["--train_batch_size", "at least 1", "0"]),
        (["--learning_rate", "0"], ["--learning_rate", "greater than 0"]),
        (["--adam_beta2", "1"], ["--adam_beta2 must be at least 0 and less than 1; got 1"]),
        (["--ema_max_decay", "1.5"], ["--ema_max_decay must be at least 0 and at most 1; got 1.5"]),
        (["--dropout", "-0.1"], ["--dropout must be at least 0 and less than 1; got -0.1"]),
        (["--learning_rate", "nan"], ["--learning_rate", "finite", "nan"]),
        (["--train_data_dir="], ["--train_data_dir must not be empty", "leave the flag out"]),
        (["--seed", "4294967296"], ["--seed must be less than 4294967296"]),
        (["--eval_num_samples=--"], ["--eval_num_samples has no value"]),
        (["--classes", "cat", ""], ["--classes must not be empty"]),
        (["--train_batch_size", "many"], ["--train_batch_size", "many"]),
        (["--huber_delta", "2"], ["--huber_delta", "no effect", "--loss_type huber"]),
        (["--ema_power", "1", "--no-use_ema"], ["--ema_power", "--use_ema"]),
        (["--hub_tag", "v1"], ["--hub_tag", "no effect", "--push_to_hub"]),
        (["--push_to_hub", "--hub_tag", "v1", "--hub_create_pr"], ["--hub_tag", "--hub_create_pr"]),
        (["--beta_start", "1e-4", "--ddpm_beta_schedule", "squaredcos_cap_v2"], ["--beta_start", "linear"]),
        (["--variance_type", "fixed_small", "--loss_type", "vlb"], ["--variance_type", "--loss_type"]),
        (["--snr_gamma", "5", "--p2_gamma", "1"], ["--snr_gamma", "--p2_gamma"]),
        (["--snr_gamma", "5", "--loss_type", "vlb"], ["--snr_gamma", "vlb"]),
        (["--lr_scheduler", "multistep"], ["--lr_milestones"]),
        (["--preset", "digits", "--config", "x.yaml"], ["--preset", "--config"]),
        (["--config", "missing.yaml"], ["--config", "missing.yaml"]),
        (["--no-center_crop"], ["--no-center_crop", "centre"]),
        (["--preserve_input_precision"], ["--preserve_input_precision", "8"]),
        (["stray"], ["stray"]),
        (["--sampler", "dimm", "--dry_run"], ["--sampler must be one of ddim, ddpm", "Did you mean ddim?"]),
        (
            ["--sampler", "euler_ancestral", "--prediction_type", "sample", "--dry_run"],
            ["cannot sample models with --prediction_type sample", "ddim"],
        ),
        (["--learning_rate", "1e-8", "--lr_scheduler", "polynomial"], ["--learning_rate", "1e-07"]),
        (["--vae_channels", "8"], ["--vae_channels does not apply here", "training/train_vae.py"]),
    ],
)
def test_errors_name_the_option_the_value_and_the_remedy(capsys, argv, words):
    message = refused(capsys, *argv)
    for word in words:
        assert word in message


def test_unknown_key_in_a_config_file(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("learning_rats: 1\n")
    assert "learning_rate" in refused(capsys, "--config", str(tmp_path / "c.yaml"))
    (tmp_path / "c.yaml").write_text("train_batch_size: lots\n")
    assert "train_batch_size" in refused(capsys, "--config", str(tmp_path / "c.yaml"))


def test_tables_and_choices_agree():
    flags = flags_of(families.family("unconditional").config)
    for name, table in (
        ("loss_type", LOSSES),
        ("prediction_type", TARGETS),
        ("ddpm_beta_schedule", SCHEDULES),
    ):
        assert set(flags[name].choices) == set(table)


@pytest.mark.parametrize("family", families.names())
def test_the_first_sampler_is_that_of_sheets_and_others_are_refused(family, capsys):
    config = parse(family, "", ["--preset", "cifar10"])  # which names none
    assert config.sheet.sampler == families.family(family).samplers[0]
    with pytest.raises(SystemExit):
        parse(family, "", ["--sampler", "nonsense", "--dry_run"])
    names = ", ".join(families.family(family).samplers)
    assert f"--sampler must be one of {names}; got 'nonsense'" in capsys.readouterr().err


@pytest.mark.parametrize(("family", "sampler"), [("unconditional", "ddpm"), ("vdm", "ancestral")])
def test_a_config_file_that_names_its_sampler_still_loads(tmp_path, family, sampler):
    (tmp_path / "c.yaml").write_text(f"sampler: {sampler}\neval_batch_size: 5\nddpm_num_inference_steps: 7\n")
    sheet = parse(family, "", ["--config", str(tmp_path / "c.yaml")]).sheet
    assert (sheet.sampler, sheet.eval_batch_size, sheet.ddpm_num_inference_steps) == (sampler, 5, 7)


def test_the_preset_of_shortcut_chains_samples_by_them():
    assert parse("vdm", "", ["--preset", "swirl-shortcut"]).sheet.sampler == "shortcut"


def test_choices_that_only_higher_layers_know_are_checked_before_a_dry_run_prints(capsys):
    def check(config):
        raise ValueError(f"--eval_metrics must not be {config.evaluation.eval_metrics[0]}")

    with pytest.raises(SystemExit) as end:
        parse("unconditional", "", ["--eval_metrics", "fdd", "--eval_steps", "5", "--dry_run"], check=check)
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert "error: --eval_metrics must not be fdd" in captured.err
    assert not captured.out


def test_help_and_errors_of_every_family_answer_without_torch():
    code = "import sys; from trilemma.training import families\n"
    code += "from trilemma.training.options.command_line import parse\n"
    code += "for family in families.names():\n"
    code += "    for words in (['--oops'], ['--help']):\n"
    code += "        try: parse(family, '', words)\n"
    code += "        except SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
