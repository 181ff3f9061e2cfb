"""Hold finished demo runs against their bars: `python tests/check_demo.py PRESET RUN [RUN ...]`.

Called by .ci/run with one run and by benchmarks/proof.py with three. Runs of one seed must have
equal numbers, but for times and memory; of three seeds the medians must reach the higher bars.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

PEAK_MEMORY_MB = {"quick": 3000, "tiny": 3000, "smollm2": 8000}
"""Seconds are printed and not judged: they say more about the machine than about the code."""
MEASURED = ("seconds", "peak_memory_mb", "stage_seconds")
ACCURACY = {"quick": 0.75, "tiny": 0.77, "smollm2": 0.77}
POSITIVE = {"quick": 0.1, "tiny": 0.2}
"""Least gain in the share of texts that an independent judge calls positive, where it is judged."""
ONE_SEED = {
    "quick": {"ppo": 1.0, "dpo": 0.5},
    "tiny": {"ppo": 1.0, "dpo": 0.5},
    "smollm2": {"ppo": 0.3, "dpo": 0.1},
}
"""Least gain in standard deviations of the SFT policy's score. Three seeds of quick gave on two AMD
cores PPO 1.57, 1.36, 1.63, DPO 1.15, 1.08, 1.02, accuracy 0.786, 0.779, 0.774, positive 0.32, 0.21,
0.26; those of tiny stand in docs/proof.md."""
MEDIANS = {
    "tiny": {"ppo": 1.3, "dpo": 0.8},
    "smollm2": {"ppo": 0.3, "dpo": 0.1},
}
"""The same for the median of three seeds."""
LARGEST_KL = {"ppo": 10.0, "dpo": 13.0}
"""Of one seed, which leaves a quarter over what processors and seeds were seen to give: PPO 6.9 to
8.0, DPO, which nothing holds to a KL but its beta, 8.2 to 10.0."""
LARGEST_MEDIAN_KL_OF_PPO = 8.0


def gains_of(summary: dict[str, Any]) -> dict[str, float]:
    """Return how far PPO and DPO raise the score, in standard deviations of the SFT policy's."""
    sft = summary["sft"]
    return {n: (summary[n]["score"] - sft["score"]) / sft["score_std"] for n in ("ppo", "dpo")}


def check(preset: str, folder: Path) -> dict[str, Any]:
    """Print a run's numbers, hold what any seed must reach, and return them."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    sft, ppo, dpo, gains = summary["sft"], summary["ppo"], summary["dpo"], gains_of(summary)
    accuracy = summary["reward_model"]["heldout_accuracy"]
    positive = ppo["judge_positive"] - sft["judge_positive"]
    print(
        f"{folder}: reward model {accuracy:.3f}, PPO {gains['ppo']:+.2f} SD at KL {ppo['kl']:.2f}, "
        f"judged positive {positive:+.2f}, DPO {gains['dpo']:+.2f} SD at KL {dpo['kl']:.2f}, "
        f"{summary['seconds']:.0f} s, {summary['peak_memory_mb']:.0f} MB"
    )
    assert summary["peak_memory_mb"] < PEAK_MEMORY_MB[preset]
    assert accuracy >= ACCURACY[preset]
    assert positive >= POSITIVE.get(preset, -1.0)
    for name, bar in LARGEST_KL.items():
        assert summary[name]["kl"] <= bar, (name, summary[name]["kl"], bar)
    page = (folder / "report.html").read_text()
    assert "src=" not in page
    assert "<script" not in page
    return summary


def check_all(preset: str, folders: list[Path]) -> None:
    """Check each run, then that runs of one seed are equal, or the medians over seeds."""
    summaries = [check(preset, folder) for folder in folders]
    seeds = [summary["seed"] for summary in summaries]
    for summary in summaries:
        twin = summaries[seeds.index(summary["seed"])]
        for name in set(twin) - set(MEASURED):
            assert summary[name] == twin[name], f"two runs with one seed differ in {name}"
    if len(set(seeds)) < 3 or preset not in MEDIANS:
        for name, bar in ONE_SEED[preset].items():
            assert all(gains_of(s)[name] >= bar for s in summaries), (name, bar)
        return
    kl = statistics.median(summary["ppo"]["kl"] for summary in summaries)
    medians = {n: statistics.median(gains_of(s)[n] for s in summaries) for n in ("ppo", "dpo")}
    print(
        f"medians of {len(set(seeds))} seeds: PPO {medians['ppo']:+.2f} SD at KL {kl:.2f}, "
        f"DPO {medians['dpo']:+.2f} SD"
    )
    assert kl <= LARGEST_MEDIAN_KL_OF_PPO, kl
    for name, bar in MEDIANS[preset].items():
        assert medians[name] >= bar, (name, medians[name], bar)


if __name__ == "__main__":
    check_all(sys.argv[1], [Path(name) for name in sys.argv[2:]])
