"""The models in the repository: README's table is theirs, and their cards are what their files give."""

import json
import re
import sys

import pytest
from entry import ROOT

from trilemma.eval.studies.models import Model
from trilemma.model_cards.rendering.differences import compare_card

ZOO = sorted(path.parent for path in (ROOT / "model_cards" / "zoo").glob("*/README.md"))


def test_the_table_of_readme_is_what_the_results_give(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import zoo_page

    assert zoo_page.table(zoo_page.zoo()) in (ROOT / "README.md").read_text(encoding="utf-8")
    del sys.modules["zoo_page"]


def test_the_table_of_readme_counts_the_images_of_a_teacher_apart(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import zoo_page

    def made(name: str, seen: int, **config) -> Model:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
        (tmp_path / name / "run.json").write_text(json.dumps({"images_seen": seen}))
        return Model(name, [], {"images_seen": seen}, [], config)

    monkeypatch.setattr(zoo_page, "ROOT", tmp_path)
    assert zoo_page.images(made("teacher", 5000)) == "5,000"
    assert zoo_page.images(made("tuned", 1000, init_from="teacher")) == "1,000, after 5,000"
    del sys.modules["zoo_page"]


@pytest.mark.parametrize("model", ZOO, ids=lambda path: path.name)
def test_the_card_is_what_the_files_give(model):
    assert compare_card(model).differences == []


@pytest.mark.parametrize("model", ZOO, ids=lambda path: path.name)
def test_nothing_names_a_folder_of_the_machine(model):
    for name in ("config.yaml", "run.json", "results.jsonl", "README.md"):
        text = (model / name).read_text(encoding="utf-8")
        assert not re.search(r"(^|[\s\"'(])/\w", text, re.MULTILINE), f"{name} has an absolute path"
