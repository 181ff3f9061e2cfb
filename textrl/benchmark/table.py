"""The table of a benchmark's rows, which `run.py` prints and `textrl report` shows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

HEADS = [
    "agent",
    "seeds",
    "score (least to most)",
    "KL, nats per sequence",
    "tokens per second",
    "peak memory, MB",
]


def table_cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return a line of texts for each agent: means over its seeds, and the span of the scores."""
    lines = []
    for agent in dict.fromkeys(row["agent"] for row in rows):
        own = [row for row in rows if row["agent"] == agent]
        found = [row for row in own if "error" not in row]
        failed = len(own) - len(found)
        seeds = f"{len(found)}" + (f", {failed} failed" if failed else "")
        if not found:
            lines.append([agent, seeds, "-", "-", "-", "-"])
            continue
        scores = [row["score"] for row in found]
        kls = [row["kl"] for row in found if row["kl"] is not None]
        speeds = [row["tokens_per_second"] for row in found if row["tokens_per_second"]]
        lines.append(
            [
                agent,
                seeds,
                f"{np.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})",
                f"{np.mean(kls):.2f}" if kls else "-",
                f"{np.mean(speeds):.0f}" if speeds else "-",
                f"{max(row['peak_memory_mb'] for row in found):.0f}",
            ]
        )
    return lines
