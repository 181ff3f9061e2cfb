"""Who gets which task, which answer counts, and what cannot be lost."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from labels import task
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from textrl.errors import UserError
from textrl.labels import lead
from textrl.labels import store as store_module
from textrl.labels.answers import InvalidAnswerError, Submission
from textrl.labels.backup import back_up
from textrl.labels.one_server import served_alone
from textrl.labels.store import Assignment, RefusedError, Store
from textrl.labels.tables import Answer, Audit, Base, Lease, Token, writing


def person(store: Store, name: str) -> int:
    found = lead.labeler_of(store, lead.add_labeler(store, name))
    assert found is not None
    return found.id


def given(store: Store, labeler: int) -> Assignment:
    assignment = store.claim(labeler)
    assert assignment is not None
    return assignment


RANKED = Submission(ranks=[0, 1, 2, 3])


def test_a_task_goes_round_once(store: Store) -> None:
    assert store.add_tasks([task("a"), task("b"), task("a")]) == 2
    assert store.add_tasks([task("b")]) == 0
    ann, bob = person(store, "ann"), person(store, "bob")
    first = given(store, ann)
    assert given(store, ann).shown_order == first.shown_order  # asking again is no second task
    assert given(store, ann).task_id == first.task_id
    other = given(store, bob)
    assert {first.task_id, other.task_id} == {1, 2}
    store.submit(ann, first.task_id, RANKED)
    assert store.claim(ann) is None  # bob holds the other one
    store.submit(bob, other.task_id, RANKED)
    assert store.claim(ann) is None
    assert store.claim(bob) is None
    assert store.open_tasks() == 0


def test_overlap_gives_a_task_to_different_people(store: Store) -> None:
    store.add_tasks([task("a")], overlap=2)
    people = [person(store, name) for name in ("ann", "bob", "cat")]
    assert given(store, people[0]).task_id == given(store, people[1]).task_id
    assert store.claim(people[2]) is None  # two hold it, and it wants two
    store.submit(people[0], 1, RANKED)
    assert store.claim(people[0]) is None
    assert store.claim(people[2]) is None
    store.submit(people[1], 1, RANKED)
    assert store.open_tasks() == 0


def test_ranks_are_stored_in_the_order_of_the_task(store: Store) -> None:
    names = [f"t{index}" for index in range(12)]
    store.add_tasks([task(name) for name in names])
    ann, orders = person(store, "ann"), set()
    for _ in names:
        seen = given(store, ann)
        orders.add(tuple(seen.shown_order))
        best_first = sorted(seen.outputs)  # "... output 0" is to be the best
        ranks = [best_first.index(output) for output in seen.outputs]
        answer = store.submit(ann, seen.task_id, Submission(ranks=ranks))
        assert answer.ranks == [0, 1, 2, 3]
        assert answer.shown_order == seen.shown_order
    assert len(orders) > 3  # 24 orders, 12 draws


def test_the_first_commit_wins(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add_tasks([task("a")])
    ann, bob = person(store, "ann"), person(store, "bob")
    monkeypatch.setattr(store_module, "LEASE_SECONDS", -1)  # every lease has expired already
    assert given(store, ann).task_id == given(store, bob).task_id
    store.submit(bob, 1, RANKED)
    with pytest.raises(RefusedError, match="in the meantime"):
        store.submit(ann, 1, Submission(ranks=[3, 2, 1, 0]))
    with Session(store.engine) as session:
        late = session.scalars(select(Audit).where(Audit.action == "late")).one()
        assert late.labeler_id == ann
        assert sorted(late.body["ranks"]) == [0, 1, 2, 3]  # kept, though it does not count
        assert len(session.scalars(select(Answer)).all()) == 1


def test_an_expired_lease_frees_the_task_but_not_the_order(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_tasks([task("a")])
    ann, bob = person(store, "ann"), person(store, "bob")
    mine = given(store, ann)
    assert store.claim(bob) is None
    now = time.time()
    monkeypatch.setattr(store_module.time, "time", lambda: now + store_module.LEASE_SECONDS + 1)
    assert given(store, bob).task_id == mine.task_id
    answer = store.submit(ann, mine.task_id, RANKED)  # she was first after all
    assert answer.shown_order == mine.shown_order


def test_a_duplicate_changes_nothing_and_an_edit_is_remembered(store: Store) -> None:
    store.add_tasks([task("a")])
    ann = person(store, "ann")
    given(store, ann)
    first = store.submit(ann, 1, RANKED)
    again = store.submit(ann, 1, RANKED)
    assert (again.id, again.revision, again.updated_at) == (first.id, 1, first.updated_at)
    with pytest.raises(RefusedError, match="edit that answer"):
        store.submit(ann, 1, Submission(ranks=[0, 0, 0, 1]))
    changed = store.edit(ann, 1, Submission(ranks=[0, 0, 0, 1], rating=3), revision=1)
    assert changed.revision == 2
    with pytest.raises(RefusedError, match="changed since"):
        store.edit(ann, 1, RANKED, revision=1)
    with Session(store.engine) as session:
        actions = session.scalars(select(Audit.action).where(Audit.task_id == 1)).all()
    assert actions == ["answer", "edit", "late"]


def test_a_skip_leaves_the_task_to_others_and_can_be_taken_back(store: Store) -> None:
    store.add_tasks([task("a")])
    ann, bob = person(store, "ann"), person(store, "bob")
    given(store, ann)
    store.submit(ann, 1, Submission(skip_reason="not my field", flags=["unclear"]))
    assert store.claim(ann) is None
    assert store.open_tasks() == 1
    store.edit(ann, 1, RANKED, revision=1)
    assert store.open_tasks() == 0
    store.edit(ann, 1, Submission(skip_reason="no"), revision=2)
    given(store, bob)
    store.submit(bob, 1, RANKED)
    with pytest.raises(RefusedError, match="in the meantime"):
        store.edit(ann, 1, RANKED, revision=3)


def test_an_expired_lease_is_renewed_only_while_there_is_room(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_tasks([task("a")])
    ann, bob = person(store, "ann"), person(store, "bob")
    given(store, ann)
    now = time.time()
    monkeypatch.setattr(store_module.time, "time", lambda: now + store_module.LEASE_SECONDS + 1)
    assert store.renew(ann, 1) > now
    monkeypatch.setattr(store_module.time, "time", lambda: now + 3 * store_module.LEASE_SECONDS)
    given(store, bob)
    with pytest.raises(RefusedError, match="taken this task"):
        store.renew(ann, 1)


def test_the_shortest_queue_is_the_labelers_not_the_stores(store: Store) -> None:
    store.add_tasks([task("a"), task("b"), task("c")], overlap=2)
    ann, _ = person(store, "ann"), person(store, "bob")
    assert store.shortest_queue() == 3
    for _ in range(2):
        store.submit(ann, given(store, ann).task_id, RANKED)
    assert store.open_tasks() == 3
    assert store.shortest_queue() == 1


def test_nobody_answers_what_was_not_given(store: Store) -> None:
    store.add_tasks([task("a"), task("write", outputs=0)])
    ann, bob = person(store, "ann"), person(store, "bob")
    given(store, ann)
    for number in (1, 2, 77):
        with pytest.raises(RefusedError, match="not given"):
            store.submit(bob, number, RANKED)
    with pytest.raises(InvalidAnswerError):
        store.submit(ann, 1, Submission(ranks=[0]))
    with pytest.raises(RefusedError):
        store.renew(bob, 1)
    with pytest.raises(RefusedError):
        store.answered(bob, 1)


def test_pausing(store: Store) -> None:
    store.add_tasks([task("a"), task("b")])
    ann = person(store, "ann")
    lead.change_setting(store, "paused", True)
    assert store.claim(ann) is None
    lead.change_setting(store, "paused", False)
    lead.change_tasks(store, task_id=1, paused=True)
    assert given(store, ann).task_id == 2
    lead.change_tasks(store, task_id=1, paused=False, overlap=3)
    assert [row["overlap"] for row in lead.task_list(store, limit=10)] == [3, 1]


def test_tokens_are_kept_as_hashes_and_can_be_revoked(store: Store) -> None:
    token = lead.add_labeler(store, "ann")
    found = lead.labeler_of(store, token)
    assert found is not None
    assert lead.labeler_of(store, token[:-1]) is None
    with Session(store.engine) as session:
        assert all(token not in row.hash for row in session.scalars(select(Token)))
        everything = str(session.execute(text("SELECT * FROM audit")).all())
    assert token not in everything
    second = lead.add_labeler(store, "ann")
    lead.deactivate(store, found.id)
    assert lead.labeler_of(store, token) is None
    assert lead.labeler_of(store, second) is None
    with pytest.raises(RefusedError, match="labeler"):
        lead.add_labeler(store, "ann", is_lead=True)


def test_the_audit_is_append_only(store: Store) -> None:
    for statement in ("UPDATE audit SET action = 'x'", "DELETE FROM audit"):
        with writing(store.engine) as session, pytest.raises(DBAPIError, match="append-only"):
            session.execute(text(statement))


def test_many_labelers_at_once(store: Store) -> None:
    """16 threads, 60 tasks, overlap 2: 120 answers, none twice, no task over-filled."""
    store.add_tasks([task(f"t{index}") for index in range(60)], overlap=2)
    people = [person(store, f"p{index}") for index in range(16)]
    faults: list[BaseException] = []

    def work(labeler: int) -> None:
        try:
            quiet = 0
            while quiet < 3:
                assignment = store.claim(labeler)
                if assignment is None:
                    quiet += 1
                    time.sleep(0.05)
                else:
                    quiet = 0
                    store.submit(labeler, assignment.task_id, RANKED)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(labeler,)) for labeler in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    with Session(store.engine) as session:
        answers = session.scalars(select(Answer)).all()
        assert session.scalars(select(Lease)).all() == []
    assert len(answers) == 120
    assert len({(answer.task_id, answer.labeler_id) for answer in answers}) == 120


def everything(store: Store) -> dict[str, list[object]]:
    with store.engine.connect() as connection:
        return {
            name: sorted(map(repr, connection.execute(select(table)).all()))
            for name, table in Base.metadata.tables.items()
        }


def test_backup_while_in_use(store: Store, tmp_path: Path) -> None:
    store.add_tasks([task(f"t{index}") for index in range(5)])
    ann = person(store, "ann")
    for _ in range(3):
        store.submit(ann, given(store, ann).task_id, RANKED)
    held = given(store, ann)
    copy = tmp_path / "copy.db"
    before = everything(store)
    assert back_up(store.url, str(copy)) == 3
    store.submit(ann, held.task_id, RANKED)
    with pytest.raises(UserError, match="exists"):
        back_up(store.url, str(copy))
    restored = Store(f"sqlite:///{copy}")
    assert restored.progress(ann) == {"done": 3, "left": 2}
    assert everything(restored) == before
    assert {name for name, rows in before.items() if rows} >= {"answer", "audit", "token", "lease"}
    restored.submit(ann, held.task_id, RANKED)  # it can go on from the copy
    restored.close()


def test_databases_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such label database"):
        Store(f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(UserError, match="no such folder"):
        Store(f"sqlite:///{tmp_path}/none/labels.db", create=True)
    (tmp_path / "text.db").write_text("this is no database, it only is named like one" * 9)
    with pytest.raises(UserError, match="cannot be used"):
        Store(f"sqlite:///{tmp_path}/text.db", create=True)
    with pytest.raises(UserError, match="sqlite:///FILE"):
        Store("mysql://localhost/labels")
    with pytest.raises(UserError, match="no database URL"):
        Store("labels.db")
    url = f"sqlite:///{tmp_path}/old.db"
    store = Store(url, create=True)
    with writing(store.engine) as session:
        session.execute(text("UPDATE meta SET value = '7' WHERE key = 'schema_version'"))
        session.commit()
    store.close()
    with pytest.raises(UserError, match="version 7"):
        Store(url, create=True)


def test_a_database_has_one_server_at_a_time(store: Store) -> None:
    """Another process is refused while the first one lives, and not after it is killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        own = Store(store.url)
        with served_alone(own.engine):
            os.write(writing, b"1")
            signal.pause()
        os._exit(0)
    assert os.read(reading, 1) == b"1"
    with pytest.raises(UserError, match="is in use by"), served_alone(store.engine):
        raise AssertionError("two servers")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 30
    while True:  # PostgreSQL hears of it a moment later
        try:
            with served_alone(store.engine):
                break
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
