"""Pushing an output folder to the Hub.

What is sent is in `sent.py`. The folder is only read. Files that the Hub has already are not sent again,
and a push without changes makes no commit, so an interrupted push is simply repeated.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, get_token

from trilemma.model_cards.hub.sent import WEIGHTS, sent
from trilemma.model_cards.rendering.contents import read_contents
from trilemma.model_cards.rendering.differences import compare_card, to_measure, to_render
from trilemma.model_cards.rendering.render import render_card, words_of
from trilemma.model_cards.space.files import space_files
from trilemma.pipelines.files.hub import PATIENCE, patience
from trilemma.training.options.flags import public
from trilemma.training.output_folder import OutputFolder

T = TypeVar("T")
DEMO = "-demo"
"""The name of a model's Space is the model's name and this ending."""


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
    that differs from the files, a link out of the folder, and, if `private`, a repository that exists and is
    public. A Hub that does not answer is an error, and a signal's exception ends the push at once.
    """
    folder, token = OutputFolder(Path(folder)), token or get_token()
    if create_pr and tag:
        raise ValueError("--tag names a commit of the main branch and cannot be combined with --create_pr")
    names = sent(folder)
    _check_folder(folder, allow_unevaluated)
    _check_token_stays_here(folder, names, token)
    api = HfApi(token=token)
    return _reaching_the_hub(
        lambda: _push(api, folder, names, hub_model_id, private=private, create_pr=create_pr, tag=tag),
        f"{hub_model_id} was not published",
        folder.path,
        token,
    )


def publish_space(folder: str | Path, hub_model_id: str, *, token: str | None = None) -> str:
    """Make or renew the Space `<hub_model_id>-demo`, which draws from the model; returns its address.

    The model must already be published and public: the Space loads it from the Hub by its id.
    ValueError where `space_files` raises it, PublishError for a private model and for a Hub that refuses.
    """
    folder, token = Path(folder), token or get_token()
    space_files(folder, hub_model_id)  # an error, if any, comes before anything is made on the Hub
    api = HfApi(token=token)
    return _reaching_the_hub(
        lambda: _push_space(api, folder, hub_model_id), f"{hub_model_id}{DEMO} was not made", folder, token
    )


def _push_space(api: HfApi, folder: Path, model_id: str) -> str:
    info = api.repo_info(api.create_repo(model_id, exist_ok=True).repo_id, timeout=PATIENCE)
    if info.private:
        raise PublishError(
            f"{info.id} is private, and its Space could not read it; make the model public first"
        )
    address = api.create_repo(f"{info.id}{DEMO}", repo_type="space", space_sdk="gradio", exist_ok=True)
    operations = [CommitOperationAdd(path, content) for path, content in space_files(folder, info.id).items()]
    api.create_commit(address.repo_id, operations, commit_message=f"Demo of {info.id}", repo_type="space")
    return str(address)


def _reaching_the_hub(work: Callable[[], T], failed: str, folder: Path, token: str | None) -> T:
    """`work()`; a PublishError that begins with `failed` where the Hub cannot be reached or refuses."""
    try:
        with patience():
            return _abandonable(work)
    except PublishError:
        raise
    except Exception as error:  # the client has dozens of errors for a network or a Hub that refuses
        reason = _reason(error)
        raise PublishError(
            f"{failed}: {reason.replace(token, '***') if token else reason}\n"
            f"{folder} is unchanged; run the same command again when the Hub can be reached (after a "
            f"401 or 403, with a write token from `hf auth login` or HF_TOKEN)."
        ) from error


def _reason(error: BaseException) -> str:
    """What an error of the client says, and what lies behind it, unless that is the same."""
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    behind = _reason(error.__cause__) if error.__cause__ else said
    return said if behind == said else f"{said} ({behind})"


def _abandonable(work: Callable[[], T]) -> T:
    """`work()`, in a thread that nobody waits for when an exception, such as a signal's, comes meanwhile."""
    outcome: list[T] = []
    problem: list[BaseException] = []
    ended = threading.Event()

    def attempt() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            problem.append(error)
        finally:
            ended.set()

    threading.Thread(target=attempt, daemon=True).start()
    ended.wait()
    if problem:
        raise problem[0]
    return outcome[0]


def _push(
    api: HfApi,
    folder: OutputFolder,
    names: list[str],
    model_id: str,
    *,
    private: bool,
    create_pr: bool,
    tag: str | None,
) -> str:
    address = api.create_repo(model_id, private=private, exist_ok=True)
    name = address.repo_id
    if private and not api.repo_info(name, timeout=PATIENCE).private:
        raise PublishError(f"{name} exists and is public; make it private on its page or use another name")
    card = folder.card.read_text(encoding="utf-8")
    if words_of(card) is not None:
        card = render_card(folder.path, name)
    additions = {path: folder.path / path for path in names} | {folder.card.name: card.encode()}
    if folder.config.name in additions:
        config = yaml.safe_dump(public(folder.read_config()), sort_keys=False)
        additions[folder.config.name] = config.encode()
    operations = [CommitOperationAdd(path, content) for path, content in additions.items()]
    for operation in operations:  # each by itself: several at once are threads, for which a signal would wait
        api.preupload_lfs_files(name, [operation], create_pr=create_pr)
    commit = api.create_commit(
        name,
        operations,
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


def _check_folder(folder: OutputFolder, allow_unevaluated: bool) -> None:
    path = folder.path
    if not folder.card.is_file():
        raise ValueError(f"{path} has no {folder.card.name}; to render one: {to_render(path)}")
    if not read_contents(path).lines and not allow_unevaluated:
        raise ValueError(
            f"{folder.results} has no results of the final weights; measure them with `{to_measure(path)}`, "
            "or publish without numbers with --allow_unevaluated"
        )
    comparison = compare_card(path)
    if comparison.differences:
        raise ValueError(comparison.message(path))


def _check_token_stays_here(folder: OutputFolder, names: list[str], token: str | None) -> None:
    """A configuration or log that recorded the token must not be published."""
    for name in names:
        path = folder.path / name
        if token and not name.endswith(WEIGHTS) and token.encode() in path.read_bytes():
            raise ValueError(f"{path} contains your access token; remove it from the file first")
