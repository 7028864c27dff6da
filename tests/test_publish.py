"""Publishing to the loopback Hub: what is sent, what is refused, a push that is cut and run again.

And whether a number that is not the published model's own is found.
"""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from diffusers import DDPMScheduler
from entry import ROOT, run
from huggingface_hub import HfApi, constants, snapshot_download
from loopback_hub import SILENT, LoopbackHub
from safetensors.numpy import save
from test_card import as_of_wording_1, fill, network, result

from trilemma.eval.evaluate import EvaluateConfig
from trilemma.eval.metrics.sample_metric import Measurement
from trilemma.eval.scoring import after_training as evaluation
from trilemma.eval.scoring import yardsticks
from trilemma.eval.scoring.model_images import load_model
from trilemma.eval.scoring.results import REQUIRED, append, read
from trilemma.model_cards.hub import recheck, upload
from trilemma.model_cards.hub.bundle import save_bundle
from trilemma.model_cards.hub.sent import sent
from trilemma.model_cards.hub.upload import PublishError, publish
from trilemma.model_cards.publish import main
from trilemma.model_cards.rendering.render import render_card, write_card
from trilemma.pipelines.class_conditional import ClassConditionalPipeline
from trilemma.training.options.flags import build
from trilemma.training.options.groups import HubConfig
from trilemma.training.output_folder import OutputFolder
from trilemma.training.run import report

NAME = "tester/model"
PUBLISHED = {
    ".gitattributes",  # the Hub's own
    "README.md",
    "logs/events.out.tfevents.1",
    "model_index.json",
    "results.jsonl",
    "unet/diffusion_pytorch_model.safetensors",
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that the client in this process talks to."""
    with LoopbackHub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(upload, "HfApi", lambda token: HfApi(endpoint=hub.url, token=token))
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "out"
    contents = {
        "model_index.json": b'{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}',
        "README.md": b"---\nlicense: mit\n---\n# A model\n",
        "results.jsonl": json.dumps(result(3.2, "fid").to_json()).encode() + b"\n",
        "logs/events.out.tfevents.1": b"log",
        "unet/diffusion_pytorch_model.safetensors": save({"w": np.zeros(250, np.float32)}),
        "checkpoints/step-00000001/state.safetensors": b"not for the Hub",
        "sheets/step-00000001.png": b"not for the Hub",
        "unet/__pycache__/x.pyc": b"not for the Hub",
        ".cache/x": b"not for the Hub",
        ".out-stage/unet/x": b"not for the Hub",
        "unet/.DS_Store": b"not for the Hub",
        "unet/notes.py": b"not for the Hub",
        "mine.txt": b"not for the Hub",
        "state.pt": b"not for the Hub",
        "logs/state.pkl": b"not for the Hub",
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def state(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_published(hub, folder):
    before = state(folder)
    assert publish(folder, NAME, tag="v1") == f"{hub.url}/{NAME}"
    repo = hub.repos[NAME]
    assert set(repo.files()) == PUBLISHED
    assert not repo.private
    assert repo.tags == {"v1": repo.refs["main"]}
    assert state(folder) == before


def test_a_second_push_without_changes_makes_no_commit(hub, folder):
    publish(folder, NAME, tag="v1")
    log = list(hub.repos[NAME].log)
    publish(folder, NAME, tag="v1")
    assert hub.repos[NAME].log == log
    (folder / "README.md").write_text("# Changed")
    publish(folder, NAME)
    assert hub.repos[NAME].files()["README.md"] == b"# Changed"
    assert len(hub.repos[NAME].log) == len(log) + 1
    with pytest.raises(PublishError, match="--tag v1 is"):
        publish(folder, NAME, tag="v1")


def test_the_paths_of_this_machine_are_not_published(hub, folder):
    values = {"output_dir": "/home/me/out/", "train_data_dir": "/a/cats", "init_from": "user/base", "seed": 3}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    publish(folder, NAME)
    sent = yaml.safe_load(hub.repos[NAME].files()["config.yaml"])
    assert sent == {"output_dir": "out", "train_data_dir": "cats", "init_from": "user/base", "seed": 3}


@pytest.mark.parametrize(("allowed", "evaluated"), [(False, False), (True, True), (False, True)])
def test_a_training_that_measures_nothing_publishes_and_its_card_warns(
    hub, folder, allowed, evaluated, capsys
):
    """As with `--use_ema --push_to_hub` of diffusers' README; results that were asked for are required."""
    (folder / "results.jsonl").unlink()
    options = HubConfig(push_to_hub=True, hub_model_id=NAME, allow_unevaluated=allowed)
    stop = SimpleNamespace(at_once=lambda work: work())
    if evaluated and not allowed:
        with pytest.raises(ValueError, match="--allow_unevaluated"):
            report(folder, options, stop, evaluated)
        assert hub.requests == []
        return
    report(folder, options, stop, evaluated)
    assert b"> **Not measured.** No number says" in hub.repos[NAME].files()["README.md"]
    said = capsys.readouterr().out
    assert f"{folder / 'README.md'} shows how to load it.\n" in said  # the id of the Hub is on the card
    assert f"To measure it: accelerate launch eval/evaluate.py --model {folder}\n" in said


def test_a_training_says_from_where_its_card_loads_the_model(folder, monkeypatch, capsys):
    """By its name, as long as it is not on the Hub."""
    folder = folder.rename(folder.with_name("my model"))
    stop = SimpleNamespace(at_once=lambda work: work())
    report(folder, HubConfig(), stop, True)
    said = capsys.readouterr().out
    assert f"load it, from a program that is started in {folder.parent}.\n" in said
    assert f"--model '{folder}'\n" in said
    monkeypatch.chdir(folder.parent)
    report(folder, HubConfig(), stop, True)
    assert "README.md shows how to load it.\n" in capsys.readouterr().out


@pytest.mark.long
def test_a_training_publishes_with_a_tag(hub, tmp_path, tiny):
    words = ["train", *tiny, "--max_train_steps", "2", "--output_dir", str(tmp_path / "out")]
    words += ["--eval_steps", "0"]
    words += ["--push_to_hub", "--hub_model_id", NAME, "--hub_tag", "v1", "--hub_private_repo"]
    code = "import runpy, sys\nsys.argv = {}\nrunpy.run_module('trilemma.training.{}', run_name='__main__')"
    hub.python(code.format(words, "train_unconditional"), tmp_path / "home", token=hub.token)
    assert hub.repos[NAME].private
    assert "model_index.json" in hub.repos[NAME].files("v1")


STOCK_STRANGER = """
import sys
sys.modules["trilemma"] = None
import numpy as np, torch
from diffusers import DDPMPipeline, DiffusionPipeline

for family, scheduler in {families}.items():
    pipe = DiffusionPipeline.from_pretrained("tester/" + family)
    assert (type(pipe), type(pipe.scheduler).__name__) == (DDPMPipeline, scheduler)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    drawn = pipe(2, generator=generators, num_inference_steps=4, output_type="np").images
    np.testing.assert_allclose(drawn, np.load({folder!r} + "/" + family + ".npy"), atol=1e-5, rtol=0)
"""


@pytest.mark.long
def test_a_stranger_draws_from_the_hub_what_we_draw_by_stock_diffusers_alone(hub, tmp_path, tiny):
    """Trained models that are saved as stock pipelines, published without any code."""
    families = {"flow": "FlowMatchEulerDiscreteScheduler", "consistency": "LCMScheduler"}
    for family in families:
        out = tmp_path / family
        short = ["--max_train_steps", "2", "--eval_steps", "0", "--output_dir", str(out)]
        run(f"training/train_{family}.py", *tiny, *short)
        ours = load_model(str(out), "cpu")
        ours.set_progress_bar_config(disable=True)
        drawn = ours(seeds=[3, 4], num_inference_steps=4, output_type="np").images
        assert drawn.std() > 0.01
        np.save(tmp_path / f"{family}.npy", drawn)
        publish(out, f"tester/{family}", allow_unevaluated=True)
        assert not [name for name in hub.repos[f"tester/{family}"].files() if name.endswith(".py")]
    hub.python(STOCK_STRANGER.format(families=families, folder=str(tmp_path)), tmp_path / "home")


def test_a_name_without_a_user_goes_to_ones_own(hub, folder):
    assert publish(folder, "model").endswith(NAME)
    assert NAME in hub.repos


def test_private(hub, folder):
    publish(folder, NAME, private=True)
    assert hub.repos[NAME].private
    publish(folder, NAME, private=True)
    publish(folder, "tester/public")
    with pytest.raises(PublishError, match="is public"):
        publish(folder, "tester/public", private=True)


def test_a_pull_request_leaves_main_as_it_is(hub, folder):
    assert publish(folder, NAME, create_pr=True).endswith("/discussions/1")
    assert set(hub.repos[NAME].files("main")) == {".gitattributes"}
    assert set(hub.repos[NAME].files("refs/pr/1")) == PUBLISHED
    publish(folder, "tester/other")
    message = publish(folder, "tester/other", create_pr=True)
    assert "nothing changed, and no pull request was opened" in message
    with pytest.raises(ValueError, match="--create_pr"):
        publish(folder, NAME, create_pr=True, tag="v1")


@pytest.mark.parametrize(
    "cut",
    [
        "POST /api/repos/create",
        "POST .*/preupload/",
        "POST .*/objects/batch",
        "PUT /lfs/",
        "POST .*/commit/",
        "POST .*/tag/",
    ],
)
def test_a_push_that_is_cut_is_run_again(hub, folder, cut):
    """At any request: main is whole or as before, the folder as it was, and the same call goes through."""
    before = state(folder)
    hub.fail_after(0, cut, status=403)
    with pytest.raises(PublishError, match="run the same command again") as failure:
        publish(folder, NAME, tag="v1")
    assert hub.token not in str(failure.value)
    if NAME in hub.repos:
        assert set(hub.repos[NAME].files()) in ({".gitattributes"}, PUBLISHED)
    assert state(folder) == before
    publish(folder, NAME, tag="v1")
    assert set(hub.repos[NAME].files()) == PUBLISHED
    assert hub.repos[NAME].tags == {"v1": hub.repos[NAME].refs["main"]}
    assert len(hub.repos[NAME].log) == 2, "the initial commit and one push"


@pytest.mark.long
@pytest.mark.parametrize(
    "request_",
    [
        "POST /api/repos/create",
        "GET /api/models/",
        "POST .*/preupload/",
        "POST .*/objects/batch",
        "PUT /lfs/",
        "POST .*/verify",
        "POST .*/commit/",
        "GET .*/refs",
        "POST .*/tag/",
    ],
)
def test_a_hub_that_does_not_answer_is_an_error(hub, folder, monkeypatch, request_):
    """Whatever the request; and the same call goes through when it answers."""
    monkeypatch.setattr("trilemma.pipelines.files.hub.PATIENCE", 0.2)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    before = state(folder)
    hub.fail_after(0, request_, times=100, status=SILENT)
    with pytest.raises(PublishError, match="run the same command again") as failure:
        publish(folder, NAME, private=True, tag="v1")
    assert "Timeout" in str(failure.value)
    assert state(folder) == before
    hub.failures.clear()
    publish(folder, NAME, private=True, tag="v1")
    assert set(hub.repos[NAME].files("v1")) == PUBLISHED


PUSH = """
import signal, sys
from trilemma.model_cards.hub.upload import publish

class Stopped(BaseException):
    pass

def stop(number, frame):
    raise Stopped

signal.signal(signal.SIGTERM, stop)
try:
    publish({folder!r}, "tester/model")
except Stopped:
    print("stopped", flush=True)
    sys.exit(75)
"""


@pytest.mark.long
@pytest.mark.parametrize("request_", ["PUT /lfs/", "POST .*/commit/"])
def test_a_signal_ends_a_push_at_once(hub, folder, tmp_path, request_):
    """Also while several files are sent to a Hub that does not answer."""
    (folder / "logs" / "events.out.tfevents.2").write_bytes(b"another")
    hub.fail_after(0, request_, times=100, status=SILENT)
    environment = hub.environment(tmp_path / "hf", hub.token)
    command = [sys.executable, "-c", PUSH.format(folder=str(folder))]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        while not any(re.search(request_, line) for line in hub.requests):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 75
        assert process.stdout.read() == "stopped\n"


def link(path, target):
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize("name", [
    "samples.png", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "logs/scalars.jsonl",
    "LICENSE",
])  # fmt: skip
@pytest.mark.parametrize("target", ["../id_rsa", "/nowhere", "{root}/id_rsa", "../private"])
def test_a_link_out_of_the_folder_is_not_followed(hub, folder, tmp_path, name, target):
    (tmp_path / "id_rsa").write_text("a secret")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "file").write_text("a secret")
    target = target.format(root=tmp_path)
    link(folder / name, f"../{target}" if "/" in name and target[0] == "." else target)
    with pytest.raises(ValueError, match="is not followed") as refused:
        publish(folder, NAME)
    assert str(folder / name) in str(refused.value)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["unet", "logs"])
def test_a_linked_folder_is_refused(hub, folder, tmp_path, name):
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is not followed"):
        publish(folder, NAME)
    assert hub.requests == []


def test_what_is_not_the_model_s_stays_here(hub, folder, tmp_path, caplog):
    """A link that nothing needs is no reason to refuse, and its content is not sent."""
    (tmp_path / "id_rsa").write_text("a secret")
    (folder / "extra.txt").symlink_to("../id_rsa")
    (folder / "private").symlink_to(tmp_path)
    (folder / "LICENSE").write_text("mine")
    (folder / "logs" / "latest").symlink_to("events.out.tfevents.1")
    publish(folder, NAME)
    assert set(hub.repos[NAME].files()) == PUBLISHED | {"LICENSE"}
    assert "extra.txt" in caplog.text
    assert "sheets" not in caplog.text, "which a run keeps to itself"
    assert not any(b"secret" in content for content in hub.lfs.values())


@pytest.mark.parametrize("place", ["/", "{folder}/..", ".", "private"])
def test_a_folder_of_logs_brings_no_other_files(hub, folder, place):
    """Whatever config.yaml, which may be a stranger's, calls it."""
    (folder / "private").mkdir()
    for name in ("secret.env", "private/id_rsa"):
        (folder / name).write_text("a secret")
    (folder / "config.yaml").write_text(yaml.safe_dump({"logging_dir": place.format(folder=folder)}))
    assert {"secret.env", "private/id_rsa"}.isdisjoint(sent(OutputFolder(folder)))


ASK = """
import huggingface_hub.file_download as download
import huggingface_hub.utils._http as http
from trilemma.eval.features.judge_files import judge_folder
from trilemma.model_cards.hub.recheck import _folder_of
from trilemma.pipelines.files import hub
from trilemma.pipelines.files.saved import index_path

hub.PATIENCE, download._ETAG_RETRY_TIMEOUT, http.time.sleep = 0.2, 0.2, lambda seconds: None
for ask in (index_path, judge_folder, _folder_of):
    try:
        print(ask("user/model"))
    except Exception as refused:
        print(type(refused).__name__)
print("answered")
"""


@pytest.mark.long
def test_a_hub_that_does_not_answer_keeps_nobody_waiting(hub, tmp_path):
    """Whoever reads from it."""
    hub.fail_after(0, "", times=1000, status=SILENT)
    environment = hub.environment(tmp_path) | {"PYTHONPATH": str(ROOT), "HF_HUB_ETAG_TIMEOUT": "1"}
    command = [sys.executable, "-c", ASK]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "answered", done.stderr
    assert hub.requests


def test_a_linked_output_folder_is_published(hub, folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    publish(tmp_path / "link", NAME)
    assert set(hub.repos[NAME].files()) == PUBLISHED


@pytest.mark.parametrize("name", ["unet/weights.bin", "unet/model.PT", "unet/old/weights.ckpt"])
def test_pickled_weights_are_refused(hub, folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"a pickle")
    with pytest.raises(ValueError, match=r"is a pickle.*safe_serialization=True.*delete it"):
        publish(folder, NAME)
    assert hub.requests == []


@pytest.mark.parametrize("content", [b"", bytes(1000), b"\x80\x04}.", save({"w": np.zeros(9)})[:-1]])
def test_weights_that_are_cut_or_something_else_are_refused(hub, folder, content):
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole"):
        publish(folder, NAME)
    assert hub.requests == []


@pytest.mark.parametrize("results", [
    None, "", json.dumps(result(1.0, step=59).to_json()), json.dumps(result(1.0, seeds=None).to_json())
])  # fmt: skip
def test_a_model_without_results_is_refused(hub, folder, results):
    """None at all, of an earlier step, of a folder of images."""
    (folder / "run.json").write_text(json.dumps({"steps": 60}))
    (folder / "results.jsonl").unlink()
    if results is not None:
        (folder / "results.jsonl").write_text(results)
    with pytest.raises(ValueError, match="--allow_unevaluated"):
        publish(folder, NAME)
    assert hub.requests == []
    publish(folder, NAME, allow_unevaluated=True)


def test_a_folder_without_a_card_is_refused(hub, folder):
    (folder / "README.md").unlink()
    with pytest.raises(ValueError, match=r"python -m trilemma\.model_cards\.card"):
        publish(folder, NAME)
    assert hub.requests == []


def test_the_card_is_sent_under_the_name_of_the_model(hub, folder):
    """Whatever the folder was called when it was rendered; somebody's own card is sent as it is."""
    index = {"unet": ["diffusers", "UNet2DModel"], "_class_name": "DDGANPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    card = write_card(folder).read_text()
    assert 'from_pretrained("out"' in card
    folder = folder.rename(folder.with_name("copy"))
    publish(folder, NAME)
    assert hub.repos[NAME].files()["README.md"].decode() == render_card(folder, NAME) != card
    assert (folder / "README.md").read_text() == card
    (folder / "README.md").write_text('from_pretrained("out")')
    publish(folder, NAME)
    assert hub.repos[NAME].files()["README.md"] == b'from_pretrained("out")'


def test_a_card_with_other_results_is_refused(hub, folder):
    index = {"unet": ["diffusers", "UNet2DModel"], "_class_name": "DDGANPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    card = write_card(folder).read_text()
    publish(folder, NAME)
    (folder / "README.md").write_text(card.replace("| 3.2 |", "| 2.2 |"))
    with pytest.raises(ValueError, match=r"value 2\.2 \(there 3\.2\)"):
        publish(folder, NAME)


def test_a_folder_without_a_pipeline_is_refused(hub, tmp_path):
    with pytest.raises(ValueError, match=r"model_index\.json"):
        publish(tmp_path, NAME)


@pytest.mark.parametrize("name", ["config.yaml", "logs/events.out.tfevents.2"])
def test_a_file_with_the_token_is_refused(hub, folder, name):
    (folder / name).write_text(f"hub_token: {hub.token}")
    with pytest.raises(ValueError, match="contains your access token") as failure:
        publish(folder, NAME)
    assert hub.token not in str(failure.value)
    assert hub.requests == []


def test_the_token_is_in_no_output_of_the_command(hub, folder, capsys, caplog):
    main([str(folder), "--hub_model_id", NAME])
    with pytest.raises(SystemExit):
        main([str(folder), "--hub_model_id", "someone/else's"])
    printed = capsys.readouterr()
    assert printed.out == f"{hub.url}/{NAME}\n"
    assert "someone/else's was not published" in printed.err
    assert hub.token not in printed.out + printed.err + caplog.text


@pytest.mark.long
def test_the_command_without_a_network_or_a_token(folder, tmp_path):
    command = [sys.executable, "-m", "trilemma.model_cards.publish", str(folder), "--hub_model_id", NAME]
    with LoopbackHub() as hub:
        no_token = hub.environment(tmp_path / "hf")
        offline = hub.environment(tmp_path / "hf", "hf_some_token") | {"HF_HUB_OFFLINE": "1"}
        dead = hub.environment(tmp_path / "hf", "hf_some_token") | {"HF_ENDPOINT": "http://127.0.0.1:9"}
        cases = (no_token, "401"), (offline, "OfflineModeIsEnabled"), (dead, "ConnectError")
        for environment, reason in cases:
            before = state(folder)
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 1
            assert reason in done.stderr
            assert "run the same command again" in done.stderr
            assert "Traceback" not in done.stderr
            assert "hf_some_token" not in done.stdout + done.stderr
            assert state(folder) == before


@pytest.mark.parametrize("flags", [[], ["out"], ["out", "--verify", "user/model"]])
def test_the_command_publishes_or_verifies(flags):
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert stop.value.code == 2


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A bundled class-conditional model with results and card, and the cache that it was measured with."""
    root = tmp_path_factory.mktemp("measured")
    scheduler = DDPMScheduler(num_train_timesteps=100, timestep_spacing="trailing")
    names = [f"digit {k}" for k in range(10)]
    save_bundle(ClassConditionalPipeline(network(num_class_embeds=11), scheduler, names), root / "out")
    fill(root / "out", "class_conditional", "--validation_size", "20")
    values = dict(
        model=str(root / "out"), num_samples=90, seed=5, sampler="ddim", num_inference_steps=4, batch_size=90,
        guidance_scale=2.0, feature_extractor="pixels", metrics=("fd", "kid", "prdc", "memorization"),
        cache_dir=str(root / "cache"),
    )  # fmt: skip
    evaluation.evaluate(build(EvaluateConfig, values))
    write_card(root / "out")
    return root


@pytest.fixture
def copy(measured, tmp_path, monkeypatch):
    """A copy of the measured folder, to be changed."""
    monkeypatch.setenv("TRILEMMA_CACHE", str(measured / "cache"))
    target = tmp_path / "copy"
    target.mkdir()
    for path in (measured / "out").rglob("*"):
        place = target / path.relative_to(measured / "out")
        place.mkdir() if path.is_dir() else place.write_bytes(path.read_bytes())
    return target


def test_the_numbers_of_a_published_model_come_out_again(hub, copy, tmp_path, monkeypatch, capsys):
    publish(copy, NAME)
    pull = partial(snapshot_download, endpoint=hub.url, cache_dir=tmp_path / "hub")
    monkeypatch.setattr(recheck, "snapshot_download", pull)
    checks = recheck.recheck(NAME)
    assert {check.line.metric for check in checks} >= {"fd_pixels", "kid_pixels", "copying_pixels"}
    assert len(checks) == len(read(copy / "results.jsonl"))
    for check in checks:
        assert check.agrees, check
        assert check.now.value == pytest.approx(check.line.value, rel=1e-4)
    main(["--verify", NAME, "--num_samples", "60", "--reference", "digits"])
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert re.search(r"intervals overlap: \S+ \.\. \S+ and \S+ \.\. \S+$", rows["fd_pixels"])
    assert "needs all seeds" in rows["precision_pixels"]


def test_a_number_that_is_not_the_model_s_is_found(copy, capsys):
    lines = read(copy / "results.jsonl")
    (copy / "results.jsonl").unlink()
    append(copy / "results.jsonl", [
        replace(line, value=line.value * (1.5 if line.measure == "fd" else 1)) for line in lines
    ])  # fmt: skip
    with pytest.raises(ValueError, match="fd_pixels"):
        recheck.recheck(str(copy))  # the card still has the old one
    write_card(copy)
    with pytest.raises(SystemExit) as stop:
        main(["--verify", str(copy)])
    assert stop.value.code == 1
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "DIFFERS" in rows["fd_pixels"]
    assert "the same" in rows["kid_pixels"]


def test_samples_of_some_classes_are_a_row_and_a_draw_of_their_own(measured, copy):
    values = dict(
        model=str(copy), num_samples=70, sampler="ddim", num_inference_steps=4, feature_extractor="pixels",
        metrics=("fd",), classes=("digit 3", "4"), cache_dir=str(measured / "cache"),
    )  # fmt: skip
    evaluation.evaluate(build(EvaluateConfig, values))
    lines = read(copy / "results.jsonl")
    assert (lines[-1].classes, lines[-1].guidance_scale) == ("'digit 3' 4", 1.0)
    append(copy / "results.jsonl", [replace(lines[-1], classes="5")])  # not what was drawn
    write_card(copy)
    checks = {(c.line.metric, c.line.classes): c for c in recheck.recheck(str(copy))}
    assert checks["fd_pixels", None].agrees
    assert checks["fd_pixels", "'digit 3' 4"].agrees
    values = {check.now.value for (metric, _), check in checks.items() if metric == "fd_pixels"}
    assert len(values) == 3, "each from its own samples"


def test_another_reference_and_more_samples_than_seeds_are_refused(copy):
    with pytest.raises(ValueError, match=r"--num_samples must be in 2\.\.90"):
        recheck.recheck(str(copy), num_samples=91)
    fill(copy, "class_conditional", "--validation_size", "30")
    write_card(copy)
    with pytest.raises(ValueError, match="--reference"):
        recheck.recheck(str(copy))


def test_code_that_is_not_the_toolkit_s_runs_only_when_it_is_allowed(copy, capsys):
    """Looked at before anything of the folder is loaded."""
    file = copy / "pipeline_class_conditional.py"
    file.write_text(file.read_text() + f"open({str(copy / 'ran')!r}, 'w')\n")
    with pytest.raises(SystemExit) as stop:
        main(["--verify", str(copy)])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert str(file) in error
    assert "--trust_remote_code" in error
    assert not (copy / "ran").exists()
    main(["--verify", str(copy), "--trust_remote_code"])
    assert (copy / "ran").exists()


def test_a_pickle_of_a_model_is_not_read_to_check_it(copy):
    (weights,) = (copy / "unet").glob("*.safetensors")
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"\.bin is a pickle"):
        recheck.recheck(str(copy), trust_remote_code=True)


@pytest.mark.parametrize(("measure", "value", "interval", "all_seeds", "agrees"), [
    ("fd", 10.05, (9.0, 11.0), True, True),
    ("fd", 10.3, (9.0, 11.0), True, False),
    ("fd", 10.3, (9.9, 12.0), False, True),
    ("fd", 12.0, (11.5, 12.5), False, False),
    ("fd", 10.0, None, False, None),
    ("is", 10.0, (9.0, 11.0), False, None),
])  # fmt: skip
def test_when_numbers_agree(measure, value, interval, all_seeds, agrees):
    line = result(10.0, f"{measure}_classifier", measure=measure, interval=(9.0, 11.0))
    now = Measurement(value, 500, interval)
    assert recheck._compare(line, None, now, all_seeds).agrees is agrees
    assert recheck._compare(line, "other weights", now, all_seeds).agrees is None


def test_a_distance_to_a_part_of_the_training_images_is_checked(copy, monkeypatch):
    """`validation_size` leaves a part of them, which only a FID says in its name: fid_90_vs_part_of_train."""
    lines = [line for line in read(copy / "results.jsonl") if line.measure == "fd"]
    assert [line.whole for line in lines] == [False]
    renamed = replace(lines[0], feature_extractor="inception", metric="fid_90_vs_part_of_train")
    pixels = yardsticks.load_extractor

    def load(name, **options):
        extractor = pixels("pixels", **options)
        extractor.name = name
        return extractor

    monkeypatch.setattr(yardsticks, "load_extractor", load)
    for value, agrees in ((renamed.value, True), (2 * renamed.value, False)):
        (copy / "results.jsonl").unlink()
        append(copy / "results.jsonl", [replace(renamed, value=value)])
        write_card(copy)
        (check,) = recheck.recheck(str(copy))
        assert check.agrees is agrees, check


def test_lines_and_cards_of_an_earlier_version_are_checked(copy, caplog):
    """Without `measure` and `whole`, with the class of the scheduler as sampler, under an older wording."""
    lines = [line.to_json() for line in read(copy / "results.jsonl")]
    older = [{key: line[key] for key in REQUIRED} | {"sampler": "DDIMScheduler"} for line in lines]
    (copy / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in older))
    (copy / "README.md").write_text(as_of_wording_1(write_card(copy).read_text()))
    checks = recheck.recheck(str(copy))
    assert len(checks) == len(lines)
    assert all(check.agrees for check in checks)
    assert "only its facts were compared" in caplog.text


def test_a_number_of_the_model_itself_is_not_drawn_again(copy):
    """Bits per dimension come from no samples."""
    append(copy / "results.jsonl", [result(3.0, "bpd_test", measure="bpd", feature_extractor=None)])
    write_card(copy)
    checks = {check.line.metric: check for check in recheck.recheck(str(copy))}
    assert (checks["bpd_test"].agrees, checks["bpd_test"].why) == (None, "not measured on samples")
    assert checks["fd_pixels"].agrees
