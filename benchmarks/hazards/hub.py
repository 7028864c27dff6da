"""Answers of a Hub that nobody can use: errors, silence, cut bodies, pages in place of JSON.

The Hub of the tests runs in this process; the command runs in an interpreter of its own, since the endpoint
is read when `huggingface_hub` is imported.
"""

import random
import shutil
from pathlib import Path

from hazards.runs import Outcome, Trial
from hazards.world import World

from loopback_hub import LoopbackHub  # isort: skip  of the tests; hazards.runs adds their folder

PUBLISH = "model_cards/publish.py"

STATUSES = (None, 400, 401, 403, 404, 409, 412, 413, 429, 500, 502, 503)
"""What a request may meet; None: the connection is closed without an answer."""


def answers(world: World, folder: Path, rng: random.Random) -> Trial:
    """From some request on, a Hub fails once, a few times, or for good; a push or a load meets it."""
    hub = LoopbackHub()
    hub.__enter__()
    status, times, after = rng.choice(STATUSES), rng.choice((1, 3, 10**6)), rng.randrange(8)
    hub.fail_after(after, times=times, status=status)
    model = Path(shutil.copytree(world.run, folder / "model"))
    before = {p.name: p.read_bytes() for p in model.iterdir() if p.is_file()}
    (folder / "home").mkdir()
    what = f"status {status} after {after} requests, {times} times"
    names = (hub.url, "tester/model", "Hub", "--model", "--hub_model_id")

    def right(outcome: Outcome) -> str | None:
        files = hub.repos["tester/model"].files() if "tester/model" in hub.repos else {}
        missing = {name for name in ("model_index.json", "results.jsonl", "README.md") if name not in files}
        changed = [name for name, data in before.items() if (model / name).read_bytes() != data]
        if missing or changed:
            return f"accepted, with {sorted(missing)} not published and {changed} changed"
        return None

    environment = hub.environment(folder / "home", hub.token)
    environment["HF_HUB_DOWNLOAD_TIMEOUT"] = "3"
    line = ("--hub_model_id", "tester/model", "--allow_unevaluated", str(model))
    return Trial(what, PUBLISH, line, names, right, (model,), environment, lambda: hub.__exit__())
