"""Runs that are sick on purpose, by the name of what `textrl doctor` must find, and healthy ones.

Each function trains for a few seconds with the real agents and trainers, and leaves a run folder.
`python tests/doctor_runs.py` prints what the doctor says of all of them.
"""

import json
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from broken_agents import WrongSign

import textrl  # noqa: F401  # registers the environments
from textrl.agents import GRPO, PPO, RLOO, OnlineDPO, Reinforce
from textrl.agents.rollout import Rollout
from textrl.config import (
    DPOConfig,
    GRPOConfig,
    OnlineDPOConfig,
    PPOConfig,
    ReinforceConfig,
    RewardConfig,
    RLOOConfig,
    SFTConfig,
)
from textrl.doctor.diagnose import diagnose, in_words
from textrl.doctor.records import read_records
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.envs.tasks import tiny_character_model, tiny_score
from textrl.metrics import open_logger
from textrl.models import untrained_classifier
from textrl.run_folder import prepare_run_dir
from textrl.trainers import DPOTrainer, RewardTrainer, SFTTrainer

SMALL = {"episodes_per_iteration": 64, "minibatch_size": 32}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def agent_run(
    folder: Path,
    kind: Any,
    config: Any,
    *,
    iterations: int = 20,
    task: str = "TextRLHF-v0",
    policy: Any = None,
    **environment: Any,
) -> None:
    """Train an agent for some iterations, logged to the folder."""
    venv = gym.make_vec(task, num_envs=64, **environment)
    settings = {
        "episodes_per_iteration": config.episodes_per_iteration,
        "banned_token_ids": list(environment.get("banned_token_ids", ())),
        "reward": str(environment["reward"]) if isinstance(environment.get("reward"), Path) else "",
    }
    prepare_run_dir(folder, settings)
    with open_logger(folder) as logger:
        agent = kind(policy or tiny_model(), venv, config, logger=logger)
        while agent.iteration < iterations:
            agent.learn(1)


def ppo(folder: Path, *, kind: Any = PPO, **settings: Any) -> None:
    """Train PPO; settings of its configuration, then those of the environment."""
    known = PPOConfig.__dataclass_fields__
    own = {name: settings.pop(name) for name in list(settings) if name in known}
    agent_run(folder, kind, PPOConfig(**{"learning_rate": 3e-3, **SMALL, **own}), **settings)


class Cooler(PPO):
    """Takes the log-probs of a reference that is surer of the tokens than the real one."""

    def collect_batch(self) -> Rollout:
        """Return episodes with wrong log-probs."""
        batch = super().collect_batch()
        return replace(batch, ref_logprobs=(batch.ref_logprobs + 0.1) * batch.mask)


def noise(prompts: list[str], completions: list[str]) -> list[float]:
    """Pay at random."""
    seed = zlib.crc32("".join(completions).encode())
    return list(np.random.default_rng(seed).normal(size=len(completions)))


def many_z(prompts: list[str], completions: list[str]) -> list[float]:
    """Pay for each z, without a limit."""
    return [float(text.count("z")) for text in completions]


def variety(prompts: list[str], completions: list[str]) -> list[float]:
    """Return the share of different letters: what people would like to see."""
    return [len(set(text)) / max(len(text), 1) for text in completions]


def length(prompts: list[str], completions: list[str]) -> list[float]:
    """Pay for length."""
    return [len(text) / 4 for text in completions]


def rare(prompts: list[str], completions: list[str]) -> list[float]:
    """Pay for what a random policy says once in some thousand tries."""
    return [float(text.startswith("xyz")) for text in completions]


def slow(prompts: list[str], completions: list[str]) -> list[float]:
    """Take long."""
    time.sleep(0.7)
    return tiny_score(prompts, completions)


def failing(prompts: list[str], completions: list[str]) -> list[float]:
    """Raise for one text in five."""
    if any(text[:1] in "abcde" for text in completions):
        raise ValueError("no such letter")
    return tiny_score(prompts, completions)


def texts(count: int, seed: int = 0) -> list[str]:
    """Return letters in rising order."""
    rng = np.random.default_rng(seed)
    return ["".join(sorted(rng.choice(list(LETTERS), size=8))) for _ in range(count)]


def pairs(count: int, *, coin: bool = False, seed: int = 0) -> list[dict[str, Any]]:
    """Return pairs in which rising letters are better than others, or either by a coin."""
    rng, rows = np.random.default_rng(seed), []
    for text in texts(count, seed):
        other = "".join(rng.permutation(list(LETTERS))[:8])
        good, bad = (text, other) if not coin or rng.random() < 0.5 else (other, text)
        rows.append({"prompt": text[0], "chosen": good[1:], "rejected": bad[1:]})
    return rows


def near_pairs(count: int) -> list[dict[str, Any]]:
    """Return pairs of nearly the same texts, which the model finds likely."""
    return [
        {"prompt": text[0], "chosen": text[1:], "rejected": text[1:-1] + "a"}
        for text in texts(count)
    ]


def sft(folder: Path, rows: Any = None, model: Any = None, **settings: Any) -> Any:
    """Train on demonstrations; return the model."""
    model, rows = model or tiny_model(), rows or [{"text": text} for text in texts(800)]
    config = SFTConfig(**{"learning_rate": 3e-3, "num_epochs": 2, **settings})
    prepare_run_dir(folder, {})
    SFTTrainer(model, tiny_tokenizer(), rows, config, output_dir=folder, shown=False).train()
    return model


def reward(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> None:
    """Train a reward model."""
    with tempfile.TemporaryDirectory() as start:
        tiny_model().save_pretrained(start)
        model, _ = untrained_classifier(start)
    config = RewardConfig(**{"learning_rate": 3e-3, "minibatch_size": 16, **settings})
    prepare_run_dir(folder, {})
    RewardTrainer(model, tiny_tokenizer(), rows, config, output_dir=folder, shown=False).train()


def dpo(folder: Path, rows: list[dict[str, Any]], model: Any = None, **settings: Any) -> None:
    """Train on pairs."""
    config = DPOConfig(**{"learning_rate": 1e-3, "minibatch_size": 16, **settings})
    prepare_run_dir(folder, {})
    trainer = DPOTrainer(
        model or tiny_model(), tiny_tokenizer(), rows, config, output_dir=folder, shown=False
    )
    trainer.train()


def raw_scores(folder: Path) -> None:
    """Train with a reward model whose scores nobody has normalised."""
    model = folder.with_name(f"{folder.name}-reward")
    with tempfile.TemporaryDirectory() as start:
        tiny_model().save_pretrained(start)
        classifier, _ = untrained_classifier(start)
    with torch.no_grad():
        classifier.score.weight.mul_(2.0 / float(classifier.score.weight.std()))
    classifier.config.pad_token_id = 0
    classifier.save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    ppo(
        folder,
        reward=model,
        reference=tiny_model(seed=1),
        tokenizer=tiny_tokenizer(),
        prompts=["a"],
    )


def both_fall(folder: Path) -> None:
    """Train with a high rate on pairs that differ in their last letter."""
    start = sft(folder.with_name(f"{folder.name}-start"))
    dpo(folder, near_pairs(400), start, learning_rate=5e-3, num_epochs=3)


def threads(folder: Path) -> None:
    """Train with more threads than there are cores."""
    ppo(folder, iterations=4)
    machine = json.loads((folder / "machine.json").read_text())
    (folder / "machine.json").write_text(json.dumps(machine | {"threads": 64}))


def grpo(folder: Path, **settings: Any) -> None:
    """Train GRPO."""
    config = GRPOConfig(learning_rate=3e-3, **SMALL)
    agent_run(folder, GRPO, config, group_size=4, **settings)


SICK: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "rate too small": ("reward_flat", lambda f: ppo(f, learning_rate=1e-6)),
    "reward is noise": ("reward_flat", lambda f: ppo(f, reward=noise, kl_coef=0.0)),
    "wrong sign": ("reward_falls", lambda f: ppo(f, kind=WrongSign)),
    "gamed reward": (
        "gibberish",
        lambda f: ppo(f, reward=[(many_z, 1.0), (variety, 0.0)], kl_coef=0.0, iterations=25),
    ),
    "wrong log-probs": ("kl_negative", lambda f: ppo(f, kind=Cooler)),
    "rate too large": ("kl_explodes", lambda f: ppo(f, learning_rate=0.1)),
    "no KL": ("kl_explodes", lambda f: ppo(f, reward=many_z, kl_coef=0.0, iterations=40)),
    "collapse": (
        "entropy_gone",
        lambda f: agent_run(
            f,
            Reinforce,
            ReinforceConfig(learning_rate=0.05, episodes_per_iteration=64),
            kl_coef=0.0,
            iterations=40,
        ),
    ),
    "pays for length": (
        "length_to_budget",
        lambda f: ppo(f, reward=length, kl_coef=0.0, max_completion_tokens=16, iterations=40),
    ),
    "never ends": (
        "eos_never",
        lambda f: ppo(f, max_completion_tokens=16, min_completion_tokens=16),
    ),
    "critic's rate too large": (
        "explained_variance_negative",
        lambda f: ppo(f, critic_learning_rate=1.0, clip_range_vf=None, reward=many_z),
    ),
    "updates do nothing": ("clip_fraction_zero", lambda f: ppo(f, learning_rate=1e-9)),
    "clip range too small": (
        "clip_fraction_high",
        lambda f: ppo(f, learning_rate=0.01, clip_range=0.02, num_epochs=4),
    ),
    "rare reward": ("flat_groups", lambda f: grpo(f, reward=rare)),
    "raw scores": ("reward_out_of_range", raw_scores),
    "constant": ("constant_reward", lambda f: ppo(f, reward=lambda p, c: [1.0] * len(p))),
    "slow reward": ("starved", lambda f: ppo(f, reward=slow, iterations=5)),
    "failing reward": (
        "episodes_masked",
        lambda f: ppo(f, reward=failing, on_reward_error="mask"),
    ),
    "threads": ("too_many_threads", threads),
    "SFT rate too large": ("loss_rises", lambda f: sft(f, learning_rate=3.0)),
    "learnt by heart": (
        "overfit",
        lambda f: reward(f, pairs(120, coin=True), num_epochs=30, heldout_share=0.3),
    ),
    "coin": ("chance", lambda f: reward(f, pairs(600, coin=True))),
    "both fall": ("both_fall", both_fall),
}
"""Name of a run -> what has to be found, and how it is made."""

STEADY: dict[str, Any] = {"learning_rate": 5e-3, "kl_coef": 0.01, "iterations": 40}
HEALTHY: dict[str, Callable[[Path], Any]] = {
    "ppo": lambda f: ppo(f, **STEADY),
    "ppo separate": lambda f: ppo(f, critic="separate", **STEADY),
    "ppo without KL": lambda f: ppo(f, kl_coef=0.0, iterations=30),
    "rloo": lambda f: agent_run(
        f, RLOO, RLOOConfig(learning_rate=3e-3, **SMALL), group_size=4, iterations=30
    ),
    "grpo": lambda f: grpo(f, iterations=30),
    "reinforce": lambda f: agent_run(
        f,
        Reinforce,
        ReinforceConfig(learning_rate=1e-2, episodes_per_iteration=64),
        iterations=40,
    ),
    "online dpo": lambda f: agent_run(
        f,
        OnlineDPO,
        OnlineDPOConfig(learning_rate=2e-3, episodes_per_iteration=128, beta=0.2),
        group_size=4,
        iterations=30,
    ),
    "turns": lambda f: ppo(
        f,
        task="TextRLHF/ProbeLaterTurn-v0",
        policy=tiny_character_model(),
        episodes_per_iteration=256,
        kl_coef=0.0,
        iterations=40,
    ),
    "sft": lambda f: sft(f, heldout_share=0.3),
    "reward": lambda f: reward(f, pairs(600), heldout_share=0.3),
    "dpo": lambda f: dpo(f, pairs(600), sft(f.with_name(f"{f.name}-start"))),
}


def findings(folder: Path) -> list[str]:
    """Return the names of what the doctor finds in a run or its stages."""
    return [found.name for record in read_records(folder) for found in diagnose(record)]


def main() -> None:
    """Make all runs, or those whose names are given, and print what the doctor says."""
    torch.set_num_threads(1)
    made = {**{name: work for name, (_, work) in SICK.items()}, **HEALTHY}
    with tempfile.TemporaryDirectory() as parent:
        for number, name in enumerate(sys.argv[1:] or made):
            folder, began = Path(parent) / str(number), time.monotonic()
            made[name](folder)
            expected = SICK[name][0] if name in SICK else "nothing"
            found = findings(folder)
            right = expected in found if name in SICK else not found
            seconds = time.monotonic() - began
            print(
                f"{'right' if right else 'WRONG'} {name}: {expected}, found {found} {seconds:.0f}s"
            )
            if not right:
                for record in read_records(folder):
                    print(in_words(record, diagnose(record), record.folder.name), flush=True)


if __name__ == "__main__":
    main()
