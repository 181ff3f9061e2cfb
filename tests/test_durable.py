"""Files that are whole or not there: a kill at every file operation, damage, a full disk."""

import errno
import itertools
import json
import shutil
from pathlib import Path

import pytest
from crash import killed_at
from safetensors import SafetensorError

from textrl.checkpoint import Checkpoints, DamagedSave
from textrl.durable import check_files, finish_save, save_files, write_text
from textrl.errors import UserError


def write(content: str, *more: str):
    """Return what writes some files that all hold one content."""

    def into(folder: Path) -> None:
        for name in ("weights", "state/numbers", *more):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(content)

    return into


def read(folder: Path) -> dict[str, str]:
    """Return the files of a save, as a reader finds them."""
    check_files(folder)
    names = ("weights", "state/numbers", "old", "new")
    return {name: (folder / name).read_text() for name in names if (folder / name).exists()}


OLD = {"weights": "1", "state/numbers": "1", "old": "1"}
NEW = {"weights": "2", "state/numbers": "2", "new": "2"}


def test_a_kill_at_any_file_operation_leaves_the_old_save_or_the_new_one(tmp_path: Path) -> None:
    found = []
    for operation in itertools.count():
        folder = tmp_path / str(operation)
        save_files(folder, write("1", "old"))
        (folder / "mine").write_text("stays")
        if not killed_at(lambda f=folder: save_files(f, write("2", "new")), folder, operation):
            break
        found.append(read(folder))
        assert found[-1] in (OLD, NEW), operation
        save_files(folder, write("3"))  # and the next save goes well
        assert read(folder) == {"weights": "3", "state/numbers": "3"}
        assert {path.name for path in folder.iterdir()} == {
            *("weights", "state", "checksums.json", "mine")
        }
    assert OLD in found
    assert NEW in found
    assert len(found) >= 12


def test_a_kill_while_a_killed_save_is_finished(tmp_path: Path) -> None:
    """The moves of a save that counts already are begun anew, however often they are killed."""
    tried = 0
    for first in itertools.count():
        folder = tmp_path / str(first)
        save_files(folder, write("1", "old"))
        if not killed_at(lambda f=folder: save_files(f, write("2", "new")), folder, first):
            break
        for second in itertools.count():
            if not killed_at(lambda f=folder: finish_save(f), folder, second):
                break
            tried += 1
        assert read(folder) in (OLD, NEW)
    assert tried >= 10


def test_a_committed_file_that_is_gone_is_named(tmp_path: Path) -> None:
    for operation in itertools.count():
        folder = tmp_path / str(operation)
        save_files(folder, write("1"))
        assert killed_at(lambda f=folder: save_files(f, write("2", "new")), folder, operation)
        if (folder / ".commit.json").exists():
            break
    (folder / ".saving" / "new").unlink()
    with pytest.raises(UserError, match="/new is missing"):
        finish_save(folder)
    assert (folder / "weights").read_text() == "1"  # nothing was moved yet


def test_a_kill_at_any_file_operation_of_a_runs_save(tmp_path: Path) -> None:
    found = []
    for operation in itertools.count():
        run = tmp_path / str(operation)
        saves = Checkpoints(run, keep=1)
        saves.save(1, write("1"))
        if not killed_at(lambda c=saves: c.save(2, write("2")), run, operation):
            break
        newest = saves.newest()
        assert newest is not None
        found.append((newest.name, (newest / "weights").read_text()))
        assert found[-1] in (("000000001", "1"), ("000000002", "2"))
        saves.save(2, write("2"))
        saves.save(3, write("3"))
        assert saves.newest() == run / "checkpoints" / "000000003"
        assert (run / "checkpoints" / "latest").read_text() == "000000003\n"
        assert len([path for path in saves.folder.iterdir() if path.is_dir()]) == 1
    assert {step for step, _ in found} == {"000000001", "000000002"}


def test_saves_are_due_by_steps_and_by_time(monkeypatch, tmp_path: Path) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    saves = Checkpoints(tmp_path, every=3, minutes=10)
    assert [step for step in range(1, 8) if saves.due(step)] == [3, 6]
    now[0] = 599.0
    assert not saves.due(7)
    now[0] = 600.0
    assert saves.due(7)
    saves.save(7, write("7"))
    assert not saves.due(8)
    now[0] = 1e9
    assert not Checkpoints(tmp_path).due(8)  # never, by either rule


def test_so_many_saves_are_kept(tmp_path: Path) -> None:
    saves = Checkpoints(tmp_path, keep=2)
    for step in range(5):
        saves.save(step, write(str(step)))
    kept = sorted(path.name for path in saves.folder.iterdir())
    assert kept == ["000000003", "000000004", "latest"]
    saves.clear()
    assert saves.newest() is None
    assert not saves.exist()


def test_damaged_saves_are_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    saves = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        saves.save(step, write(str(step)))
    (saves.folder / "000000003" / "weights").write_text("")
    (saves.folder / "000000002" / "state" / "numbers").unlink()
    with pytest.warns(DamagedSave) as caught:
        newest = saves.newest()
    assert newest == saves.folder / "000000001"
    messages = [str(warning.message) for warning in caught]
    assert any("000000003/weights is damaged" in message for message in messages)
    assert any("000000002/state/numbers is missing" in message for message in messages)
    saves.save(2, write("again"))  # the run comes by there once more
    assert saves.newest() == saves.folder / "000000002"
    for step in (1, 2):
        shutil.rmtree(saves.folder / f"{step:09d}" / "state")
    with pytest.raises(UserError, match="numbers is missing"):
        saves.newest()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        Exception("No space left on device (os error 28)"),  # of tokenizers, in Rust
        SafetensorError("Error: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line_and_the_save_before_stays(
    error: Exception, tmp_path: Path
) -> None:
    def full(folder: Path) -> None:
        (folder / "weights").write_text("2")
        raise error

    save_files(tmp_path / "model", write("1"))
    with pytest.raises(UserError, match=r"cannot save to .*model: .*No space left on device"):
        save_files(tmp_path / "model", full)
    assert read(tmp_path / "model") == {"weights": "1", "state/numbers": "1"}
    assert not (tmp_path / "model" / ".saving").exists()
    saves = Checkpoints(tmp_path / "run")
    saves.save(1, write("1"))
    with pytest.raises(UserError, match="No space left on device"):
        saves.save(2, full)
    assert saves.newest() == saves.folder / "000000001"


def test_a_text_is_replaced_whole(tmp_path: Path) -> None:
    for operation in itertools.count():
        folder = tmp_path / str(operation)
        folder.mkdir()
        write_text(folder / "config.yaml", "old")
        if not killed_at(lambda f=folder: write_text(f / "config.yaml", "new"), folder, operation):
            break
        assert (folder / "config.yaml").read_text() in ("old", "new")
    assert operation >= 2


def test_a_text_that_cannot_be_flushed_leaves_the_old_one(tmp_path: Path, monkeypatch) -> None:
    write_text(tmp_path / "config.yaml", "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "config.yaml", "new")
    assert (tmp_path / "config.yaml").read_text() == "old"


@pytest.mark.parametrize(
    "plan",
    [
        {"move": ["../.bashrc"], "remove": []},
        {"move": [], "remove": ["../precious"]},
        {"move": [], "remove": ["ABSOLUTE"]},
        {"move": ["link/x"], "remove": []},
        {"move": [], "remove": ["link/precious"]},
        {"remove": []},
        {"move": "weights", "remove": []},
    ],
)
def test_a_prepared_journal_reaches_no_file_outside(plan: dict, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / ".saving" / "link").mkdir(parents=True)
    (folder / ".saving" / "link" / "x").write_text("evil")
    (folder / ".saving" / ".bashrc").write_text("evil")
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".bashrc").write_text("mine")
    (folder / "link").symlink_to(tmp_path)
    absolute = str(tmp_path / "precious")
    (folder / ".commit.json").write_text(json.dumps(plan).replace("ABSOLUTE", absolute))
    with pytest.raises(UserError, match=r"outside its folder|is damaged"):
        finish_save(folder)
    assert (tmp_path / "precious").read_text() == (tmp_path / ".bashrc").read_text() == "mine"
    assert not (tmp_path / "x").exists()


def test_a_save_that_is_damaged_twice_is_put_aside_twice(tmp_path: Path) -> None:
    saves = Checkpoints(tmp_path)
    for _ in range(2):
        saves.save(1, write("1"))
        saves.save(2, write("2"))
        (saves.folder / "000000002" / "weights").write_text("")
        with pytest.warns(DamagedSave):
            assert saves.newest() == saves.folder / "000000001"


@pytest.mark.parametrize("content", ['{"": "x"}', '{"files": {"a": "b"}}', "[]"])
def test_a_file_of_that_name_that_is_not_ours(content: str, tmp_path: Path) -> None:
    (tmp_path / "checksums.json").write_text(content)
    with pytest.raises(UserError, match=r"checksums\.json is (not one of textrl|damaged)"):
        check_files(tmp_path)
