"""Who may fill an output folder, where people put it, and what killed runs left in it."""

import errno
import fcntl
import os
from types import SimpleNamespace

import pytest
from test_writing import OLD_MODEL, content, resource_limit, stage

from trilemma.pipelines.files.staging import NEW
from trilemma.pipelines.files.writing import aside_of, write_text
from trilemma.training.loop.checkpoints import checkpoint_steps, save_checkpoint
from trilemma.training.options.command_line import parse
from trilemma.training.own_folder import LOCK, own_folder

ALONE = SimpleNamespace(num_processes=1, is_main_process=True)


def own(path, *flags):
    """Take a folder as a run with these flags does."""
    config = parse("unconditional", "", ["--preset", "digits", "--output_dir", str(path), *flags])
    return own_folder(config.run, ALONE)


def test_a_first_run_that_fails_leaves_a_folder_that_the_next_one_takes(tmp_path):
    """Before config.yaml is there, as on a full disk; also if it was killed while it wrote that file."""
    with pytest.raises(OSError, match=r"config\.yaml"), own(tmp_path / "out") as folder, resource_limit(3):
        write_text(folder.config, "seed: 0\n")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]
    aside_of(folder.config).write_text("seed")
    (folder.path / ".config.yaml.partial").write_text("seed")  # as version 0.1 named it
    with own(tmp_path / "out"):
        assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK]


def refused(path, leaves_something):
    """A run that is refused when it has the folder, such as for its data."""
    with own(path) as folder:
        if leaves_something:
            folder.run.write_text("{}")
        raise ValueError("no such class")


def test_a_refused_run_leaves_no_folder_that_it_made(tmp_path):
    """But one that was there, or in which there is something."""
    (tmp_path / "before").mkdir()
    for name in ("new", "before", "kept"):
        with pytest.raises(ValueError, match="no such class"):
            refused(tmp_path / name, name == "kept")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "kept"]


def test_a_disk_s_own_folder_is_not_a_file_of_somebody(tmp_path):
    """Where a fresh disk is mounted there is lost+found."""
    (tmp_path / "lost+found").mkdir()
    with own(tmp_path) as folder:
        folder.config.write_text("")
    with own(tmp_path, "--overwrite_output_dir"):
        assert {path.name for path in tmp_path.iterdir()} == {LOCK, "lost+found"}


@pytest.mark.parametrize("flags", [(), ("--overwrite_output_dir",)])
@pytest.mark.parametrize("name", ["thesis.txt", "config.yaml"])
def test_a_foreign_folder_is_left_as_it_was(tmp_path, flags, name):
    (tmp_path / name).write_text("mine: 1\n")
    with pytest.raises(ValueError, match="no run of this toolkit"), own(tmp_path, *flags):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_lock_is_taken_before_anything_is_looked_at(tmp_path):
    """So nothing is refused, finished or deleted while another run fills the folder."""
    with own(tmp_path / "out") as folder:
        folder.config.write_text("")
        left = aside_of(folder.run)
        left.write_text("being written")
        (folder.path / "thesis.txt").write_text("mine")
        with pytest.raises(ValueError, match="filled by another run"), own(tmp_path / "out"):
            pass
        assert left.exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_network_disk_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with own(tmp_path / "out") as folder:
        folder.config.write_text("")
        other = aside_of(folder.run)
        other.write_text("perhaps of a run that goes on")
    with own(tmp_path / "out"):
        assert other.exists()
    assert "has no locks" in caplog.text


def test_what_killed_runs_left_is_deleted_and_nothing_else(tmp_path):
    out = tmp_path / "m"
    with own(out) as folder:
        stage(out, OLD_MODEL)
        stage(folder.best, OLD_MODEL)
        save_checkpoint(folder.checkpoints, 2, {"step": 2}, keep=2)
        folder.config.write_text("")
        (out / "logs").mkdir()
    whole = content(out)
    left = [
        aside_of(out / "stage") / NEW / "unet",
        aside_of(folder.best / "stage") / NEW,
        aside_of(folder.checkpoints / "step-00000004"),
        aside_of(out / "README.md"),
        aside_of(out / "logs" / "scalars.jsonl"),
        folder.checkpoints / ".partial-00000004",  # as version 0.1 named them
        out / ".best-ab12_9xz" / "new",
        tmp_path / ".m-ab12_9xz" / "new",
    ]
    others = [
        tmp_path / ".m-ab12_9xz2",
        tmp_path / ".m-mine_mine",
        out / ".mine",
        out / "logs" / ".x.partial",
    ]
    for path in (*left, *others):
        path.mkdir(parents=True)
        (path / "weights").write_text("half")
    with own(out):
        for path in left[:-1]:
            assert not path.exists()
        assert not left[-1].parent.exists()
    assert all((path / "weights").exists() for path in others)
    assert content(out).items() >= whole.items()
    assert checkpoint_steps(folder.checkpoints) == [2]


def test_a_link_to_a_folder_on_another_disk(tmp_path):
    """The link stays, the stage lies where it points, and the folder with the link is not written to."""
    big, link = tmp_path / "big", tmp_path / "small" / "out"
    for path in (big, link.parent):
        path.mkdir()
    link.symlink_to(big)
    with own(link) as folder:
        folder.config.write_text("")
    with own(link, "--overwrite_output_dir"):
        pass
    assert link.is_symlink()
    assert [path.name for path in link.parent.iterdir()] == ["out"]
    assert [path.name for path in big.iterdir()] == [LOCK]


def test_checkpoints_that_are_a_link_are_emptied_where_it_points(tmp_path):
    big, out = tmp_path / "big", tmp_path / "out"
    big.mkdir()
    (big / "thesis.txt").write_text("mine")
    with own(out) as folder:
        folder.checkpoints.symlink_to(big)
        for step in (1, 2, 3):
            save_checkpoint(folder.checkpoints, step, {"step": step}, keep=2)
        assert checkpoint_steps(big) == [2, 3]
    with own(out, "--overwrite_output_dir"):
        assert [path.name for path in big.iterdir()] == ["thesis.txt"]
        save_checkpoint(folder.checkpoints, 1, {"step": 1}, keep=2)
        assert checkpoint_steps(big) == [1]


@pytest.mark.parametrize("name", ["", "checkpoints", "best"])
def test_a_link_to_a_disk_that_is_not_mounted_is_refused(tmp_path, name):
    """A run would start over, though its checkpoints are there."""
    out = tmp_path / "out"
    if name:
        out.mkdir()
        (out / "config.yaml").write_text("")
    (out / name).symlink_to(tmp_path / "not-mounted")
    with pytest.raises(ValueError, match="not-mounted, which is not there"), own(out):
        pass
