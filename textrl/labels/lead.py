"""The lead's functions on the label database: labelers, tokens, settings, tasks.

Tokens are random, shown once, and stored only as SHA-256 hashes. The reports over all answers are
in `reports.py`.
"""

import hashlib
import secrets
import statistics
import time
from typing import Any, Literal

from sqlalchemy import ColumnElement, Text, cast, func, select, true
from sqlalchemy.orm import Session

from textrl.labels.agreement import task_agreement
from textrl.labels.store import RefusedError, Store, count_answers, note, read_setting
from textrl.labels.tables import Answer, Labeler, Meta, RewardCheck, Task, Token, writing

TaskState = Literal["all", "open", "complete", "paused", "flagged", "skipped"]
"""Which tasks a list shows; a task may be in several of these states."""


def add_labeler(store: Store, name: str, *, is_lead: bool = False, by: int | None = None) -> str:
    """Add a labeler, or a new token for an existing labeler, and return the token.

    Old tokens of the labeler stay valid until `deactivate`.

    Raises:
        RefusedError: the name is blank or too long, or belongs to a lead while is_lead is False.
    """
    name = name.strip()
    if not 1 <= len(name) <= 64 or not name.isprintable():
        raise RefusedError("a labeler's name has 1 to 64 printable characters")
    token, now = secrets.token_urlsafe(24), time.time()
    with writing(store.engine) as session:
        labeler = session.scalars(select(Labeler).where(Labeler.name == name)).first()
        if labeler is None:
            labeler = Labeler(name=name, is_lead=is_lead, created_at=now)
            session.add(labeler)
            session.flush()
        elif labeler.is_lead != is_lead:
            raise RefusedError(
                f"{name!r} is the name of a {'lead' if labeler.is_lead else 'labeler'}"
            )
        labeler.active = True
        session.add(Token(hash=_hash(token), labeler_id=labeler.id, created_at=now))
        note(session, "token", by, None, {"labeler": name})
        session.commit()
    return token


def new_lead(store: Store, name: str) -> str:
    """Return a new token for the lead, who is added if necessary, and revoke the earlier tokens."""
    with writing(store.engine) as session:
        for token in session.scalars(select(Token).join(Labeler).where(Labeler.name == name)):
            session.delete(token)
        session.commit()
    return add_labeler(store, name, is_lead=True)


def deactivate(store: Store, labeler_id: int, by: int | None = None) -> None:
    """Revoke all tokens of a labeler; the labeler's answers are kept."""
    with writing(store.engine) as session:
        labeler = session.get(Labeler, labeler_id)
        if labeler is None:
            raise RefusedError("there is no such labeler")
        if labeler.id == by:
            raise RefusedError("you cannot shut yourself out")
        labeler.active = False
        for token in session.scalars(select(Token).where(Token.labeler_id == labeler_id)):
            session.delete(token)
        note(session, "deactivated", by, None, {"labeler": labeler.name})
        session.commit()


def labeler_of(store: Store, token: str) -> Labeler | None:
    """Return the labeler with this token, or None."""
    query = select(Labeler).join(Token).where(Token.hash == _hash(token), Labeler.active)
    with Session(store.engine) as session:
        return session.scalars(query).first()


def labelers(store: Store) -> list[Labeler]:
    """Return all labelers and leads."""
    with Session(store.engine) as session:
        return list(session.scalars(select(Labeler).order_by(Labeler.id)))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def setting(store: Store, key: str, default: Any) -> Any:
    """Return a setting, `paused` or `instructions`."""
    with Session(store.engine) as session:
        return read_setting(session, key, default)


def change_setting(store: Store, key: str, value: Any, by: int | None = None) -> None:
    """Store a setting."""
    with writing(store.engine) as session:
        session.merge(Meta(key=f"setting.{key}", value=value))
        note(session, "setting", by, None, {key: value})
        session.commit()


def change_tasks(
    store: Store,
    *,
    task_id: int | None = None,
    overlap: int | None = None,
    paused: bool | None = None,
    by: int | None = None,
) -> int:
    """Set overlap or pause of one task or all tasks; return the number of tasks."""
    query = select(Task).with_for_update().order_by(Task.id)
    with writing(store.engine) as session:
        chosen = query if task_id is None else query.where(Task.id == task_id)
        tasks = list(session.scalars(chosen))
        for task in tasks:
            task.overlap = task.overlap if overlap is None else overlap
            task.paused = task.paused if paused is None else paused
            count_answers(task, 0)
        body = {"overlap": overlap, "paused": paused, "count": len(tasks)}
        note(session, "tasks changed", by, task_id, body)
        session.commit()
    return len(tasks)


def add_reward_check(store: Store, rankings: int, accuracy: float) -> None:
    """Store the held-out accuracy of a reward model, and the number of rankings it had."""
    with writing(store.engine) as session:
        session.add(RewardCheck(rankings=rankings, accuracy=accuracy, created_at=time.time()))
        session.commit()


def count_rankings(store: Store) -> int:
    """Return the number of answers that rank outputs."""
    with Session(store.engine) as session:
        return session.scalar(select(func.count()).where(Answer.ranks.is_not(None))) or 0


def last_reward_check(store: Store) -> int:
    """Return the number of rankings that the last check was trained on; 0 before the first."""
    with Session(store.engine) as session:
        return session.scalar(select(func.max(RewardCheck.rankings))) or 0


def _in_state(state: TaskState) -> ColumnElement[bool]:
    answered = select(Answer.id).where(Answer.task_id == Task.id)
    conditions: dict[TaskState, ColumnElement[bool]] = {
        "all": true(),
        "open": Task.open.is_(True),
        "complete": Task.done >= Task.overlap,
        "paused": Task.paused.is_(True),
        "flagged": answered.where(cast(Answer.flags, Text) != "[]").exists(),
        "skipped": answered.where(Answer.skip_reason.is_not(None)).exists(),
    }
    return conditions[state]


def one_task(store: Store, task_id: int) -> dict[str, Any] | None:
    """Return a task whole, with every answer; None if there is none."""
    query = select(Answer, Labeler.name).join(Labeler, Labeler.id == Answer.labeler_id)
    with Session(store.engine) as session:
        task = session.get(Task, task_id)
        if task is None:
            return None
        found = list(session.execute(query.where(Answer.task_id == task_id).order_by(Answer.id)))
    kept = ("ranks", "demonstration", "rating", "flags", "skip_reason", "seconds")
    return {
        "id": task.id,
        "prompt": task.prompt,
        "outputs": task.outputs,
        "answers": [
            {"labeler": name} | {column: getattr(answer, column) for column in kept}
            for answer, name in found
        ],
    }


def task_list(
    store: Store, *, limit: int, after: int = 0, state: TaskState = "all"
) -> list[dict[str, Any]]:
    """Return tasks in order of their ids, with the number of answers and the time they took."""
    query = select(Task).where(Task.id > after, _in_state(state)).order_by(Task.id).limit(limit)
    with Session(store.engine) as session:
        tasks = list(session.scalars(query))
        ids = [task.id for task in tasks]
        answers = list(session.scalars(select(Answer).where(Answer.task_id.in_(ids))))
    rows = []
    for task in tasks:
        mine = [answer for answer in answers if answer.task_id == task.id]
        seconds = [answer.seconds for answer in mine if answer.skip_reason is None]
        rows.append(
            {
                "id": task.id,
                "prompt": task.prompt,
                "outputs": len(task.outputs),
                "overlap": task.overlap,
                "done": task.done,
                "paused": task.paused,
                "skipped": len(mine) - len(seconds),
                "flags": sorted({flag for answer in mine for flag in answer.flags}),
                "median_seconds": statistics.median(seconds) if seconds else None,
                "agreement": task_agreement([a.ranks for a in mine if a.ranks is not None]),
            }
        )
    return rows
