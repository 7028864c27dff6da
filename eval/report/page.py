"""`report.html`: the template filled with tables, pictures, the numbers of the charts, styles and scripts.

The page needs no network and no other file. Tables, pictures and commands are there without JavaScript;
`assets/` adds sorting, filters, charts and sliders.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trilemma.eval.report import pictures
from trilemma.eval.report.chart_data import chart_data
from trilemma.eval.report.details import Command, details, without_bound
from trilemma.eval.report.groups import EXPLAINED, Group, family_of, groups, word
from trilemma.eval.report.pictures import Drawn, Frames
from trilemma.eval.report.table import ids, results
from trilemma.eval.report.words import shown, table
from trilemma.eval.studies import repeats, targets
from trilemma.eval.studies.model_table import repeated
from trilemma.eval.studies.models import Model
from trilemma.eval.studies.tables import Marks
from trilemma.training.output_folder import own_sampling
from trilemma.training.progress import counted

ASSETS = Path(__file__).parent / "assets"
MOST_BYTES = 2_000_000
"""Of the whole page."""
GAP = re.compile(r"\{\{(\w+)\}\}")
LEFT_OUT = "This picture was left out, so that the page stays under 2 MB."

EMPTY = "data:,"

Goals = Sequence[tuple[str, float]]


class Figure(NamedTuple):
    """A picture of a model, in one of the sections of the template; without frames only its caption."""

    section: str
    group: Group
    model: Model
    frames: Frames | None
    said: str


def html_page(models: Sequence[Model], goals: Goals, drawn: Mapping[str, Drawn], command: Command) -> str:
    """The page, of at most MOST_BYTES if numbers and texts leave room for pictures.

    goals: metric and value of each target. drawn: model -> what it drew for the page. command: makes the
    command line of a training.
    """
    by_data, families, places = groups(models), {m.name: family_of(m) for m in models}, ids(models)
    parts = {
        "counts": _counts(by_data, families),
        "families": _chips("family", families.values()),
        "data_sets": _chips("data", [group.data for group in by_data]),
        "table": results(by_data, families, places),
        "no_bound": _no_bound(by_data, families),
        "explained": _explained(),
        "repeated": _repeated(by_data),
        "targets": "".join(_target(models, *goal) for goal in goals),
        "models": "".join(
            _model(group, model, families[model.name], places[model.name], command)
            for group in by_data
            for model in group.models
        ),
        "style": (ASSETS / "style.css").read_text(encoding="utf-8"),
        "script": "".join((ASSETS / name).read_text(encoding="utf-8") for name in ("charts.js", "script.js")),
        "numbers": _json(chart_data(by_data, families, places)),
        "calls_slider": _calls_slider(drawn),
    }
    figures = _figures(by_data, drawn)
    # The page with empty pictures shows how much room there is for them.
    room = MOST_BYTES - len(_with_pictures(parts, figures, families, [EMPTY] * len(figures)).encode())
    urls = iter(pictures.urls([each.frames.image for each in figures if each.frames], room))
    return _with_pictures(parts, figures, families, [next(urls) if each.frames else None for each in figures])


def _figures(by_data: Sequence[Group], drawn: Mapping[str, Drawn]) -> list[Figure]:
    """The pictures of all models: each one's samples, and its process where its folder has one."""
    figures = []
    for group in by_data:
        for model in group.models:
            figures.append(Figure("sheets", group, model, *_sheet(model, drawn.get(model.name))))
            if frames := pictures.process(model.folder):
                figures.append(Figure("processes", group, model, frames, "from noise to images"))
    return figures


def _with_pictures(
    parts: Mapping[str, str],
    figures: Sequence[Figure],
    families: Mapping[str, str],
    urls: Sequence[str | None],
) -> str:
    sections = {"sheets": "", "processes": ""}
    for figure, url in zip(figures, urls, strict=True):
        sections[figure.section] += _figure(figure, families[figure.model.name], url)
    return _filled((ASSETS / "template.html").read_text(encoding="utf-8"), {**parts, **sections})


def _filled(template: str, parts: Mapping[str, str]) -> str:
    """The template with each of its gaps filled once; text in a part that looks like a gap stays."""
    return GAP.sub(lambda gap: parts[gap[1]], template)


def _json(value: Any) -> str:
    """JSON that is safe inside a script element, with any texts."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _counts(by_data: Sequence[Group], families: Mapping[str, str]) -> str:
    models = sum(len(group.models) for group in by_data)
    parts = (
        counted(models, "model"),
        counted(len({*families.values()}), "family", "families"),
        counted(len(by_data), "data set"),
    )
    return f"{', '.join(parts)}."


def _chips(kind: str, values) -> str:
    """Check boxes, all of them checked."""
    return "".join(
        f'<label class="chip" data-{kind}="{shown(value)}"><input type="checkbox" checked name="{kind}" '
        f'value="{shown(value)}"><span>{shown(value)}</span></label>'
        for value in dict.fromkeys(values)
    )


def _sheet(model: Model, drawn: Drawn | None) -> tuple[Frames | None, str]:
    """A model's samples and how they were drawn: for the page, or else the sheet of its folder."""
    if drawn and drawn.frames:
        return drawn.frames, drawn.said
    image = pictures.opened(model.folder.samples)
    why = f" Not drawn for this page: {drawn.said}." if drawn else ""
    if image is None:
        return None, f"no sheet of samples in its folder.{why}"
    count, (sampler, steps) = model.config.get("eval_batch_size"), own_sampling(model.config)
    words = [count and f"seeds 0 to {count - 1}", sampler, steps and counted(steps, "step")]
    said = ", ".join(str(word) for word in words if word)
    return Frames(image, ()), f"{said} (samples.png).{why}".strip()


def _calls_slider(drawn: Mapping[str, Drawn]) -> str:
    """One slider for all models that were drawn; '' if there are no steps to choose from."""
    values = sorted({calls for one in drawn.values() if one.frames for calls in one.frames.values})
    if len(values) < 2:
        return ""
    listed = " ".join(map(str, values))
    return (
        '<p class="slider"><label for="calls">At most this many calls of the network an image</label>'
        f'<input type="range" id="calls" min="0" max="{len(values) - 1}" value="{len(values) - 1}" '
        f'data-calls="{listed}"><output for="calls">{values[-1]}</output></p>'
    )


def _figure(figure: Figure, family: str, url: str | None) -> str:
    """One model's picture with its caption; the script adds sliders, which move the shown frame."""
    group, model, frames, said = figure[1:]
    name, shape, state = shown(model.name), "", ""
    if frames and url:
        number, (width, height) = len(frames.labels), frames.image.size
        sharp, alt, data = "", f"{name}: {shown(said)}", ""
        if frames.labels:
            last = shown(frames.labels[-1])
            sharp, alt, state = " sharp", f"{alt}, {last}", f'<span class="state">{last}</span>'
            data = f'data-name="{name}" data-labels="{shown(json.dumps(frames.labels))}"'
            data += f' data-values="{" ".join(map(str, frames.values))}"' if frames.values else ""
        number = max(number, 1)
        view = f"--frames:{number};--shown:{number - 1};--ratio:{width / number / height:.4f}"
        shape = (
            f'<div class="view{sharp}" style="{view}" {data}><img src="{url}" width="{width}" '
            f'height="{height}" alt="{alt}"></div>'
        )
    elif frames:
        shape = f"<p>{LEFT_OUT}</p>"
    return (
        f'<figure {_of(group, model, family)}><figcaption><b>{name}</b> <span class="family" '
        f'data-family="{shown(family)}">{shown(family)}</span> <small>{shown(group.data)}; {shown(said)}'
        f"</small>{state}</figcaption>{shape}</figure>\n"
    )


def _model(group: Group, model: Model, family: str, place: str, command: Command) -> str:
    return (
        f'<details id="{place}" {_of(group, model, family)}><summary><h3>{shown(model.name)}</h3> '
        f'<span class="family" data-family="{shown(family)}">{shown(family)}</span> {shown(group.data)}'
        "</summary>"
        f"{details(group, model, family, command)}</details>\n"
    )


def _no_bound(by_data: Sequence[Group], families: Mapping[str, str]) -> str:
    items = "".join(
        f"<li {_of(group, model, family)}>{shown(model.name)} ({shown(group.data)}): {shown(why)}</li>"
        for group in by_data
        for model in group.models
        if (why := without_bound(model, family := families[model.name]))
    )
    return f"<h3>Models without bits per dimension</h3><ul>{items}</ul>" if items else ""


def _of(group: Group, model: Model, family: str) -> str:
    """Attributes that tell the filters to which model an element belongs."""
    return f'data-family="{shown(family)}" data-data="{shown(group.data)}" data-name="{shown(model.name)}"'


def _explained() -> str:
    return "".join(f"<dt>{shown(word(name))}</dt><dd>{shown(text)}</dd>" for name, text in EXPLAINED.items())


def _repeated(by_data: Sequence[Group]) -> str:
    """Means and verdicts of the data sets with repeated trainings; the table has those of the others."""
    parts = []
    for group in by_data:
        rows = repeated(group.models, group.standards)
        if repeats.repeated(rows):
            title = f"Repeated trainings on {group.data}"
            parts += [table(header, body, title) for header, body in repeats.tables(rows)]
            parts.append(f"<p>{shown(repeats.remark(rows).replace('*', ''))}</p>")
    return f"<section><h2>{repeats.TITLE}</h2>{''.join(parts)}</section>" if parts else ""


def _target(models: Sequence[Model], metric: str, value: float) -> str:
    marks, title = Marks(), targets.title(metric, value)
    header, rows = targets.table(models, metric, value, marks)
    notes = "".join(f"<p>[{number}] {shown(remark)}</p>" for number, remark in enumerate(marks.remarks, 1))
    rule = targets.RULE.replace("`", "")
    return (
        f"<section><h2>{shown(title)}</h2>{table(header, rows, title)}{notes}<p>{shown(rule)}</p></section>"
    )
