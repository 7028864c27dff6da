"""95% intervals contain what they are about: with few repetitions here, and with many in the kept table."""

import sys
from types import SimpleNamespace

import pytest
from entry import ROOT
from scipy import stats

from trilemma.eval.metrics.table import METRICS, metric_of
from trilemma.pipelines.files.reading import read_json

REPETITIONS = 100
KNOWN = {"kid": 0.93, "class_vendi": 0.99, "0_class_energy": 0.925}
"""Shares that intervals of the worse model cover, where it is not 95%: see the kept table."""
FEWEST, CERTAIN = 200, 0.999
SLOW = {"mind", "fld"}
QUICK = [name for name, row in METRICS.items() if row.needs != ("model",) and name not in SLOW]


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import interval_coverage

        yield interval_coverage
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        ours = ("speed", "kept_table", "interval_coverage", "simulated_intervals")
        for name in [name for name in sys.modules if name.split(".")[0] in ours]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def simulation(benchmark):
    return sys.modules["simulated_intervals"]


def in_bounds(measure: str, counts: dict[str, int]) -> bool:
    """Whether so many of the intervals may contain the truth, if its share is the one that is expected."""
    share = KNOWN.get(measure, 0.95)
    low, high = stats.binom.interval(CERTAIN, counts["intervals"], share)
    return low <= counts["covered"] <= high


@pytest.mark.parametrize("name", QUICK)
def test_intervals_contain_what_other_samples_score(simulation, name):
    found = simulation.of_samples(name, simulation.LAWS["worse model"], REPETITIONS)
    for measure, counts in found.items():
        assert counts["repetitions"] == counts["intervals"] == REPETITIONS
        assert in_bounds(measure, counts), (measure, counts)


@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_of_bits_contain_their_mean(simulation, skewed):
    (counts,) = simulation.of_bits(skewed, REPETITIONS).values()
    assert in_bounds("bpd", counts), counts


@pytest.mark.parametrize("spread", [None, 1.0, 4.0])
def test_intervals_over_seeds_contain_means_and_differences(simulation, spread):
    """Welch's of two or three trainings may be too wide, so it has no upper bound."""
    for name, counts in simulation.of_seeds(spread, REPETITIONS).items():
        low, high = stats.binom.interval(CERTAIN, REPETITIONS, 0.95)
        assert low <= counts["covered"] <= (high if spread is None else REPETITIONS), name


@pytest.mark.parametrize(("name", "samples"), [("fd", 20_000), ("mind", 1_000)])
def test_the_known_distances_are_those_of_many_samples(simulation, monkeypatch, name, samples):
    """The interval holds the truth, and is shorter than it."""
    monkeypatch.setattr(simulation, "SAMPLES", samples)
    law = simulation.LAWS["worse model"]
    (low, high), truth = simulation.score(name, law, 0)[name].interval, simulation.TRUTH[name](*law)
    assert low < truth < high
    assert high - low < truth


def test_the_kept_table_has_every_interval(benchmark, simulation):
    """Class 0 stands for all of them."""
    kept = read_json(benchmark.KEPT)
    shown = {measure for measure, *_ in benchmark.rows(kept)}
    missing = []
    for name, row in METRICS.items():
        if row.needs == ("model",):
            missing += {name} - shown - {also for names in benchmark.ALSO.values() for also in names}
        else:
            measured = simulation.score(name, simulation.LAWS["worse model"], 0)
            own = {measure for measure, one in measured.items() if one.interval}
            terms = sorted(own - row.measures.keys())
            missing += {*(own & row.measures.keys()), *terms[:1]} - shown
    assert set(missing) <= set(benchmark.not_simulated())
    for measure, setting, counts in benchmark.rows(kept):
        assert counts["repetitions"] >= (FEWEST if metric_of(measure) in SLOW else 1000)
        assert not benchmark.outside(counts) or measure in benchmark.WHY, (measure, setting)


def test_the_page_has_the_kept_numbers(benchmark):
    assert benchmark.PART.read().strip() == benchmark.table(read_json(benchmark.KEPT)).strip()


def test_a_part_of_a_page_is_written_again_and_the_rest_stays(benchmark, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<a>\nold\n<b>\nafter\n")
    part = benchmark.Part(page, "<a>\n", "<b>\n")
    assert part.read() == "old\n"
    part.write("new\n")
    assert page.read_text() == "before\n<a>\nnew\n<b>\nafter\n"


def test_only_what_is_named_is_measured_again(benchmark, tmp_path, monkeypatch):
    ran, kept = [], {}
    three = ("prdc", "a"), ("kid", "a"), ("kid", "b")

    def study(*which: str):
        return benchmark.Study(*which, lambda repetitions: ran.append(which) or {})

    def measured(*only: str) -> None:
        options = SimpleNamespace(only=only, repetitions=3, kept=tmp_path / "kept.json")
        benchmark.measure(options, kept)
        assert read_json(options.kept) == kept

    monkeypatch.setattr(benchmark, "studies", lambda: [study(*which) for which in three])
    measured("coverage")
    measured()
    measured("kid")
    assert ran == [*three, *three[1:]]
    with pytest.raises(SystemExit, match="--only takes measures, metrics and `seeds`; got coverag"):
        measured("coverag")
