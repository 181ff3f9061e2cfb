"""The API of the lead's page; every route refuses callers who are not a lead."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from textrl.feedback.labeler_api import ERRORS, INSTRUCTIONS, Labels, TaskId
from textrl.feedback.security import current_lead
from textrl.labels import lead
from textrl.labels.export import Filters, rows
from textrl.labels.reports import Reports
from textrl.labels.store import RefusedError
from textrl.labels.tables import Labeler
from textrl.rows import Kind

Lead = Annotated[Labeler, Depends(current_lead)]
Overlap = Annotated[int, Field(ge=1, le=100)]
router = APIRouter(
    prefix="/api/lead",
    responses=ERRORS | {403: {"description": "not the lead"}},
)


class NewLabeler(BaseModel):
    """A labeler to be added, or to get a new link."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[str, Field(min_length=1, max_length=64)]


class TokenOut(BaseModel):
    """A token, which is shown only once."""

    name: str
    token: str


class SettingsIn(BaseModel):
    """The settings that the lead can change."""

    model_config = ConfigDict(extra="forbid", strict=True)
    paused: bool | None = None
    overlap: Overlap | None = None
    instructions: Annotated[str, Field(max_length=10_000)] | None = None


class TaskIn(BaseModel):
    """The settings of one task that the lead can change."""

    model_config = ConfigDict(extra="forbid", strict=True)
    paused: bool | None = None
    overlap: Overlap | None = None


@router.get("/overview")
def overview(person: Lead, store: Labels, request: Request) -> dict[str, Any]:
    """Return progress, agreement and checks (see `Reports.overview`)."""
    instructions = lead.setting(store, "instructions", INSTRUCTIONS)
    trouble: str = request.app.state.trouble()
    reports: Reports = request.app.state.reports
    return reports.overview() | {"instructions": instructions, "trouble": trouble}


@router.get("/tasks")
def tasks(
    person: Lead,
    store: Labels,
    after: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    state: lead.TaskState = "all",
) -> list[dict[str, Any]]:
    """Return some tasks in one state, in order of their ids, after a given id."""
    return lead.task_list(store, limit=limit, after=after, state=state)


@router.get("/tasks/{task_id}")
def one_task(task_id: TaskId, person: Lead, store: Labels) -> dict[str, Any]:
    """Return a task whole, with every answer."""
    found = lead.one_task(store, task_id)
    if found is None:
        raise RefusedError(f"there is no task {task_id}")
    return found


@router.get("/disagreements")
def disagreements(
    person: Lead, request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> list[dict[str, Any]]:
    """Return the tasks on which labelers agree least."""
    reports: Reports = request.app.state.reports
    return reports.disagreements(limit=limit)


@router.post("/labelers", status_code=201)
def add_labeler(body: NewLabeler, person: Lead, store: Labels) -> TokenOut:
    """Add a labeler, or make a new link for one."""
    token = lead.add_labeler(store, body.name, by=person.id)
    return TokenOut(name=body.name.strip(), token=token)


@router.post("/labelers/{labeler_id}/deactivate")
def deactivate(labeler_id: TaskId, person: Lead, store: Labels) -> dict[str, bool]:
    """Revoke a labeler's links."""
    lead.deactivate(store, labeler_id, by=person.id)
    return {"active": False}


@router.put("/settings")
def settings(body: SettingsIn, person: Lead, store: Labels) -> dict[str, Any]:
    """Pause or resume labeling, set the overlap of all tasks, or set the instructions."""
    if body.paused is not None:
        lead.change_setting(store, "paused", body.paused, by=person.id)
    if body.instructions is not None:
        text = body.instructions.replace("\x00", "")
        lead.change_setting(store, "instructions", text, by=person.id)
    if body.overlap is not None:
        lead.change_setting(store, "overlap", body.overlap, by=person.id)
        lead.change_tasks(store, overlap=body.overlap, by=person.id)
    return body.model_dump(exclude_none=True)


@router.put("/tasks/{task_id}")
def change_task(task_id: TaskId, body: TaskIn, person: Lead, store: Labels) -> dict[str, int]:
    """Set the overlap of one task, or pause it."""
    changed = lead.change_tasks(
        store, task_id=task_id, overlap=body.overlap, paused=body.paused, by=person.id
    )
    return {"changed": changed}


@router.get("/export/{kind}", response_class=StreamingResponse)
def export(
    kind: Kind,
    person: Lead,
    store: Labels,
    min_agreement: Annotated[float | None, Query(ge=0, le=1, allow_inf_nan=False)] = None,
    drop_flagged: bool = False,
) -> StreamingResponse:
    """Return the rows of `textrl export` as JSON lines."""
    filters = Filters(min_agreement=min_agreement, drop_flagged=drop_flagged)

    def lines() -> Iterator[str]:
        for row in rows(store, kind, filters):
            yield json.dumps(row, ensure_ascii=False) + "\n"

    return StreamingResponse(
        lines(),
        media_type="application/x-ndjson",
        headers={"content-disposition": f'attachment; filename="{kind}.jsonl"'},
    )
