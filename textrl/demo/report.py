"""The report of a demo run: one HTML file without scripts or external resources.

It says in words what came out, and has the comparison of all four policies with standard errors,
the curves of each stage, samples side by side with each token shaded by its KL and its reward, and
what it ran on.
"""

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from textrl.doctor.records import read_record, read_records
from textrl.durable import write_text
from textrl.metrics import read_progress
from textrl.report.charts import COLOURS, Axes, Line, drawn, panel
from textrl.report.page import hidden, legend, page, table
from textrl.report.runs import origin, verdicts

NAMES = {"sft": "SFT", "ppo": "PPO", "dpo": "DPO", "best_of_16": "best of 16"}
COLOUR = {"sft": "#7F7F7F", "ppo": COLOURS[0], "dpo": COLOURS[1], "best_of_16": COLOURS[2]}
CURVES = {
    "rollout/score": "score (standard deviations of SFT's)",
    "rollout/kl": "KL to the reference (nats per sequence)",
    "rollout/length": "length (tokens)",
    "rollout/entropy": "entropy (nats per token)",
}
"""What is drawn of PPO's training."""
OTHERS = {
    ("sft", "sft/loss"): "SFT: loss (nats per token)",
    ("reward_model", "reward/accuracy"): "reward model: share of pairs in order",
    ("dpo", "train/loss"): "DPO: loss (nats per pair)",
    ("dpo", "train/accuracy"): "DPO: share of pairs in order",
}
"""What is drawn of the other stages' training, by folder and name."""
STAGE_COLOURS = {"reward_model": COLOURS[2]} | COLOUR


def write_report(
    folder: Path,
    summary: dict[str, Any],
    settings: dict[str, Any],
    samples: dict[str, list[dict[str, Any]]],
) -> Path:
    """Write report.html into a demo's run folder and return its path.

    Args:
        folder: The folder of the run; the stages' `progress.json` are read from it.
        summary: The content of summary.json.
        settings: The resolved configuration.
        samples: The completions of each policy, token by token, for the same prompts.
    """
    prompts = int(settings.get("eval_prompts", 0))
    ppo = read_progress(folder / "ppo")
    body = [
        f"<h1>textrl demo, preset {summary['preset']}, seed {summary['seed']}</h1>",
        origin(read_record(folder / "ppo")),
        "<h2>In short</h2>",
        _conclusion(summary, prompts),
        _results(summary, prompts),
        verdicts([(record.folder.name, record) for record in read_records(folder)]),
        "<h2>Score against KL on held-out prompts</h2>",
        "<p class=quiet>Higher is better, and further left is closer to the reference, which is "
        "the SFT model. The thin line is PPO in training.</p>",
        legend([(label, COLOUR[name]) for name, label in NAMES.items()]),
        f"<div class='panels large'>{plot_frontier(summary, ppo)}</div>",
        "<h2>PPO, iteration by iteration</h2>",
        "<p class=quiet>Of the episodes that it was trained on; their prompts are others than the "
        "held-out ones of the table, so that the curve begins elsewhere.</p>",
        f"<div class=panels>{''.join(plot_ppo_curves(ppo))}</div>",
        "<h2>The other stages</h2>",
        f"<div class=panels>{''.join(plot_others(folder))}</div>",
        "<h2>Samples on held-out prompts</h2>",
        "<p class=quiet>Background: a token's log-ratio to the reference (blue: more likely than "
        "under the reference, orange: less). Underline: its shaped reward (green: positive, red: "
        "negative; the score lands on the last token). The numbers show when you point at a "
        "token.</p>",
        _samples(samples, float(settings["kl_coef"])),
        "<h2>Configuration and versions</h2>",
        hidden("show", json.dumps({"settings": settings, "summary": summary}, indent=2)),
    ]
    path = folder / "report.html"
    write_text(path, page(f"textrl: {summary['preset']} demo", body))
    return path


def column(rows: Sequence[dict[str, float]], name: str) -> np.ndarray:
    """Return the numbers in a column, from the rows that have it, [n]."""
    return np.array([row[name] for row in rows if row.get(name) is not None], dtype=np.float64)


def plot_curve(rows: Sequence[dict[str, float]], name: str, title: str, colour: str) -> str:
    """Return the curve of a logged number, or nothing where none is logged."""
    y = column(rows, name)
    if not len(y):
        return ""
    line = Line(label=title, colour=colour, x=np.arange(1.0, len(y) + 1), y=y)
    return panel(title, [line], x_label="logged row")


def plot_ppo_curves(rows: Sequence[dict[str, float]]) -> list[str]:
    """Return the curves of PPO's iterations."""
    return [plot_curve(rows, name, title, COLOUR["ppo"]) for name, title in CURVES.items()]


def plot_others(folder: Path) -> list[str]:
    """Return the curves of the other stages."""
    return [
        plot_curve(read_progress(folder / stage), name, title, STAGE_COLOURS[stage])
        for (stage, name), title in OTHERS.items()
    ]


def plot_frontier(summary: dict[str, Any], ppo: Sequence[dict[str, float]]) -> str:
    """Return mean score against KL for the four policies, and the path of PPO's training."""

    def draw(axes: Axes) -> None:
        axes.plot(
            column(ppo, "rollout/kl"), column(ppo, "rollout/score"), color=COLOUR["ppo"], alpha=0.35
        )
        for name, label in NAMES.items():
            point = summary[name]["kl"], summary[name]["score"]
            axes.scatter(*point, s=60, color=COLOUR[name], zorder=3)
            axes.annotate(label, point, xytext=(7, 6), textcoords="offset points")
        axes.set_xlabel("KL to the reference (nats per sequence)")
        axes.set_ylabel("score (standard deviations of SFT's)")
        axes.margins(0.15)

    return drawn("mean score and KL of each policy", draw, size=(4.8, 3.1))


def _error(spread: float, prompts: int) -> str:
    """Return the standard error of a mean over prompts, as text."""
    return f"&nbsp;&plusmn;&nbsp;{spread / math.sqrt(prompts):.2f}" if prompts else ""


def _conclusion(summary: dict[str, Any], prompts: int) -> str:
    start = summary["sft"]
    gains = [
        f"{label} by {summary[name]['score'] - start['score']:+.2f}"
        f"{_error(math.hypot(summary[name]['score_std'], start['score_std']), prompts)} at a KL of "
        f"{summary[name]['kl']:.1f} nats"
        for name, label in NAMES.items()
        if name != "sft"
    ]
    judged = ", ".join(f"{summary[name]['judge_positive']:.0%} ({NAMES[name]})" for name in NAMES)
    accuracy = summary["reward_model"]["heldout_accuracy"]
    return (
        f"<p>Against the SFT model the mean score of the reward model changed: {'; '.join(gains)}. "
        f"A judge that nothing was trained on (VADER) finds so many completions positive: "
        f"{judged}. The reward model orders {accuracy:.1%} of the held-out human pairs whose mean "
        f"ratings differ by more than 0.5.</p><p class=quiet>A score of 0 is the mean of the SFT "
        f"model's samples, and 1 is one standard deviation of them. {summary['seconds'] / 60:.1f} "
        f"minutes, peak memory {summary['peak_memory_mb'] / 1024:.1f} GB.</p>"
    )


def _results(summary: dict[str, Any], prompts: int) -> str:
    heads = ["", "score", "std", "KL (nats per sequence)", "length (tokens)", "judged positive"]
    rows = [
        [
            label,
            html.unescape(
                f"{summary[name]['score']:.2f}{_error(summary[name]['score_std'], prompts)}"
            ),
            f"{summary[name]['score_std']:.2f}",
            f"{summary[name]['kl']:.2f}",
            f"{summary[name]['length']:.1f}",
            f"{summary[name]['judge_positive']:.0%}",
        ]
        for name, label in NAMES.items()
    ]
    return table(heads, rows)


def _samples(samples: dict[str, list[dict[str, Any]]], kl_coef: float) -> str:
    parts = []
    for group in zip(*(samples[name] for name in NAMES), strict=True):
        cells = "".join(
            f"<div><div class=quiet>{label}</div>{_shaded(sample, kl_coef)}</div>"
            for label, sample in zip(NAMES.values(), group, strict=True)
        )
        parts.append(f"<div class='sides four'>{cells}</div>")
    return "\n".join(parts)


def _shaded(sample: dict[str, Any], kl_coef: float) -> str:
    """Return a completion as HTML with one span per token; the title states the sign as text."""
    last = len(sample["tokens"]) - 1
    spans = []
    for index, (token, kl) in enumerate(zip(sample["tokens"], sample["kl"], strict=True)):
        reward = -kl_coef * kl + (sample["score"] if index == last else 0.0)
        blue, strength = kl > 0, min(abs(kl) / 4, 1) * 0.55
        background = f"rgba({'0,114,178' if blue else '230,120,0'},{strength:.2f})"
        line = min(abs(reward), 1.0)
        underline = f"rgba({'0,158,60' if reward > 0 else '200,30,30'},{line:.2f})"
        spans.append(
            f"<span class=t style='background:{background};border-color:{underline}' "
            f"title='log-ratio {kl:+.2f}, reward {reward:+.2f}'>{html.escape(token)}</span>"
        )
    prompt = html.escape(sample["prompt"])
    total = round(sum(sample["kl"]), 1) + 0.0  # never "-0.0"
    score = f"<div class=quiet>score {sample['score']:+.2f}, log-ratio {total:.1f}</div>"
    return f"<span class=prompt>{prompt}</span>{''.join(spans)}{score}"
