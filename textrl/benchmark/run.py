"""Comparison of agents on one task with one budget: learning curves, score, KL, speed, memory.

`textrl benchmark` and `benchmarks/agents.py` run this. A cell is an agent and a seed. The cells run
one after the other, each in a separate process, so that speed and peak memory are measured for each
cell alone. A cell that fails is reported, and the others still run. Finished cells are kept in
OUTPUT/cells.jsonl.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import math
import multiprocessing
import re
import resource
import time
import traceback
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.utils import set_random_seed

from textrl.agents.text_env import TextEnv
from textrl.benchmark.agents import find, importable, make_subject
from textrl.benchmark.config import BenchmarkConfig
from textrl.benchmark.table import HEADS, table_cells
from textrl.benchmark.task import Task
from textrl.durable import append_json_line, write_json
from textrl.memory import keep_freed_memory
from textrl.metrics import StageProgress, read_json_lines

CELLS = "cells.jsonl"
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def run(config: BenchmarkConfig, folder: Path) -> list[dict[str, Any]]:
    """Run the cells that are missing in the folder; write results.json, table.md and curves.png.

    A cell is a row of cells.jsonl. It is missing if it failed or was run with other settings;
    agents and seeds may be added.
    """
    cells = [(agent, seed) for seed in range(config.seeds) for agent in config.agent_names()]
    settings = settings_digest(config)
    done = {
        (row["agent"], row["seed"]): row
        for row in read_json_lines(folder / CELLS)
        if "error" not in row and row["settings"] == settings
    }
    todo = [cell for cell in cells if cell not in done]
    with StageProgress("benchmark", len(todo)) as progress:
        for count, (agent, seed) in enumerate(todo, start=1):
            row = in_own_process(config, agent, seed) | {"settings": settings}
            done[agent, seed] = row
            append_json_line(folder / CELLS, row)
            if "error" in row:
                print(f"{agent}, seed {seed} failed: {row['error'].strip().splitlines()[-1]}")
            shown = {name: row[name] for name in ("score", "kl") if row.get(name) is not None}
            progress.show(count, shown)
    rows = [done[cell] for cell in cells]
    write_json(folder / "results.json", {"config": config.recorded(), "rows": rows})
    (folder / "table.md").write_text(table(rows) + "\n", encoding="utf-8")
    _draw(rows, folder / "curves.png")
    return rows


def settings_digest(config: BenchmarkConfig) -> str:
    """Return a digest of all settings that affect a cell's numbers, except agent and seed."""
    settings = {k: v for k, v in asdict(config).items() if k not in ("agents", "seeds")}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def in_own_process(config: BenchmarkConfig, agent: str, seed: int) -> dict[str, Any]:
    """Run one cell in a new process; an exception or a killed process gives a row with an error."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(run_cell, config, importable(agent), seed).result() | {
                "agent": agent
            }
        except BrokenProcessPool:
            error = "its process was killed (out of memory?)"
        except Exception:  # any exception is reported, and the other cells still run
            error = traceback.format_exc()
    return {"agent": agent, "seed": seed, "error": error}


def run_cell(config: BenchmarkConfig, agent: str, seed: int) -> dict[str, Any]:
    """Train one agent for the budget and measure it on the way.

    Seconds and memory are those of the training only.
    """
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    set_random_seed(seed)  # for agents that use the global random generators of this process
    subject = make_subject(agent, Task(config), seed)
    curve: list[list[float | None]] = [[0, *subject.measure()]]
    seconds = peak = 0.0
    forget_peak_memory()
    began = time.monotonic()

    def measure() -> None:
        nonlocal seconds, peak, began
        seconds += time.monotonic() - began
        peak = max(peak, peak_memory_mb())
        curve.append([subject.tokens, *subject.measure()])
        forget_peak_memory()
        began = time.monotonic()

    subject.train(config.total_timesteps, config.evaluations, measure)
    _, score, kl = curve[-1]
    return {
        "agent": agent,
        "seed": seed,
        "score": score,
        "kl": kl,
        "tokens": subject.tokens,
        "tokens_per_second": subject.tokens / seconds if subject.trains else None,
        "seconds": seconds,
        "peak_memory_mb": peak,
        "curve": curve,
    }


def peak_memory_mb() -> float:
    """Return the peak memory of this process since `forget_peak_memory`, in megabytes."""
    if STATUS.exists():  # on Linux, ru_maxrss would include the parent's peak
        found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
        if found:
            return int(found.group(1)) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak_memory() -> None:
    """Reset the peak memory of this process, if the system supports it (Linux)."""
    with contextlib.suppress(OSError):
        CLEAR.write_text("5")


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table of means over the seeds, with the smallest and largest score."""
    lines = [HEADS, ["---"] * len(HEADS), *table_cells(rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    try:
        from textrl.benchmark.curves import draw_benchmark
    except ImportError:
        print("no curves.png without matplotlib: pip install 'textrl-gym[report]'")
        return
    curves: dict[str, list[np.ndarray]] = {}
    for row in rows:
        if "error" not in row:
            points = [[p if p is not None else math.nan for p in point] for point in row["curve"]]
            curves.setdefault(row["agent"], []).append(np.array(points))
    if curves:
        draw_benchmark(curves, path)


def check(config: BenchmarkConfig) -> None:
    """Raise UserError, before anything runs, for an unknown agent or an impossible task."""
    for name in config.agent_names():
        find(name)
    task = Task(config)
    task.environment()
    heldout = task.environment(heldout=True)
    if "best_of_n" in config.agent_names():
        TextEnv(heldout).score_tokens([], [])  # refused where a world pays
