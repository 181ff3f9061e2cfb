"""Rankings that a program asks for and waits for, beside the tasks of files and of the sampler."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from textrl.labels.store import Store, note, read_setting
from textrl.labels.tables import Answer, Task, writing
from textrl.labels.tasks import NewTask
from textrl.rows import Row


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What has been said of a task so far."""

    outputs: list[str]
    rankings: list[list[int]]
    """The ranks of the outputs by each labeler who has ranked them; 0 is best, ties are equal."""
    complete: bool
    """Whether the task has all the answers that it needs."""


def ask(store: Store, task: NewTask, overlap: int | None = None) -> int:
    """Show a task to labelers; return its id. A task that is there already keeps its answers.

    Args:
        store: The label database.
        task: The task.
        overlap: Number of labelers who rank it; None for the lead's setting, which is 1 at first.
    """
    with Session(store.engine) as session:
        needed = overlap or int(read_setting(session, "overlap", 1))
    store.add_tasks([task], needed)
    with writing(store.engine) as session:
        found = session.scalars(select(Task).where(Task.digest == task.digest)).one()
        if found.paused:  # asked before, and given up
            found.paused = False
            found.open = found.done < found.overlap
            note(session, "asked again", task_id=found.id)
        session.commit()
        return found.id


def asked(store: Store, task_ids: set[int]) -> dict[int, Asked]:
    """Return what has been said of some tasks.

    Raises:
        OSError: the database cannot be read at the moment (a restart, a lock held too long).
    """
    said: dict[int, list[list[int]]] = {task_id: [] for task_id in task_ids}
    try:
        with Session(store.engine) as session:
            tasks = session.scalars(select(Task).where(Task.id.in_(task_ids))).all()
            answers = select(Answer.task_id, Answer.ranks).where(Answer.task_id.in_(task_ids))
            for task_id, ranks in session.execute(answers.order_by(Answer.id)):
                if ranks is not None:
                    said[task_id].append(ranks)
    except SQLAlchemyError as error:
        raise OSError(f"the labels cannot be read: {error}") from error
    return {
        task.id: Asked(
            outputs=task.outputs, rankings=said[task.id], complete=task.done >= task.overlap
        )
        for task in tasks
    }


def give_up(store: Store, task_id: int) -> None:
    """Show a task to nobody any more; an answer that is under way is still taken."""
    with writing(store.engine) as session:
        task = session.get(Task, task_id, with_for_update=True)
        if task is not None and task.open:
            task.paused, task.open = True, False
            note(session, "given up", task_id=task_id)
        session.commit()


def pairs_asked(store: Store) -> list[tuple[Row, tuple[str, str]]]:
    """Return the row (prompt and columns) and the outputs of each task that shows two outputs."""
    with Session(store.engine) as session:
        columns = select(Task.prompt, Task.columns, Task.outputs).order_by(Task.id)
        found = list(session.execute(columns))
    return [
        ({"prompt": prompt, **beside}, (outputs[0], outputs[1]))
        for prompt, beside, outputs in found
        if len(outputs) == 2
    ]
