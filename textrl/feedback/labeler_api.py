"""The API of the labeler's page, in which outputs and ranks are always in shown order."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from textrl.feedback.security import current_labeler
from textrl.labels.answers import FLAGS, MAX_OUTPUTS, MAX_REASON, MAX_TEXT, Submission
from textrl.labels.lead import setting
from textrl.labels.store import Assignment, Store
from textrl.labels.tables import Answer, Labeler

INSTRUCTIONS = (
    "Read the prompt and every output. Put the outputs in order, the most helpful, honest and "
    "harmless first; ties are fine. Where you can write a better one, do."
)
"""The default instructions, until the lead writes others."""
WRITING_INSTRUCTIONS = (
    "Read the prompt, and write the answer that you would like to get: helpful, honest and "
    "harmless. If there is a draft, make it better."
)
"""The default instructions of a task in which there is nothing to rank."""
TaskId = Annotated[int, Path(ge=1, le=2**31 - 1)]
Me = Annotated[Labeler, Depends(current_labeler)]
Rank = Annotated[int, Field(ge=0, lt=MAX_OUTPUTS)]
Flag = Literal["harmful", "language", "unclear"]
"""The keys of FLAGS (a test checks that they are equal)."""


def store_of(request: Request) -> Store:
    """Return the app's store."""
    store: Store = request.app.state.store
    return store


Labels = Annotated[Store, Depends(store_of)]


class AnswerIn(BaseModel):
    """An answer: a ranking, a text, or both; or a skip. See `answers.Submission`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    ranks: Annotated[list[Rank], Field(max_length=MAX_OUTPUTS)] | None = None
    demonstration: Annotated[str, Field(max_length=MAX_TEXT)] | None = None
    rating: Annotated[int, Field(ge=1, le=7)] | None = None
    flags: Annotated[list[Flag], Field(max_length=len(FLAGS))] = []
    skip_reason: Annotated[str, Field(max_length=MAX_REASON)] | None = None
    seconds: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.0

    def submission(self) -> Submission:
        """Return the answer as the store's type."""
        return Submission(**{name: self.__dict__[name] for name in AnswerIn.model_fields})


class EditIn(AnswerIn):
    """A changed answer."""

    revision: Annotated[int, Field(ge=1, le=2**31 - 1)]


class Turn(BaseModel):
    """A part of a prompt; a plain text has no role."""

    role: str
    content: str


class TaskOut(BaseModel):
    """A task as the labeler sees it."""

    task_id: int
    prompt: list[Turn]
    outputs: list[str]
    expires_at: float


class ClaimOut(BaseModel):
    """The present task, or the reason why there is none."""

    task: TaskOut | None
    paused: bool


class AnswerOut(AnswerIn):
    """A stored answer."""

    task_id: int
    revision: int
    updated_at: float


class AnsweredOut(BaseModel):
    """An answer and its task, for editing."""

    task: TaskOut
    answer: AnswerOut


class PastOut(BaseModel):
    """A line of the labeler's list of answers."""

    task_id: int
    prompt: str
    skipped: bool
    updated_at: float


class MeOut(BaseModel):
    """The labeler's name and progress."""

    name: str
    database: str
    is_lead: bool
    done: int
    left: int
    paused: bool
    instructions: str
    writing_instructions: str
    flags: dict[str, str]


class LeaseOut(BaseModel):
    """The time at which a lease ends."""

    expires_at: float


ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"description": "no valid token"},
    409: {"description": "the answer cannot count; the detail says why"},
    413: {"description": "too large"},
    422: {"description": "not valid; the detail says what"},
    429: {"description": "too fast"},
}
router = APIRouter(prefix="/api", responses=ERRORS)


@router.get("/me")
def me(labeler: Me, store: Labels) -> MeOut:
    """Return the labeler's name and progress."""
    return MeOut(
        name=labeler.name,
        database=store.identity,
        is_lead=labeler.is_lead,
        **store.progress(labeler.id),
        paused=setting(store, "paused", False),
        instructions=setting(store, "instructions", INSTRUCTIONS),
        writing_instructions=setting(store, "instructions", WRITING_INSTRUCTIONS),
        flags=FLAGS,
    )


@router.post("/claim")
def claim(labeler: Me, store: Labels) -> ClaimOut:
    """Return the labeler's present task, or a new one."""
    assignment = store.claim(labeler.id)
    return ClaimOut(
        task=None if assignment is None else _task_out(assignment),
        paused=setting(store, "paused", False),
    )


@router.post("/tasks/{task_id}/renew")
def renew(task_id: TaskId, labeler: Me, store: Labels) -> LeaseOut:
    """Extend the lease of the labeler's present task."""
    return LeaseOut(expires_at=store.renew(labeler.id, task_id))


@router.post("/tasks/{task_id}/answer", status_code=201)
def submit(task_id: TaskId, body: AnswerIn, labeler: Me, store: Labels) -> AnswerOut:
    """Store an answer and respond after the commit; an answer sent twice is stored once."""
    return _answer_out(store.submit(labeler.id, task_id, body.submission()))


@router.put("/tasks/{task_id}/answer")
def edit(task_id: TaskId, body: EditIn, labeler: Me, store: Labels) -> AnswerOut:
    """Change one of the labeler's own answers."""
    return _answer_out(store.edit(labeler.id, task_id, body.submission(), body.revision))


@router.get("/tasks/{task_id}/answer")
def answered(task_id: TaskId, labeler: Me, store: Labels) -> AnsweredOut:
    """Return one of the labeler's own answers and its task."""
    answer, assignment = store.answered(labeler.id, task_id)
    return AnsweredOut(task=_task_out(assignment), answer=_answer_out(answer))


@router.get("/answers")
def answers(labeler: Me, store: Labels) -> list[PastOut]:
    """Return the labeler's last answers, the newest first."""
    return [
        PastOut(
            task_id=answer.task_id,
            prompt=" ".join(turn.content for turn in turns(task.prompt))[-120:],
            skipped=answer.skip_reason is not None,
            updated_at=answer.updated_at,
        )
        for answer, task in store.history(labeler.id)
    ]


def turns(prompt: Any) -> list[Turn]:
    """Split a prompt into its turns."""
    if isinstance(prompt, str):
        return [Turn(role="", content=prompt)]
    return [Turn(role=turn["role"], content=turn["content"]) for turn in prompt]


def _task_out(assignment: Assignment) -> TaskOut:
    return TaskOut(
        task_id=assignment.task_id,
        prompt=turns(assignment.prompt),
        outputs=assignment.outputs,
        expires_at=assignment.expires_at,
    )


def _answer_out(answer: Answer) -> AnswerOut:
    shown = Submission(ranks=answer.ranks).shuffled(answer.shown_order)
    return AnswerOut(
        task_id=answer.task_id,
        ranks=shown.ranks,
        demonstration=answer.demonstration,
        rating=answer.rating,
        flags=answer.flags,  # type: ignore[arg-type]  # checked against FLAGS when stored
        skip_reason=answer.skip_reason,
        seconds=answer.seconds,
        revision=answer.revision,
        updated_at=answer.updated_at,
    )
