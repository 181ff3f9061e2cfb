"""`NewTask`, a labeling task: a prompt to write a text for, or a prompt with outputs to rank."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from textrl.errors import UserError
from textrl.labels.answers import MAX_OUTPUTS, is_storable
from textrl.rows import CHAT_COLUMNS, Row, is_conversation


@dataclass(frozen=True, kw_only=True)
class NewTask:
    """A task to be stored."""

    prompt: Any
    outputs: list[str]
    source: dict[str, Any]
    columns: dict[str, Any]

    def __post_init__(self) -> None:
        """Raise UserError if the task could not be shown, ranked or stored."""
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
        """A hash that identifies the task: the prompt with its settings, and the set of outputs."""
        asked = what_is_asked(self.prompt, self.columns)
        body = json.dumps([asked, sorted(self.outputs)], sort_keys=True)
        return hashlib.sha256(body.encode()).hexdigest()


def what_is_asked(prompt: Any, columns: Row) -> Any:
    """Return a prompt, with the tools and template variables of its row if there are any."""
    beside = {name: columns[name] for name in CHAT_COLUMNS if columns.get(name)}
    return [prompt, beside] if beside else prompt
