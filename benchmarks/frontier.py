"""Score against KL on the review data: the DPO paper's experiment (2305.18290, figure 2) in small.

    python benchmarks/frontier.py --base runs/demo-tiny     reuse the demo's SFT and reward model
    python benchmarks/frontier.py --runs ppo_6 dpo_0.1      some of the runs only

Every run starts from the SFT model and is measured on held-out prompts on its way. The best score
possible at each KL is estimated from samples of the SFT model (`frontier_estimate.py`). Finished
runs are kept in OUTPUT/NAME.json. At the end: results.json, frontier.png and a table of the share
of the possible gain that each run reaches at equal KL (`reached` says what that is).
"""

import argparse
import hashlib
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from frontier_estimate import Frontier, best_of_n_scores, mean_frontier, prompt_frontiers
from frontier_runs import PAIR_PROMPTS, PAIR_SAMPLES, RUNS, TOKENS
from review_setup import Point, ReviewSetup

from textrl.evaluation import best_of_kl

BEST_OF = (2, 4, 8, 16, 32, 64)
REFERENCE_SAMPLES = 3072
"""Of each held-out prompt, for the frontier: sound up to log 3072 - 2 = 6.03 nats."""
KL_LIMITS = (3.0, 6.0)
"""Nats; the runs are compared at these."""


def settings_of(setup: ReviewSetup) -> dict[str, Any]:
    """Return what a run's measurements depend on, but for the code."""
    model = (setup.job.folder / "sft" / "model.safetensors").read_bytes()
    model += (setup.job.folder / "reward_model" / "model.safetensors").read_bytes()
    numbers = {"tokens": TOKENS, "pair_prompts": PAIR_PROMPTS, "pair_samples": PAIR_SAMPLES}
    return numbers | {"models": hashlib.sha256(model).hexdigest()[:12]}


def finish(name: str, setup: ReviewSetup, folder: Path) -> list[Point]:
    """Run one method unless its results lie there already; return its measurements."""
    path, settings = folder / f"{name}.json", settings_of(setup)
    if not path.exists() or json.loads(path.read_text())["settings"] != settings:
        began, points = time.monotonic(), [setup.measure(setup.reference, 0)]
        policy = RUNS[name](setup, points)
        points.append(setup.measure(policy, points[-1].step, repeats=16))
        seconds = time.monotonic() - began
        content: dict[str, Any] = {"settings": settings, "points": [asdict(p) for p in points]}
        content["seconds"] = seconds
        path.write_text(json.dumps(content))
        print(f"{name}: {seconds:.0f} s", flush=True)
    return [Point(**point) for point in json.loads(path.read_text())["points"]]


def reached(points: list[Point], limit: float) -> Point:
    """Return the run's end if its KL is at most the limit, else where it last went above it.

    That place is interpolated between the two measurements around it. No policy is flattered: the
    mixture of the two policies has the interpolated score and, KL being convex, at most its KL.
    """
    if float(np.mean(points[-1].kl)) <= limit:
        return points[-1]
    for before, after in zip(points[-2::-1], points[:0:-1], strict=True):
        low, high = float(np.mean(before.kl)), float(np.mean(after.kl))
        if low <= limit < high:
            weight = (limit - low) / (high - low)
            return Point(
                step=round(before.step + weight * (after.step - before.step)),
                score=blend(before.score, after.score, weight),
                kl=blend(before.kl, after.kl, weight),
            )
    raise AssertionError("a run starts at KL 0")


def blend(before: list[float], after: list[float], weight: float) -> list[float]:
    """Return (1 - weight) before + weight after."""
    mixed: list[float] = ((1 - weight) * np.array(before) + weight * np.array(after)).tolist()
    return mixed


class Bootstrap:
    """Shares of the possible gain with 95% intervals.

    The intervals resample the held-out prompts: policy and frontier move together.
    """

    def __init__(self, scores: np.ndarray, resamples: int = 1000) -> None:
        """Take the reference samples' scores, [P N]."""
        rng, (prompts, count) = np.random.default_rng(0), scores.shape
        kls, means = prompt_frontiers(scores)
        self.whole = mean_frontier(kls, means, count)
        self._picks = [rng.integers(prompts, size=prompts) for _ in range(resamples)]
        self._frontiers = [mean_frontier(kls[:, p], means[:, p], count) for p in self._picks]

    def share(self, point: Point) -> tuple[float, float, float]:
        """Return the share, and the ends of its interval; NaN where the KL is too small to tell."""
        score, kl = np.array(point.score), np.array(point.kl)
        drawn = [
            frontier.share(float(score[pick].mean()), float(kl[pick].mean()))
            for pick, frontier in zip(self._picks, self._frontiers, strict=True)
        ]
        known = [value for value in drawn if not math.isnan(value)] or [math.nan]
        low, high = np.quantile(known, [0.025, 0.975])
        return self.whole.share(float(score.mean()), float(kl.mean())), float(low), float(high)


def shares(points: list[Point], bootstrap: Bootstrap) -> list[dict[str, Any]]:
    """Return score, KL and share of the possible gain at each measurement."""
    rows = []
    for point in points:
        share, low, high = bootstrap.share(point)
        kl = float(np.mean(point.kl))
        rows.append(
            {
                "step": point.step,
                "score": float(np.mean(point.score)),
                "kl": kl,
                "share": share,
                "share_low": low,
                "share_high": high,
                "sound": kl <= bootstrap.whole.sound_up_to,
            }
        )
    return rows


def draw(results: dict[str, Any], frontier: Frontier, path: Path) -> None:
    """Draw every run's way, the frontier, and best-of-n."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8.5, 6))
    sound = frontier.kl <= frontier.sound_up_to
    axis.plot(frontier.kl[sound], frontier.score[sound], "k-", label="optimum (estimate)")
    axis.plot(frontier.kl[~sound], frontier.score[~sound], "k:", label="no longer sound")
    best = results["best_of_n"]
    axis.plot([row["kl"] for row in best], [row["score"] for row in best], "k^-", ms=4, lw=0.6)
    for row in best:
        axis.annotate(f"best of {row['n']}", (row["kl"], row["score"]), fontsize=6)
    for place, (name, rows) in enumerate(results["runs"].items()):
        kls, scores = [r["kl"] for r in rows], [r["score"] for r in rows]
        style = "-" if name.startswith("ppo") else "--" if name.startswith("dpo") else "-."
        color = plt.get_cmap("tab20")(2 * place % 20 + place // 10)
        axis.plot(kls, scores, style, color=color, lw=0.9, marker=".", ms=4, label=words_of(name))
        axis.plot(kls[-1:], scores[-1:], "o", color=color, ms=6)
    for limit in KL_LIMITS:
        axis.axvline(limit, color="grey", lw=0.5)
        axis.text(limit, axis.get_ylim()[0], f" shares are read at {limit:g} nats", fontsize=6)
    axis.set_xlim(-0.3, 14.0)
    axis.set_xlabel("KL to the SFT model, nats per sequence")
    axis.set_ylabel("score on held-out prompts (standard deviations of the SFT model)")
    axis.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def words_of(run: str) -> str:
    """Return the name of a run in words.

    >>> words_of("ppo_12"), words_of("dpo_0.05"), words_of("rloo_0.1")
    ('PPO, target KL 12', 'DPO, beta 0.05', 'RLOO, kl_coef 0.1')
    """
    name, _, number = run.rpartition("_")
    known = {
        "ppo": "PPO, target KL",
        "dpo": "DPO, beta",
        "online_dpo": "online DPO, beta",
        "rloo": "RLOO, kl_coef",
    }
    return f"{known[name]} {number}" if name in known else run.replace("_", " ")


def table(results: dict[str, Any]) -> str:
    """Return a Markdown table: each run's share of the possible gain at the limits and its end."""
    heads = [f"share at KL {limit:g} (95%)" for limit in KL_LIMITS]
    lines = [
        "| run | " + " | ".join(heads) + " | ends at KL | score | share |",
        "|---|" + "---|" * (len(KL_LIMITS) + 3),
    ]
    for name, rows in results["runs"].items():
        cells = []
        for row in results["reached"][name]:
            interval = f"{100 * row['share_low']:.0f} to {100 * row['share_high']:.0f}"
            known = not math.isnan(row["share"])
            cells.append(f"{100 * row['share']:.0f}% ({interval})" if known else "-")
        end = rows[-1]
        share = "-" if math.isnan(end["share"]) else f"{100 * end['share']:.0f}%"
        share += "" if end["sound"] else " (not sound)"
        lines.append(
            f"| {name} | "
            + " | ".join(cells)
            + f" | {end['kl']:.2f} | {end['score']:.2f} | {share} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run everything that is missing and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, default=Path("runs/frontier-base"))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    setup = ReviewSetup(options.base, options.threads)
    _, scores = setup.reference_samples(REFERENCE_SAMPLES)
    bootstrap = Bootstrap(scores)
    frontier = bootstrap.whole
    best_of = []
    for n in BEST_OF:
        score, kl = float(best_of_n_scores(scores, n).mean()), best_of_kl(n)
        best_of.append({"n": n, "score": score, "kl": kl, "share": frontier.share(score, kl)})
    results: dict[str, Any] = {
        "reference": {"score": float(scores.mean()), "std": float(scores.std())},
        "frontier": {"kl": frontier.kl.tolist(), "score": frontier.score.tolist()},
        "sound_up_to": frontier.sound_up_to,
        "best_of_n": best_of,
        "runs": {},
        "reached": {},
    }
    for name in options.runs:
        points = finish(name, setup, options.output_dir)
        results["runs"][name] = shares(points, bootstrap)
        places = [reached(points, limit) for limit in KL_LIMITS]
        results["reached"][name] = shares(places, bootstrap)
    (options.output_dir / "results.json").write_text(json.dumps(results, indent=1))
    draw(results, frontier, options.output_dir / "frontier.png")
    print(table(results))


if __name__ == "__main__":
    main()
