"""People in the loop, closed once: collect -> reward -> ppo -> collect on the new policy.

    python examples/collect_loop.py --base runs/demo-tiny --output_dir runs/loop

Needs `pip install -e '.[collect,demo]'` and the demo's SFT and reward models. Every step is a
command of textrl, as in real work; only the labelers are not people. They rank what the page's API
gives them by the demo's reward model, which learned from 198,810 human ratings of reviews, plus
noise, so that they disagree as people do. The new reward model sees their rankings, nothing else.
"""

import argparse
import json
import math
import random
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from textrl.demo.reviews import load_reviews
from textrl.rewards import RewardModel

OVERLAP = 2
NOISE = 0.5
"""Of a labeler, in standard deviations of the score (logistic, so Bradley-Terry between two)."""


def command(*arguments: str) -> None:
    """Run a command of textrl."""
    subprocess.run([sys.executable, "-m", "textrl", *arguments], check=True)


class Labeler:
    """Ranks through HTTP until nothing is left, like a page that is very fast."""

    def __init__(self, link: str, gold: RewardModel, seed: int) -> None:
        page, token = link.split("#token=")
        self.host = page.rstrip("/").removesuffix("/lead")
        self.token, self.gold, self.random = token, gold, random.Random(seed)
        self.scores: list[float] = []

    def ask(self, path: str, body: dict | None = None) -> dict:
        """Send a POST request and return the answer."""
        request = urllib.request.Request(
            self.host + path,
            data=json.dumps(body or {}).encode(),
            headers={"authorization": f"Bearer {self.token}", "content-type": "application/json"},
            method="POST",
        )
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    def work_once(self) -> bool:
        """Rank one task; False if there is none."""
        task = self.ask("/api/claim")["task"]
        if task is None:
            return False
        prompt = task["prompt"][0]["content"]
        scores = self.gold([prompt] * len(task["outputs"]), task["outputs"])
        self.scores += scores
        felt = [score + NOISE * self.logistic() for score in scores]
        ranks = [sum(other > mine for other in felt) for mine in felt]
        self.ask(f"/api/tasks/{task['task_id']}/answer", {"ranks": ranks, "seconds": 20.0})
        return True

    def logistic(self) -> float:
        """Return a draw of the standard logistic distribution."""
        share = self.random.random()
        return math.log(share / (1 - share))


def collect(model: str, database: str, prompts: Path, gold: RewardModel) -> float:
    """Let two labelers rank four outputs of the model for every prompt; return the mean score."""
    options = [f"--model={model}", f"--prompts={prompts}", f"--database={database}", "--port=0"]
    options += ["--labelers=ann,bob", f"--overlap={OVERLAP}", "--max_completion_tokens=24"]
    server = subprocess.Popen(
        [sys.executable, "-m", "textrl", "collect", *options], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    links = {}
    for line in server.stdout:
        if found := re.match(r" *(\w+): (http\S+)", line):
            links[found[1]] = found[2]
        if line.startswith("Links"):
            break
    labelers = [Labeler(links[name], gold, seed) for seed, name in enumerate(("ann", "bob"))]
    idle_since = time.monotonic()
    try:  # until the sampler has nothing more to show, which it does not say
        while time.monotonic() < idle_since + 20:
            if any([labeler.work_once() for labeler in labelers]):
                idle_since = time.monotonic()
            else:
                time.sleep(0.2)
    finally:
        server.terminate()
        server.wait()
    scores = [score for labeler in labelers for score in labeler.scores]
    return sum(scores) / len(scores)


def main() -> None:
    """Go round once and print the mean score of what the labelers saw before and after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=256, help="fewer teach nothing that shows")
    parser.add_argument("--total_timesteps", type=int, default=80_000)
    options = parser.parse_args()
    folder: Path = options.output_dir
    folder.mkdir(parents=True)
    gold = RewardModel.from_pretrained(options.base / "reward_model")
    starts = [" ".join(review.text.split()[:4]) for review in load_reviews()]
    prompts = folder / "prompts.jsonl"
    rows = [{"prompt": prompt} for prompt in dict.fromkeys(starts)][: options.prompts]
    prompts.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    sft, first = str(options.base / "sft"), f"sqlite:///{folder}/round1.db"

    before = collect(sft, first, prompts, gold)
    reward = ["--learning_rate=5e-4", "--num_epochs=3", "--heldout_share=0.2", "--max_length=96"]
    command(
        *("reward", f"--model={sft}", f"--data={first}", f"--output_dir={folder}/reward", *reward)
    )
    ppo = ["--learning_rate=3e-4", "--episodes_per_iteration=256", "--num_epochs=2"]
    ppo += ["--kl_coef=0.1", "--max_completion_tokens=24"]
    ppo += [f"--total_timesteps={options.total_timesteps}"]
    command(
        *("ppo", f"--model={sft}", f"--reward={folder}/reward", f"--prompts={prompts}"),
        *(f"--output_dir={folder}/ppo", *ppo),
    )
    after = collect(str(folder / "ppo"), f"sqlite:///{folder}/round2.db", prompts, gold)
    print(f"score {before:.3f} before, {after:.3f} after")


if __name__ == "__main__":
    main()
