"""Rankings that a program asks for and waits for, beside the tasks of files and of the sampler."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from textrl.labels.store import Store, count_answers, note, read_setting
from textrl.labels.tables import Answer, Labeler, Task, writing
from textrl.labels.tasks import NewTask
from textrl.rows import Row

GIVEN_UP = "given_up"
"""The key in a task's source of what nobody is asked for any more, beside what the lead pauses."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What has been said of a task so far."""

    outputs: list[str]
    rankings: list[list[int]]
    """The ranks of the outputs by each labeler who has ranked them; 0 is best, ties are equal."""
    complete: bool
    """Whether no more answers will come: it has all that it needs, or everybody has seen it."""
    given_up: bool
    """Whether another program that had asked it too has given it up."""


@contextmanager
def _reachable() -> Iterator[None]:
    """Turn the errors of a database that restarts, or is locked for long, into an OSError."""
    try:
        yield
    except SQLAlchemyError as error:
        raise OSError(f"the labels cannot be reached: {error}") from error


def ask(store: Store, task: NewTask, overlap: int | None = None) -> int:
    """Show a task to labelers; return its id. A task that is there already keeps its answers.

    Args:
        store: The label database.
        task: The task.
        overlap: Number of labelers who rank it; None for the lead's setting, which is 1 at first.

    Raises:
        OSError: the database cannot be reached at the moment.
    """
    with _reachable(), writing(store.engine) as session:
        found = session.scalars(select(Task).where(Task.digest == task.digest)).first()
        if found is None:
            needed = overlap or int(read_setting(session, "overlap", 1))
            session.commit()
            store.add_tasks([task], needed)
            found = session.scalars(select(Task).where(Task.digest == task.digest)).one()
        found.overlap = max(found.overlap, overlap or 1)
        if found.source.get(GIVEN_UP):
            found.source = {**found.source, GIVEN_UP: False}
            found.paused = False
            note(session, "asked again", task_id=found.id)
        count_answers(found, 0)
        session.commit()
        return found.id


def asked(store: Store, task_ids: set[int]) -> dict[int, Asked]:
    """Return what has been said of some tasks.

    Raises:
        OSError: the database cannot be reached at the moment.
    """
    said: dict[int, list[list[int]]] = {task_id: [] for task_id in task_ids}
    seen_by: dict[int, set[int]] = {task_id: set() for task_id in task_ids}
    with _reachable(), Session(store.engine) as session:
        people = select(Labeler.id).where(Labeler.active, ~Labeler.is_lead)
        everybody = set(session.scalars(people))
        tasks = session.scalars(select(Task).where(Task.id.in_(task_ids))).all()
        answers = select(Answer).where(Answer.task_id.in_(task_ids)).order_by(Answer.id)
        for answer in session.scalars(answers):
            seen_by[answer.task_id].add(answer.labeler_id)
            if answer.ranks is not None:
                said[answer.task_id].append(answer.ranks)
    return {
        task.id: Asked(
            outputs=task.outputs,
            rankings=said[task.id],
            complete=task.done >= task.overlap or bool(everybody and everybody <= seen_by[task.id]),
            given_up=bool(task.source.get(GIVEN_UP)),
        )
        for task in tasks
    }


def give_up(store: Store, task_id: int) -> None:
    """Show a task to nobody any more; an answer that is under way is still taken.

    Raises:
        OSError: the database cannot be reached at the moment.
    """
    with _reachable(), writing(store.engine) as session:
        task = session.get(Task, task_id, with_for_update=True)
        if task is not None and task.open:
            task.source = {**task.source, GIVEN_UP: True}
            task.paused, task.open = True, False
            note(session, "given up", task_id=task_id)
        session.commit()


def pairs_asked(store: Store) -> list[tuple[Row, tuple[str, str]]]:
    """Return the row (prompt and columns) and two outputs, for any two outputs of each task."""
    with Session(store.engine) as session:
        columns = select(Task.prompt, Task.columns, Task.outputs).order_by(Task.id)
        found = list(session.execute(columns))
    return [
        ({"prompt": prompt, **beside}, pair)
        for prompt, beside, outputs in found
        for pair in itertools.combinations(outputs, 2)
    ]
