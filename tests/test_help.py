"""What `--help` lists: the choices of flags that are checked late."""

from trilemma.eval.evaluate import EvaluateConfig
from trilemma.eval.features.judge_files import judge_names
from trilemma.eval.features.table import EXTRACTORS
from trilemma.eval.metrics.table import METRICS
from trilemma.eval.sweep import SweepConfig
from trilemma.training import families
from trilemma.training.options.flags import flags_of


def listed(config, flag):
    """Words of a flag's help."""
    text = flags_of(config)[flag].help
    return {word.strip("(),;:.") for word in text.split()}


def test_training_lists_what_evaluation_offers():
    """The floors let `training` import nothing of `eval`, so the names are written twice."""
    config = families.family("unconditional").config
    of_samples = {name for name, row in METRICS.items() if row.needs != ("model",)}
    assert listed(config, "eval_metrics") & METRICS.keys() == of_samples
    assert set(EXTRACTORS) <= listed(config, "eval_feature_extractor")
    assert set(judge_names()) <= listed(config, "eval_judge")


def test_evaluation_lists_samplers_metrics_extractors_and_judges():
    for config in (EvaluateConfig, SweepConfig):
        for name in families.names():
            assert {name, *families.family(name).samplers} <= listed(config, "sampler")
        assert set(METRICS) <= listed(config, "metrics")
        assert set(EXTRACTORS) <= listed(config, "feature_extractor")
        assert set(judge_names()) <= listed(config, "judge")
