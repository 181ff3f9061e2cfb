"""The lead's reports equal the database at every moment, by hand and after random answers."""

import random
from typing import Any

import pytest
from labels import task
from sqlalchemy.orm import Session

from textrl.labels import lead, reports
from textrl.labels.answers import Submission
from textrl.labels.reports import Reports, history
from textrl.labels.store import Store
from textrl.labels.tables import Answer, writing


def answer(store: Store, labeler: int, submission: Submission) -> int:
    """Claim a task and answer it in stored order; return the task."""
    given = store.claim(labeler)
    assert given is not None
    store.submit(labeler, given.task_id, submission.shuffled(given.shown_order))
    return given.task_id


def people(store: Store, *names: str) -> list[int]:
    for name in names:
        lead.add_labeler(store, name)
    ids = {person.name: person.id for person in lead.labelers(store)}
    return [ids[name] for name in names]


def test_a_history_by_hand() -> None:
    """24 steps of 10 s from 1000 to 1240; a moment that ends a step belongs to it."""
    times = {"ann": [1000.0, 1010.0, 1240.0], "bob": [1011.0]}
    found = history(times, [(1010.0, 1.0), (1009.0, 0.5), (1240.0, 0.25)])
    assert found["moments"] == [1010.0 + 10 * step for step in range(24)]
    assert found["done"]["ann"] == [2] * 23 + [3]
    assert found["done"]["bob"] == [0] + [1] * 23
    assert found["agreement"] == [0.75] + [None] * 22 + [0.25]
    rounded = [0.06589031477662455, 0.5077606634349775]  # first + (last - first) is before last
    assert history({"ann": rounded}, [])["done"]["ann"][-1] == 2
    assert history({"ann": [5.0]}, []) == {"moments": [], "done": {}, "agreement": []}
    assert history({}, [])["moments"] == []


def test_by_hand(store: Store) -> None:
    store.add_tasks([task("a", outputs=3), task("b", outputs=3)], overlap=2)
    ann, bob = people(store, "ann", "bob")
    first = answer(store, ann, Submission(ranks=[0, 1, 2], seconds=4))
    second = answer(store, ann, Submission(ranks=[0, 1, 1], seconds=8, flags=["unclear"]))
    found = Reports(store)
    assert found.overview()["agreement"]["tasks"] == 0
    assert answer(store, bob, Submission(ranks=[0, 2, 1], seconds=1)) == first
    assert answer(store, bob, Submission(skip_reason="no idea", seconds=9)) == second
    overview = found.overview()
    # one task with two rankings: pairs (0,1) and (0,2) alike, (1,2) not; tau-b = (2 - 1) / 3
    assert overview["agreement"]["pairwise"] == pytest.approx(2 / 3)
    assert overview["agreement"]["tau_b"] == pytest.approx(1 / 3)
    assert overview["tasks"] == {"total": 2, "open": 1, "started": 2, "complete": 1}
    assert overview["flags"] == 1
    rows = {row["name"]: row for row in overview["labelers"]}
    assert (rows["ann"]["done"], rows["ann"]["skipped"], rows["ann"]["flagged"]) == (2, 0, 1)
    assert (rows["bob"]["done"], rows["bob"]["skipped"]) == (1, 1)
    assert (rows["ann"]["median_seconds"], rows["bob"]["median_seconds"]) == (6, 1)
    assert rows["ann"]["agreement"] == rows["bob"]["agreement"] == pytest.approx(2 / 3)
    assert overview["answers_left"] == 1  # bob's skip gave nothing
    assert overview["seconds_left"] == 4  # the median of 4, 8 and 1
    (worst,) = found.disagreements(limit=5)
    assert worst["id"] == first
    assert worst["disputed_pairs"] == [[1, 2]]
    assert worst["rankings"] == [
        {"labeler": "ann", "ranks": [0, 1, 2]},
        {"labeler": "bob", "ranks": [0, 2, 1]},
    ]


def test_after_each_change_they_equal_those_of_a_fresh_start(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "BLOCK", 3)  # several blocks, of which some change
    store.add_tasks([task(f"t{index}", outputs=2 + index % 3) for index in range(10)], overlap=3)
    ids, randomness = people(store, "ann", "bob", "eve"), random.Random(0)
    kept = Reports(store)
    kept.overview()
    for step in range(40):
        labeler = randomness.choice(ids)
        given = store.claim(labeler)
        if given is not None and randomness.random() < 0.8:
            count = len(given.outputs)
            ranks = [randomness.randrange(count) for _ in range(count)]
            skipped = randomness.random() < 0.2
            flags = ["harmful"] if randomness.random() < 0.2 else []
            submission = Submission(ranks=ranks, seconds=randomness.random(), flags=flags)
            if skipped:
                submission = Submission(skip_reason="x", seconds=1.0)
            store.submit(labeler, given.task_id, submission)
        elif past := store.history(labeler):
            old, _ = randomness.choice(past)
            count = len(old.shown_order)
            changed = Submission(ranks=randomness.sample(range(count), count), seconds=2.0)
            store.edit(labeler, old.task_id, changed, old.revision)
        done = sum(store.progress(labeler)["done"] for labeler in ids)
        assert sum(row["done"] for row in kept.overview()["labelers"]) == done
        if step % 4 == 0:
            fresh = Reports(store)
            assert approximately(kept.overview(), fresh.overview())
            assert kept.disagreements(limit=4) == fresh.disagreements(limit=4)
    with Session(store.engine) as session:
        assert session.query(Answer).count() > 15


def approximately(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Return whether two overviews are equal up to the order of their sums."""
    assert found["labelers"] == [pytest.approx(row) for row in expected["labelers"]]
    assert found["agreement"] == pytest.approx(expected["agreement"])
    rest = set(found) - {"labelers", "agreement"}
    return {name: found[name] for name in rest} == {name: expected[name] for name in rest}


def test_an_answer_whose_commit_was_late_is_seen(store: Store) -> None:
    """Its number and its row of the audit are older than others that were read before."""
    store.add_tasks([task("a", outputs=2)], overlap=2)
    ann, bob = people(store, "ann", "bob")
    answer(store, bob, Submission(ranks=[0, 1], seconds=1))
    kept = Reports(store)
    kept.overview()
    with writing(store.engine) as session:
        late = {"ranks": [1, 0], "flags": [], "shown_order": [0, 1], "seconds": 1.0}
        session.add(Answer(task_id=1, labeler_id=ann, created_at=0, updated_at=0, **late))
        session.commit()
    assert kept.overview()["agreement"]["tasks"] == 1
