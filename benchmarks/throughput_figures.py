"""The figures of docs/speed.md, from what the throughput scripts have written.

Give it --stages (of `throughput.py`), --switches and --peer: the JSON files of those scripts.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

Rows = list[dict[str, Any]]


def draw_ratios(rows: Rows, title: str, path: Path) -> None:
    """Draw the ratio of every pair and their median, a line a row; 1 is no difference."""
    figure, axis = plt.subplots(figsize=(7.5, 0.9 + 0.36 * len(rows)))
    for place, row in enumerate(reversed(rows)):
        axis.barh(place, row["ratio"] - 1, left=1, color="C0" if row["ratio"] > 1 else "C3")
        axis.plot(row["ratios"], [place] * len(row["ratios"]), "k.", ms=4)
        axis.text(max(row["ratios"]), place, f"  {row['ratio']:.2f}x", va="center", fontsize=8)
    axis.axvline(1.0, color="black", lw=0.8)
    axis.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)], fontsize=8)
    least = 0.8 if min(row["ratio"] for row in rows) >= 1 else 0.2
    axis.set_xlim(least, 1.1 * max(max(row["ratios"]) for row in rows))
    axis.set_title(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_shares(rows: Rows, path: Path) -> None:
    """Draw each stage's share of the matrix-product rate, models side by side."""
    rows = [row for row in rows if row["length"] == 64]
    sizes = list(dict.fromkeys(row["model"] for row in rows))
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    figure, axis = plt.subplots(figsize=(8, 3.6))
    width = 0.8 / len(sizes)
    for number, size in enumerate(sizes):
        mine = [row for row in reversed(rows) if row["model"] == size]  # a stage's first row stays
        shares = {row["stage"]: 100 * row["mfu"] for row in mine}
        places = [i for i, stage in enumerate(stages) if stage in shares]
        heights = [shares[stages[i]] for i in places]
        axis.bar(np.array(places) + number * width, heights, width, label=size)
    axis.set_xticks(np.arange(len(stages)) + 0.4 - width / 2, stages, rotation=35, ha="right")
    axis.tick_params(labelsize=8)
    axis.set_ylabel("% of the matrix-product rate")
    axis.legend(fontsize=8)
    axis.grid(axis="y", lw=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_stepping(rows: Rows, path: Path) -> None:
    """Draw the time of a token against the length, a panel a number of rows."""
    rows = [row for row in rows if row["stage"].startswith("stepping") and row["model"] == "4m"]
    lengths: dict[int, set[int]] = {}
    for row in rows:
        lengths.setdefault(row["batch"], set()).add(row["length"])
    batches = [batch for batch, found in sorted(lengths.items()) if len(found) > 1]
    if not batches:
        return
    figure, axes = plt.subplots(
        1, len(batches), figsize=(1 + 2.6 * len(batches), 3.2), sharey=True, squeeze=False
    )
    for axis, batch in zip(axes[0], batches, strict=True):
        for stage in dict.fromkeys(row["stage"] for row in rows):
            mine = [row for row in rows if row["stage"] == stage and row["batch"] == batch]
            mine.sort(key=lambda row: row["length"])
            micros = [1e6 * row["seconds"] / row["tokens"] for row in mine]
            label = stage.removeprefix("stepping, ")
            axis.plot([row["length"] for row in mine], micros, "o-", ms=3, lw=1, label=label)
        axis.set_title(f"{batch} rows", fontsize=9)
        axis.set_xlabel("length, tokens")
        axis.set_yscale("log")
        axis.grid(lw=0.3, which="both")
    axes[0, 0].set_ylabel("microseconds a token")
    axes[0, 0].legend(fontsize=7, loc="center right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Draw what there is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", type=Path, nargs="+", default=[])
    parser.add_argument("--switches", type=Path)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--output_dir", type=Path, default=Path("docs/figures"))
    options = parser.parse_args()
    folder = options.output_dir
    if options.stages:
        rows = [row for path in options.stages for row in json.loads(path.read_text())]
        draw_shares(rows, folder / "speed_stages.png")
        draw_stepping(rows, folder / "speed_stepping.png")
    if options.switches:
        rows = json.loads(options.switches.read_text())
        rows = [row | {"name": row["switch"]} for row in rows]
        draw_ratios(rows, "Speed with each switch over without it", folder / "speed_switches.png")
    if options.peer:
        found = json.loads(options.peer.read_text())
        rows = [row | {"name": name} for name, row in found.items()]
        draw_ratios(rows, "textrl's speed over TRL's, same work", folder / "speed_peer.png")


if __name__ == "__main__":
    main()
