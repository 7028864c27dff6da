"""Parts of pages between two marks, and benchmarks that keep their numbers and write a table there."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from trilemma.pipelines.files.reading import read_json, read_text
from trilemma.pipelines.files.writing import write_text


class Part(NamedTuple):
    """What stands between two lines of a page, the marks: from `first` to the next `last`."""

    page: Path
    first: str
    last: str

    def read(self) -> str:
        """The text between the marks."""
        return self._divided()[1]

    def write(self, text: str) -> None:
        """Put another text there."""
        before, _, after = self._divided()
        write_text(self.page, f"{before}{self.first}{text}{self.last}{after}")

    def _divided(self) -> tuple[str, str, str]:
        before, _, rest = read_text(self.page).partition(self.first)
        text, last, after = rest.partition(self.last)
        if not last:
            raise SystemExit(
                f"{self.page} needs the lines {self.first.strip()} and {self.last.strip()}; add them"
            )
        return before, text, after


def run(
    parser: argparse.ArgumentParser,
    kept: Path,
    part: Part,
    measure: Callable[[argparse.Namespace, dict[str, Any]], None],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """Measure what the file `kept` lacks, as the command line says, and write the table into the page.

    measure: keeps each number in `options.kept` as soon as it is there. A file of another name leaves the
    page as it is.
    """
    parser.add_argument("--kept", type=Path, default=kept, help="file of the numbers")
    parser.add_argument("--page_only", action="store_true", help="only write the table into the page")
    options = parser.parse_args()
    numbers = read_json(options.kept) if options.kept.exists() else {}
    if not options.page_only:
        measure(options, numbers)
    text = table(numbers)
    print(text)
    if options.kept == kept:
        part.write(f"\n{text}\n")
