"""The exact-optimum suite: how far each agent is from the best policy there is.

    python benchmarks/optimum.py              the whole: 10 seeds, 5 tasks, up to 5 kl_coefs
    python benchmarks/optimum.py --quick      2 seeds, 1 value an agent: about 6 minutes on 2 cores

Each cell (agent, task, kl_coef, seed) trains a policy and values it by enumeration (`exact.py`).
Finished cells are kept in OUTPUT/cells.jsonl and not run again, unless the tasks or the settings in
the code have changed. At the end: results.json, regret.png, frontier.png, a table, and status 1
where a cell failed, lies above the exact frontier or misses its bar.
"""

import argparse
import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a process a core, a thread a process

from statistics_of_seeds import summary

from textrl.durable import append_json_line
from textrl.metrics import read_json_lines

KL_COEFS = (0.05, 0.1, 0.25, 0.5, 1.0)
TASKS = ("dense", "sparse", "length", "prompt", "turns")
TURN_AGENTS = ("ppo", "ppo_separate", "rloo", "grpo")
"""Agents that play the game of two turns; its world pays, so that there is no reward model from
which a critic could start."""
TURNS_KL_COEF = 0.25
ONLINE = ("ppo", "ppo_separate", "ppo_reward_model", "rloo", "grpo")
BARS: dict[str, dict[float, float]] = {
    **{a: {0.05: 0.10, 0.1: 0.05, 0.25: 0.05, 0.5: 0.05, 1.0: 0.05} for a in ONLINE[:4]},
    "grpo": {0.1: 0.10, 0.25: 0.10, 0.5: 0.10, 1.0: 0.10},
    "dpo": {0.25: 0.05, 0.5: 0.05, 1.0: 0.05},
    "sb3_ppo": {0.1: 0.15, 0.25: 0.15},
}
"""The regret that no seed may exceed, by agent and kl_coef."""
COLLAPSED = 0.5
"""Regret that no seed of an agent with a bar may exceed at any kl_coef."""
GRIDS = {
    "grpo": (0.1, 0.25, 0.5, 1.0),
    "dr_grpo": (0.25,),
    "reinforce": (0.25,),
    "online_dpo": (0.25,),
    "sb3_ppo": (0.1, 0.25),
    "sb3_a2c": (0.1,),
    "dpo": (0.25, 0.5, 1.0),
    "ipo": (0.5,),
    "dpo_one_label": (0.5,),
    "dpo_flipped": (0.5,),
    "cdpo_flipped": (0.5,),
    "robust_flipped": (0.5,),
}
"""Agents that do not run at every kl_coef; where there is a bar, at every one that it names."""
ONE_LABEL = ("ipo", "dpo_one_label", "dpo_flipped", "cdpo_flipped", "robust_flipped")
ONE_LABEL_TASKS = ("dense",)
"""Of the sparse tasks one label a pair says so little that all of these stay near the reference."""
BEST_OF = tuple(f"best_of_{n}" for n in (2, 4, 8, 16, 32, 64))
QUICK_GRIDS = {agent: grid[-1:] for agent, grid in GRIDS.items()} | {
    "grpo": (0.1,),
    "dpo": (0.25,),
    "sb3_ppo": (0.1,),
}


def cells_of(options: argparse.Namespace) -> list[Any]:
    """Return the cells to run, an agent after the other."""
    from cells import Cell

    found = []
    for agent in options.agents:
        grid = GRIDS.get(agent, KL_COEFS)
        if options.quick:
            grid = QUICK_GRIDS.get(agent, (0.1,))
        if agent.startswith("best_of_"):
            grid = (0.25,)  # it has no kl_coef; the regret is given at this one
        seeds = 1 if agent.startswith("best_of_") else options.seeds
        tasks = ONE_LABEL_TASKS if agent in ONE_LABEL else TASKS
        for seed in range(seeds):
            for task in [task for task in tasks if task in options.tasks]:
                if task == "turns" and agent not in TURN_AGENTS:
                    continue
                for kl_coef in (TURNS_KL_COEF,) if task == "turns" else grid:
                    found.append(Cell(agent=agent, task=task, kl_coef=kl_coef, seed=seed))
    return found


def settings_digest() -> str:
    """Return a digest of the code that decides what a cell means."""
    names = ("cells", "drawn_labels", "small_tasks", "two_turns", "exact")
    sources = [Path(__file__).parent / f"{name}.py" for name in names]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def attempt(cell: Any) -> dict[str, Any]:
    """Run a cell in a worker; a failure is a row like any other."""
    from cells import run_cell

    try:
        return run_cell(cell)
    except Exception:  # whatever it is, it is reported and the other cells go on
        return {"key": cell.key, **cell.__dict__, "error": traceback.format_exc()}


def run_all(cells: list[Any], path: Path, workers: int) -> list[dict[str, Any]]:
    """Run the cells that the file lacks, in several processes; return all their rows."""
    wanted = {cell.key for cell in cells}
    rows = read_json_lines(path)
    digest = settings_digest()
    done = {r["key"]: r for r in rows if "error" not in r and r["settings"] == digest}
    todo = [cell for cell in cells if cell.key not in done]
    began = last = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures = [pool.submit(attempt, cell) for cell in todo]
        for count, future in enumerate(concurrent.futures.as_completed(futures), start=1):
            row = future.result() | {"settings": digest}
            done[row["key"]] = row
            append_json_line(path, row)
            if "error" in row:
                print(f"FAILED {row['key']}\n{row['error']}", flush=True)
            now = time.monotonic()
            if now - last > 20 or count == len(todo):
                left = (now - began) / count * (len(todo) - count)
                print(f"[optimum] {count}/{len(todo)} cells, {left / 60:.1f} min left", flush=True)
                last = now
    return [row for key, row in done.items() if key in wanted]


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry an (agent, task, kl_coef): regrets over the seeds, and whether it passes."""
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: int(row["seed"])):
        if "error" not in row:
            groups.setdefault((row["agent"], row["task"], row["kl_coef"]), []).append(row)
    entries = []
    for (agent, task, kl_coef), group in groups.items():
        regret = summary([row["regret"] for row in group])
        bar = BARS.get(agent, {}).get(kl_coef, COLLAPSED if agent in BARS else None)
        entries.append(
            {
                "agent": agent,
                "task": task,
                "kl_coef": kl_coef,
                "seeds": len(group),
                "regret": regret,
                "score": summary([row["score"] for row in group]),
                "kl": summary([row["kl"] for row in group]),
                "kl_bound": group[0]["kl_bound"],
                "bar": bar,
                "passed": bar is None or regret["worst"] <= bar,
                "seconds": sum(row["seconds"] for row in group) / len(group),
            }
        )
    return entries


def table(entries: list[dict[str, Any]]) -> str:
    """Return a Markdown table: median regret in % and the worst seed's, by agent and kl_coef."""
    tasks = [name for name in TASKS if any(e["task"] == name for e in entries)]
    lines = [
        "| agent | kl_coef | " + " | ".join(tasks) + " | bar |",
        "|---|---|" + "---|" * (len(tasks) + 1),
    ]
    cells: dict[tuple[str, float], dict[str, dict[str, Any]]] = {}
    for entry in entries:
        cells.setdefault((entry["agent"], entry["kl_coef"]), {})[entry["task"]] = entry
    for (agent, kl_coef), by_task in cells.items():
        shown = []
        for name in tasks:
            entry = by_task.get(name)
            if entry is None:
                shown.append("-")
                continue
            regret = entry["regret"]
            mark = "" if entry["passed"] else " **missed**"
            shown.append(f"{100 * regret['median']:.1f} ({100 * regret['worst']:.1f}){mark}")
        bar = next(iter(by_task.values()))["bar"]
        limit = "-" if bar is None else f"{100 * bar:.0f}"
        lines.append(f"| {agent} | {kl_coef} | " + " | ".join(shown) + f" | {limit} |")
    return "\n".join(lines)


def main() -> int:
    """Run the suite; return the exit status."""
    everyone = tuple(dict.fromkeys((*ONLINE, "dpo", *GRIDS, *BEST_OF)))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer cells, the same training")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/optimum"))
    parser.add_argument("--agents", nargs="+", default=everyone, choices=everyone)
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--seeds", type=int, help="default 10, quick 2")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    options.seeds = options.seeds or (2 if options.quick else 10)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    rows = run_all(cells_of(options), options.output_dir / "cells.jsonl", options.workers)
    entries = summarize(rows)
    failed = [row["key"] for row in rows if "error" in row]
    result = {
        "entries": entries,
        "failed": failed,
        "seconds": time.monotonic() - began,
        "cell_seconds": sum(row.get("seconds", 0.0) for row in rows),
    }
    (options.output_dir / "results.json").write_text(json.dumps(result, indent=1))
    print(table(entries))
    from optimum_figures import draw_frontier, draw_regret

    draw_regret(entries, options.output_dir / "regret.png")
    draw_frontier(entries, options.output_dir / "frontier.png")
    missed = [e for e in entries if not e["passed"]]
    print(
        f"{len(rows)} cells, {len(failed)} failed, {len(missed)} of {len(entries)} groups missed "
        f"their bar; {options.output_dir}/results.json, regret.png, frontier.png"
    )
    return 1 if failed or missed else 0


if __name__ == "__main__":
    sys.exit(main())
