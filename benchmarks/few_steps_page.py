"""Tables and figures of docs/few_steps.md: `python benchmarks/few_steps_page.py`.

Between the lines `<!-- <data> -->` and `<!-- end -->` of the page stand the numbers of one data set; this
script replaces what stands there by what results/few_steps.json has, and results/points.json for the swirl.
Numbers are means over the training seeds, with the lowest and the highest seed in brackets.
"""

import json
import statistics
from collections.abc import Sequence
from typing import Any

from few_steps import RESULTS, ROOT
from few_steps_table import AS_LONG_AS, CELLS, FAMILY, PARENT, PUBLISHED, RECIPES
from kept_table import Part
from matplotlib.figure import Figure
from points import FRESH, RUNS, SET_SIZE, SETS
from points import RESULTS as OF_POINTS

from trilemma.pipelines.files.writing import written

LEAST = 0.02
"""Where the vertical axis of the figure ends: a distance at its floor has no logarithm."""


def over_floor(cell: dict[str, Any]) -> float:
    """Distance minus what perfect samples would be expected to score."""
    return cell["fd"] - cell["floor"]


def groups(cells: Sequence[dict[str, Any]]) -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    """(model, sampler, calls) -> the cells of all seeds, in the order of the table."""
    order = [(cell.model, cell.sampler) for cell in CELLS]
    by_row: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for cell in sorted(cells, key=lambda c: (order.index((c["model"], c["sampler"])), c["calls"], c["seed"])):
        by_row.setdefault((cell["model"], cell["sampler"], cell["calls"]), []).append(cell)
    return by_row


def _spread(values: Sequence[float], digits: str) -> str:
    text = f"{statistics.fmean(values):{digits}}"
    return text if len(values) == 1 else f"{text} ({min(values):{digits}}..{max(values):{digits}})"


def trainings(name: str, kept: dict[str, Any]) -> list[str]:
    """The table of what was trained."""
    trained, costs = kept["trainings"], kept["seconds_per_step"]
    rows = ["| model | training seeds | steps | images | CPU seconds | flags |", "|---|---|---|---|---|---|"]
    for model in RECIPES[name]:
        runs = {key.split()[1]: run for key, run in trained.items() if key.split()[0] == model}
        if not runs:
            rows.append(f"| {model} | not run | | | | |")
            continue
        run = next(iter(runs.values()))
        own = run["steps"] * costs[FAMILY[model]]
        seconds = f"{own:.0f}"
        if model in PARENT:
            teacher = trained[f"{PARENT[model]} {next(iter(runs))}"]
            seconds += f", with its teacher {own + teacher['steps'] * costs[FAMILY[PARENT[model]]]:.0f}"
        by_seconds = model in AS_LONG_AS and name not in PUBLISHED
        flags = run["flags"] + (f" --max_train_steps {run['steps']}" if by_seconds else "")
        cells = [
            model,
            ", ".join(sorted(runs)),
            f"{run['steps']:,}",
            f"{run['images']:,}",
            seconds,
            f"`{flags}`",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def scores(kept: dict[str, Any]) -> list[str]:
    """The table of what was measured."""
    rows = [
        "| model | `--sampler` | calls | distance over the floor | coverage | recall | ms an image |",
        "|---|---|---|---|---|---|---|",
    ]
    for (model, sampler, calls), cells in groups(kept["cells"]).items():
        took = 1000 * statistics.fmean(cell["seconds_per_image"] for cell in cells)
        columns = [
            _spread([over_floor(cell) for cell in cells], ".2f"),
            _spread([cell["coverage"] for cell in cells], ".2f"),
            _spread([cell["recall"] for cell in cells], ".2f"),
            f"{took:.2g}" if took < 100 else f"{took:.0f}",
        ]
        rows.append(f"| {model} | `{sampler}` | {calls} | " + " | ".join(columns) + " |")
    return rows


def section(name: str, kept: dict[str, Any]) -> str:
    """Text and tables of one data set."""
    machine = kept["hardware"]
    seeds = sorted({cell["seed"] for cell in kept["cells"]})
    floor = statistics.fmean(cell["floor"] for cell in kept["cells"])
    said = (
        f"Training seeds {', '.join(map(str, seeds))}; {kept['n']:,} samples a number, seeds 0 to "
        f"{kept['n'] - 1:,}, float32, one thread of an {machine['name']}, torch {kept['torch']}. "
        f"The distance is `fd_classifier`; its floor, {floor:.3f}, is subtracted."
    )
    picture = f"![distance over the floor against calls](images/few-steps-{name}.png)"
    return "\n".join([said, "", picture, "", *trainings(name, kept), "", *scores(kept)])


def swirl(kept: dict[str, Any]) -> str:
    """Text and tables of the shortcut chain."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {(FRESH, "", 0): []}
    groups |= {(name, *chain): [] for name, run in RUNS.items() for chain in run.chains}
    for cell in kept["cells"]:
        groups[cell["model"], cell["chain"], cell["steps"]].append(cell)
    rows = ["| model | flags |", "|---|---|", *(f"| {name} | `{run.flags}` |" for name, run in RUNS.items())]
    rows += ["", "| model | training seeds | chain | energy distance | spread |", "|---|---|---|---|---|"]
    for (model, chain, steps), cells in groups.items():
        seeds = ", ".join(sorted(str(cell["seed"]) for cell in cells)) if chain else ""
        numbers = ([cell[number] for cell in cells] for number in ("energy", "spread"))
        columns = [_spread(values, ".2f") if values else "not run" for values in numbers]
        how = f"{chain}, {steps} steps" if chain else ""
        rows.append(f"| {model} | {seeds} | {how} | {' | '.join(columns)} |")
    said = (
        f"{SETS} sets of {SET_SIZE} points a number and a training seed; one thread of an "
        f"{kept['hardware']['name']}, torch {kept['torch']}."
    )
    return "\n".join([said, "", *rows])


def curves(name: str, kept: dict[str, Any]) -> Figure:
    """Distance over the floor against calls, a curve for each model and sampler, bars from seed to seed."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axis, lines = figure.subplots(), {}
    for (model, sampler, calls), cells in groups(kept["cells"]).items():
        lines.setdefault(f"{model}, {sampler}", []).append((calls, [over_floor(cell) for cell in cells]))
    for title, points in lines.items():
        calls, means = zip(*((c, max(statistics.fmean(v), LEAST)) for c, v in points), strict=True)
        (line,) = axis.plot(calls, means, "o-" if len(points) > 1 else "D", markersize=4, label=title)
        for c, values in points:
            axis.vlines(c, *(max(end, LEAST) for end in (min(values), max(values))), line.get_color())
    axis.set(
        xscale="log", yscale="log", xlabel="network calls an image", ylabel="fd_classifier over the floor"
    )
    ticks = sorted({calls for points in lines.values() if len(points) > 1 for calls, _ in points} - {10})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_title(f"{name}: few network calls an image", fontsize=10)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return figure


def main() -> None:
    """Replace the numbers of the page."""
    texts = {}
    for name, kept in json.loads(RESULTS.read_text(encoding="utf-8")).items():
        if not kept["cells"]:  # stopped before its first score
            continue
        texts[name] = section(name, kept)
        with written(ROOT / "docs" / "images" / f"few-steps-{name}.png") as file:
            curves(name, kept).savefig(file, format="png", dpi=110)
    texts["swirl"] = swirl(json.loads(OF_POINTS.read_text(encoding="utf-8")))
    for name, text in texts.items():
        Part(ROOT / "docs" / "few_steps.md", f"<!-- {name} -->\n", "<!-- end -->\n").write(f"{text}\n")


if __name__ == "__main__":
    main()
