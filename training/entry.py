"""What every entry point does: parse, then import what needs torch and train, so that a typo answers at once.

May look upward, since some choices are those of evaluation.
"""

import sys

from trilemma.eval.options import check_choices
from trilemma.training.images.folders import data_folder
from trilemma.training.loop.stop import NOTICES, ending_quietly
from trilemma.training.options.command_line import given, parse
from trilemma.training.progress import loading_libraries

NOTHING_KEPT = "Interrupted; nothing is kept yet: run the same command again."
"""What a signal leads to before training begins."""


def main(family: str, description: str, plugin: str | None = None) -> None:
    """Train a model of a family as the command line asks for; plugin: the file of a family from outside."""
    argv = [*sys.argv[1:], *(["--plugin", plugin] if plugin else [])]
    with ending_quietly(NOTICES, NOTHING_KEPT):  # until training begins, when a signal leads to a checkpoint
        config = parse(family, description, argv, check)
        if config.data.train_data_dir is not None:  # a mistyped one need not wait for the libraries
            try:
                data_folder(config.data.train_data_dir, "--train_data_dir")
            except ValueError as error:
                raise SystemExit(f"error: {error}") from None

        with loading_libraries():
            from trilemma.training.run import run

        run(config, family, given(family, argv))


def check(config) -> None:
    """ValueError for choices of evaluation that do not exist."""
    options = config.evaluation
    check_choices(
        metrics=options.eval_metrics,
        extractor=options.eval_feature_extractor,
        judge=options.eval_judge,
        in_training=True,
    )
