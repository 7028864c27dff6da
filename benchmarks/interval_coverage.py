"""How often does a 95% interval contain what it is about?

    python benchmarks/interval_coverage.py
    python benchmarks/interval_coverage.py --only kid coverage
    python benchmarks/interval_coverage.py --page_only

Every measure with an interval scores many sets of samples whose law is known, and so do the intervals over
training seeds of `eval/studies/repeats.py`; see `simulated_intervals.py`.

results/interval_coverage.json keeps each number as soon as it is there; what it has is measured again only if
--only names it. The table goes into docs/metrics.md, between the lines `<!-- coverage -->` and
`<!-- end of coverage -->`.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from kept_table import Part, run
from simulated_intervals import LAWS, of_bits, of_samples, of_seeds
from speed.harness import machine

from trilemma.eval.metrics.sample_metric import share_interval
from trilemma.eval.metrics.table import METRICS, metric_of
from trilemma.eval.studies.tables import markdown
from trilemma.pipelines.files.writing import write_json

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "benchmarks" / "results" / "interval_coverage.json"
PART = Part(ROOT / "docs" / "metrics.md", "<!-- coverage -->\n", "<!-- end of coverage -->\n")
ALSO = {"bpd": ("ode_bpd",)}
"""Measures that have the interval of another one, by the same code."""
LOWEST, HIGHEST = 0.93, 0.97
WIDE = (
    "too wide. The jackknife overstates the spread of a number that is not a mean over samples (Efron & "
    "Stein 1981): leaving a block out changes it more than drawing another block would."
)
CUT = (
    "too wide. No number is above 1, so the upper end of the interval is 1 and the truth cannot be above "
    "it. The lower end is as far below the number as elsewhere."
)
FEW = (
    "too wide or too narrow. Spreads of two or three numbers vary a lot, and so do the degrees of freedom "
    "that Welch's interval estimates from them."
)
WHY = {
    "kid": "too narrow for the worse model. The cubic kernel is large for samples that lie far out; sets "
    "without such samples score low and have short intervals. Too wide for the perfect model, whose number "
    "is nothing but noise: the jackknife overstates the spread of this noise.",
    "clipped_density": CUT,
    "clipped_coverage": CUT,
    "coverage": WIDE,
    "class_vendi": WIDE,
    "0_class_vendi": WIDE,
    "fld": WIDE,
    "0_class_energy": "too narrow: with only 50 samples in the class, sets that score low also have short "
    "intervals. The mean over the four classes rests on 200 samples and is not too narrow.",
    "near_copies": "too wide for a share of about 1%, which is two of 200 samples: a count moves in steps, "
    "so no interval covers exactly 95%.",
    "difference of 2 and 2 seeds": FEW,
    "difference of 3 and 3 seeds": FEW,
}
"""Why an interval does not cover 93 to 97% in some setting, by measure."""


class Study(NamedTuple):
    """One simulation: `run` gives, from a number of repetitions, the result of each measure."""

    name: str
    setting: str
    run: Callable[[int], dict[str, dict[str, int]]]


def studies() -> list[Study]:
    """All simulations, in the order of the table."""
    names = [name for name, row in METRICS.items() if row.needs != ("model",)]
    return [
        *(Study(name, law, partial(of_samples, name, LAWS[law])) for name in names for law in LAWS),
        Study("bpd", "normal bits", partial(of_bits, False)),
        Study("bpd", "exponential bits", partial(of_bits, True)),
        Study("seeds", "one training", partial(of_seeds, None)),
        Study("seeds", "equal spreads", partial(of_seeds, 1.0)),
        Study("seeds", "spreads 1 and 4", partial(of_seeds, 4.0)),
    ]


def not_simulated() -> list[str]:
    """Metrics without a simulation here."""
    known = {study.name for study in studies()} | {name for names in ALSO.values() for name in names}
    return [name for name in METRICS if name not in known]


def measure(options: argparse.Namespace, kept: dict[str, Any]) -> None:
    """Run the simulations that are not kept yet, or those that are named."""
    named = {metric_of(name) or name for name in options.only}
    if wrong := named - {study.name for study in studies()}:
        raise SystemExit(f"--only takes measures, metrics and `seeds`; got {', '.join(sorted(wrong))}")
    kept.setdefault("studies", {})
    for study in studies():
        if study.name not in named if named else study.setting in kept["studies"].get(study.name, {}):
            continue
        kept["machine"] = machine()
        of_study = kept["studies"].setdefault(study.name, {})
        of_study[study.setting] = study.run(options.repetitions)
        write_json(options.kept, kept)
        for name, counts in of_study[study.setting].items():
            print(f"{name}, {study.setting}: {covered(counts)}", flush=True)


def rows(kept: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Measure, setting and counts of all that is kept, in the order of the table."""
    for name in dict.fromkeys(study.name for study in studies()):
        found = kept["studies"].get(name, {})
        settings = [study.setting for study in studies() if study.name == name]
        of_study = {setting: found[setting] for setting in settings if setting in found}
        for measure in dict.fromkeys(measure for one in of_study.values() for measure in one):
            for setting, one in of_study.items():
                if measure in one:
                    yield measure, setting, one[measure]


def outside(counts: dict[str, int]) -> bool:
    """Whether the share that is covered is not 93 to 97%."""
    return not LOWEST <= counts["covered"] / counts["intervals"] <= HIGHEST


def covered(counts: dict[str, int]) -> str:
    """Percentage of the intervals that contain the truth, with its 95% interval."""
    share, n = counts["covered"] / counts["intervals"], counts["intervals"]
    low, high = (100 * end for end in share_interval(share, n))
    return f"{100 * share:.1f}% ({low:.1f} .. {high:.1f})"


def shown(measure: str) -> str:
    """A measure as the table names it, with those that have the same interval."""
    names = (measure, *ALSO.get(measure, ()))
    return measure if "seeds" in measure else ", ".join(f"`{name}`" for name in names)


def table(kept: dict[str, Any]) -> str:
    """Text of the page."""
    body, reasons = [], {}
    for measure, setting, counts in rows(kept):
        n, intervals = counts["repetitions"], counts["intervals"]
        times = f"{n:,}" if n == intervals else f"{n:,}, of which {n - intervals:,} have no interval"
        mark = "outside 93 to 97%" if outside(counts) else ""
        body.append([shown(measure), setting, times, covered(counts), mark])
        if mark:
            reasons.setdefault(WHY.get(measure, "not explained"), {})[shown(measure)] = None
    said = [f"- {', '.join(names)}: {why}" for why, names in reasons.items()]
    said = ["Outside 93 to 97%:", "", *said] if said else ["Every interval covers 93 to 97%."]
    left = [f"`{name}`" for name in not_simulated()]
    left += [
        f"`{study.name}` ({study.setting})"
        for study in studies()
        if study.setting not in kept["studies"].get(study.name, {})
    ]
    left = [f"\nNot measured: {', '.join(left)}."] if left else []
    head = ["measure", "setting", "repetitions", "covered (95% interval)", ""]
    return "\n".join([markdown(head, body), *said, *left]) + "\n"


def main() -> None:
    """Measure what is not kept yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1_000, help="sets of samples in each setting")
    parser.add_argument("--only", nargs="+", default=[], help="measures or metrics to measure again")
    torch.set_num_threads(1)
    run(parser, KEPT, PART, measure, table)


if __name__ == "__main__":
    main()
