"""Text of the page: escaped, and numbers as people write them (`21 min`, never `1.3e+03`)."""

import html
import math
from collections.abc import Iterable, Sequence

from trilemma.eval.plots.axes import plain
from trilemma.pipelines.files.text import as_text

SMALLEST = 1e-9
"""Smaller numbers are shown as 0."""


def shown(text: object) -> str:
    """Any text, safe in HTML and in its attributes: one line of printable characters."""
    line = " ".join(as_text(str(text).encode("utf-8", "replace").decode(), "replace").split())
    return html.escape("".join(letter if letter.isprintable() else "\ufffd" for letter in line))


def figure(value: float) -> str:
    """Three digits: 0.0384, 4.68, 12.1, 256,000; whole numbers in full."""
    if abs(value) < SMALLEST:
        return "0"
    if float(value).is_integer():
        return f"{value:,.0f}"
    return plain(float(f"{value:.3g}"))


def in_units(seconds: float) -> str:
    """Seconds in a usual unit: 8.5 ms, 1.2 s, 21 min, 1 h 18 min, 2 d 3 h."""
    if seconds < 1:
        return f"{figure(1000 * seconds)} ms"
    if seconds < 59.5:
        return f"{figure(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h" + (f" {rest} min" if rest else "")
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days:,} d" + (f" {hours} h" if hours else "")


def count(value: float) -> str:
    """A number of things: 17, 627,433, 2.5 million."""
    if value < 1e6:
        return f"{value:,.0f}"
    power = min(3, int(math.log10(value)) // 3)
    return f"{figure(float(f'{value:.3g}') / 1000**power)} {('million', 'billion')[power - 2]}"


def interval(ends: Sequence[float] | None) -> str:
    """'1.2 to 3.4', '' for none."""
    return " to ".join(map(figure, ends or ()))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """A plain table of texts, which scrolls where it is too wide; the first column names the rows."""
    head = "".join(f'<th scope="col">{shown(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row">{shown(row[0])}</th>'
        + "".join(f"<td>{shown(value)}</td>" for value in row[1:])
        + "</tr>\n"
        for row in rows
    )
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{shown(caption)}"><table>'
        f"<caption>{shown(caption)}</caption><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>"
    )
