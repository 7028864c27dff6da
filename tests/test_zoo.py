"""The models in the repository: README's table is theirs, and their cards are what their files give."""

import re
import sys

import pytest
from entry import ROOT

from trilemma.model_cards.rendering.differences import compare_card

ZOO = sorted(path.parent for path in (ROOT / "model_cards" / "zoo").glob("*/README.md"))


def test_the_table_of_readme_is_what_the_results_give(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import zoo_page

    assert zoo_page.table(zoo_page.zoo()) in (ROOT / "README.md").read_text(encoding="utf-8")
    del sys.modules["zoo_page"]


@pytest.mark.parametrize("model", ZOO, ids=lambda path: path.name)
def test_the_card_is_what_the_files_give(model):
    assert compare_card(model).differences == []


@pytest.mark.parametrize("model", ZOO, ids=lambda path: path.name)
def test_nothing_names_a_folder_of_the_machine(model):
    for name in ("config.yaml", "run.json", "results.jsonl", "README.md"):
        text = (model / name).read_text(encoding="utf-8")
        assert not re.search(r"(^|[\s\"'(])/\w", text, re.MULTILINE), f"{name} has an absolute path"
