"""A process that samples outputs from a checkpoint in advance, for labelers to rank.

`textrl collect --model` starts `python -m textrl.feedback.sampler` and writes the settings to its
standard input; the server itself never loads torch. The process says "ready" once the model is
loaded, and ends with its parent.
"""

import hashlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from sqlalchemy.exc import SQLAlchemyError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.chat import prompt_of
from textrl.data import load_records
from textrl.errors import UserError
from textrl.evaluation import sample_completions
from textrl.feedback.active import Candidate, Chooser
from textrl.labels.lead import setting
from textrl.labels.store import Store
from textrl.labels.tasks import NewTask, what_is_asked
from textrl.models import load_causal_lm, load_tokenizer
from textrl.rows import Row

AHEAD = 32
"""Number of tasks that should be ready for every labeler."""
CHOSEN_AHEAD = 8
"""The same where pairs are chosen: few, because each new reward model would choose others."""
POOL = 256
"""Number of prompts, with their outputs, among whose pairs is chosen."""
ATTEMPTS = 4
"""Number of rounds of sampling to get K different outputs. A prompt that gives fewer is shown with
fewer; a prompt that gives only one is left out."""


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """The settings of sampling, which are stored with every task."""

    database: str
    prompts: str
    model: str
    samples: int
    max_completion_tokens: int
    temperature: float
    seed: int
    overlap: int
    chooser: str | None
    """Folder where reward models appear that choose pairs; None shows all outputs of a prompt."""

    def source(self, row: Row) -> dict[str, Any]:
        """Return the source to store with a task; it is enough to sample the same outputs again."""
        kept = ("model", "samples", "max_completion_tokens", "temperature", "seed")
        text = json.dumps(what_is_asked(row["prompt"], row), sort_keys=True)
        chosen = {} if self.chooser is None else {"choose": "informative"}
        return {
            **chosen,
            **{name: asdict(self)[name] for name in kept},
            "model_files": fingerprint(self.model),
            "prompt_digest": hashlib.sha256(text.encode()).hexdigest()[:16],
        }


def fingerprint(model: str) -> str:
    """Return a digest of file names, sizes and times, which changes if a folder's weights do."""
    files = sorted(Path(model).glob("*.safetensors"))
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def different_outputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    row: Row,
    place: str,
    settings: SamplerSettings,
) -> list[str]:
    """Return up to `settings.samples` different non-blank completions of a row's prompt.

    The seed depends on the seed in the settings and on the prompt, not on earlier samples.
    """
    prompt = prompt_of(row, place)
    text = f"{settings.seed} {json.dumps(what_is_asked(row['prompt'], row), sort_keys=True)}"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    found: list[str] = []
    for attempt in range(ATTEMPTS):
        if len(found) == settings.samples:
            break
        completions = sample_completions(
            model,
            tokenizer,
            [prompt] * (settings.samples - len(found)),
            max_new_tokens=settings.max_completion_tokens,
            temperature=settings.temperature,
            seed=seed + attempt,
        )
        for completion in completions:
            shown = completion.replace("\x00", "\u2400")  # a database stores no NUL
            if shown.strip() and shown not in found:
                found.append(shown)
    return found


def fill(settings: SamplerSettings, store: Store) -> None:
    """Keep tasks ready, until every prompt has a task with this model and these settings."""
    model, tokenizer = load_causal_lm(settings.model), load_tokenizer(settings.model)
    records = load_records(settings.prompts)
    records.require("prompt")
    print("ready", flush=True)
    done = {
        json.dumps({**source, "chosen_after": None}, sort_keys=True) for source in store.sources()
    }
    todo = [
        (row, place)
        for row, place in zip(records.rows, records.places, strict=True)
        if json.dumps(settings.source(row) | {"chosen_after": None}, sort_keys=True) not in done
    ]

    def sampled() -> Iterator[Candidate]:
        for row, place in todo:
            outputs = different_outputs(model, tokenizer, row, place, settings)
            if len(outputs) < 2:
                prompt = row["prompt"]
                print(f"no two different outputs: {prompt!r}", file=sys.stderr, flush=True)
                continue
            yield Candidate(row=row, place=place, outputs=outputs)

    if settings.chooser is None:
        for one in sampled():
            while store.shortest_queue() >= AHEAD:
                time.sleep(0.5)
            _show(one.row, one.outputs, settings.source(one.row), settings, store)
    else:
        chooser = Chooser(Path(settings.chooser), store, tokenizer)
        _fill_by_choice(sampled(), chooser, settings, store)


def _fill_by_choice(
    coming: Iterator[Candidate], chooser: Chooser, settings: SamplerSettings, store: Store
) -> None:
    """Show the most informative pairs of a pool of prompts, which is filled up meanwhile."""
    pool = list(itertools.islice(coming, CHOSEN_AHEAD))
    while pool:
        while store.shortest_queue() >= CHOSEN_AHEAD:
            more = next(coming, None) if len(pool) < POOL else None
            if more is None:
                time.sleep(0.5)
            else:
                pool.append(more)
        taken = chooser.choose(pool, CHOSEN_AHEAD // 2)
        for number, outputs in taken:
            row = pool[number].row
            source = settings.source(row) | {"chosen_after": chooser.rankings}
            _show(row, outputs, source, settings, store)
        numbers = {number for number, _ in taken}
        pool = [one for number, one in enumerate(pool) if number not in numbers]
        pool += itertools.islice(coming, max(len(taken), CHOSEN_AHEAD - len(pool)))


def _show(
    row: Row, outputs: list[str], source: dict[str, Any], settings: SamplerSettings, store: Store
) -> None:
    """Store a task."""
    columns = {name: value for name, value in row.items() if name != "prompt"}
    task = NewTask(prompt=row["prompt"], outputs=outputs, source=source, columns=columns)
    store.add_tasks([task], int(setting(store, "overlap", settings.overlap)))


def main() -> None:
    """Read the settings, and fill the database until all prompts are done."""
    settings = SamplerSettings(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        while True:
            try:
                fill(settings, Store(settings.database))
                break
            except SQLAlchemyError as error:  # a restart of the database, a lock held too long
                print(f"sampler: {error}; trying again", file=sys.stderr, flush=True)
                time.sleep(5)
    except UserError as error:
        print(error, flush=True)  # the server reads this line until the model is loaded
        print(f"sampler: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def _end_with_parent() -> None:
    """Exit when the server ends for any reason, which closes its side of the pipe."""
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
