"""Draw from a model on a page in the browser: `python -m trilemma.model_cards.demo <folder or Hub id>`.

Choose seeds, sampler, steps and, if the model has them, class and guidance; follow the process from noise to
image; download the images. The page is served on this machine only, until Ctrl-C. It needs Gradio:
`pip install 'trilemma[demo]'`. `publish --space` puts the same page beside a model on the Hub.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

from trilemma.training.loop.stop import ending_quietly


@ending_quietly()
def main(arguments: list[str] | None = None) -> None:
    """Parse, then import what needs torch and Gradio."""
    parser = argparse.ArgumentParser(
        prog="python -m trilemma.model_cards.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="model folder or Hub id")
    parser.add_argument("--port", type=int, help="port of the page (default: the first free one from 7860)")
    parser.add_argument("--no_browser", action="store_true", help="print the address, and open no browser")
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run the Python file that comes with a model of the Hub",
    )
    asked = parser.parse_args(arguments)
    if asked.port is not None and not 1 <= asked.port <= 65535:
        parser.error(f"--port must be 1 to 65535; got {asked.port}")
    if find_spec("gradio") is None:
        parser.exit(1, "error: the page needs Gradio: pip install 'trilemma[demo]'\n")
    try:
        _serve(asked)
    except (ValueError, OSError, RuntimeError) as problem:  # OSError: a port that is taken
        parser.exit(1, f"error: {problem}\n")


def _serve(asked: argparse.Namespace) -> None:
    from accelerate import PartialState

    from trilemma.eval.scoring.model_images import load_model
    from trilemma.model_cards.rendering.contents import read_contents
    from trilemma.model_cards.space.drawing import Settings
    from trilemma.model_cards.space.files import usual_settings
    from trilemma.model_cards.space.page import CSS, page

    pipeline = load_model(asked.model, PartialState().device, asked.trust_remote_code)
    folder = Path(asked.model)
    known = usual_settings(read_contents(folder)) if folder.is_dir() else Settings()
    name = folder.resolve().name if folder.is_dir() else asked.model
    blocks = page(pipeline, name, known)
    blocks.launch(server_port=asked.port, inbrowser=not asked.no_browser, share=False, css=CSS)


if __name__ == "__main__":
    main()
