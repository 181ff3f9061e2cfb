"""The model card (README.md) of a run: base, data, reward, numbers, curve, command.

Hubs show it. It is written beside the trained model, and nothing is pushed anywhere.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from textrl.cli.push import CARD, MARK
from textrl.doctor.diagnose import diagnose, in_words
from textrl.doctor.records import Record
from textrl.durable import write_text

CURVE_ROWS = 8
SOURCES = {
    "model": "base model",
    "reference": "reference",
    "data": "data",
    "prompts": "prompts",
    "reward": "reward",
    "demonstrations": "demonstrations",
    "heldout": "held-out prompts",
}
"""The settings that say what a model is made of."""
NUMBERS = {
    "agent": ("rollout/score", "rollout/kl", "rollout/length", "heldout/score", "heldout/kl"),
    "sft": ("sft/loss", "sft/heldout_loss"),
    "reward": ("reward/loss", "reward/accuracy", "reward/heldout_accuracy"),
    "dpo": ("dpo/loss", "dpo/accuracy", "dpo/heldout_accuracy", "dpo/margin"),
}
"""The logged numbers of the curve, by the kind of the run."""


def write_card(record: Record) -> None:
    """Write the card of a run, unless there is one of somebody else's."""
    path = record.folder / CARD
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return
    write_text(path, card(record))


def card(record: Record) -> str:
    """Return the card of a run as Markdown."""
    machine, settings = record.machine, record.settings
    command = str(machine.get("command", "")).split()
    name = command[1] if len(command) > 1 else record.stage
    head: dict[str, Any] = {"library_name": "transformers", "tags": ["textrl", "rlhf", name]}
    base = settings.get("model")
    if base and not Path(str(base)).exists():  # of a hub, which links to it
        head["base_model"] = base
    versions = machine.get("versions", {})
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n{MARK}\n",
        f"# {record.folder.resolve().name}\n",
        f"Trained by `textrl {name}` of textrl {versions.get('textrl-gym', '')} (commit "
        f"{machine.get('commit')}) with transformers {versions.get('transformers', '')}, "
        f"{machine.get('began', '')}.\n",
        _table(
            ["what", "of this run"],
            [[label, str(settings[key])] for key, label in SOURCES.items() if settings.get(key)],
        ),
        "## Numbers\n",
        _curve(record),
        "Scores and KL are those of the run's own reward and reference; docs/metrics.md of textrl "
        "explains each number. The doctor of textrl says:\n",
        f"```\n{in_words(record, diagnose(record), 'run')}\n```\n",
    ]
    if machine.get("command"):
        parts += ["## Command\n", f"```sh\n{machine['command']}\n```\n"]
    return "\n".join(parts)


def _curve(record: Record) -> str:
    """Return some rows of the main numbers, from the first to the last."""
    columns = {name: record.series(name) for name in NUMBERS.get(record.stage, ())}
    columns = {name: series for name, series in columns.items() if len(series)}
    if not columns:
        return ""
    rows = []
    for name, series in columns.items():
        count = min(CURVE_ROWS, len(series))
        places = np.unique(np.linspace(0, len(series) - 1, count).round().astype(int))
        values = series.values.round(6) + 0.0  # a KL of 0 up to rounding is 0
        points = (f"{values[i]:.3g} ({series.places[i]:,.0f})" for i in places)
        rows.append([f"{name} (at {series.unit})", ", ".join(points)])
    return _table(["number", "from the first to the last"], rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    cells = (" | ".join(cell.replace("|", "\\|") for cell in line) for line in lines)
    return "".join(f"| {line} |\n" for line in cells)
