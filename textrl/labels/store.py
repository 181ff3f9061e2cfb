"""`Store`, the label database: assignment of tasks to labelers, and storage of their answers.

Every write is one transaction, and a method returns after the commit. Labelers and tokens are in
`lead.py`, and the export to the trainers is in `export.py`.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, exists, func, select
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from textrl.labels.answers import Submission
from textrl.labels.tables import (
    Answer,
    Audit,
    Labeler,
    Lease,
    Meta,
    Task,
    open_engine,
    writing,
)
from textrl.labels.tasks import NewTask

LEASE_SECONDS = 15 * 60
"""Seconds for which a task is reserved for a labeler who does not come back to it."""


class RefusedError(Exception):
    """An answer that cannot be stored; the message gives the reason to the labeler."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A task as one labeler sees it: outputs in shown order, without their sources."""

    task_id: int
    prompt: Any
    outputs: list[str]
    shown_order: list[int]
    expires_at: float


class Store:
    """A label database, which threads and processes can share safely."""

    def __init__(self, url: str, *, create: bool = False) -> None:
        """Open the database; UserError if it cannot be reached or has another version."""
        self.url = url
        self.engine: Engine = open_engine(url, create=create)
        with Session(self.engine) as session:
            query = select(Meta.value).where(Meta.key == "identity")
            self.identity = str(session.scalars(query).one())

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def add_tasks(self, tasks: Sequence[NewTask], overlap: int = 1) -> int:
        """Store the tasks that are new, and return their number."""
        now, added = time.time(), 0
        with writing(self.engine) as session:
            query = select(Task.digest)
            if len(tasks) < 500:  # a database takes no more at once
                query = query.where(Task.digest.in_([task.digest for task in tasks]))
            known = set(session.scalars(query))
            for task in tasks:
                if task.digest in known:
                    continue
                known.add(task.digest)
                added += 1
                stored = {"overlap": overlap, "created_at": now, **task.__dict__}
                session.add(Task(digest=task.digest, **stored))
            if added:
                note(session, "tasks added", body={"count": added, "overlap": overlap})
            session.commit()
        return added

    def claim(self, labeler_id: int) -> Assignment | None:
        """Return the labeler's present task or a new one, or None if there is none.

        A task is given to as many labelers at a time as it still needs answers, and never twice to
        the same person. When a lease has expired, other labelers may get the task.
        """
        with writing(self.engine) as session:
            session.get(Labeler, labeler_id, with_for_update=True)  # one claim at a time per person
            if read_setting(session, "paused", False):
                return None
            now = time.time()
            task = session.scalars(_in_hand(labeler_id, now)).first()
            while task is None:
                task = session.scalars(_claimable(labeler_id, now)).first()
                if task is None:
                    return None
                if not _has_room(session, task, labeler_id, now):
                    task = None  # PostgreSQL: another claim was committed since the query began
            lease = session.get(Lease, (task.id, labeler_id))
            if lease is None:
                order = list(range(len(task.outputs)))
                random.SystemRandom().shuffle(order)
                lease = Lease(
                    task_id=task.id, labeler_id=labeler_id, shown_order=order, created_at=now
                )
                session.add(lease)
            lease.expires_at = now + LEASE_SECONDS
            session.commit()
            return _assignment(task, lease.shown_order, lease.expires_at)

    def renew(self, labeler_id: int, task_id: int) -> float:
        """Extend a lease and return its new end, in seconds since 1970.

        Raises:
            RefusedError: the lease has expired, and others have taken the task since.
        """
        with writing(self.engine) as session:
            now = time.time()
            task = session.get(Task, task_id, with_for_update=True)
            lease = session.get(Lease, (task_id, labeler_id))
            if task is None or lease is None:
                raise RefusedError("this task is not in your hands")
            if lease.expires_at < now and not _has_room(session, task, labeler_id, now):
                raise RefusedError("others have taken this task in the meantime")
            lease.expires_at = now + LEASE_SECONDS
            session.commit()
            return lease.expires_at

    def submit(self, labeler_id: int, task_id: int, submission: Submission) -> Answer:
        """Store a labeler's answer and return it after it is written to disk.

        If the same answer is sent again, nothing changes and the stored one is returned.

        Raises:
            RefusedError: the task is not the labeler's, has another answer from them, or has all
                answers that it needs (the first commit wins; the late answer is in the audit).
            InvalidAnswerError: the answer is not valid.
        """
        with writing(self.engine) as session:
            task = session.get(Task, task_id, with_for_update=True)
            answer = _answer_of(session, task_id, labeler_id)
            lease = session.get(Lease, (task_id, labeler_id))
            if task is None or (answer is None and lease is None):
                raise RefusedError("this task was not given to you")
            submission = submission.checked(len(task.outputs))
            if answer is not None:
                if _same(answer, submission.unshuffled(answer.shown_order)):
                    return answer
                raise RefusedError("you have answered this task before; edit that answer")
            assert lease is not None
            stored = submission.unshuffled(lease.shown_order)
            if task.done >= task.overlap and not stored.is_skip:
                note(session, "late", labeler_id, task_id, stored.as_columns())
                session.delete(lease)
                session.commit()
                raise RefusedError("others have answered this task in the meantime")
            now = time.time()
            answer = Answer(
                task_id=task_id,
                labeler_id=labeler_id,
                shown_order=lease.shown_order,
                created_at=now,
            )
            _fill(answer, stored, now)
            session.add(answer)
            session.delete(lease)
            note(session, "answer", labeler_id, task_id, stored.as_columns())
            count_answers(task, 0 if stored.is_skip else 1)
            session.commit()
            return answer

    def edit(self, labeler_id: int, task_id: int, submission: Submission, revision: int) -> Answer:
        """Replace a labeler's answer; `revision` is that of the answer that the labeler saw.

        Raises:
            RefusedError: there is no such answer, it has changed since, or it was a skip and the
                task has all its answers from others by now.
            InvalidAnswerError: the answer is not valid.
        """
        with writing(self.engine) as session:
            task = session.get(Task, task_id, with_for_update=True)
            answer = _answer_of(session, task_id, labeler_id)
            if task is None or answer is None:
                raise RefusedError("you have no answer to this task")
            stored = submission.checked(len(task.outputs)).unshuffled(answer.shown_order)
            if _same(answer, stored):
                return answer
            if answer.revision != revision:
                note(session, "late", labeler_id, task_id, stored.as_columns())
                session.commit()
                raise RefusedError("this answer was changed since; load it again")
            more = int(answer.skip_reason is not None) - int(stored.is_skip)
            if more > 0 and task.done >= task.overlap:
                note(session, "late", labeler_id, task_id, stored.as_columns())
                session.commit()
                raise RefusedError("others have answered this task in the meantime")
            _fill(answer, stored, time.time())
            answer.revision += 1
            count_answers(task, more)
            note(session, "edit", labeler_id, task_id, stored.as_columns())
            session.commit()
            return answer

    def history(self, labeler_id: int, limit: int = 50) -> list[tuple[Answer, Task]]:
        """Return a labeler's last answers with their tasks, the newest first."""
        query = (
            select(Answer, Task)
            .join(Task, Task.id == Answer.task_id)
            .where(Answer.labeler_id == labeler_id)
            .order_by(Answer.id.desc())
            .limit(limit)
        )
        with Session(self.engine) as session:
            return [(answer, task) for answer, task in session.execute(query)]

    def answered(self, labeler_id: int, task_id: int) -> tuple[Answer, Assignment]:
        """Return a labeler's answer and its task as it was shown; RefusedError if there is none."""
        with Session(self.engine) as session:
            answer = _answer_of(session, task_id, labeler_id)
            task = session.get(Task, task_id)
            if answer is None or task is None:
                raise RefusedError("you have no answer to this task")
            return answer, _assignment(task, answer.shown_order, 0.0)

    def progress(self, labeler_id: int) -> dict[str, int]:
        """Return how many tasks the labeler has done, and how many are left for the labeler."""
        mine = select(Answer.task_id).where(Answer.labeler_id == labeler_id)
        with Session(self.engine) as session:
            done = session.scalar(
                select(func.count()).where(
                    Answer.labeler_id == labeler_id, Answer.skip_reason.is_(None)
                )
            )
            left = session.scalar(select(func.count()).where(Task.open, Task.id.not_in(mine)))
        return {"done": done or 0, "left": left or 0}

    def shortest_queue(self) -> int:
        """Return the number of open tasks left for the labeler who has the fewest left."""
        with Session(self.engine) as session:
            query = select(Labeler.id).where(Labeler.active, ~Labeler.is_lead)
            people = list(session.scalars(query))
        return min((self.progress(person)["left"] for person in people), default=self.open_tasks())

    def open_tasks(self) -> int:
        """Return the number of tasks that still need answers."""
        with Session(self.engine) as session:
            return session.scalar(select(func.count()).where(Task.open)) or 0

    def sources(self) -> list[dict[str, Any]]:
        """Return the source of each task."""
        with Session(self.engine) as session:
            return list(session.scalars(select(Task.source)))


def _in_hand(labeler_id: int, now: float) -> Any:
    """Return the query for the task on which a labeler has a valid lease."""
    return (
        select(Task)
        .join(Lease, Lease.task_id == Task.id)
        .where(Task.open, Lease.labeler_id == labeler_id, Lease.expires_at > now)
        .order_by(Task.id)
        .limit(1)
    )


def _claimable(labeler_id: int, now: float) -> Any:
    """Return the query that locks and selects the first task with room for one more labeler."""
    answered = exists().where(Answer.task_id == Task.id, Answer.labeler_id == labeler_id)
    return (
        select(Task)
        .where(Task.open, ~answered, Task.done + _held_by_others(labeler_id, now) < Task.overlap)
        .order_by(Task.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=Task)
    )


def _held_by_others(labeler_id: int, now: float) -> ColumnElement[int]:
    return (
        select(func.count())
        .where(Lease.task_id == Task.id, Lease.labeler_id != labeler_id, Lease.expires_at > now)
        .correlate(Task)
        .scalar_subquery()
    )


def _has_room(session: Session, task: Task, labeler_id: int, now: float) -> bool:
    """Return whether the task has room for the labeler, counted again under the task's lock."""
    session.refresh(task)
    held = session.scalar(select(_held_by_others(labeler_id, now)).where(Task.id == task.id))
    return task.open and task.done + (held or 0) < task.overlap


def _answer_of(session: Session, task_id: int, labeler_id: int) -> Answer | None:
    query = select(Answer).where(Answer.task_id == task_id, Answer.labeler_id == labeler_id)
    return session.scalars(query).first()


def _assignment(task: Task, shown_order: list[int], expires_at: float) -> Assignment:
    return Assignment(
        task_id=task.id,
        prompt=task.prompt,
        outputs=[task.outputs[index] for index in shown_order],
        shown_order=shown_order,
        expires_at=expires_at,
    )


def _fill(answer: Answer, stored: Submission, now: float) -> None:
    answer.ranks, answer.demonstration = stored.ranks, stored.demonstration
    answer.rating, answer.flags = stored.rating, stored.flags or []
    answer.skip_reason, answer.seconds = stored.skip_reason, stored.seconds
    answer.updated_at = now


def _same(answer: Answer, stored: Submission) -> bool:
    """Return whether an answer is equal to the stored one, except for the seconds."""
    return all(
        answer.__dict__[name] == value
        for name, value in stored.as_columns().items()
        if name != "seconds"
    )


def count_answers(task: Task, more: int) -> None:
    """Add to the number of a task's answers, and update whether it is open."""
    task.done += more
    task.open = task.done < task.overlap and not task.paused


def read_setting(session: Session, key: str, default: Any) -> Any:
    """Return a setting that the lead can change."""
    found = session.get(Meta, f"setting.{key}")
    return default if found is None else found.value


def note(
    session: Session,
    action: str,
    labeler_id: int | None = None,
    task_id: int | None = None,
    body: Any = None,
) -> None:
    """Add a row to the audit, in the same transaction as the change that it records."""
    session.add(
        Audit(at=time.time(), action=action, labeler_id=labeler_id, task_id=task_id, body=body)
    )
