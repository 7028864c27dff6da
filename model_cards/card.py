"""Rendering and checking a model card: `python -m trilemma.model_cards.card <folder>`.

The card is README.md, made from the files of the output folder; after a new evaluation, render it again.
`--verify` leaves it as it is and fails, naming them, if its results are not those of `results.jsonl`, or if
anything in a card that was rendered is not as the files give it.
"""

import argparse
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Parse, then import what needs more than the standard library."""
    parser = argparse.ArgumentParser(prog="python -m trilemma.model_cards.card", description=__doc__)
    parser.add_argument("folder", type=Path, help="output folder of a training")
    parser.add_argument("--verify", action="store_true", help="check the card against the folder's files")
    asked = parser.parse_args(arguments)

    from trilemma.model_cards.rendering.differences import REMEDY, check_card
    from trilemma.model_cards.rendering.render import write_card

    try:
        if not asked.verify:
            print(write_card(asked.folder))
            return
        count, problems = check_card(asked.folder)
    except (ValueError, OSError) as problem:
        parser.exit(1, f"error: {problem}\n")
    if problems:
        parser.exit(1, "\n".join([*problems, REMEDY.format(folder=asked.folder)]) + "\n")
    print(f"{count} figures in the card, all of them in results.jsonl")


if __name__ == "__main__":
    main()
