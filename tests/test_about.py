"""What a card says beyond the run: its owner's words, the network, the best way to sample, credits."""

import json
import re

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.numpy import save_file
from test_card import HOSTILE, code, fill, folder, result, rows  # noqa: F401 (a fixture)

from trilemma.eval.features.judge_files import read_trained, shipped_judge
from trilemma.eval.scoring.results import append
from trilemma.model_cards.card import main
from trilemma.model_cards.hub.sent import sent
from trilemma.model_cards.rendering.differences import compare_card
from trilemma.model_cards.rendering.figures import best_sampling
from trilemma.model_cards.rendering.render import render_card, write_card
from trilemma.training.output_folder import OutputFolder

ABOUT = {
    "description": "Shapes.\n\nDrawn by me.", "data_source": "my camera", "license": "cc-by-4.0",
    "language": "en", "intended_use": "teaching", "contact": "me@example.org",
}  # fmt: skip


def test_the_owner_s_words_are_on_the_card_and_verified(folder, capsys):  # noqa: F811
    (folder / "about.yaml").write_text(yaml.safe_dump(ABOUT))
    text = write_card(folder).read_text()
    assert "\n\nShapes.\n\nDrawn by me.\n\n" in text
    assert dict(rows(text, "about")) == {
        "intended use": "teaching", "licence": "cc-by-4.0", "language": "en", "contact": "me@example.org",
    }  # fmt: skip
    assert dict(rows(text, "data"))["source"] == "my camera"
    data = ModelCard(text).data
    assert (data.license, data.language) == ("cc-by-4.0", ["en"])
    main([str(folder), "--verify"])
    (folder / "about.yaml").write_text(yaml.safe_dump(ABOUT | {"language": ["en", "de"]}))
    assert ModelCard(render_card(folder)).data.language == ["en", "de"]
    (folder / "about.yaml").write_text(yaml.safe_dump(ABOUT | {"contact": "you"}))
    assert any("me@example.org" in one for one in compare_card(folder).differences)
    (folder / "about.yaml").write_text("licens: mit\n")
    with pytest.raises(SystemExit):
        main([str(folder)])
    assert "about.yaml has 'licens'; entries are description, data_source, license" in capsys.readouterr().err


@pytest.mark.parametrize("text", [*HOSTILE, "# x\n\n## Use\n\n| metric | value |\n| --- | --- |\n| fid | 1 |",
    'from_pretrained("evil")', "---\nlicense: mit\n---",
    "<!-- This page is rendered from the files beside it (wording 1)",
    "This page is rendered from the files beside it (wording 1)", "- a\n\n    code"])  # fmt: skip
def test_hostile_words_of_the_owner_stay_text(folder, text):  # noqa: F811
    plain = write_card(folder).read_text()
    (folder / "about.yaml").write_text(yaml.safe_dump(dict.fromkeys(ABOUT, text)))
    card = write_card(folder).read_text()
    assert compare_card(folder).differences == []
    assert re.findall("^#.*", card, re.MULTILINE) == re.findall("^#.*", plain, re.MULTILINE)
    assert code(card, "python") == code(plain, "python")
    body = re.sub(r"\A---\n.*?\n---\n\n<!-- [^<>]* -->", "", card, flags=re.DOTALL)
    assert "<" not in body
    assert ModelCard(card).data.license in ("other", text)
    edited = card.replace("## Use", "Better than GPT.\n\n## Use")
    (folder / "README.md").write_text(edited)
    assert compare_card(folder).differences, "the words do not make it a card of another wording"


def test_about_yaml_is_published(folder):  # noqa: F811
    (folder / "about.yaml").write_text("contact: me\n")
    assert "about.yaml" in sent(OutputFolder(folder))


def test_the_snippet_samples_as_the_best_result_was_sampled(folder):  # noqa: F811
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = ["pipeline_class_conditional", "ClassConditionalPipeline"]
    (folder / "model_index.json").write_text(json.dumps(index | {"class_names": {"0": "a", "1": "b"}}))
    fill(folder, "class_conditional")
    assert "guidance_scale=2.0, num_inference_steps=50" in code(render_card(folder), "python")[0]
    ways = [("ddim", 50, 1.0, 9.0), ("heun", 20, 1.5, 3.0), ("ddim", 10, 3.0, 5.0)]
    lines = [
        result(value, "fd", sampler=sampler, num_inference_steps=steps, guidance_scale=guidance)
        for sampler, steps, guidance, value in ways
    ]
    assert best_sampling([]) is None
    assert (
        best_sampling([result(0.1, "precision"), result(0.9, "precision", sampler="heun")]).sampler == "heun"
    )
    append(folder / "results.jsonl", lines)
    (snippet,) = code(render_card(folder), "python")
    assert 'pipeline = pipeline.with_sampler("heun")' in snippet
    assert "guidance_scale=1.5, num_inference_steps=20" in snippet
    append(folder / "results.jsonl", [lines[1].__class__.from_json(lines[2].to_json() | {"value": 1.0})])
    (snippet,) = code(render_card(folder), "python")
    assert "DDIMScheduler" in snippet
    assert "guidance_scale=3.0, num_inference_steps=10" in snippet
    (folder / "README.md").write_text(render_card(folder))
    assert compare_card(folder).differences == []


def test_a_local_folder_is_credited_only_for_the_images_of_a_known_data_set(folder):  # noqa: F811
    fill(folder, "unconditional", "--preset", "mnist", "--train_data_dir", "m")
    append(folder / "results.jsonl", [result(1.0, data_fingerprint="of others")])
    assert dict(rows(render_card(folder), "data"))["made by"] == "unknown"
    known = read_trained(shipped_judge("mnist")).data_fingerprint
    append(folder / "results.jsonl", [result(1.0, data_fingerprint=known)])
    assert dict(rows(render_card(folder), "data"))["licence"] == "CC BY-SA 3.0"


def test_the_network_and_its_parameters(folder):  # noqa: F811
    assert dict(rows(render_card(folder), "run"))["network"].startswith("UNet2DModel")
    save_file({"a": np.zeros((3, 500)), "b": np.zeros(7)}, folder / "unet" / "x.safetensors")
    text = write_card(folder).read_text()
    assert dict(rows(text, "run"))["network"].endswith("1,507 parameters")
    assert text.count("1,507") == 1
    (folder / "unet" / "x.safetensors").write_bytes(b"cut")
    assert "parameters" not in dict(rows(render_card(folder), "run"))["network"]
