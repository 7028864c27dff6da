"""Class-conditional training through its entry point, and the label drop that guidance rests on."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import TINY
from diffusers import DDPMScheduler, UNet2DModel
from entry import environment, run, start
from PIL import Image
from test_train_unconditional import assert_same, weights

from trilemma.eval.plots.sheets import sheet
from trilemma.pipelines.class_conditional import ClassConditionalPipeline
from trilemma.training.diffusion.label_dropout import LabelDropout
from trilemma.training.networks.init_from import saved_config, take_weights

SCRIPT = "training/train_class_conditional.py"


def test_labels_are_dropped_one_by_one_at_the_rate_asked_for():
    torch.manual_seed(0)
    drop = LabelDropout(10, 0.1).train()
    labels = torch.arange(10).repeat(2000)
    dropped = drop(labels).view(2000, 10) == 10
    assert abs(dropped.double().mean() - 0.1) < 0.01
    # Drops within a batch are independent: the count per batch has the binomial's variance, 0.9.
    assert abs(dropped.sum(1).double().var() - 0.9) < 0.1


def test_the_null_label_is_no_class_and_validation_drops_nothing():
    labels = torch.arange(10)
    everything = LabelDropout(10, 1.0)
    assert (everything.train()(labels) == 10).all()
    assert torch.equal(everything.eval()(labels), labels)
    assert torch.equal(LabelDropout(10, 0.0).train()(labels), labels)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny class-conditional model."""
    folder = tmp_path_factory.mktemp("conditional")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    flags = ["--model_config_name_or_path", str(folder / "tiny.json"), "--train_batch_size", "8"]
    flags += ["--eval_batch_size", "20", "--ddpm_num_inference_steps", "5", "--max_train_steps", "4"]
    flags += ["--eval_steps", "4", "--eval_num_samples", "70", "--eval_metrics", "class_accuracy"]
    run(SCRIPT, *flags, "--output_dir", str(folder / "out"), "--cache_dir", str(folder / "cache"))
    return folder


def test_a_stranger_loads_the_folder_and_asks_for_classes_by_name(model, tmp_path):
    code = f"""
import sys
sys.modules["trilemma"] = None
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(model / "out")!r}, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
options = dict(guidance_scale=2.0, num_inference_steps=3, seeds=[5, 5, 5], output_type="np")
seen = []
pipe.unet.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[2].tolist()))
images = pipe(["3", 3, None], **options).images
# By what the network is asked for: after 4 steps of training the classes differ by no more than rounding.
assert seen == [[3, 3, 10, 10, 10]] * 3, seen
# Rows of a batch may be rounded differently: 3 steps of about 10 layers, float32's 1.2e-7 each.
assert abs(images[0] - images[1]).max() < 1e-5
"""
    home = {"HF_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(**home), cwd=tmp_path)


def test_evaluation_asks_for_the_datas_classes(model):
    told = [json.loads(line) for line in (model / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["metric"] for line in told] == ["class_accuracy"]
    assert 0 <= told[0]["value"] <= 1
    assert told[0]["judge_accuracy"] > 0.95
    assert (told[0]["guidance_scale"], told[0]["nfe"]) == (1.0, 5), "the pipeline's own default"


def test_guidance_is_shown_where_it_was_learned(model, tmp_path, tiny):
    """A model that never saw an image without its label has nothing to guide with."""
    assert (model / "out" / "guidance.png").is_file()
    assert "(guidance.png)" in (model / "out" / "README.md").read_text()
    run(SCRIPT, *tiny, "--max_train_steps", "1", "--p_uncond", "0", "--output_dir", str(tmp_path / "out"))
    assert not (tmp_path / "out" / "guidance.png").exists()
    assert "guidance.png" not in (tmp_path / "out" / "README.md").read_text()


def test_the_sheet_has_a_row_for_each_class_with_its_name(model):
    images = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    labelled, plain = sheet(images, class_names=tuple(map(str, range(10)))), sheet(images)
    assert Image.open(model / "out" / "samples.png").size == labelled.size != plain.size


@pytest.mark.long
def test_killed_and_resumed_ends_with_the_same_weights(tmp_path, tiny):
    flags = [*tiny, "--max_train_steps", "12", "--checkpointing_steps", "4", "--p_uncond", "0.3"]
    run(SCRIPT, *flags, "--output_dir", str(tmp_path / "uncut"))
    cut = tmp_path / "cut"
    assert start(SCRIPT, *flags, "--output_dir", str(cut), signal_at=(7, 9)).wait() == -9
    run(SCRIPT, *flags, "--output_dir", str(cut))
    assert_same(weights(tmp_path / "uncut"), weights(cut))


def test_data_without_labels_are_refused(tmp_path, tiny):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(folder / f"{i}.png")
    flags = ["--train_data_dir", str(folder), "--max_train_steps", "1", *tiny[:8]]
    done = run(SCRIPT, *flags, "--output_dir", str(tmp_path / "out"), check=False)
    assert done.wait() != 0
    assert "--label_column" in done.output
    assert "Traceback" not in done.output


def test_init_from_another_class_count_is_refused(model, tmp_path):
    flags = ["--init_from", str(model / "out"), "--classes", "0", "1", "2", "--train_batch_size", "8"]
    flags += ["--max_train_steps", "1", "--config", str(tmp_path / "c.yaml")]
    (tmp_path / "c.yaml").write_text("dataset_name: digits\n")
    done = run(SCRIPT, *flags, "--output_dir", str(tmp_path / "out"), check=False)
    assert done.wait() != 0
    assert "--init_new_classes" in done.output
    assert "--init_from" in done.output
    both = ["--init_new_classes", "--output_dir", str(tmp_path / "out")]
    done = run(SCRIPT, *flags, "--learning_rate", "1e-12", "--no-use_ema", *both)
    assert "new: class_embedding.weight with 4 rows: 3 of classes with the same names" in done.output
    old, new = weights(model / "out"), weights(tmp_path / "out")
    assert new["class_embedding.weight"].shape[0] == 4
    old["class_embedding.weight"] = old["class_embedding.weight"][[0, 1, 2, -1]]
    for name in old:
        torch.testing.assert_close(new[name], old[name])


@pytest.mark.parametrize("before", [None, 4, 6])
@pytest.mark.parametrize("after", [None, 4])
def test_with_new_classes_every_label_is_answered_as_none_was(tmp_path, before, after):
    """Unconditional to conditional, the other way, and other counts: the function starts where it ended."""
    old, new = saved_net(tmp_path, before), tiny_net(after)
    if before == after is None:
        with pytest.raises(ValueError, match="--init_new_classes has no effect"):
            take_weights(new, str(tmp_path), new_classes=True)
        return
    take_weights(new, str(tmp_path), new_classes=True)
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([0, 5, 50, 999])
    nothing = None if before is None else torch.full((4,), before - 1)
    wanted = old(x, t, nothing).sample
    for label in [None] if after is None else range(after):
        labels = None if label is None else torch.full((4,), label)
        torch.testing.assert_close(new(x, t, labels).sample, wanted)


def test_without_the_flag_a_misfit_names_it_and_the_net_stays_as_it_was(tmp_path):
    saved_net(tmp_path, 4)
    net = tiny_net(6)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"class_embedding.weight with \[4, 32\] there and \[6, 32\] here"):
        take_weights(net, str(tmp_path))
    assert_same(before, net.state_dict())


def test_as_many_classes_of_other_names_are_others(tmp_path):
    names = tuple(f"class {k}" for k in range(12))  # the file they are saved in has "10" before "2"
    ClassConditionalPipeline(tiny_net(13), DDPMScheduler(), class_names=names).save_pretrained(tmp_path)
    take_weights(tiny_net(13), str(tmp_path), names)
    with pytest.raises(ValueError, match=r"has 12 classes \('class 0'.* of 12 classes \('class 11', "):
        take_weights(tiny_net(13), str(tmp_path), names[::-1])
    old, new = UNet2DModel.from_pretrained(tmp_path, subfolder="unet"), tiny_net(13)
    take_weights(new, str(tmp_path), names[::-1], new_classes=True)
    rows = new.class_embedding.weight
    torch.testing.assert_close(rows, old.class_embedding.weight[[*range(11, -1, -1), 12]])  # by their names


def test_classes_of_the_same_names_are_carried_over_and_others_start_as_no_label(tmp_path):
    ClassConditionalPipeline(tiny_net(4), DDPMScheduler(), class_names=("cat", "dog", "owl")).save_pretrained(
        tmp_path
    )
    old, new = UNet2DModel.from_pretrained(tmp_path, subfolder="unet"), tiny_net(5)
    take_weights(new, str(tmp_path), ("ant", "owl", "cat", "yak"), new_classes=True)
    torch.testing.assert_close(new.class_embedding.weight, old.class_embedding.weight[[3, 2, 0, 3, 3]])


def test_weights_of_these_shapes_for_another_function_are_refused(tmp_path):
    """Shapes do not tell how the network is called: here, how t is embedded."""
    saved_net(tmp_path, None)
    net = tiny_net(None)
    net.register_to_config(flip_sin_to_cos=False, dropout=0.5, sample_size=16)
    with pytest.raises(ValueError, match=r"another network .*: flip_sin_to_cos: True there, False here$"):
        take_weights(net, str(tmp_path))


@pytest.mark.parametrize("load", [saved_config, lambda source: take_weights(tiny_net(None), source)])
def test_what_is_no_model_is_refused_by_the_name_of_the_option(tmp_path, load):
    for source in (str(tmp_path), "no/such/place"):
        with pytest.raises(ValueError, match=f"--init_from '{source}' is neither"):
            load(source)


def saved_net(folder, num_class_embeds):
    net = tiny_net(num_class_embeds)
    net.save_pretrained(folder / "unet")
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return net


def tiny_net(num_class_embeds):
    return UNet2DModel(
        **{key: value for key, value in TINY.items() if not key.startswith("_")},
        sample_size=8, in_channels=1, out_channels=1, num_class_embeds=num_class_embeds,
    ).eval()  # fmt: skip
