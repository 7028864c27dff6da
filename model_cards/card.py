"""Render or check a model card: `python -m trilemma.model_cards.card <folder>`.

The card is README.md. It is rendered from the files of the output folder; render it again after each new
evaluation. `--verify` changes nothing: it compares the card with `results.jsonl` and, if the card was
rendered, with the other files, and fails with a list of the differences.
"""

import argparse
from pathlib import Path

from trilemma.training.loop.stop import ending_quietly


@ending_quietly()
def main(arguments: list[str] | None = None) -> None:
    """Parse, then import what needs more than the standard library."""
    parser = argparse.ArgumentParser(prog="python -m trilemma.model_cards.card", description=__doc__)
    parser.add_argument("folder", type=Path, help="output folder of a training")
    parser.add_argument("--verify", action="store_true", help="compare the card with the folder's files")
    asked = parser.parse_args(arguments)

    from trilemma.model_cards.rendering.differences import compare_card, to_render
    from trilemma.model_cards.rendering.render import write_card
    from trilemma.training.output_folder import OutputFolder

    try:
        if not asked.verify:
            print(write_card(asked.folder))
            return
        comparison = compare_card(asked.folder)
    except (ValueError, OSError) as problem:
        parser.exit(1, f"error: {problem}\n")
    remedy = f"to render it again: {to_render(asked.folder)}"
    if comparison.differences:
        parser.exit(1, "\n".join([*comparison.differences, remedy]) + "\n")
    results = OutputFolder(asked.folder).results.name
    print(f"{comparison.figures} figures on the card, all of them in {results}")
    if comparison.remark:
        print(f"{comparison.remark}; {remedy}")


if __name__ == "__main__":
    main()
