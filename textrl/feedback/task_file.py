"""Tasks from a file: prompts to write for, or prompts with outputs to rank."""

import itertools
from typing import Any

from textrl.data import Records, Row, is_conversation, load_records
from textrl.errors import UserError
from textrl.feedback.answers import MAX_OUTPUTS
from textrl.feedback.store import NewTask

OUTPUT_COLUMNS = ("completions", "outputs", "completion")


def read_tasks(source: str) -> list[NewTask]:
    """Return the tasks of a file or hub name with a `prompt` column.

    `completions` (or `outputs`) holds a list to rank; consecutive rows of one prompt with
    `completion`, as `textrl generate` writes them, are gathered into one; without any of these the
    task is to write. Other columns are kept for the export of prompts.

    Raises:
        UserError: a row that cannot be shown or ranked; the place is named.
    """
    records = load_records(source)
    tasks = []
    for place, row, outputs in _grouped(records):
        prompt = row.get("prompt")
        if not (isinstance(prompt, str) and prompt.strip()) and not is_conversation(prompt):
            raise UserError(f"{place}: expected a 'prompt' (text or chat messages), got {prompt!r}")
        texts = [_text(output, place) for output in outputs]
        if len(texts) > MAX_OUTPUTS:
            raise UserError(f"{place}: {len(texts)} outputs; at most {MAX_OUTPUTS} can be ranked")
        if len(set(texts)) < len(texts):
            raise UserError(f"{place}: two outputs are the same text; give each once")
        if "\x00" in str(prompt) or any("\x00" in text for text in texts):
            raise UserError(f"{place}: holds a NUL character")
        columns = {k: v for k, v in row.items() if k not in ("prompt", *OUTPUT_COLUMNS)}
        tasks.append(NewTask(prompt=prompt, outputs=texts, source={"file": place}, columns=columns))
    return tasks


def _grouped(records: Records) -> list[tuple[str, Row, list[Any]]]:
    """Return (place, first row, outputs) of each task."""
    found = []
    rows = zip(records.places, records.rows, strict=True)

    def key(item: tuple[str, Row]) -> Any:
        place, row = item
        return repr(row["prompt"]) if "completion" in row and "prompt" in row else place

    for _, group in itertools.groupby(rows, key):
        members = list(group)
        place, first = members[0]
        outputs = first.get("completions", first.get("outputs", []))
        if "completion" in first:
            outputs = [row["completion"] for _, row in members]
        if not isinstance(outputs, list):
            raise UserError(f"{place}: outputs are {outputs!r}; expected a list")
        found.append((place, first, outputs))
    return found


def _text(output: Any, place: str) -> str:
    """Return an output as text; an assistant's message is its content."""
    if is_conversation(output) and len(output) == 1:
        output = output[0]["content"]
    if not isinstance(output, str) or not output.strip():
        raise UserError(f"{place}: an output is {output!r}; expected a text")
    return output
