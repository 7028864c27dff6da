"""Does a card tell the results of `results.jsonl`? By row of its table and entry of its `model-index`.

A card that was rendered must also be, line by line, what its folder's files give; the model's id is taken
from the card, since a copied or downloaded folder has another name.
"""

import json
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard

from trilemma.model_cards.rendering.figures import COLUMNS, HEADER, TOLD, cells, evaluations
from trilemma.model_cards.rendering.render import render_card
from trilemma.model_cards.rendering.facts import CARD, RENDERED, read_folder

REMEDY = "the card is not what the files give: python -m trilemma.model_cards.card {folder} renders it again"

ID = re.compile(r'from_pretrained\("([^"\\]+)"')
"""How the code on a card names the model."""

FLAT = ("metric", "value", "split", *TOLD)


def check_card(folder: Path) -> tuple[int, list[str]]:
    """How many figures the card shows, and in what it disagrees with the newest lines of `results.jsonl`.

    A card of somebody's own may say more and need not show them all; one that was rendered must be as it was.
    """
    text, lines = (folder / CARD).read_text(encoding="utf-8"), read_folder(folder).lines
    try:
        told = [_flat(result) for result in ModelCard(text).data.eval_results or []]
    except (ValueError, yaml.YAMLError) as problem:
        return 0, [f"the front matter cannot be read: {problem}"]
    rows, wanted = _rows(text), [cells(line) for line in lines]
    known = [_flat(result) for result in evaluations(lines, "")]
    problems = [f"table: {_difference(row, wanted, COLUMNS)}" for row in rows if row not in wanted]
    problems += [f"model-index: {_difference(one, known, FLAT)}" for one in told if one not in known]
    if RENDERED in text:
        named = ID.search(text)
        problems += _edits(text, render_card(folder, named and named[1]))
    return len(rows) + len(told), problems


def _edits(text: str, rendered: str) -> list[str]:
    """Where a card is not as it is rendered."""
    here, there, found = text.splitlines(), rendered.splitlines(), []
    for kind, a, b, c, d in SequenceMatcher(None, here, there, autojunk=False).get_opcodes():
        if kind != "equal":
            found += [f"line {i + 1} is not from the files: {here[i]}" for i in range(a, b)]
            found += [f"line {a + 1} should be: {line}" for line in there[c:d]]
    return found


def _rows(text: str) -> list[tuple[str, ...]]:
    """The rows under the table's header, as cells."""
    _, _, after = text.partition(HEADER + "\n")
    found = []
    for line in after.splitlines()[1:]:
        if not line.startswith("|"):
            break
        found.append(tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]))
    return found


def _flat(result: EvalResult) -> tuple[str, ...]:
    """Metric, value, split and protocol as texts that compare whatever they hold."""
    told = result.metric_args or {}
    values = [result.metric_type, result.metric_value, result.dataset_split, *map(told.get, TOLD)]
    return tuple(json.dumps(value) for value in values)


def _difference(wrong: Sequence[str], known: Sequence[Sequence[str]], names: Sequence[str]) -> str:
    """In what `wrong` differs from the most alike of what is known."""
    alike = max(known, key=lambda row: sum(map(str.__eq__, row, wrong)), default=("nothing",) * len(names))
    pairs = zip(names, wrong, alike, strict=False)
    told = [f"{name} {here or '-'} (there {there or '-'})" for name, here, there in pairs if here != there]
    return f"{wrong[0] if wrong else 'a row'}: " + ("; ".join(told) or "a cell too many or too few")
