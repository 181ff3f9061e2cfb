"""What the policy said on held-out prompts: before and after, token by token; length and score."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from textrl.doctor.records import Record
from textrl.errors import UserError
from textrl.metrics import read_json_lines
from textrl.report.charts import COLOURS, Axes, drawn

SAMPLES, PAIRS = "samples.jsonl", "heldout_pairs.jsonl"
SHOWN = 4
"""Number of prompts that are shown."""
MAPS = {
    "kl": "KL: log pi - log pi_ref, in nats",
    "reward": "reward, with both halves of the KL",
    "value": "value, before the token",
    "advantage": "advantage, not whitened",
}


def sample_sections(record: Record, name: str) -> list[str]:
    """Return the parts about samples.jsonl and heldout_pairs.jsonl of a run; none without them."""
    parts: list[str] = []
    rows = _checked(record.folder / SAMPLES, {"iteration": int, "kl": float, "by_token": list})
    if rows:
        parts.append(f"<h2>Samples on held-out prompts: {html.escape(name)}</h2>")
        parts += _before_and_after(rows)
        parts.append(_length_and_score(rows))
    lengths: dict[str, type] = {"better_length": float, "worse_length": float}
    pairs = _checked(record.folder / PAIRS, {"margin": float} | lengths)
    if pairs:
        parts.append(f"<h2>The reward model on held-out pairs: {html.escape(name)}</h2>")
        parts.append(calibration(np.array([pair["margin"] for pair in pairs])))
        parts.append(_length_bias(pairs))
    return parts


def _checked(path: Path, kinds: Mapping[str, type]) -> list[dict[str, Any]]:
    """Return the rows of a file that has these columns.

    Raises:
        UserError: A row has not, or something else in them.
    """
    rows = read_json_lines(path)
    for number, row in enumerate(rows, 1):
        for name, kind in kinds.items():
            fits = isinstance(row.get(name), int | float if kind is float else kind)
            if not fits:
                raise UserError(
                    f"{path}:{number}: {name} is {row.get(name)!r:.40}; expected {kind}"
                )
    return rows


def _before_and_after(rows: Sequence[dict[str, Any]]) -> list[str]:
    first, last = rows[0]["iteration"], rows[-1]["iteration"]
    before = [row for row in rows if row["iteration"] == first][:SHOWN]
    after = [row for row in rows if row["iteration"] == last][:SHOWN]
    parts = [
        f"<p class=quiet>The same prompts and random numbers, at iteration {first} and at "
        f"iteration {last}.</p>"
    ]
    for old, new in zip(before, after, strict=False):
        sides = [_side(old, f"iteration {first}")]
        if last != first:
            sides.append(_side(new, f"iteration {last}"))
        parts.append(f"<div class=sides>{''.join(sides)}</div>")
        if new.get("by_token"):
            parts.append(_heat_maps(new))
    return parts


def _side(row: dict[str, Any], when: str) -> str:
    score = f"score {row['score']:.3g}" if isinstance(row.get("score"), float) else "no score"
    log_ratio = round(row["kl"], 2) + 0.0  # never "-0.00"
    return (
        f"<div><div class=quiet>{when}: {score}, log-ratio {log_ratio:.2f} nats</div>"
        f"<div class=text><span class=prompt>{html.escape(str(row.get('prompt', '')))}</span>"
        f"{html.escape(str(row.get('completion', '')))}</div></div>"
    )


def _heat_maps(row: dict[str, Any]) -> str:
    """Return the sample with each token's numbers as its background, folded away."""
    tokens = row["by_token"]
    maps = []
    for name, title in MAPS.items():
        known = [abs(token[name]) for token in tokens if name in token]
        if not known:
            continue
        most = max([*known, 1e-9])
        spans = "".join(_token(token, name, most) for token in tokens)
        maps.append(
            f"<div class=quiet>{title}; the strongest colour is {most:.3g}</div>"
            f"<div class='text tokens'>{spans}</div>"
        )
    return f"<details><summary>token by token</summary>{''.join(maps)}</details>"


def _token(token: dict[str, Any], name: str, most: float) -> str:
    text = html.escape(str(token.get("text") or "·"))
    if name not in token:  # the world's
        return f"<span class=quiet>{text}</span>"
    colour = "0,114,178" if token[name] > 0 else "230,120,0"
    strength = 0.75 * abs(token[name]) / most
    return (
        f"<span style='background:rgba({colour},{strength:.2f})' "
        f"title='{name} {token[name]:+.3g}'>{text}</span>"
    )


def _length_and_score(rows: Sequence[dict[str, Any]]) -> str:
    """Return score against length of all samples that were kept."""
    known = [
        (sum("kl" in token for token in row["by_token"]), row["score"])
        for row in rows
        if isinstance(row.get("score"), float) and row["by_token"]
    ]
    if len(known) < 8:
        return ""
    lengths, scores = np.array(known, dtype=np.float64).T
    flat = lengths.std() == 0 or scores.std() == 0
    correlation = 0.0 if flat else float(np.corrcoef(lengths, scores)[0, 1])

    def draw(axes: Axes) -> None:
        axes.plot(lengths, scores, "o", color=COLOURS[0], alpha=0.5, markersize=4)
        axes.set_xlabel("length (tokens)")
        axes.set_ylabel("score")

    figure = drawn("score against length", draw)
    return (
        f"<h3>Does length pay?</h3><p>Over {len(known)} samples the correlation of score and "
        f"length is {correlation:+.2f}.</p><div class=panels>{figure}</div>"
    )


def calibration(margins: np.ndarray) -> str:
    """Return how often the preferred text is the better one, against how sure the model is.

    Args:
        margins: Score of the better text minus score of the worse one, for each held-out pair. By
            Bradley and Terry's model the preferred text is right with probability sigmoid(|m|).
    """
    sure, right = 1 / (1 + np.exp(-np.abs(margins))), margins > 0
    edges = np.unique(np.quantile(sure, np.linspace(0, 1, min(8, max(1, len(sure) // 10)) + 1)))
    places = np.searchsorted(edges[1:-1], sure, side="right")  # equal ones stay together
    parts = [part for bin_ in np.unique(places) if len(part := (places == bin_).nonzero()[0])]
    x = np.array([sure[part].mean() for part in parts])
    y = np.array([right[part].mean() for part in parts])
    error = np.sqrt(np.maximum(y * (1 - y), 1e-9) / np.array([len(part) for part in parts]))
    off = float(np.average(np.abs(x - y), weights=[len(part) for part in parts]))
    even = np.array([0.5, 1.0])

    def draw(axes: Axes) -> None:
        axes.plot(even, even, color="#888888", linewidth=1)
        axes.errorbar(x, y, 2 * error, color=COLOURS[0], fmt="o-", markersize=4)
        axes.set_xlabel("how sure the model is: sigmoid(margin)")

    figure = drawn("share of pairs in the right order", draw)
    return (
        f"<h3>Calibration</h3><p>Of {len(margins)} pairs {right.mean():.1%} are in the right "
        f"order. The model is off by {off:.1%} on average: a curve below the grey line means that "
        f"it is surer than it should be.</p><div class=panels>{figure}</div>"
    )


def _length_bias(pairs: Sequence[dict[str, Any]]) -> str:
    different = [pair for pair in pairs if pair["better_length"] != pair["worse_length"]]
    if not different:
        return ""
    longer = np.array([pair["better_length"] > pair["worse_length"] for pair in different])
    right = np.array([pair["margin"] > 0 for pair in different])
    model = np.where(right, longer, ~longer).mean()
    return (
        f"<h3>Does length pay?</h3><p>In {len(different)} pairs of different length people prefer "
        f"the longer text in {longer.mean():.1%}, the model in {model:.1%}.</p>"
    )
