"""Schemathesis against our own OpenAPI description: whatever is sent, never a 5xx."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from labels import task

from textrl.feedback import security
from textrl.feedback.app import create_app
from textrl.labels import lead
from textrl.labels.answers import Submission
from textrl.labels.store import Store
from textrl.labels.tasks import NewTask

pytestmark = pytest.mark.slow
schemathesis = pytest.importorskip("schemathesis", reason="needs the extra browser")
hypothesis = pytest.importorskip("hypothesis", reason="comes with schemathesis")


def app_with_work(folder: Path, *, is_lead: bool) -> tuple[FastAPI, str]:
    store = Store(f"sqlite:///{folder}/labels.db", create=True)
    chat = [{"role": "user", "content": "x"}]
    store.add_tasks([task(f"t{index}", outputs=2 + index % 3) for index in range(40)])
    store.add_tasks([NewTask(prompt=chat, outputs=["a", "b"], source={}, columns={})])
    token = lead.add_labeler(store, "fuzz", is_lead=is_lead)
    app = create_app(store)
    labeler = lead.labeler_of(store, token)
    assert labeler is not None
    for _ in range(20):  # some are answered and one is in hand, so that deeper code is reached
        given = store.claim(labeler.id)
        assert given is not None
        ranks = list(range(len(given.outputs)))
        store.submit(labeler.id, given.task_id, Submission(ranks=ranks))
    assert store.claim(labeler.id) is not None
    return app, token


@pytest.mark.parametrize("role", ["labeler", "lead"])
def test_no_request_breaks_the_server(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(security.Buckets, "take", lambda self, key: 0.0)
    app, token = app_with_work(tmp_path, is_lead=role == "lead")
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    seen: dict[str, int] = {}

    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.settings(max_examples=40, deadline=None, database=None)
        @hypothesis.seed(0)
        @hypothesis.given(case=operation.as_strategy())
        def send(case: "schemathesis.Case") -> None:
            if "task_id" in case.path_parameters:  # one in hand or answered: others are refused
                case.path_parameters["task_id"] = 1 + len(str(case.body)) % 25
            response = case.call(headers={"authorization": f"Bearer {token}"})
            assert response.status_code < 500, response.text
            seen[case.path] = min(seen.get(case.path, 999), response.status_code)

        send()
    reached = {path for path, status in seen.items() if status < 300}
    wanted = {"/api/me", "/api/claim", "/api/answers", "/api/tasks/{task_id}/answer"}
    if role == "lead":
        wanted |= {"/api/lead/overview", "/api/lead/labelers", "/api/lead/export/{kind}"}
    assert wanted <= reached  # it was let in, and not only refused
