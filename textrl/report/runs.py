"""The sections about runs of agents and trainers: in short, verdicts, curves, settings."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from textrl.doctor.diagnose import diagnose, in_words
from textrl.doctor.records import Record, Series
from textrl.report.charts import panel
from textrl.report.groups import Group, groups_of, line_of, names_of
from textrl.report.page import hidden, legend, table
from textrl.report.plane import plane

PANELS: dict[str, dict[str, str]] = {
    "agent": {
        "rollout/score": "score",
        "rollout/kl": "KL to the reference (nats per sequence)",
        "rollout/objective": "objective: score - kl_coef x KL",
        "rollout/length": "length (tokens)",
        "rollout/entropy": "entropy (nats per token)",
        "rollout/eos_share": "share that ends with an end token",
        "heldout/score": "held-out: score",
        "heldout/kl": "held-out: KL (nats per sequence)",
    },
    "sft": {"sft/loss": "loss (nats per token)", "sft/heldout_loss": "held-out loss"},
    "reward": {
        "reward/loss": "loss (nats per pair)",
        "reward/accuracy": "share of pairs in the right order",
        "reward/heldout_accuracy": "held-out: share in the right order",
        "reward/heldout_loss": "held-out loss",
    },
    "dpo": {
        "dpo/loss": "loss (nats per pair)",
        "dpo/accuracy": "share of pairs in the right order",
        "dpo/margin": "margin of the implicit rewards",
        "dpo/chosen_reward": "implicit reward of chosen texts",
        "dpo/rejected_reward": "implicit reward of rejected texts",
        "dpo/heldout_accuracy": "held-out: share in the right order",
    },
}
"""The panels that come first; all other logged numbers are folded away."""
BANDS = (
    "A band around one run is two standard errors of an iteration's mean (its episodes taken as "
    "independent); around several seeds it reaches from the least to the most."
)
NAMES = {
    "agent": "Agents",
    "sft": "SFT",
    "reward": "Reward models",
    "dpo": "DPO",
    "": "Other runs",
}


def sections(records: Sequence[Record]) -> list[str]:
    """Return the parts of the page about these runs."""
    groups = groups_of(records)
    parts = ["<h2>In short</h2>", *(_in_short(group) for group in groups)]
    parts.append(verdicts(list(zip(names_of(records), records, strict=True))))
    for stage, name in NAMES.items():
        own = [group for group in groups if group.records[0].stage == stage]
        if own:
            parts += [f"<h2>{name}</h2>", f"<p class=quiet>{BANDS}</p>"]
            parts += [legend([(g.label, g.colour) for g in own])]
            parts += _curves(own, stage)
            if stage == "agent":
                parts.append(plane(own))
    return parts


def _in_short(group: Group) -> str:
    record, label = group.records[0], html.escape(group.label)
    if record.stage == "agent":
        said = _agent_in_short(group.records)
    elif record.stage and len(record.series(f"{record.stage}/loss")):
        loss = [r.series(f"{record.stage}/loss") for r in group.records]
        said = (
            f"the loss went from {_mean([s.first for s in loss])} to "
            f"{_mean([s.last for s in loss])} in {_mean([float(s.places[-1]) for s in loss])} "
            f"updates"
        )
        outside = [r.series(f"{record.stage}/heldout_accuracy") for r in group.records]
        if all(map(len, outside)):
            right = _mean([100 * float(s.values[-1]) for s in outside])
            said += f"; {right} % of the held-out pairs are in the right order"
    else:
        said = f"{len(record.rows)} logged rows"
    return f"<p><b>{label}</b>: {said}.</p>"


def _agent_in_short(records: Sequence[Record]) -> str:
    score = [record.series("rollout/score") for record in records]
    kl = [max(record.series("rollout/kl").last, 0.0) for record in records]
    tokens = [float(record.rows[-1]["time/step"]) for record in records]
    if not all(map(len, score)):
        return "no score is a number"
    said = (
        f"the mean score went from {_over([s.first for s in score], score[0])} to "
        f"{_over([s.last for s in score], score[0])} in {_mean(tokens)} tokens, at a KL of "
        f"{_mean(kl)} nats per sequence"
    )
    heldout = [record.series("heldout/score") for record in records]
    if all(map(len, heldout)):
        first, last = ([float(s.values[place]) for s in heldout] for place in (0, -1))
        best = [float(s.values.max()) for s in heldout]
        said += f"; held-out it was {_mean(first)} at first, {_mean(last)} in the end and "
        said += f"{_mean(best)} at best"
    return said


def _mean(values: Sequence[float]) -> str:
    """Return the mean over the seeds, with the least and the most of several."""
    mean, low, high = map(_short, (float(np.mean(values)), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _over(values: Sequence[float], series: Series) -> str:
    """Return the mean over the seeds; of one run with the error of a mean over a fifth of it."""
    if len(values) > 1 or not math.isfinite(series.error):
        return _mean(values)
    return f"{values[0]:.3g} &plusmn; {series.error / 2**0.5:.1g}"


def verdicts(runs: Sequence[tuple[str, Record]]) -> str:
    """Return what the doctor says of runs, each with its name."""
    parts = ["<h2>What the doctor says</h2>"]
    for name, record in runs:
        findings = diagnose(record)
        text = in_words(record, findings, name)
        kind = "finding" if findings else "healthy"
        parts.append(f"<div class={kind}><p class=text>{html.escape(text)}</p></div>")
    return "\n".join(parts)


def origin(record: Record) -> str:
    """Return when, how and on what a run was made; nothing where that is not known."""
    machine = record.machine
    if not machine:
        return ""
    line = (
        f"{machine.get('began', '')}, commit {machine.get('commit')}, "
        f"{machine.get('processor')}, {machine.get('threads')} threads, "
        f"{machine.get('device')}: {machine.get('command', '')}"
    )
    versions = ", ".join(f"{name} {found}" for name, found in machine.get("versions", {}).items())
    return f"<p class=quiet>{html.escape(line)}</p><p class=quiet>{html.escape(versions)}</p>"


def _curves(groups: Sequence[Group], stage: str) -> list[str]:
    first, label = PANELS.get(stage, {}), "tokens" if stage == "agent" else "update"
    if not stage:
        label = "time/step"
    every = dict.fromkeys(
        name for group in groups for record in group.records for row in record.rows for name in row
    )
    shown = [name for name in first if name in every]
    shown += [name for name in every if name.startswith(("rollout/scores/", "heldout/scores/"))]
    shown = [name for name in shown if not name.endswith("_std")]
    rest = [name for name in every if name not in shown and not name.startswith("time/s")]
    main = [_panel(groups, name, first.get(name, name), label) for name in shown]
    more = [_panel(groups, name, name, label) for name in sorted(rest)]
    return [
        f"<div class='panels large'>{''.join(main)}</div>",
        f"<details><summary>all other logged numbers ({len([m for m in more if m])})</summary>"
        f"<div class=panels>{''.join(more)}</div></details>",
    ]


def _panel(groups: Sequence[Group], name: str, title: str, x_label: str) -> str:
    lines = [line for group in groups if (line := line_of(group, name)) is not None]
    return panel(html.escape(title), lines, x_label=x_label) if lines else ""


def settings_section(records: Sequence[Record]) -> str:
    """Return what the runs ran with: where they differ, then everything, folded away."""
    names, parts = names_of(records), ["<h2>Settings and versions</h2>"]
    for stage, title in NAMES.items():
        own = [(n, r) for n, r in zip(names, records, strict=True) if r.stage == stage]
        if len(own) > 1:
            parts += [f"<h3>{title}: where the settings differ</h3>", _differences(own)]
    for name, record in zip(names, records, strict=True):
        parts.append(f"<h3>{html.escape(name)}</h3>{origin(record)}")
        text = json.dumps(record.settings, indent=1, default=str)
        parts.append(hidden(f"all settings of {name}", text))
    return "\n".join(parts)


def _differences(runs: Sequence[tuple[str, Record]]) -> str:
    keys = dict.fromkeys(key for _, record in runs for key in record.settings)
    rows = [
        [key, *(_value(record.settings, key) for _, record in runs)]
        for key in keys
        if key != "output_dir" and len({_value(record.settings, key) for _, record in runs}) > 1
    ]
    return table(["", *(name for name, _ in runs)], rows, "words") if rows else "<p>Nowhere.</p>"


def _value(settings: Mapping[str, Any], key: str) -> str:
    return str(settings[key]) if key in settings else "-"
