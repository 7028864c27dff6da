"""The files of a Space that shows a model: its page, which needs no Trilemma, what it installs, its card.

The Space loads the model from the Hub by its id. A model that is saved as a stock pipeline has no code of its
own, so the Space gets that of its family.
"""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from trilemma import pipelines
from trilemma.model_cards.rendering.contents import Contents, read_contents
from trilemma.model_cards.rendering.text import escape, literal
from trilemma.model_cards.space import drawing
from trilemma.model_cards.space.drawing import Settings
from trilemma.pipelines.single_file import single_file
from trilemma.training.output_folder import own_sampling

INSTALLED = ("diffusers", "huggingface_hub", "numpy", "pillow", "safetensors", "torch")
"""Packages that the page needs beside Gradio, in the versions of this machine, with which it works."""

CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
"""Index of torch without CUDA, since a free Space has no GPU."""

APP = '''"""A page that draws from {shown}. Written by trilemma.model_cards.publish --space."""

from diffusers import DiffusionPipeline
from page import CSS, Settings, page
{more_imports}
MODEL = {model}
pipeline = {loaded}
page(pipeline, MODEL, {settings}).launch(css=CSS)
'''

CARD = """---
{front}---

# {title}

Draw from [{shown}](https://huggingface.co/{model}): choose seeds, sampler, steps and, if the model has them,
class and guidance, and follow the process from noise to image. `page.py` is the page.
"""


def space_files(folder: Path, model_id: str) -> dict[str, bytes]:
    """Name -> content of the files of the Space of the model in `folder`, published as `model_id`.

    ValueError for a model that the page cannot show, and where Gradio is not installed.
    """
    contents = read_contents(folder, model_id)
    if contents.family is None:
        raise ValueError(f"--space is for models of this toolkit's families; {folder} holds another pipeline")
    files = {
        "app.py": _app(contents),
        "page.py": single_file(Path(drawing.__file__).with_name("page.py")),
        "requirements.txt": _requirements(),
        "README.md": _card(contents),
    }
    if not contents.saved.ships_code:
        code = Path(pipelines.__file__).with_name(f"{contents.family}.py")
        files[f"pipeline_{contents.family}.py"] = single_file(code)
    return {name: text.encode() for name, text in files.items()}


def usual_settings(contents: Contents) -> Settings:
    """How the best result was sampled; without results, how the run drew its own samples."""
    if contents.saved.best is not None:
        return Settings(*contents.saved.best)
    return Settings(*own_sampling(contents.config))


def _app(contents: Contents) -> str:
    loaded, more = "DiffusionPipeline.from_pretrained(MODEL, trust_remote_code=True)", ""
    if not contents.saved.ships_code:
        loaded = "from_stock(DiffusionPipeline.from_pretrained(MODEL))"
        more = f"from pipeline_{contents.family} import from_stock\n"
    settings, model = usual_settings(contents), contents.model_id
    return APP.format(
        shown=model, more_imports=more, model=literal(model), loaded=loaded, settings=_call(settings)
    )


def _call(settings: Settings) -> str:
    sampler = None if settings.sampler is None else literal(settings.sampler)
    return f"Settings({sampler}, {settings.steps!r}, {settings.guidance!r})"


def _requirements() -> str:
    lines = [f"{name}=={_version(name)}" for name in INSTALLED]
    return "\n".join([f"--extra-index-url {CPU_WHEELS}", *lines]) + "\n"


def _card(contents: Contents) -> str:
    model = contents.model_id
    title = f"{model.split('/')[-1]}: demo"
    front = {
        "title": title,
        "sdk": "gradio",
        "sdk_version": _version("gradio"),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "app_file": "app.py",
        "models": [model],
        "tags": ["trilemma", contents.family],
    }
    text = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return CARD.format(front=text, title=escape(title), shown=escape(model), model=model)


def _version(package: str) -> str:
    """The version that is installed here, without the part that says how torch was built."""
    try:
        return version(package).split("+")[0]
    except PackageNotFoundError:
        raise ValueError(
            f"--space needs {package} on this machine, since the Space gets the same version: "
            "pip install 'trilemma[demo]'"
        ) from None
