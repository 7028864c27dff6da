"""The page's table: quality, coverage, speed, bits, cost, verdict; a row for each model and way to sample."""

from collections.abc import Mapping, Sequence

from trilemma.eval.metrics.table import measure_row
from trilemma.eval.report.groups import EXPLAINED, Group, word
from trilemma.eval.report.verdicts import verdict
from trilemma.eval.report.words import count, figure, in_units, interval, shown
from trilemma.eval.scoring.results import ResultLine
from trilemma.eval.studies.model_table import TableRow, elsewhere, other_machine
from trilemma.eval.studies.models import Model
from trilemma.eval.studies.tables import Marks

AXES = {"quality": "Quality", "coverage": "Coverage", "bits": "Bits per dimension"}
SPEED = {"nfe": "calls", "seconds_per_image": "time per image"}
COST = {"seconds": "training", "images_seen": "images seen", "parameters": "parameters"}
"""Groups of columns; entries of a line and of run.json -> names of their columns."""

WORDS = {"lower": "lower is better", "higher": "higher is better", None: ""}


def ids(models: Sequence[Model]) -> dict[str, str]:
    """Name of a model -> the id of its part of the page."""
    return {model.name: f"model-{number}" for number, model in enumerate(models, 1)}


def results(groups: Sequence[Group], families: Mapping[str, str], places: Mapping[str, str]) -> str:
    """The table and its notes. families: of the models; places: the ids of their parts of the page."""
    columns = {axis: _metrics(groups, axis) for axis in AXES}
    marks = Marks()
    body = "".join(
        _row(group, row, columns, families[row.model.name], places[row.model.name], marks)
        for group in groups
        for row in group.rows
    )
    return (
        '<div class="wide" role="region" tabindex="0" aria-labelledby="caption"><table id="results">'
        '<caption id="caption">Each model, in each way that it was sampled and measured. Small: the 95% '
        "interval; <i>plain</i>: the value of these n samples, as in published tables; <i>floor</i>: "
        "the plain value that the same number of real images would have.</caption>"
        f"{_head(groups, columns)}<tbody>\n{body}</tbody>"
        "</table></div>" + _notes(marks.remarks)
    )


def _notes(remarks: Sequence[str]) -> str:
    """The numbered notes, and one explanation of each entry that they name."""
    if not remarks:
        return ""
    items = "".join(f'<li id="note-{k}">{shown(remark)}</li>' for k, remark in enumerate(remarks, 1))
    told = "".join(
        f"<dt>{shown(word(name))}</dt><dd>{shown(text)}</dd>"
        for name, text in EXPLAINED.items()
        if any(_is_of(word(name), part) for remark in remarks for part in remark.split("; "))
    )
    return (
        f'<h3>Notes to the table: what cannot be compared, and why</h3><ol class="notes">{items}</ol>'
        f'<dl class="notes">{told}</dl>'
    )


def _is_of(name: str, part: str) -> bool:
    """Whether a part of a remark is about the entry of this name: 'reference' is not 'reference images'."""
    words = [one for one in map(word, EXPLAINED) if f" {one} " in f" {part} "]
    return max(words, key=len, default=None) == name


def _metrics(groups: Sequence[Group], axis: str) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group.metrics if group.axis(name) == axis))


def _head(groups: Sequence[Group], columns: Mapping[str, Sequence[str]]) -> str:
    better = {
        name: WORDS[measure_row(group.line(name).measure).better]
        for group in groups
        for name in group.metrics
    }
    speed = dict.fromkeys(SPEED.values(), WORDS["lower"])
    sections = [("Model", dict.fromkeys(("model", "verdict", "family", "data", "sampling"), ""))]
    sections += [
        (AXES[axis], {name: better[name] for name in columns[axis]}) for axis in ("quality", "coverage")
    ]
    sections += [("Speed", speed), (AXES["bits"], {name: better[name] for name in columns["bits"]})]
    sections += [("Training and size", dict.fromkeys(COST.values(), ""))]
    sections = [(title, names) for title, names in sections if names]
    groups_of = "".join(f'<colgroup span="{len(names)}"></colgroup>' for _, names in sections)
    first = "".join(
        f'<th scope="colgroup" colspan="{len(names)}">{shown(title)}</th>' for title, names in sections
    )
    second = "".join(
        f'<th scope="col" data-sort><span>{shown(name).replace("_", "_<wbr>")}</span>'
        + (f"<small>{remark}</small></th>" if remark else "</th>")
        for _, names in sections
        for name, remark in names.items()
    )
    return f"{groups_of}<thead><tr>{first}</tr><tr>{second}</tr></thead>"


def _row(
    group: Group, row: TableRow, columns: Mapping[str, Sequence[str]], family: str, place: str, marks: Marks
) -> str:
    model, drawn = row.model, row.drawn
    rank, said, samples = verdict(group, row)
    kind, small = said.replace(" ", "-"), f"<small>{shown(samples)}</small>" if samples else ""
    cells = [
        f'<td data-value="{rank}"><span class="verdict {kind}">{shown(said)}</span>{small}</td>',
        f'<td><span class="family" data-family="{shown(family)}">{shown(family)}</span></td>',
        f"<td>{shown(group.data)}</td>",
        f"<td>{shown(row.sampling or 'not sampled')}</td>",
    ]
    cells += [_measured(group, row.picked.get(name), marks) for name in columns["quality"]]
    cells += [_measured(group, row.picked.get(name), marks) for name in columns["coverage"]]
    cells += [_number(drawn and drawn.nfe, count)]
    cells += [
        _number(
            drawn and drawn.seconds_per_image,
            in_units,
            drawn and elsewhere(drawn.device, group.models),
            marks,
        )
    ]
    cells += [_measured(group, row.picked.get(name), marks) for name in columns["bits"]]
    machine = other_machine(model, group.models[0])
    cells += [_number(model.run.get("seconds"), in_units, machine, marks)]
    cells += [_number(model.run.get(name), count) for name in list(COST)[1:]]
    return (
        f'<tr data-family="{shown(family)}" data-data="{shown(group.data)}" data-name="{shown(model.name)}">'
        f'<th scope="row"><a href="#{place}">{shown(model.name)}</a></th>{"".join(cells)}</tr>\n'
    )


def _measured(group: Group, line: ResultLine | None, marks: Marks) -> str:
    if line is None:
        return _number(None, figure)
    remark = group.remark(line)
    note = _note(f"not comparable: {remark}" if remark else "", marks)
    parts = {"": interval(line.interval), "plain ": line.plain, "floor ": line.floor}
    small = [
        name + (value if isinstance(value, str) else figure(value))
        for name, value in parts.items()
        if value not in (None, "")
    ]
    small += ["forced"] if line.forced else []
    return (
        f'<td class="number" data-value="{line.estimate!r}">{figure(line.estimate)}{note}'
        + "".join(f"<small>{shown(text)}</small>" for text in small)
        + "</td>"
    )


def _number(value, words, remark: str | None = None, marks: Marks | None = None) -> str:
    if value is None:
        return (
            '<td class="number none"><span aria-hidden="true">-</span><span class="hidden">none</span></td>'
        )
    note = _note(remark, marks) if remark and marks else ""
    return f'<td class="number" data-value="{value!r}">{shown(words(value))}{note}</td>'


def _note(remark: str, marks: Marks) -> str:
    if not remark:
        return ""
    number = marks.mark(remark).strip(" []")
    return f'<sup><a href="#note-{number}" aria-label="note {number}">{number}</a></sup>'
