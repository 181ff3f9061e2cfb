"""What each optimisation brings: the same work with it and without it, in turn, in one process.

    python benchmarks/throughput_switches.py                 the small model
    python benchmarks/throughput_switches.py --size smollm2  SmolLM2-135M, where a switch has models

A row gives the ratio of the seconds (without over with; above 1 it pays), the median of the pairs,
the peak memory of both, and how far the results (losses, log-probs or states) differ where they
should not. Data are movie reviews, cut to real lengths. The switches are in switches_*.py.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
from switches_machine import compiled, machine
from switches_sampling import sampling
from switches_setup import Setup, Switch
from switches_updates import batches_by_length, head_where_it_counts, packing, ppo, reference_once
from throughput_model import SIZES

from textrl.benchmark.run import forget_peak_memory, peak_memory_mb
from textrl.memory import keep_freed_memory

SWITCHES = {
    "packing": packing,
    "length": batches_by_length,
    "head": head_where_it_counts,
    "reference": reference_once,
    "sampling": sampling,
    "ppo": ppo,
    "machine": machine,
    "compile": compiled,
}


def compare(switch: Switch, pairs: int) -> dict[str, Any]:
    """Return the ratios of the pairs, the memory of both ways and how far the results differ."""
    name, *ways = switch
    results = [way() for way in ways]
    seconds: list[list[float]] = []
    peaks = [0.0, 0.0]
    for _ in range(pairs):
        seconds.append([])
        for index, way in enumerate(ways):
            forget_peak_memory()
            before = time.monotonic()
            way()
            seconds[-1].append(time.monotonic() - before)
            peaks[index] = max(peaks[index], peak_memory_mb())
    on, off = results
    ratios = [without / with_it for with_it, without in seconds]
    difference = None
    if on is not None and off is not None:
        difference = float(((on - off).abs() / off.abs().clamp_min(1)).max())
    return {
        "switch": name,
        "ratio": float(np.median(ratios)),
        "ratios": ratios,
        "seconds": seconds,
        "peak_mb": peaks,
        "relative_difference": difference,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| switch | speed with it (least to most) | peak MB, with and without it | difference |",
        "|---|---|---|---|",
    ]
    for row in rows:
        span = f"{row['ratio']:.2f}x ({min(row['ratios']):.2f} to {max(row['ratios']):.2f})"
        memory = " and ".join(f"{peak:.0f}" for peak in row["peak_mb"])
        far = row["relative_difference"]
        differ = "other batches" if far is None else f"{far:.0e}"
        lines.append(f"| {row['switch']} | {span} | {memory} | {differ} |")
    return "\n".join(lines)


def main() -> None:
    """Measure the switches asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--switches", nargs="+", default=list(SWITCHES), choices=SWITCHES)
    parser.add_argument("--size", default="4m", choices=SIZES)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("runs/throughput_switches.json"))
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    keep_freed_memory()
    rows = []
    for name in options.switches:
        for switch in SWITCHES[name](Setup(options.size)):
            rows.append(compare(switch, options.pairs))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
