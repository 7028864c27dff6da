"""Where a card differs from the files that it was rendered from.

The figures of any card, in its table and in its `model-index`, must be the newest lines of `results.jsonl`. A
card that was rendered must also be, line by line, what the files give; the model's id is taken from the card,
since a copied or downloaded folder has another name. Where a card has an older wording, only its facts are
compared: front matter, tables and code.
"""

import ast
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard

from trilemma.eval.scoring.naming import SCHEDULERS
from trilemma.model_cards.rendering.contents import read_contents
from trilemma.model_cards.rendering.figures import (
    ARGUMENTS,
    COLUMNS,
    HEADER,
    OLDER_COLUMNS,
    OLDER_HEADER,
    cells,
    evaluations,
)
from trilemma.model_cards.rendering.render import WORDS, render_card, words_of
from trilemma.pipelines.files.writing import write_text
from trilemma.training.output_folder import OutputFolder
from trilemma.training.progress import counted

ID = re.compile(r'^\w+ = \w+\.from_pretrained\(("(?:[^"\\\n]|\\.)+")', re.MULTILINE)
"""How the code on a card names the model; no line of another part of it begins so."""

SAMPLER = re.compile(rf"(sampler: |\| )({'|'.join(SCHEDULERS)})\b")
"""How older cards, and cards that were written by hand, name a sampler: in the front matter and the table."""

STEPS = re.compile(r"(\| |, )(\d+) (step|noise level)s\b")
"""How tables of cards up to wording 8 name a number of steps."""

ENTRIES = ("metric", "value", "split", *ARGUMENTS)

SHOWN = 5
"""Differences that a message lists; one evaluation moves dozens of lines of a card."""


@dataclass(frozen=True)
class Comparison:
    """How many figures a card shows, where it differs from the files, and what could not be compared."""

    figures: int
    differences: list[str] = field(default_factory=list)
    remark: str = ""

    def message(self, folder: Path) -> str:
        """What to do about the differences, and the first of them."""
        shown, more = self.differences[:SHOWN], len(self.differences) - SHOWN
        rest = [f"... and {more} more; the same command with --verify lists all of them"] if more > 0 else []
        return "\n".join(
            [f"the card differs from its files; to render it again: {to_render(folder)}", *shown, *rest]
        )


def to_render(folder: Path) -> str:
    """The command that renders the card of a folder, for a shell."""
    return f"python -m trilemma.model_cards.card {shlex.quote(str(folder))}"


def to_measure(folder: Path) -> str:
    """The command that measures the model of a folder, for a shell."""
    return f"accelerate launch eval/evaluate.py --model {shlex.quote(str(folder))}"


@contextmanager
def card_follows(model: str | None) -> Iterator[None]:
    """The card of a model's folder is rendered again after the block, which may change the folder's files.

    A card that is not what its files give stays as it is: somebody may have edited it. model: a folder; for
    anything else, and on all processes but the main one, nothing is done.
    """
    folder = Path(model or ".")
    card = OutputFolder(folder).card
    main = model is not None and int(os.environ.get("RANK", 0)) == 0
    text = card.read_text(encoding="utf-8", errors="replace") if main and card.is_file() else ""
    if words_of(text) is None:
        yield
        return
    before = _rendered(folder, text)
    yield
    after = _rendered(folder, text)
    if after in (before, None):
        return
    if before != text:
        print(
            f"{card} stays as it is, since it was not what its files gave. "
            f"To render it again: {to_render(folder)}"
        )
    else:
        write_text(card, after)
        print(f"rendered {card} again")


def _rendered(folder: Path, text: str) -> str | None:
    """What the files give, under the id that the card `text` has; None if they cannot be read."""
    with suppress(ValueError, OSError):
        return render_card(folder, _id_on(text))


def compare_card(path: Path) -> Comparison:
    """Compare the card of an output folder with the folder's files.

    A card that was written by hand may say more than the files, and need not show all figures.
    """
    text = OutputFolder(path).card.read_text(encoding="utf-8")
    lines, words = read_contents(path).lines, words_of(text)
    if words != WORDS:
        text = SAMPLER.sub(lambda match: match[1] + SCHEDULERS[match[2]], text)
        text = STEPS.sub(lambda match: match[1] + counted(int(match[2]), match[3]), text)
        text = text.replace("| precision | no |", "| precision | fp32 |")
    try:
        entries = [_flat(result) for result in ModelCard(text).data.eval_results or []]
    except (ValueError, yaml.YAMLError) as problem:
        return Comparison(0, [f"the front matter cannot be read: {problem}"])
    older = HEADER not in text
    rows, measured = _rows(text, older), [cells(line, older) for line in lines]
    columns = OLDER_COLUMNS if older else COLUMNS
    measured_entries = [_flat(result) for result in evaluations(lines, "")]
    differences = [f"table: {_difference(row, measured, columns)}" for row in rows if row not in measured]
    differences += [
        f"model-index: {_difference(entry, measured_entries, ENTRIES)}"
        for entry in entries
        if entry not in measured_entries
    ]
    count = len(rows) + len(entries)
    if words is None:
        return Comparison(count, differences)
    rendered = render_card(path, _id_on(text), words)
    if words == WORDS:
        return Comparison(count, differences + _edits(_numbered(text), _numbered(rendered)))
    remark = f"only its facts were compared, since its wording is number {words} and the present one {WORDS}"
    return Comparison(count, differences + _edits(_facts(text), _facts(rendered)), remark)


def _id_on(text: str) -> str | None:
    """The model's id in the code of a card; None where there is none that can be read."""
    with suppress(SyntaxError, ValueError):
        named = ID.search(text)
        return named and ast.literal_eval(named[1])


def _numbered(text: str) -> list[tuple[int, str]]:
    return list(enumerate(text.splitlines(), 1))


def _facts(text: str) -> list[tuple[int, str]]:
    """The lines of the front matter, of tables and of code, with their numbers."""
    facts, fence = [], ""
    for number, line in _numbered(text):
        if not fence and (line.startswith("```") or (line == "---" and number == 1)):
            fence = line[:3]
        elif line == fence:
            fence = ""
        if fence or line.startswith("|"):
            facts.append((number, line))
    return facts


def _edits(card: list[tuple[int, str]], rendered: list[tuple[int, str]]) -> list[str]:
    """Where the numbered lines of a card are not those that are rendered."""
    here, there = ([line for _, line in lines] for lines in (card, rendered))
    edits = []
    for kind, a, b, c, d in SequenceMatcher(None, here, there, autojunk=False).get_opcodes():
        if kind != "equal":
            edits += [f"line {number} is not from the files: {line}" for number, line in card[a:b]]
            number = card[a][0] if a < len(card) else card[-1][0] + 1 if card else 1
            edits += [f"line {number} should be: {line}" for line in there[c:d]]
    return edits


def _rows(text: str, older: bool) -> list[tuple[str, ...]]:
    """The rows under the table's header, as cells."""
    _, _, after = text.partition((OLDER_HEADER if older else HEADER) + "\n")
    rows = []
    for line in after.splitlines()[1:]:
        if not line.startswith("|"):
            break
        rows.append(tuple(cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]))
    return rows


def _flat(result: EvalResult) -> tuple[str, ...]:
    """Metric, value, split and protocol as texts that can be compared, whatever they hold."""
    arguments = result.metric_args or {}
    values = [result.metric_type, result.metric_value, result.dataset_split, *map(arguments.get, ARGUMENTS)]
    return tuple(json.dumps(value) for value in values)


def _difference(wrong: Sequence[str], measured: Iterable[Sequence[str]], names: Sequence[str]) -> str:
    """Where `wrong` differs from the most similar of what was measured."""
    nothing = ("nothing",) * len(names)
    similar = max(measured, key=lambda row: sum(map(str.__eq__, row, wrong)), default=nothing)
    pairs = zip(names, wrong, similar, strict=False)
    cells = [f"{name} {here or '-'} (there {there or '-'})" for name, here, there in pairs if here != there]
    return f"{wrong[0] if wrong else 'a row'}: " + ("; ".join(cells) or "a cell too many or too few")
