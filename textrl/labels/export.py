"""Export of demonstrations, rankings, pairs and prompts from the label database to the trainers.

The rows depend only on the database. `read` serves `--data sqlite:///labels.db` of every trainer,
and `textrl export` writes the same rows to a file, so training from either gives the same model.
"""

import itertools
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, get_args

from sqlalchemy import select
from sqlalchemy.orm import Session

from textrl.errors import UserError, hide_password
from textrl.labels.agreement import task_agreement
from textrl.labels.store import Store
from textrl.labels.tables import Answer, Labeler, Task, parse_url
from textrl.rows import CHAT_COLUMNS, Kind, Row


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Filters that select the answers to export.

    Attributes:
        min_agreement: Minimum agreement of a task's labelers (`agreement.task_agreement`, 0 to 1).
            Tasks that one person ranked have no agreement and are then left out.
        drop_flagged: Whether to leave out tasks that any labeler flagged.
        labelers: The names of the labelers; None means all.
    """

    min_agreement: float | None = None
    drop_flagged: bool = False
    labelers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Raise UserError if min_agreement is out of range."""
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise UserError(f"min_agreement is {self.min_agreement!r}; expected a share in [0, 1]")


def read(url: str, kind: Kind) -> list[Row]:
    """Return the rows of one kind from a database URL, whose query may hold the filters.

    `sqlite:///labels.db?min_agreement=0.7&drop_flagged=true&labelers=ann,bob`

    Raises:
        UserError: there is no such database, or a filter is unknown.
    """
    parsed = parse_url(url)
    query = {key: str(value) for key, value in parsed.query.items()}
    if empty := re.search(r"[?&](min_agreement|drop_flagged|labelers)=?(&|$)", url):
        raise UserError(f"{hide_password(url)}: {empty.group(1)} has no value")
    own = {key: query.pop(key) for key in list(query) if key in Filters.__dataclass_fields__}
    if query and parsed.get_backend_name() == "sqlite":
        known = ", ".join(Filters.__dataclass_fields__)
        raise UserError(
            f"{hide_password(url)}: unknown filter {next(iter(query))!r}; known: {known}"
        )
    try:
        share = float(own["min_agreement"]) if "min_agreement" in own else None
    except ValueError:
        raise UserError(
            f"{hide_password(url)}: min_agreement is {own['min_agreement']!r}; expected a share"
        ) from None
    flagged = own.get("drop_flagged", "false").lower()
    if flagged not in ("true", "false"):
        raise UserError(
            f"{hide_password(url)}: drop_flagged is {flagged!r}; expected true or false"
        )
    names = split_names(own.get("labelers"))
    filters = Filters(min_agreement=share, drop_flagged=flagged == "true", labelers=names)
    plain = parsed.difference_update_query(list(own)).render_as_string(hide_password=False)
    store = Store(plain)
    try:
        return rows(store, kind, filters)
    finally:
        store.close()


def split_names(names: str | None) -> tuple[str, ...] | None:
    """Split names that are separated by commas."""
    return None if names is None else tuple(name.strip() for name in names.split(","))


def rows(store: Store, kind: Kind, filters: Filters = Filters()) -> list[Row]:  # frozen
    """Return the rows of one kind, in the order of tasks and answers.

    `demonstrations`: prompt, completion. `rankings`: prompt, completions, ranks (0 is best, with
    ties), one row per answer. `pairs`: prompt, chosen, rejected, one row for each two outputs that
    an answer orders. `prompts`: prompt and the file's other columns, one row per task. All except
    `prompts` also have labeler, task, agreement, flags, and the task's tools and
    chat_template_kwargs.
    """
    if kind == "prompts" and filters.labelers:
        raise UserError("prompts are not of a labeler; leave labelers out")
    if kind not in get_args(Kind):
        raise UserError(f"{kind!r}: expected one of {', '.join(get_args(Kind))}")
    with Session(store.engine) as session:
        tasks = {task.id: task for task in session.scalars(select(Task).order_by(Task.id))}
        names = {person.id: person.name for person in session.scalars(select(Labeler))}
        answers: dict[int, list[Answer]] = defaultdict(list)
        for answer in session.scalars(select(Answer).order_by(Answer.id)):
            answers[answer.task_id].append(answer)
    if filters.labelers and (unknown := set(filters.labelers) - set(names.values())):
        raise UserError(
            f"no labeler is called {sorted(unknown)[0]!r}; there are: {sorted(names.values())}"
        )
    found = []
    for task in tasks.values():
        agreed = task_agreement([a.ranks for a in answers[task.id] if a.ranks is not None])
        if not _taken(answers[task.id], agreed, filters):
            continue
        if kind == "prompts":
            found.append({"prompt": task.prompt, **task.columns})
        for answer in answers[task.id] if kind != "prompts" else []:
            name = names[answer.labeler_id]
            if answer.skip_reason is None and name in (filters.labelers or [name]):
                facts = {
                    "task": task.id,
                    "labeler": name,
                    "agreement": agreed,
                    "flags": answer.flags,
                }
                beside = {k: v for k, v in task.columns.items() if k in CHAT_COLUMNS}
                found += [beside | row | facts for row in MAKERS[kind](task, answer)]
    return found


def _taken(answers: list[Answer], agreed: float | None, filters: Filters) -> bool:
    if filters.drop_flagged and any(answer.flags for answer in answers):
        return False
    return filters.min_agreement is None or (agreed is not None and agreed >= filters.min_agreement)


def _demonstrations(task: Task, answer: Answer) -> list[Row]:
    if answer.demonstration is None:
        return []
    completion = _continuing(task.prompt, answer.demonstration)
    return [{"prompt": task.prompt, "completion": _reply(task, completion)}]


def _rankings(task: Task, answer: Answer) -> list[Row]:
    if answer.ranks is None:
        return []
    return [
        {
            "prompt": task.prompt,
            "completions": [_reply(task, output) for output in task.outputs],
            "ranks": answer.ranks,
            "rating": answer.rating,
            "shown_order": answer.shown_order,
            "seconds": answer.seconds,
            "source": task.source,
        }
    ]


def _pairs(task: Task, answer: Answer) -> list[Row]:
    if answer.ranks is None:
        return []
    found = []
    for i, j in itertools.combinations(range(len(task.outputs)), 2):
        if answer.ranks[i] != answer.ranks[j]:
            best, worst = (i, j) if answer.ranks[i] < answer.ranks[j] else (j, i)
            found.append(
                {
                    "prompt": task.prompt,
                    "chosen": _reply(task, task.outputs[best]),
                    "rejected": _reply(task, task.outputs[worst]),
                }
            )
    return found


MAKERS = {"demonstrations": _demonstrations, "rankings": _rankings, "pairs": _pairs}


def _reply(task: Task, text: str) -> Any:
    """Return a completion in the form of the prompt: a text, or an assistant's message."""
    return text if isinstance(task.prompt, str) else [{"role": "assistant", "content": text}]


def _continuing(prompt: Any, written: str) -> str:
    """Return a written text with a space before it if it needs one to continue a plain prompt.

    People do not type this space. Scripts of wide characters (Chinese, Japanese) need none.
    """
    wide = unicodedata.east_asian_width(written[0]) in "WF"
    if not isinstance(prompt, str) or prompt[-1:].isspace() or not written[0].isalnum() or wide:
        return written
    return f" {written}"
