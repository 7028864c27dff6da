"""Ours beside what is commonly used, in one table of ratios: `python benchmarks/bench.py [--full]`.

Each case runs in one process, the ways in turn, the order reversed every round. A ratio is the baseline's
time over ours, so above 1 ours is faster; the table has its median and range over rounds, and how far the
baseline lies from itself (A/A): a ratio inside that range is a tie. Times are CPU time with one thread
unless the row says wall. Results go to benchmarks/results/bench.json and bench.md, a table for each group; a
group that is not measured again keeps its table.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from diffusers.utils.logging import disable_progress_bar
from speed import evaluation, operations, processes, reading, sampling, training
from speed.harness import Case, Skipped, Table, chosen, in_words, machine, read, run_cases, write

GROUPS: dict[str, Callable[[bool, Path], Iterator[Case | Skipped]]] = {
    "training": training.cases,
    "operations": operations.cases,
    "sampling": sampling.cases,
    "evaluation": evaluation.cases,
    "reading": reading.cases,
    "startup": processes.startup,
    "memory": processes.memory,
    "two_processes": processes.two_processes,
    "busy_core": processes.busy_core,
}


def main(argv: list[str] | None = None) -> None:
    """Measure, print each row as it comes, write the table after each group."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="some minutes; the default")
    size.add_argument(
        "--full", action="store_true", help="also 35.7M parameters, compiled steps, 50,000 samples"
    )
    parser.add_argument("--only", nargs="+", metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument(
        "--output", default=str(Path(__file__).parent / "results"), help="folder of the table"
    )
    options = parser.parse_args(argv)
    try:
        names = chosen(list(GROUPS), options.only)
    except ValueError as problem:
        parser.error(str(problem))
    torch.set_num_threads(1)
    disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    size = "--full" if options.full else "--quick"
    tables = read(Path(options.output))
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            (Path(folder) / name).mkdir()
            table = Table(f"python benchmarks/bench.py {size} --only {name}", machine())
            for row in run_cases(GROUPS[name](options.full, Path(folder) / name), table):
                print(in_words(row), flush=True)
            tables[name] = table
            write({each: tables[each] for each in GROUPS if each in tables}, Path(options.output))


if __name__ == "__main__":
    main()
