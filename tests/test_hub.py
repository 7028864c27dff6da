"""The loopback Hub against the unmodified client and the `hf` command; every later Hub test rests on it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub

HF = str(Path(sys.executable).with_name("hf"))


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def client(hub, tmp_path):
    """Run Python with `api`, a client of this Hub, in a process of its own."""

    def run(code, *, token=hub.token, ok=True):
        return hub.python(PRELUDE + code, tmp_path / "hf", token=token, ok=ok)

    return run


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Hello\n")
    (folder / "unet" / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    return folder


PRELUDE = "from huggingface_hub import HfApi\napi = HfApi()\n"
PUSH = """
api.create_repo("tester/model", exist_ok=True, private={private})
info = api.upload_folder(repo_id="tester/model", folder_path={folder!r}, create_pr={pr})
print(info.oid, info.pr_url)
"""


def test_a_pushed_folder_comes_back_byte_for_byte(hub, client, folder, tmp_path):
    oid = client(PUSH.format(private=False, folder=str(folder), pr=False)).split()[0]
    files = hub.repos["tester/model"].files()
    assert files["README.md"] == (folder / "README.md").read_bytes()
    assert "PUT" in {line.split()[0] for line in hub.requests}, "weights must travel over LFS"
    assert len(hub.lfs) == 1
    out = client(f"""
path = api.snapshot_download("tester/model", revision="main", local_dir={str(tmp_path / "copy")!r})
print(api.model_info("tester/model").sha)
print(*sorted(api.list_repo_files("tester/model")))
weights = api.hf_hub_download("tester/model", "unet/model.safetensors")
print(open(weights, "rb").read() == bytes(range(256)) * 40)
""", token=None).split("\n")
    assert out[:3] == [oid, ".gitattributes README.md unet/model.safetensors", "True"]
    for name in ("README.md", "unet/model.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()


def test_second_push_makes_no_commit_and_a_pull_request_leaves_main_alone(hub, client, folder):
    client(PUSH.format(private=False, folder=str(folder), pr=False))
    repo = hub.repos["tester/model"]
    before = list(repo.log)
    client(PUSH.format(private=False, folder=str(folder), pr=False))
    assert repo.log == before
    (folder / "README.md").write_text("changed")
    out = client(PUSH.format(private=False, folder=str(folder), pr=True))
    assert out.split()[1].endswith("/tester/model/discussions/1")
    assert repo.files("refs/pr/1")["README.md"] == b"changed"
    assert repo.files("main")["README.md"] != b"changed"
    read = """print(open(api.hf_hub_download("tester/model", "README.md", revision="refs/pr/1")).read())"""
    assert client(read) == "changed\n"


def test_tags_and_refs(hub, client, folder):
    oid = client(PUSH.format(private=False, folder=str(folder), pr=False)).split()[0]
    client('api.create_tag("tester/model", tag="v1")')
    assert "already" in client('api.create_tag("tester/model", tag="v1")', ok=False)
    client('api.create_tag("tester/model", tag="v1", exist_ok=True)')
    out = client("""
refs = api.list_repo_refs("tester/model")
print([tag.name for tag in refs.tags], [branch.name for branch in refs.branches])
print(api.model_info("tester/model", revision="v1").sha)
""")
    assert out == f"['v1'] ['main']\n{oid}\n"


@pytest.mark.parametrize(("code", "error"), [
    ('api.model_info("tester/absent")', "RepositoryNotFoundError"),
    ('api.hf_hub_download("tester/model", "absent.txt")', "EntryNotFoundError"),
    ('api.model_info("tester/model", revision="absent")', "RevisionNotFoundError"),
    ('api.upload_file(path_or_fileobj=b"---\\na: [\\n---", repo_id="tester/model", path_in_repo="README.md")',
     "yaml"),
])
def test_errors_reach_the_client_as_its_own_exceptions(client, code, error):
    client('api.create_repo("tester/model")')
    assert error in client(code, ok=False)


def test_a_private_repository_needs_the_token(hub, client, folder):
    client(PUSH.format(private=True, folder=str(folder), pr=False))
    assert hub.repos["tester/model"].private
    read = 'print(len(open(api.hf_hub_download("tester/model", "README.md")).read()))'
    assert int(client(read)) > 0
    assert "RepositoryNotFoundError" in client(read.replace("README", "unet/config"), token=None, ok=False)
    assert "401" in client('api.whoami()', token="hf_wrong", ok=False)
    assert "401" in client('api.create_repo("tester/other")', token=None, ok=False)


@pytest.mark.parametrize("status", [None, 403])
def test_a_push_cut_half_way_leaves_main_and_can_be_repeated(hub, client, folder, status):
    client('api.create_repo("tester/model")')
    repo = hub.repos["tester/model"]
    hub.fail_after(0, "POST .*/commit/", status=status)
    client(PUSH.format(private=False, folder=str(folder), pr=False), ok=False)
    assert set(repo.files()) == {".gitattributes"}
    assert len(hub.lfs) == 1, "the weights had arrived"
    hub.requests.clear()
    client(PUSH.format(private=False, folder=str(folder), pr=False))
    assert "unet/model.safetensors" in repo.files()
    assert not [line for line in hub.requests if line.startswith("PUT")], "what had arrived is not sent again"


def test_lfs_refuses_what_was_not_uploaded(hub):
    """The server's own honesty: a commit naming an unknown object, and a body that is not its digest."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    def send(method, path, body):
        headers = {"Authorization": f"Bearer {hub.token}"}
        return urlopen(Request(hub.url + path, data=body, method=method, headers=headers))

    send("POST", "/api/repos/create", json.dumps({"name": "model"}).encode())
    line = {"key": "lfsFile", "value": {"path": "x.bin", "algo": "sha256", "oid": "0" * 64, "size": 1}}
    for method, path, body in [
        ("POST", "/api/models/tester/model/commit/main", json.dumps(line).encode()),
        ("PUT", "/lfs/" + "0" * 64, b"not it"),
    ]:
        with pytest.raises(HTTPError, match="400"):
            send(method, path, body)


def test_the_hf_command(hub, folder, tmp_path):
    def hf(*arguments):
        environment = hub.environment(tmp_path / "hf", hub.token)
        done = subprocess.run([HF, *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert hub.user in hf("auth", "whoami")
    hf("repos", "create", "tester/model")
    hf("upload", "tester/model", str(folder), ".")
    hf("download", "tester/model", "--local-dir", str(tmp_path / "copy"))
    assert (tmp_path / "copy/unet/model.safetensors").read_bytes() == bytes(range(256)) * 40
