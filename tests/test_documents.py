"""Numbers in the documents: each lies in its interval, or is named as the plain value of a biased measure."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/results/*.md")])
PAGES += sorted(ROOT.glob("model_cards/zoo/*/README.md"))
NUMBER = r"(-?[\d,]*\.?\d+(?:e-?\d+)?)"
MEASURED = re.compile(
    rf"(plain )?(?<![\d.]){NUMBER}%?\**,? ?(?:\[{NUMBER}%?, {NUMBER}%?\]|\({NUMBER} \.\. {NUMBER}\))"
)
"""'0.5 [0.4, 0.6]' and '0.5 (0.4 .. 0.6)', in bold or in percent too."""


def outside(text):
    """What the text says of values that lie outside their intervals; 'plain 0.5 [0.1, 0.3]' is no fault."""
    found = []
    for match in MEASURED.finditer(text):
        value, low, high = (float(part.replace(",", "")) for part in match.groups()[1:] if part)
        if not (match[1] or low <= value <= high):
            found.append(match[0])
    return found


def test_a_value_outside_its_interval_is_found():
    bad = ["0.32 [0, 0.29]", "**0.32** [0, 0.29]", "-1.5 (-1 .. 2)", "1,200 [1, 9]", "98% [1%, 2%]"]
    assert [bool(outside(text)) for text in bad] == [True] * len(bad)
    good = ["plain 0.32 [0, 0.29]", "0.2 [0, 0.29]", "-0.5 (-1 .. 2)", "0.32 | [0, 0.29]", "in 2 [1](a.md)"]
    assert [outside(text) for text in good] == [[]] * len(good)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_each_number_lies_in_its_interval(page):
    assert outside(page.read_text(encoding="utf-8")) == []
