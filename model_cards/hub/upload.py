"""Pushing an output folder to the Hub: what is sent, what is refused.

The bundled pipeline, the card, the results and the logs are sent; checkpoints, caches and hidden files are
not. The folder is only read. Files that the Hub has already are not sent again, and a push without changes
makes no commit, so an interrupted push is simply repeated.
"""

from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.utils import filter_repo_objects

from trilemma.model_cards.rendering.contents import read_contents
from trilemma.model_cards.rendering.differences import REMEDY, compare_card
from trilemma.model_cards.rendering.render import render_card, words_of
from trilemma.training.options.flags import public
from trilemma.training.output_folder import OutputFolder

IGNORED = ("*__pycache__/*", ".*", "*/.*")
WEIGHTS = ".safetensors"


class PublishError(RuntimeError):
    """The push was not completed; the folder is unchanged."""


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
    """Create the repository if it does not exist and upload `folder`; returns the address of the model or of
    the pull request.

    `token` is by default the one of `HF_TOKEN` or `hf auth login`. `tag` names the pushed commit. A card that
    was rendered is rendered again with the model's id, and config.yaml is sent without the paths of this
    machine. Refused are: a model without a card, a model without results (unless `allow_unevaluated`), a card
    that differs from the files, and, if `private`, a repository that exists and is public.
    """
    folder, token = OutputFolder(Path(folder)), token or get_token()
    if create_pr and tag:
        raise ValueError("--tag names a commit of the main branch and cannot be combined with --create_pr")
    _check_folder(folder, allow_unevaluated)
    _check_token_stays_here(folder, token)
    try:
        return _push(HfApi(token=token), folder, hub_model_id, private, create_pr, tag)
    except PublishError:
        raise
    except Exception as error:  # the client has dozens of errors for a network or a Hub that refuses
        reason = f"{type(error).__name__}: {error}"
        raise PublishError(
            f"{hub_model_id} was not published: {reason.replace(token, '***') if token else reason}\n"
            f"{folder.path} is unchanged; run the same command again when the Hub can be reached (after a "
            f"401 or 403, with a write token from `hf auth login` or HF_TOKEN)."
        ) from error


def _push(
    api: HfApi, folder: OutputFolder, model_id: str, private: bool, create_pr: bool, tag: str | None
) -> str:
    address = api.create_repo(model_id, private=private, exist_ok=True)
    name = address.repo_id
    if private and not api.repo_info(name).private:
        raise PublishError(f"{name} exists and is public; make it private on its page or use another name")
    card = folder.card.read_text(encoding="utf-8")
    if words_of(card) is not None:
        card = render_card(folder.path, name)
    additions = {path: folder.path / path for path in _sent(folder)} | {folder.card.name: card.encode()}
    if folder.config.name in additions:
        config = yaml.safe_dump(public(folder.read_config()), sort_keys=False)
        additions[folder.config.name] = config.encode()
    commit = api.create_commit(
        name,
        [CommitOperationAdd(path, content) for path, content in additions.items()],
        commit_message=f"Upload {folder.path.resolve().name}",
        create_pr=create_pr,
    )
    if tag is not None:
        tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(name).tags}
        if tags.get(tag, commit.oid) != commit.oid:
            raise PublishError(f"uploaded {commit.oid}, but --tag {tag} is {tags[tag]}; use another tag")
        api.create_tag(name, tag=tag, revision=commit.oid, exist_ok=True)
    if create_pr and commit.pr_url is None:
        return f"{address} has all of these files already: nothing changed, and no pull request was opened"
    return commit.pr_url or str(address)


def _sent(folder: OutputFolder) -> list[str]:
    """Names of the files that are published."""
    root = folder.path
    names = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]
    ignored = [f"{path.name}/*" for path in (folder.best, folder.checkpoints)]
    return list(filter_repo_objects(names, ignore_patterns=[*ignored, *IGNORED]))


def _check_folder(folder: OutputFolder, allow_unevaluated: bool) -> None:
    path = folder.path
    folder.read_index()
    if not folder.card.is_file():
        raise ValueError(
            f"{path} has no {folder.card.name}; to render one: python -m trilemma.model_cards.card {path}"
        )
    if not read_contents(path).lines and not allow_unevaluated:
        raise ValueError(
            f"{folder.results} has no results of the final weights; measure them with eval/evaluate.py "
            f"--model {path}, or publish without numbers with --allow_unevaluated"
        )
    if differences := compare_card(path).differences:
        raise ValueError("\n".join([*differences, REMEDY.format(folder=path)]))


def _check_token_stays_here(folder: OutputFolder, token: str | None) -> None:
    """A configuration or log that recorded the token must not be published."""
    for name in _sent(folder):
        path = folder.path / name
        if token and not name.endswith(WEIGHTS) and token.encode() in path.read_bytes():
            raise ValueError(f"{path} contains your access token; remove it from the file first")
