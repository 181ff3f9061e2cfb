"""A process that samples outputs from a checkpoint in advance, for labelers to rank.

`textrl collect --model` starts `python -m textrl.feedback.sampler` and writes the settings to its
standard input; the server itself never loads torch. The process says "ready" once the model is
loaded, and ends with its parent.
"""

import hashlib
import json
import os
import sys
import threading
import time
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
from textrl.labels.lead import setting
from textrl.labels.store import Store
from textrl.labels.tasks import NewTask, what_is_asked
from textrl.models import load_causal_lm, load_tokenizer
from textrl.rows import Row

AHEAD = 32
"""Number of tasks that should be ready for every labeler."""
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

    def source(self, row: Row) -> dict[str, Any]:
        """Return the source to store with a task; it is enough to sample the same outputs again."""
        kept = ("model", "samples", "max_completion_tokens", "temperature", "seed")
        text = json.dumps(what_is_asked(row["prompt"], row), sort_keys=True)
        return {
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
            if completion.strip() and completion not in found:
                found.append(completion)
    return found


def fill(settings: SamplerSettings, store: Store) -> None:
    """Keep tasks ready, until every prompt has a task with this model and these settings."""
    model, tokenizer = load_causal_lm(settings.model), load_tokenizer(settings.model)
    records = load_records(settings.prompts)
    records.require("prompt")
    print("ready", flush=True)
    done = {json.dumps(source, sort_keys=True) for source in store.sources()}
    for row, place in zip(records.rows, records.places, strict=True):
        prompt, source = row["prompt"], settings.source(row)
        if json.dumps(source, sort_keys=True) in done:
            continue
        while store.shortest_queue() >= AHEAD:
            time.sleep(0.5)
        outputs = different_outputs(model, tokenizer, row, place, settings)
        if len(outputs) < 2:
            print(f"no two different outputs: {prompt!r}", file=sys.stderr, flush=True)
            continue
        columns = {name: value for name, value in row.items() if name != "prompt"}
        task = NewTask(prompt=prompt, outputs=outputs, source=source, columns=columns)
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
        print(error, flush=True)
        sys.exit(2)


def _end_with_parent() -> None:
    """Exit when the server ends for any reason, which closes its side of the pipe."""
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
