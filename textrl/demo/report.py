"""The report of a demo run: one HTML file without scripts or external resources.

It has learning curves (matplotlib, inline SVG), the reward-KL plot of all four policies, samples
side by side with each token shaded by its KL and its reward, the configuration and the versions.
"""

import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")  # a backend that needs no screen
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from textrl.metrics import read_progress

NAMES = {"sft": "SFT", "ppo": "PPO", "dpo": "DPO", "best_of_16": "best of 16"}
COLOURS = {"sft": "#666666", "ppo": "#0072B2", "dpo": "#D55E00", "best_of_16": "#009E73"}
CURVES = {
    "rollout/score": "score (SFT standard deviations)",
    "rollout/kl": "KL to the reference (nats per sequence)",
    "rollout/length": "length (tokens)",
    "rollout/entropy": "entropy (nats per token)",
}
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;
color:#222;background:#fff}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #ccc}
table{border-collapse:collapse}td,th{padding:.25em .8em;text-align:right;
border-bottom:1px solid #ddd;vertical-align:top}th:first-child,td:first-child{text-align:left}
svg{max-width:100%;height:auto}.figure,.table{overflow-x:auto}
@media (max-width:600px){td,th{padding:.25em .4em;font-size:.85em}
.wide svg{max-width:none;width:44em}}
.samples td,.samples th{text-align:left;width:25%;font-size:.9em}
.prompt{font-weight:600}.score{display:block;color:#666;font-size:.85em}
span.t{border-bottom:3px solid transparent;white-space:pre-wrap}
details pre{background:#f4f4f4;padding:1em;overflow:auto;font-size:.85em}
@media (prefers-color-scheme:dark){body{color:#ddd;background:#181818}
.figure{background:#fff;padding:.5em}td,th,h2{border-color:#444}details pre{background:#262626}
.score{color:#aaa}}
"""


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
    ppo, dpo = read_progress(folder / "ppo"), read_progress(folder / "dpo")
    sft, reward = read_progress(folder / "sft"), read_progress(folder / "reward_model")
    plots = [
        ("PPO, iteration by iteration", "", "wide", plot_ppo_curves(ppo)),
        (
            "Score against KL on held-out prompts",
            "<p>Higher is better, and further left is closer to the reference. The line shows PPO "
            "during training.</p>",
            "",
            plot_frontier(summary, ppo),
        ),
        ("The other stages", "", "wide", plot_training(sft, reward, dpo)),
    ]
    page = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>textrl: {summary['preset']} demo</title><style>{STYLE}</style>",
        f"<h1>textrl demo, preset {summary['preset']}, seed {summary['seed']}</h1>",
        _results(summary),
        *(
            f"<h2>{title}</h2>\n{text}<div class='figure {size}'>{_svg(figure)}</div>"
            for title, text, size, figure in plots
        ),
        "<h2>Samples on held-out prompts</h2>",
        "<p>Background: a token's log-ratio to the reference (blue: more likely than under the "
        "reference, orange: less). Underline: its shaped reward (green: positive, red: negative; "
        "the score lands on the last token). The numbers show when you point at a token.</p>",
        _samples(samples, float(settings["kl_coef"])),
        "<h2>Configuration and versions</h2><details><summary>show</summary><pre>",
        html.escape(json.dumps({"settings": settings, "summary": summary}, indent=2)),
        "</pre></details></html>",
    ]
    path = folder / "report.html"
    path.write_text("\n".join(page), encoding="utf-8")
    return path


def column(rows: Sequence[dict[str, float]], name: str) -> list[float]:
    """Return the numbers in a column, from the rows that have it."""
    return [row[name] for row in rows if row.get(name) is not None]


def plot_curve(axes: Axes, values: Sequence[float], label: str, colour: str) -> Axes:
    """Draw one learning curve."""
    marker = "o" if len(values) == 1 else ""  # a line needs two points
    axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=1.8, marker=marker)
    axes.set_title(label, fontsize=10, loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plot_ppo_curves(rows: Sequence[dict[str, float]]) -> Figure:
    """Draw score, KL, length and entropy over PPO's iterations."""
    figure, grid = plt.subplots(1, 4, figsize=(13, 2.8), layout="constrained")
    for axes, (name, label) in zip(grid, CURVES.items(), strict=True):
        plot_curve(axes, column(rows, name), label, COLOURS["ppo"]).set_xlabel("iteration")
    return figure


def plot_frontier(summary: dict[str, Any], ppo: Sequence[dict[str, float]]) -> Figure:
    """Draw mean score against KL for the four policies, and the path of PPO's training."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    way = column(ppo, "rollout/kl"), column(ppo, "rollout/score")
    axes.plot(*way, color=COLOURS["ppo"], alpha=0.35, linewidth=1.5)
    for name, label in NAMES.items():
        point = summary[name]["kl"], summary[name]["score"]
        axes.scatter(*point, s=70, color=COLOURS[name], zorder=3)
        axes.annotate(label, point, xytext=(7, 6), textcoords="offset points")
    axes.set_xlabel("KL to the reference (nats per sequence)")
    axes.set_ylabel("score (SFT standard deviations)")
    axes.grid(alpha=0.3)
    axes.margins(0.12)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_training(
    sft: Sequence[dict[str, float]],
    reward: Sequence[dict[str, float]],
    dpo: Sequence[dict[str, float]],
) -> Figure:
    """Draw the losses of SFT and DPO, and the accuracies of the reward model and DPO."""
    figure, grid = plt.subplots(1, 4, figsize=(13, 2.8), layout="constrained")
    panels = [
        (column(sft, "sft/loss"), "SFT loss (nats per token)", COLOURS["sft"]),
        (column(reward, "reward/accuracy"), "reward model: pairs in order", COLOURS["best_of_16"]),
        (column(dpo, "train/loss"), "DPO loss (nats per pair)", COLOURS["dpo"]),
        (column(dpo, "train/accuracy"), "DPO: pairs in order", COLOURS["dpo"]),
    ]
    for axes, (values, label, colour) in zip(grid, panels, strict=True):
        plot_curve(axes, values, label, colour).set_xlabel("logged update")
    return figure


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "textrl", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _results(summary: dict[str, Any]) -> str:
    heads = ["", "score", "std", "KL (nats per sequence)", "length (tokens)", "judged positive"]
    rows = [
        [
            label,
            f"{summary[name]['score']:.2f}",
            f"{summary[name]['score_std']:.2f}",
            f"{summary[name]['kl']:.2f}",
            f"{summary[name]['length']:.1f}",
            f"{summary[name]['judge_positive']:.0%}",
        ]
        for name, label in NAMES.items()
    ]
    accuracy = summary["reward_model"]["heldout_accuracy"]
    return (
        _table(heads, rows) + f"<p>The reward model orders {accuracy:.1%} of the held-out human "
        f"pairs whose mean ratings differ by more than 0.5. The judge (VADER's compound over 0.05) "
        f"was never trained on. {summary['seconds'] / 60:.1f} minutes, peak memory "
        f"{summary['peak_memory_mb'] / 1024:.1f} GB.</p>"
    )


def _samples(samples: dict[str, list[dict[str, Any]]], kl_coef: float) -> str:
    rows = []
    for group in zip(*(samples[name] for name in NAMES), strict=True):
        cells = "".join(f"<td>{_shaded(sample, kl_coef)}</td>" for sample in group)
        rows.append(f"<tr>{cells}</tr>")
    heads = "".join(f"<th>{label}</th>" for label in NAMES.values())
    table = f"<table class=samples><tr>{heads}</tr>{''.join(rows)}</table>"
    return f"<div class=table>{table}</div>"


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
    score = f"<span class=score>score {sample['score']:+.2f}, log-ratio {total:.1f}</span>"
    return f"<span class=prompt>{prompt}</span>{''.join(spans)}{score}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<div class=table><table><tr>{top}</tr>{body}</table></div>"
