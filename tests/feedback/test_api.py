"""The web application: who may do what, errors in words, limits, headers, nothing of others."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from fastapi.testclient import TestClient
from labels import task

from textrl.feedback.app import create_app
from textrl.feedback.labeler_api import Flag
from textrl.labels import lead
from textrl.labels.answers import FLAGS
from textrl.labels.store import Store
from textrl.labels.tasks import NewTask


class Clients:
    """The app, and a client for each of its people."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.app = create_app(store)
        self.ann = self.of(lead.add_labeler(store, "ann"))
        self.bob = self.of(lead.add_labeler(store, "bob"))
        self.lead = self.of(lead.add_labeler(store, "lead", is_lead=True))
        self.nobody = self.of("guess")

    def of(self, token: str) -> TestClient:
        headers = {"authorization": f"Bearer {token}"}
        return TestClient(self.app, base_url="http://127.0.0.1", headers=headers)


@pytest.fixture
def clients(tmp_path: Path) -> Iterator[Clients]:
    store = Store(f"sqlite:///{tmp_path}/labels.db", create=True)
    store.add_tasks([task("a"), task("b"), task("write", outputs=0)])
    yield Clients(store)
    store.close()


RANKED = {"ranks": [0, 1, 2, 3]}


def test_the_api_knows_every_flag() -> None:
    assert get_args(Flag) == tuple(FLAGS)


def test_a_labeler_ranks_writes_and_edits(clients: Clients) -> None:
    ann = clients.ann
    assert ann.get("/api/me").json()["left"] == 3
    given = ann.post("/api/claim").json()["task"]
    assert set(given) == {"task_id", "prompt", "outputs", "expires_at"}  # no model, no order
    assert ann.post(f"/api/tasks/{given['task_id']}/renew").status_code == 200
    path = f"/api/tasks/{given['task_id']}/answer"
    body = {"ranks": [2, 0, 1, 1], "rating": 4, "flags": ["harmful"], "seconds": 12.5}
    sent = ann.post(path, json=body)
    assert sent.status_code == 201
    assert sent.json()["ranks"] == [2, 0, 1, 1]
    assert ann.post(path, json=body).json() == sent.json()
    assert ann.post(path, json=RANKED).status_code == 409
    seen = ann.get(path).json()
    assert seen["task"]["outputs"] == given["outputs"]
    assert seen["answer"]["ranks"] == [2, 0, 1, 1]
    changed = ann.put(path, json=RANKED | {"revision": 1})
    assert changed.json()["revision"] == 2
    assert changed.json()["ranks"] == [0, 1, 2, 3]
    assert [row["task_id"] for row in ann.get("/api/answers").json()] == [given["task_id"]]
    given = ann.post("/api/claim").json()["task"]
    skipped = ann.post(f"/api/tasks/{given['task_id']}/answer", json={"skip_reason": "too long"})
    assert skipped.json()["skip_reason"] == "too long"
    given = ann.post("/api/claim").json()["task"]
    assert given["outputs"] == []
    written = {"demonstration": "so: 😀 <b>"}
    assert ann.post(f"/api/tasks/{given['task_id']}/answer", json=written).status_code == 201
    assert ann.post("/api/claim").json() == {"task": None, "paused": False}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 422, "a rank for each of the 4 outputs"),
        ({"ranks": [0, 1]}, 422, "got 2"),
        ({"ranks": [0, 1, 2, "3"]}, 422, "ranks.3"),
        ({"ranks": [0, 1, 2, 9]}, 422, "less than 9"),
        ({"ranks": [0, 1, 2, 3], "rating": 0}, 422, "greater than or equal to 1"),
        ({"ranks": [0, 1, 2, 3], "seconds": -1}, 422, "seconds"),
        ({"ranks": [0, 1, 2, 3], "model": "x"}, 422, "model"),
        ({"ranks": [0, 1, 2, 3], "demonstration": "a\x00"}, 422, "cannot be stored"),
        ([1], 422, "body"),
    ],
)
def test_errors_say_what_is_wrong(clients: Clients, body: object, status: int, words: str) -> None:
    given = clients.ann.post("/api/claim").json()["task"]
    response = clients.ann.post(f"/api/tasks/{given['task_id']}/answer", json=body)
    assert response.status_code == status
    assert words in response.json()["detail"]


def test_bodies_that_are_no_json_and_too_large_ones(clients: Clients) -> None:
    path = "/api/tasks/1/answer"
    clients.ann.post("/api/claim")
    headers = {"content-type": "application/json"}
    assert clients.ann.post(path, content=b"\xff{", headers=headers).status_code == 400
    lone = b'{"demonstration": "\\ud800", "ranks": [0, 1, 2, 3]}'
    assert clients.ann.post(path, content=lone, headers=headers).status_code == 422
    nan = b'{"seconds": NaN, "ranks": [0, 1, 2, 3]}'
    assert clients.ann.post(path, content=nan, headers=headers).status_code == 422
    assert clients.ann.post(path, content=b"x" * 1_000_001, headers=headers).status_code == 413
    assert (
        clients.ann.post("/api/tasks/99999999999999999999/answer", json=RANKED).status_code == 422
    )


def test_tokens_decide(clients: Clients) -> None:
    routes = [("GET", "/api/me"), ("POST", "/api/claim"), ("GET", "/api/answers")]
    routes += [("GET", "/api/tasks/1/answer"), ("GET", "/api/lead/overview")]
    for method, path in routes:
        assert clients.nobody.request(method, path).status_code == 401
    bare = TestClient(clients.app, base_url="http://127.0.0.1")
    assert bare.get("/api/me").status_code == 401
    for route in clients.app.openapi()["paths"]:
        if route.startswith("/api/lead"):
            method = next(iter(clients.app.openapi()["paths"][route]))
            path = route.format(kind="rankings", labeler_id=1, task_id=1)
            assert clients.ann.request(method, path, json={}).status_code == 403, path


def test_no_labeler_sees_what_another_said(clients: Clients) -> None:
    lead.change_tasks(clients.store, overlap=2)
    given = clients.ann.post("/api/claim").json()["task"]
    path = f"/api/tasks/{given['task_id']}/answer"
    clients.ann.post(path, json=RANKED | {"demonstration": "ann's secret"})
    assert clients.bob.get(path).status_code == 409
    assert clients.bob.post("/api/claim").json()["task"]["task_id"] == given["task_id"]
    clients.bob.post(path, json=RANKED)
    for route in ("/api/me", "/api/answers", path):
        assert "secret" not in clients.bob.get(route).text
        assert "ann" not in clients.bob.get(route).text


def test_the_lead_sees_and_steers(clients: Clients) -> None:
    boss = clients.lead
    boss.put("/api/lead/settings", json={"overlap": 2, "instructions": "be kind"})
    for client in (clients.ann, clients.bob):
        given = client.post("/api/claim").json()["task"]
        best_first = [sorted(given["outputs"]).index(text) for text in given["outputs"]]
        if client is clients.bob:
            best_first = [3 - rank for rank in best_first]
        client.post(f"/api/tasks/{given['task_id']}/answer", json={"ranks": best_first})
    seen = boss.get("/api/lead/overview").json()
    assert seen["agreement"] == {
        "tasks": 1,
        "pairwise": 0.0,
        "tau_b": -1.0,
        "alpha": pytest.approx(-0.75),
    }
    assert seen["tasks"] == {"total": 3, "open": 2, "started": 1, "complete": 1}
    assert clients.ann.get("/api/me").json()["instructions"] == "be kind"
    (worst,) = boss.get("/api/lead/disagreements").json()
    assert worst["disputed_pairs"] == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert {row["labeler"]: row["ranks"] for row in worst["rankings"]} == {
        "ann": [0, 1, 2, 3],
        "bob": [3, 2, 1, 0],
    }
    states = {
        state: len(boss.get(f"/api/lead/tasks?state={state}").json())
        for state in ("all", "open", "complete", "paused", "flagged", "skipped")
    }
    assert states == dict(all=3, open=2, complete=1, paused=0, flagged=0, skipped=0)
    whole = boss.get(f"/api/lead/tasks/{worst['id']}").json()
    assert whole["outputs"] == worst["outputs"]
    assert [(one["labeler"], one["ranks"]) for one in whole["answers"]] == [
        ("ann", [0, 1, 2, 3]),
        ("bob", [3, 2, 1, 0]),
    ]
    assert boss.get("/api/lead/tasks/99").status_code == 409
    second = clients.ann.post("/api/claim").json()["task"]["task_id"]
    flagged = {"ranks": [0, 1, 2, 3], "flags": ["unclear"]}
    clients.ann.post(f"/api/tasks/{second}/answer", json=flagged)
    third = clients.bob.post("/api/claim").json()["task"]["task_id"]
    clients.bob.post(f"/api/tasks/{third}/answer", json={"skip_reason": "no idea"})
    boss.put("/api/lead/tasks/3", json={"paused": True})
    for state, ids in (("flagged", [second]), ("skipped", [third]), ("paused", [3])):
        assert [t["id"] for t in boss.get(f"/api/lead/tasks?state={state}").json()] == ids
    boss.put("/api/lead/tasks/3", json={"paused": False})
    made = boss.post("/api/lead/labelers", json={"name": "cat"}).json()
    cat = clients.of(made["token"])
    assert cat.get("/api/me").json()["name"] == "cat"
    boss.put("/api/lead/settings", json={"paused": True})
    assert cat.post("/api/claim").json() == {"task": None, "paused": True}
    boss.put("/api/lead/settings", json={"paused": False})
    number = next(
        p["id"] for p in boss.get("/api/lead/overview").json()["labelers"] if p["name"] == "cat"
    )
    boss.post(f"/api/lead/labelers/{number}/deactivate")
    assert cat.get("/api/me").status_code == 401
    lines = boss.get("/api/lead/export/rankings").text.splitlines()
    assert [json.loads(line)["labeler"] for line in lines] == ["ann", "bob", "ann"]


def test_headers_of_every_answer(clients: Clients) -> None:
    for path in ("/", "/lead", "/static/labeler.js", "/api/me", "/nowhere", "/api/tasks/x/answer"):
        headers = clients.ann.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in headers
    assert clients.ann.get("/docs").status_code == 404
    assert clients.ann.get("/redoc").status_code == 404


def test_the_pages_name_no_other_host(clients: Clients) -> None:
    for path in ("/", "/lead"):
        page = clients.ann.get(path).text
        assert "//" not in page.replace("<!doctype", "")
        assert "style=" not in page
        assert "onclick" not in page


def test_strangers_are_slowed_down_and_labelers_are_not_hurt(clients: Clients) -> None:
    codes = [clients.nobody.get("/api/me").status_code for _ in range(40)]
    assert codes[:30] == [401] * 30
    assert 429 in codes[30:]
    assert clients.ann.get("/api/me").status_code == 200


def test_a_chat_prompt_is_shown_in_turns(clients: Clients) -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    lead.change_tasks(clients.store, paused=True)
    clients.store.add_tasks([NewTask(prompt=chat, outputs=["x", "y"], source={}, columns={})])
    assert clients.ann.post("/api/claim").json()["task"]["prompt"] == chat
