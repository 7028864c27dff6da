"""Publish a model, or check a published one.

`python -m trilemma.model_cards.publish <folder> --hub_model_id user/model` pushes an output folder. With
`--space` it also makes the Space user/model-demo, a page on which anyone can draw from the model.

`python -m trilemma.model_cards.publish --verify user/model` downloads a model, draws images from the same
seeds again, scores them in the same way, and fails if a number differs from the one on the card. Python files
that come with the model run only if they are this toolkit's, or with `--trust_remote_code`.
"""

import argparse
from pathlib import Path
from typing import Any

from trilemma.training.loop.stop import ending_quietly


@ending_quietly()
def main(arguments: list[str] | None = None) -> None:
    """Parse, then import what needs torch or the Hub."""
    parser = argparse.ArgumentParser(
        prog="python -m trilemma.model_cards.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, nargs="?", help="output folder of a training, to be published")
    parser.add_argument("--hub_model_id", help="user/model, or model in your own namespace")
    parser.add_argument("--private", action="store_true", help="create the repository as private")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request; main is not changed")
    parser.add_argument("--allow_unevaluated", action="store_true", help="publish without any results")
    parser.add_argument(
        "--space", action="store_true", help="also publish a page that draws from it, the Space <id>-demo"
    )
    parser.add_argument("--tag", help="tag the pushed commit with this name")
    parser.add_argument("--verify", metavar="MODEL", help="check this published model, a Hub id or a folder")
    parser.add_argument(
        "--num_samples", type=int, help="with --verify: use only the first N seeds (default: all of them)"
    )
    parser.add_argument(
        "--reference", help="with --verify: where the reference data are now, if the place has changed"
    )
    parser.add_argument(
        "--batch_size", type=int, default=250, help="with --verify: images per process and forward pass"
    )
    parser.add_argument(
        "--trust_remote_code", action="store_true", help="with --verify: run whatever code the model brings"
    )
    push = vars(parser.parse_args(arguments))
    options = ("verify", "num_samples", "reference", "batch_size", "trust_remote_code")
    check, space = {name: push.pop(name) for name in options}, push.pop("space")
    if (check["verify"] is None) == (push["folder"] is None):
        parser.error("give a folder to publish, or --verify a published model")
    if check["verify"] is None and push["hub_model_id"] is None:
        parser.error("--hub_model_id is required to publish")
    unseen = [f"--{name}" for name in ("verify", "private", "create_pr") if {**check, **push}[name]]
    if space and unseen:
        parser.error(f"--space shows a published, public model, and cannot be combined with {unseen[0]}")
    try:
        if check["verify"] is None:
            _publish(push, space)
            return

        from trilemma.model_cards.hub.recheck import recheck, report
        from trilemma.training.devices.memory import saying_what_to_lower
        from trilemma.training.loop.machine import closing_groups

        with closing_groups(), saying_what_to_lower("lower --batch_size"):
            checks = recheck(check.pop("verify"), **check)
        print(report(checks))
    except (ValueError, OSError, RuntimeError) as problem:  # RuntimeError: PublishError, and torch's
        parser.exit(1, f"{problem}\n")
    if not any(one.agrees for one in checks) or any(one.agrees is False for one in checks):
        parser.exit(1, "not all numbers on the card could be reproduced\n")


def _publish(push: dict[str, Any], space: bool) -> None:
    """Push the model, and with `space` also its page; the page's files are checked before both."""
    from trilemma.model_cards.hub.upload import publish, publish_space
    from trilemma.model_cards.space.files import space_files

    folder, model_id = push["folder"], push["hub_model_id"]
    if space:
        space_files(folder, model_id)
    print(publish(**push))
    if space:
        print(publish_space(folder, model_id))


if __name__ == "__main__":
    main()
