"""Too much of a good thing (2210.10760) in small: policies against proxies of a gold reward model.

    python benchmarks/overoptimization.py --base runs/demo-tiny

The gold reward model has seen all human rankings; each proxy only some human pairs. PPO and
best-of-n climb a proxy while the gold model looks on. With d = sqrt(KL), the paper's curves

    gold gain of best-of-n  d (alpha - beta d)          gold gain of RL  d (alpha - beta log d)

are fitted, and the turning point of each is marked. Finished parts are kept in OUTPUT.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from frontier_estimate import best_of_n_chances
from review_setup import ReviewSetup

from textrl.agents import PPO
from textrl.demo.models import starting_reward_model
from textrl.demo.reviews import review_pairs
from textrl.demo.run import sft_samples
from textrl.evaluation import best_of_kl
from textrl.rewards import RewardModel
from textrl.trainers import RewardTrainer

PAIRS = (100, 300, 1_000, 3_000)
BEST_OF = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SAMPLES = 512
"""Of each held-out prompt, for best-of-n."""
TOKENS = 200_000
"""What PPO may sample against each proxy."""
KL_COEF = 0.02
"""Small, so that the policy goes on climbing."""
MEASURE_EVERY = 3
"""Iterations between measurements."""
ROWS = 256
"""Episodes of an iteration."""


def proxy(setup: ReviewSetup, pairs: int, folder: Path) -> RewardModel:
    """Return a reward model trained on so many human pairs, standardised on SFT samples."""
    if not (folder / "model.safetensors").exists():
        rng = np.random.default_rng(0)
        rows = review_pairs(setup.job.train, pairs, rng)
        model, tokenizer = starting_reward_model(setup.job.config, setup.job.folder / "sft")
        config = replace(setup.job.preset.reward, minibatch_size=16, num_epochs=4)
        RewardTrainer(
            model,
            tokenizer,
            rows,
            config,
            normalize_on=sft_samples(setup.job),
            output_dir=folder,
        ).train()
    return RewardModel.from_pretrained(folder)


def heldout_accuracy(setup: ReviewSetup, model: RewardModel) -> float:
    """Return the share of held-out human pairs (mean ratings 0.5 apart) that a model orders."""
    pairs = review_pairs(setup.job.heldout, 4096, np.random.default_rng(0), min_gap=0.5)
    texts = sorted({str(pair[side]) for pair in pairs for side in ("chosen", "rejected")})
    scores = dict(zip(texts, model([""] * len(texts), texts), strict=True))
    return float(np.mean([scores[str(p["chosen"])] > scores[str(p["rejected"])] for p in pairs]))


def best_of_n(setup: ReviewSetup, model: RewardModel) -> list[dict[str, float]]:
    """Return gold and proxy score of the best of n by the proxy, expected over all n of N."""
    texts, gold = setup.reference_samples(SAMPLES)
    proxies = np.array(
        [
            model([prompt] * SAMPLES, row[:SAMPLES])
            for prompt, row in zip(setup.prompts, texts, strict=True)
        ]
    )
    order = proxies.argsort(1)
    by_proxy = np.take_along_axis(proxies, order, 1)
    gold_by_proxy = np.take_along_axis(gold, order, 1)
    rows = []
    for n in BEST_OF:
        chances = best_of_n_chances(SAMPLES, n)
        rows.append(
            {
                "n": n,
                "kl": best_of_kl(n),
                "proxy": float((by_proxy @ chances).mean()),
                "gold": float((gold_by_proxy @ chances).mean()),
            }
        )
    return rows


def climb(setup: ReviewSetup, model: RewardModel) -> list[dict[str, float]]:
    """Return gold and proxy score of PPO against the proxy, on held-out prompts, on its way."""
    venv = setup.environment(ROWS, group_size=4, reward=model)
    venv.kl_coef = KL_COEF
    policy = setup.new_policy()
    agent = PPO(policy, venv, replace(setup.job.preset.ppo, episodes_per_iteration=ROWS))
    rows = []
    while agent.env_steps < TOKENS:
        if agent.iteration % MEASURE_EVERY == 0:
            found = setup.samples(policy, setup.prompts, 4, seed=1)
            scores = model(found.prompts, found.completions)
            rows.append(
                {
                    "step": agent.env_steps,
                    "kl": float(found.kl.mean()),
                    "proxy": float(np.mean(scores)),
                    "gold": float(np.mean(found.scores)),
                }
            )
            print(f"  ppo {rows[-1]}", flush=True)
        agent.iterate()
    return rows


def fit(rows: list[dict[str, float]], logarithm: bool) -> dict[str, float]:
    """Return alpha, beta and the turning point of the gold score's gain over d = sqrt(KL).

    Least squares of gain = d (alpha - beta d), or d (alpha - beta log d) with `logarithm`; the
    turning point is d = alpha / (2 beta), or exp(alpha / beta - 1).

    >>> rows = [{"kl": d * d, "gold": d * (2.0 - 0.5 * d)} for d in (0.0, 0.5, 1.0, 3.0)]
    >>> {name: round(value, 6) for name, value in fit(rows, logarithm=False).items()}
    {'alpha': 2.0, 'beta': 0.5, 'turning_point': 2.0}
    """
    start = rows[0]["gold"]
    later = [row for row in rows if row["kl"] > 1e-3]
    d = np.sqrt([row["kl"] for row in later])
    bend = d * np.log(d) if logarithm else d * d
    gain = np.array([row["gold"] - start for row in later])
    (alpha, beta), *_ = np.linalg.lstsq(np.stack([d, -bend], axis=1), gain, rcond=None)
    if beta <= 0:
        turning = float("inf")
    else:
        turning = float(np.exp(alpha / beta - 1)) if logarithm else float(alpha / (2 * beta))
    return {"alpha": float(alpha), "beta": float(beta), "turning_point": turning}


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw gold (full) and proxy (dashed) against sqrt(KL), best-of-n left and PPO right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 5), sharey=True)
    for axis, method in zip(axes, ("best_of_n", "ppo"), strict=True):
        for place, (pairs, result) in enumerate(results["proxies"].items()):
            rows, curve = result[method], result[f"{method}_fit"]
            d = np.sqrt(np.maximum([row["kl"] for row in rows], 0.0))
            color = f"C{place}"
            axis.plot(d, [row["gold"] for row in rows], "o", ms=3, color=color)
            axis.plot(d, [row["proxy"] for row in rows], "--", lw=0.8, color=color)
            line = np.linspace(0.01, max(d.max(), 0.1), 100)
            bend = np.log(line) if method == "ppo" else line
            fitted = rows[0]["gold"] + line * (curve["alpha"] - curve["beta"] * bend)
            axis.plot(line, fitted, "-", lw=1, color=color, label=f"{pairs} pairs")
            if curve["turning_point"] <= line[-1]:
                axis.axvline(curve["turning_point"], color=color, lw=0.6, ls=":")
        axis.set_title(f"{method}: gold (points, fit) and proxy (dashed)", fontsize=9)
        axis.set_xlabel("square root of the KL to the SFT model, nats per sequence")
    axes[0].set_ylabel("score (standard deviations of the SFT model)")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Run what is missing and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, default=Path("runs/frontier-base"))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/overoptimization"))
    parser.add_argument("--pairs", type=int, nargs="+", default=PAIRS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    setup = ReviewSetup(options.base, options.threads)
    results: dict[str, Any] = {"gold_accuracy": heldout_accuracy(setup, setup.score), "proxies": {}}
    for pairs in options.pairs:
        path = options.output_dir / f"{pairs}.json"
        if not path.exists():
            model = proxy(setup, pairs, options.output_dir / f"proxy-{pairs}")
            result: dict[str, Any] = {"accuracy": heldout_accuracy(setup, model)}
            result["best_of_n"] = best_of_n(setup, model)
            result["ppo"] = climb(setup, model)
            path.write_text(json.dumps(result, indent=1))
        result = json.loads(path.read_text())
        result["best_of_n_fit"] = fit(result["best_of_n"], logarithm=False)
        result["ppo_fit"] = fit(result["ppo"], logarithm=True)
        results["proxies"][str(pairs)] = result
        print(f"{pairs} pairs: accuracy {result['accuracy']:.3f}, {result['ppo_fit']}")
    (options.output_dir / "results.json").write_text(json.dumps(results, indent=1))
    draw(results, options.output_dir / "overoptimization.png")


if __name__ == "__main__":
    main()
