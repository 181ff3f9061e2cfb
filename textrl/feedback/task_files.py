"""Reading of labeling tasks from a file: prompts to write texts for, or with outputs to rank."""

import itertools
from typing import Any

from textrl.data import load_records
from textrl.errors import UserError
from textrl.labels.tasks import NewTask, what_is_asked
from textrl.rows import Records, Row, is_conversation

OUTPUT_COLUMNS = ("completions", "outputs", "completion")


def read_tasks(source: str) -> list[NewTask]:
    """Return the tasks of a file or `hub:OWNER/NAME` with a `prompt` column.

    The column `completions` (or `outputs`) has a list to rank. Consecutive rows with the same
    prompt and a `completion`, as `textrl generate` writes them, become one task, without blank or
    duplicate completions. Without any of these columns the task is to write a text. Other columns
    are kept for export.

    Raises:
        UserError: a row cannot be shown or ranked; its place is named.
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
            written = [row["completion"] for _, row in members]  # may have blanks and duplicates
            outputs = list({repr(text): text for text in written if text}.values())
        if not isinstance(outputs, list):
            raise UserError(f"{place}: outputs are {outputs!r}; expected a list")
        found.append((place, first, outputs))
    return found


def _text(output: Any) -> Any:
    """Return an output as text; the text of an assistant's message is its content."""
    return output[0]["content"] if is_conversation(output) and len(output) == 1 else output
