"""Assert the numbers of finished demo runs: `python tests/check_demo.py PRESET RUN [RUN]`.

Called by .ci/run and benchmarks/proof.py. Of two runs with one seed, all numbers but times and
memory must be equal.
"""

import json
import sys
from pathlib import Path
from typing import Any

LIMITS = {"tiny": {"peak_memory_mb": 3000}, "smollm2": {"peak_memory_mb": 8000}}
"""Seconds are printed and not judged: they say more about the machine than about the code."""
MEASURED = ("seconds", "peak_memory_mb", "stage_seconds")


def check(preset: str, folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text())
    sft, ppo, dpo = summary["sft"], summary["ppo"], summary["dpo"]
    gains = {n: (summary[n]["score"] - sft["score"]) / sft["score_std"] for n in ("ppo", "dpo")}
    accuracy = summary["reward_model"]["heldout_accuracy"]
    positive = ppo["judge_positive"] - sft["judge_positive"]
    print(
        f"{folder}: reward model {accuracy:.3f}, PPO {gains['ppo']:+.2f} SD at KL {ppo['kl']:.2f}"
    )
    print(f"  judged positive {positive:+.2f}, DPO {gains['dpo']:+.2f} SD at KL {dpo['kl']:.2f}")
    print(f"  {summary['seconds']:.0f} s, {summary['peak_memory_mb']:.0f} MB")
    for name, limit in LIMITS[preset].items():
        assert summary[name] < limit, (name, summary[name])
    assert accuracy >= 0.77
    if preset == "tiny":
        assert gains["ppo"] >= 1.0
        assert gains["dpo"] >= 0.7
        assert max(ppo["kl"], dpo["kl"]) <= 10
        assert positive >= 0.20
    else:
        assert gains["ppo"] > 0.3
        assert gains["dpo"] > 0.1
    page = (folder / "report.html").read_text()
    assert "src=" not in page
    assert "<script" not in page
    return {name: value for name, value in summary.items() if name not in MEASURED}


if __name__ == "__main__":
    found = [check(sys.argv[1], Path(name)) for name in sys.argv[2:]]
    assert all(numbers == found[0] for numbers in found), "two runs with one seed differ"
