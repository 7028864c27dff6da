"""Does a card tell the results of `results.jsonl`? By row of its table and entry of its `model-index`."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard

from trilemma.model_cards.figures import COLUMNS, HEADER, TOLD, cells, evaluations
from trilemma.model_cards.folder import CARD, RENDERED, read_folder

FLAT = ("metric", "value", "split", *TOLD)


def check_card(folder: Path) -> tuple[int, list[str]]:
    """How many figures the card shows, and in what it disagrees with the newest lines of `results.jsonl`.

    A card of somebody's own need not show them all; one that was rendered must.
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
        problems += [f"table: {row[0]} {row[1]} is missing" for row in wanted if row not in rows]
        problems += [f"model-index: {one[0]} {one[1]} is missing" for one in known if one not in told]
    return len(rows) + len(told), problems


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
