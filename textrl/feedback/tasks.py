"""What a task is, and tasks from a file: prompts to write for, or with outputs to rank."""

import hashlib
import itertools
import json
from dataclasses import dataclass
from typing import Any

from textrl.data import CHAT_COLUMNS, Records, Row, is_conversation, load_records
from textrl.errors import UserError
from textrl.feedback.answers import MAX_OUTPUTS, is_storable

OUTPUT_COLUMNS = ("completions", "outputs", "completion")


@dataclass(frozen=True, kw_only=True)
class NewTask:
    """A task to be stored."""

    prompt: Any
    outputs: list[str]
    source: dict[str, Any]
    columns: dict[str, Any]

    def __post_init__(self) -> None:
        """Raise UserError for what could not be shown, ranked or stored."""
        parts = [self.prompt]
        if not isinstance(self.prompt, str) and is_conversation(self.prompt):
            parts = [turn[key] for turn in self.prompt for key in ("role", "content")]
        if not all(isinstance(part, str) and is_storable(part) for part in parts) or not any(parts):
            raise UserError(f"expected a 'prompt' (text or chat messages), got {self.prompt!r}")
        for output in self.outputs:
            if not isinstance(output, str) or not output.strip() or not is_storable(output):
                raise UserError(f"an output is {output!r}; expected a text")
        if len(self.outputs) > MAX_OUTPUTS:
            count = len(self.outputs)
            raise UserError(f"{count} outputs; at most {MAX_OUTPUTS} can be ranked")
        if len(set(self.outputs)) < len(self.outputs):
            raise UserError("two outputs are the same text; give each once")

    @property
    def digest(self) -> str:
        """What makes it this task: what is asked, and the outputs in any order."""
        asked = what_is_asked(self.prompt, self.columns)
        body = json.dumps([asked, sorted(self.outputs)], sort_keys=True)
        return hashlib.sha256(body.encode()).hexdigest()


def what_is_asked(prompt: Any, columns: Row) -> Any:
    """Return a prompt, with the tools and template variables of its row where there are any."""
    beside = {name: columns[name] for name in CHAT_COLUMNS if columns.get(name)}
    return [prompt, beside] if beside else prompt


def read_tasks(source: str) -> list[NewTask]:
    """Return the tasks of a file or hub name with a `prompt` column.

    `completions` (or `outputs`) holds a list to rank; consecutive rows of one prompt with
    `completion`, as `textrl generate` writes them, are gathered into one, blanks and doubles left
    out; without any of these the task is to write. Other columns are kept for export.

    Raises:
        UserError: a row that cannot be shown or ranked; the place is named.
    """
    tasks = []
    for place, row, outputs in _grouped(load_records(source)):
        columns = {k: v for k, v in row.items() if k not in ("prompt", *OUTPUT_COLUMNS)}
        try:
            tasks.append(
                NewTask(
                    prompt=row.get("prompt"),
                    outputs=[_text(output) for output in outputs],
                    source={"file": place},
                    columns=columns,
                )
            )
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
    return tasks


def _grouped(records: Records) -> list[tuple[str, Row, list[Any]]]:
    """Return (place, first row, outputs) of each task."""
    found = []
    rows = zip(records.places, records.rows, strict=True)

    def key(item: tuple[str, Row]) -> Any:
        place, row = item
        if "completion" not in row or "prompt" not in row:
            return place
        return repr(what_is_asked(row["prompt"], row))

    for _, group in itertools.groupby(rows, key):
        members = list(group)
        place, first = members[0]
        outputs = first.get("completions", first.get("outputs", []))
        if "completion" in first:
            written = [row["completion"] for _, row in members]  # blanks and doubles are usual here
            outputs = list({repr(text): text for text in written if text}.values())
        if not isinstance(outputs, list):
            raise UserError(f"{place}: outputs are {outputs!r}; expected a list")
        found.append((place, first, outputs))
    return found


def _text(output: Any) -> Any:
    """Return an output as text: an assistant's message is its content."""
    return output[0]["content"] if is_conversation(output) and len(output) == 1 else output
