"""Pushing an output folder to the Hub: what is sent, what is refused.

The folder is what training, evaluation and the card left: the bundled pipeline, README.md, results.jsonl and
logs/. Checkpoints, caches and hidden files are not sent. The folder is only read, what has arrived is not
sent again, and a push without changes makes no commit: a push that was cut is simply run again.
"""

from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.utils import filter_repo_objects

from trilemma.eval.scoring import results
from trilemma.model_cards.rendering.differences import REMEDY, check_card
from trilemma.model_cards.rendering.render import render_card
from trilemma.model_cards.rendering.facts import CARD, RENDERED, read_folder
from trilemma.training.options.flags import public, read_yaml

IGNORED = ("best/*", "checkpoints/*", "*__pycache__/*", ".*", "*/.*")
WEIGHTS = ".safetensors"
CONFIG = "config.yaml"


class PublishError(RuntimeError):
    """The push did not come to its end; the folder is as it was."""


def publish(
    folder: str | Path,
    hub_model_id: str,
    *,
    private: bool = False,
    create_pr: bool = False,
    allow_unevaluated: bool = False,
    tag: str | None = None,
    token: str | None = None,
) -> str:
    """Create the repository if need be and upload `folder`; returns the address of the model or pull request.

    `token` is by default the one of `HF_TOKEN` or `hf auth login`. `tag` names the pushed commit. A rendered
    card is rendered again for the model's id, and config.yaml sent without the paths of this machine. A model
    without card or results is refused (results: unless `allow_unevaluated`), and so is a card with others, or
    an existing public repository if `private`.
    """
    folder, token = Path(folder), token or get_token()
    if create_pr and tag:
        raise ValueError("--tag names a commit of the main branch; it does not go with --create_pr")
    _check_folder(folder, allow_unevaluated)
    _check_token_stays_here(folder, token)
    try:
        return _push(HfApi(token=token), folder, hub_model_id, private, create_pr, tag)
    except PublishError:
        raise
    except Exception as error:  # the client has dozens of ways to say that the network or the Hub refused
        reason = f"{type(error).__name__}: {error}"
        raise PublishError(
            f"{hub_model_id} was not published: {reason.replace(token, '***') if token else reason}\n"
            f"{folder} is as it was; run the same command again once the Hub can be reached (after a 401 or "
            f"403, with a write token from `hf auth login` or HF_TOKEN)."
        ) from error


def _push(api: HfApi, folder: Path, model_id: str, private: bool, create_pr: bool, tag: str | None) -> str:
    address = api.create_repo(model_id, private=private, exist_ok=True)
    name = address.repo_id
    if private and not api.repo_info(name).private:
        raise PublishError(f"{name} exists and is public; make it private on its page or take another name")
    card = (folder / CARD).read_text(encoding="utf-8")
    if RENDERED in card:
        card = render_card(folder, name)
    additions = {path: folder / path for path in _sent(folder)} | {CARD: card.encode()}
    if CONFIG in additions:
        additions[CONFIG] = yaml.safe_dump(public(read_yaml(folder / CONFIG)), sort_keys=False).encode()
    commit = api.create_commit(
        name,
        [CommitOperationAdd(path, content) for path, content in additions.items()],
        commit_message=f"Upload {folder.resolve().name}",
        create_pr=create_pr,
    )
    if tag is not None:
        tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(name).tags}
        if tags.get(tag, commit.oid) != commit.oid:
            raise PublishError(f"uploaded {commit.oid}, but --tag {tag} is {tags[tag]}; take another tag")
        api.create_tag(name, tag=tag, revision=commit.oid, exist_ok=True)
    if create_pr and commit.pr_url is None:
        return f"{address} has all of this already: nothing changed, and no pull request was opened"
    return commit.pr_url or str(address)


def _sent(folder: Path) -> list[str]:
    """Names of the files that are published."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    return list(filter_repo_objects(names, ignore_patterns=list(IGNORED)))


def _check_folder(folder: Path, allow_unevaluated: bool) -> None:
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} holds no pipeline (model_index.json): give a training's output folder")
    if not (folder / CARD).is_file():
        raise ValueError(f"{folder} has no {CARD}: python -m trilemma.model_cards.card {folder} makes it")
    if not read_folder(folder).lines and not allow_unevaluated:
        raise ValueError(
            f"{folder / results.RESULTS} has no results of the final weights: measure them with "
            f"eval/evaluate.py --model {folder}, or publish it without numbers by --allow_unevaluated"
        )
    _, problems = check_card(folder)
    if problems:
        raise ValueError("\n".join([*problems, REMEDY.format(folder=folder)]))


def _check_token_stays_here(folder: Path, token: str | None) -> None:
    """A configuration or log that recorded the token must not be published."""
    for name in _sent(folder):
        if token and not name.endswith(WEIGHTS) and token.encode() in (folder / name).read_bytes():
            raise ValueError(f"{folder / name} contains your access token; remove it from the file first")
