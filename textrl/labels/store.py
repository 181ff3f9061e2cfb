"""The label database's rules: who gets which task, which answer counts, what is remembered.

Every write is one transaction, and a method returns after it is committed. Here is no web and no
token (`lead.py` has the labelers); reading for the trainers is in `export.py`.
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
"""How long a task is kept for a labeler who does not come back to it."""


class RefusedError(Exception):
    """An answer that cannot count, with the reason in words for the labeler."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A task as one labeler sees it: outputs in shown order, nothing of where they come from."""

    task_id: int
    prompt: Any
    outputs: list[str]
    shown_order: list[int]
    expires_at: float


class Store:
    """A label database. Safe to share between threads and between processes."""

    def __init__(self, url: str, *, create: bool = False) -> None:
        """Open it; UserError if it is out of reach or of another version."""
        self.url = url
        self.engine: Engine = open_engine(url, create=create)
        with Session(self.engine) as session:
            self.identity = str(
                session.scalars(select(Meta.value).where(Meta.key == "identity")).one()
            )

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def add_tasks(self, tasks: Sequence[NewTask], overlap: int = 1) -> int:
        """Store those tasks that are new, and return how many these were."""
        now, added = time.time(), 0
        with writing(self.engine) as session:
            known = set(session.scalars(select(Task.digest)))
            for task in tasks:
                if task.digest in known:
                    continue
                known.add(task.digest)
                added += 1
                session.add(
                    Task(digest=task.digest, overlap=overlap, created_at=now, **task.__dict__)
                )
            if added:
                note(session, "tasks added", body={"count": added, "overlap": overlap})
            session.commit()
        return added

    def claim(self, labeler_id: int) -> Assignment | None:
        """Return the labeler's task, the one in hand or a new one; None if there is none.

        A task goes to as many labelers at a time as it still wants answers, never twice to one
        person, and again to others once a lease has expired.
        """
        with writing(self.engine) as session:
            session.get(Labeler, labeler_id, with_for_update=True)  # one claim at a time a person
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
        """Prolong a lease and return when it ends now, seconds since 1970.

        Raises:
            RefusedError: it has expired, and others have taken the task since.
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
        """Store a labeler's answer and return it, once it is on the disk.

        The same answer sent again changes nothing and returns what is stored.

        Raises:
            RefusedError: the task is not the labeler's, was answered otherwise by them, or has all
                the answers that it wants (the first commit wins; the late one is in the audit).
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
        """Replace a labeler's answer; `revision` is that of the answer that they saw.

        Raises:
            RefusedError: no such answer, one changed since, or a skip turned into an answer after
                others have filled the task.
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
        """Return a labeler's last answers and their tasks, the newest first."""
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
        """Return a labeler's answer and its task as they saw it; RefusedError if there is none."""
        with Session(self.engine) as session:
            answer = _answer_of(session, task_id, labeler_id)
            task = session.get(Task, task_id)
            if answer is None or task is None:
                raise RefusedError("you have no answer to this task")
            return answer, _assignment(task, answer.shown_order, 0.0)

    def progress(self, labeler_id: int) -> dict[str, int]:
        """Return how many tasks the labeler did, and how many wait for them."""
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
        """Return how many open tasks the labeler with the fewest has not answered yet."""
        with Session(self.engine) as session:
            people = list(
                session.scalars(select(Labeler.id).where(Labeler.active, ~Labeler.is_lead))
            )
        return min((self.progress(person)["left"] for person in people), default=self.open_tasks())

    def open_tasks(self) -> int:
        """Return how many tasks still want answers."""
        with Session(self.engine) as session:
            return session.scalar(select(func.count()).where(Task.open)) or 0

    def sources(self) -> list[dict[str, Any]]:
        """Return where each task came from."""
        with Session(self.engine) as session:
            return list(session.scalars(select(Task.source)))


def _in_hand(labeler_id: int, now: float) -> Any:
    """Return the query of a labeler's own task with a live lease."""
    return (
        select(Task)
        .join(Lease, Lease.task_id == Task.id)
        .where(Task.open, Lease.labeler_id == labeler_id, Lease.expires_at > now)
        .order_by(Task.id)
        .limit(1)
    )


def _claimable(labeler_id: int, now: float) -> Any:
    """Return the query of the first task with room for one more labeler, which it locks."""
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
    """Count again under the task's lock."""
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
    """Say whether an answer says the same as what is stored, the seconds apart."""
    return all(
        answer.__dict__[name] == value
        for name, value in stored.as_columns().items()
        if name != "seconds"
    )


def count_answers(task: Task, more: int) -> None:
    """Count answers to a task, and say anew whether it is open."""
    task.done += more
    task.open = task.done < task.overlap and not task.paused


def read_setting(session: Session, key: str, default: Any) -> Any:
    """Return a setting of the lead's."""
    found = session.get(Meta, f"setting.{key}")
    return default if found is None else found.value


def note(
    session: Session,
    action: str,
    labeler_id: int | None = None,
    task_id: int | None = None,
    body: Any = None,
) -> None:
    """Add a row to the audit, in the transaction of what it tells."""
    session.add(
        Audit(at=time.time(), action=action, labeler_id=labeler_id, task_id=task_id, body=body)
    )
