"""Files of labeling tasks: each row is stored and exported as it was, or refused in one line."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy", reason="needs the extra collect")

import json

from hypothesis import strategies as st
from inputs import attempt, fuzz, json_values, letters, messages, same, texts

from textrl.feedback.task_files import read_tasks
from textrl.labels.export import rows
from textrl.labels.store import Store

tasks = st.lists(
    st.fixed_dictionaries(
        {"prompt": st.one_of(letters, texts, messages, json_values)},
        optional={
            "completions": st.one_of(st.lists(texts, max_size=4), json_values),
            "outputs": st.one_of(st.lists(letters, max_size=4), json_values),
            "completion": st.one_of(texts, messages, json_values),
            "tools": json_values,
            "other": json_values,
        },
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the one file of each input."""
    return tmp_path_factory.mktemp("tasks")


def written(folder: Path, given: list[Any]) -> str | None:
    """Write the rows of a file; return its name, or None where JSON cannot hold them."""
    path = folder / "tasks.jsonl"
    try:
        path.write_text("\n".join(json.dumps(row) for row in given))
    except RecursionError:
        return None
    return str(path)


@fuzz(fast=25, long=3000, given=tasks)
def test_tasks_are_read_or_refused(folder: Path, given: list[Any]) -> None:
    name = written(folder, given)
    if name is None:
        return
    taken, found = attempt(lambda: read_tasks(name))
    if taken:
        assert 1 <= len(found) <= len(given)
        assert all(task.digest for task in found)
    else:
        assert str(folder) in found


@fuzz(fast=4, long=300, given=tasks)
def test_what_is_stored_is_exported(folder: Path, given: list[Any]) -> None:
    name = written(folder, given)
    taken, found = attempt(lambda: read_tasks(str(name)))
    if not taken:
        return
    database = folder / "labels.db"
    database.unlink(missing_ok=True)
    store = Store(f"sqlite:///{database}", create=True)
    try:
        stored, _ = attempt(lambda: store.add_tasks(found))
        if stored:
            back = rows(store, "prompts")
            kept = {json.dumps(row["prompt"], sort_keys=True) for row in back}
            assert kept == {json.dumps(task.prompt, sort_keys=True) for task in found}
            by_prompt = {task.prompt: task for task in found if isinstance(task.prompt, str)}
            for row in back:
                task = by_prompt.get(row["prompt"]) if isinstance(row["prompt"], str) else None
                if task is not None and len(by_prompt) == len(found) == len(back):
                    assert same({k: v for k, v in row.items() if k != "prompt"}, task.columns)
    finally:
        store.close()
