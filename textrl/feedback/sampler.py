"""Outputs from a checkpoint, sampled ahead of the labelers, in a process of its own.

`textrl collect --model` starts `python -m textrl.feedback.sampler SETTINGS`; the server itself
never loads torch. The process says "ready" once the model is loaded, and ends with its parent.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.data import Row, load_records
from textrl.errors import UserError
from textrl.evaluation import sample_and_score
from textrl.feedback.store import NewTask, Store
from textrl.models import load_causal_lm, load_tokenizer

AHEAD = 32
"""Open tasks that are kept ready."""
PROMPTS_AT_ONCE = 8
ATTEMPTS = 4
"""Rounds of sampling for K different outputs; a prompt that gives fewer is shown with fewer."""


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """What to sample; stored with every task."""

    database: str
    prompts: str
    model: str
    samples: int
    max_completion_tokens: int
    temperature: float
    seed: int
    overlap: int

    @property
    def source(self) -> dict[str, Any]:
        """What a task remembers."""
        kept = ("model", "samples", "max_completion_tokens", "temperature", "seed")
        return {name: asdict(self)[name] for name in kept}


def different_outputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    settings: SamplerSettings,
    seed: int,
) -> list[list[str]]:
    """Return up to `settings.samples` different non-blank completions of each prompt."""
    found: list[list[str]] = [[] for _ in prompts]
    for attempt in range(ATTEMPTS):
        asked = [
            index
            for index, outputs in enumerate(found)
            for _ in range(settings.samples - len(outputs))
        ]
        if not asked:
            break
        samples = sample_and_score(
            model,
            model,
            tokenizer,
            [prompts[index] for index in asked],
            lambda texts, completions: [0.0] * len(texts),
            max_new_tokens=settings.max_completion_tokens,
            temperature=settings.temperature,
            seed=seed * ATTEMPTS + attempt,
        )
        for index, text in zip(asked, samples.completions, strict=True):
            if text.strip() and text not in found[index]:
                found[index].append(text)
    return found


def tasks_of(settings: SamplerSettings, store: Store) -> Iterator[list[NewTask]]:
    """Yield tasks for the prompts that have none of this model and seed yet, a few at a time."""
    model, tokenizer = load_causal_lm(settings.model), load_tokenizer(settings.model)
    records = load_records(settings.prompts)
    records.require("prompt")
    done = {(s.get("model"), s.get("seed"), s.get("prompt_index")) for s in store.sources()}
    todo: list[tuple[int, Row]] = [
        (index, row)
        for index, row in enumerate(records.rows)
        if (settings.model, settings.seed, index) not in done
    ]
    yield []  # loaded
    for start in range(0, len(todo), PROMPTS_AT_ONCE):
        part = todo[start : start + PROMPTS_AT_ONCE]
        seed = settings.seed * 1_000_003 + part[0][0]
        outputs = different_outputs(
            model, tokenizer, [row["prompt"] for _, row in part], settings, seed
        )
        yield [
            NewTask(
                prompt=row["prompt"],
                outputs=texts,
                source=settings.source | {"prompt_index": index},
                columns={name: value for name, value in row.items() if name != "prompt"},
            )
            for (index, row), texts in zip(part, outputs, strict=True)
            if len(texts) >= 2
        ]


def main() -> None:
    """Fill the database until all prompts are done."""
    settings = SamplerSettings(**json.loads(sys.argv[1]))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    store = Store(settings.database)
    try:
        for tasks in tasks_of(settings, store):
            if tasks:
                store.add_tasks(tasks, settings.overlap)
            else:
                print("ready", flush=True)
            while store.open_tasks() >= AHEAD:
                time.sleep(0.5)
    except UserError as error:
        print(error, flush=True)
        sys.exit(2)


def _end_with_parent() -> None:
    """Leave when the server does, however it ends: its side of the pipe closes."""
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
