"""All agents on the same two tasks, seeds and token budget: `textrl benchmark` with everyone.

    python benchmarks/agents.py --base runs/demo-tiny     reuse the demo's SFT and reward model
    python benchmarks/agents.py --tasks letters           the built-in task only, a few minutes

Results lie in OUTPUT/TASK: results.json, table.md, curves.png. Finished cells are not run again.
"""

import argparse
import json
from pathlib import Path

from textrl.benchmark import run as benchmark
from textrl.benchmark.config import BenchmarkConfig
from textrl.errors import UserError

OURS = ("ppo", "rloo", "grpo", "reinforce", "online_dpo", "best_of_n")
SB3 = ("sb3:PPO", "sb3:A2C", "sb3:TRPO", "sb3:MaskablePPO")
STOCK = ("mlp:PPO", "mlp:A2C", "mlp:DQN", "mlp:QRDQN")
TASKS = ("letters", "reviews")
BASELINES = ("reference", "random")


def letters(agents: str, seeds: int) -> BenchmarkConfig:
    """Return the built-in task: letters that must rise."""
    return BenchmarkConfig(
        agents=agents,
        seeds=seeds,
        kl_coef=0.003,  # the whole score is 1, and a choice among 8 tokens is 9 nats away
        max_completion_tokens=8,
        total_timesteps=40_000,
        learning_rate=3e-3,
    )


def reviews(agents: str, seeds: int, base: Path, folder: Path) -> BenchmarkConfig:
    """Return the demo's task: reviews that please people, measured on held-out prompts."""
    from review_setup import ReviewSetup

    setup = ReviewSetup(base, threads=2)
    job = setup.job
    for name, prompts in (
        ("prompts", job.prompts(job.train)),
        ("heldout_prompts", job.prompts(job.heldout)),
    ):
        lines = [json.dumps({"prompt": prompt}) for prompt in prompts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return BenchmarkConfig(
        agents=agents,
        seeds=seeds,
        model=str(base / "sft"),
        reward=str(base / "reward_model"),
        prompts=str(folder / "prompts.jsonl"),
        heldout=str(folder / "heldout_prompts.jsonl"),
        kl_coef=job.preset.kl_coef,
        max_prompt_tokens=job.preset.max_prompt_tokens,
        max_completion_tokens=job.preset.max_completion_tokens,
        total_timesteps=100_000,
        learning_rate=1e-4,
    )


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, default=Path("runs/frontier-base"))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/agents"))
    parser.add_argument("--agents", default=",".join((*OURS, *SB3, *STOCK, *BASELINES)))
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    for task in options.tasks:
        folder = options.output_dir / task
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if task == "letters":
                config = letters(options.agents, options.seeds)
            else:
                config = reviews(options.agents, options.seeds, options.base, folder)
            benchmark.check(config)
        except UserError as error:
            parser.error(str(error))
        print(f"{task}\n{benchmark.table(benchmark.run(config, folder))}")


if __name__ == "__main__":
    main()
