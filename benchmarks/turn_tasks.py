"""Games and tasks from a weak SFT start to good play, with PPO: what is learnt in 15 minutes.

    python benchmarks/turn_tasks.py [--tasks guess calculator reverse arithmetic letters]
    python benchmarks/turn_tasks.py --draw docs/figures/turn_tasks.png [--output runs/turn_tasks]

Each task has demonstrations of players who mostly do not know how to play; a small Llama over
characters learns to imitate them (SFT), and then PPO learns from the world's rewards. A row says
which share of 512 games of other seeds is won before and after, and how long it took. Rows are kept
in OUTPUT/rows.jsonl, from which the second command draws the curves, and the SFT starts beside them
(`textrl benchmark --task ... --model OUTPUT/guess-start-0` trains others from the same one); the
exit status is 1 where a bar of `RECIPES` is missed.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import textrl  # noqa: F401  # registers the environments
from textrl.agents import PPO, PPOConfig
from textrl.agents.collect import collect
from textrl.agents.text_env import TextEnv
from textrl.chat import PLAIN_TEMPLATE
from textrl.config import SFTConfig
from textrl.durable import append_json_line
from textrl.envs import tiny_character_tokenizer
from textrl.envs.worlds.experts import EXPERTS, Expert
from textrl.envs.worlds.transcripts import play_game
from textrl.generation import ModelSampler
from textrl.metrics import read_json_lines
from textrl.models import split_lm
from textrl.trainers import SFTTrainer

EVALUATION_SEED = 54_321
EVALUATED = 512
SECONDS = 870
"""CPU time after which a run stops, SFT included: 15 minutes, less the evaluation."""

Players = Callable[[np.random.Generator], Expert]
"""Returns the player of one game."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A task and how it is learnt."""

    world: str
    players: Players
    hidden: int = 128
    layers: int = 3
    games: int = 2500
    sft_epochs: int = 2
    max_turn_tokens: int
    max_completion_tokens: int
    kl_coef: float = 0.01
    episodes: int = 256
    """Number of episodes per iteration."""
    learning_rate: float = 1e-3
    token_budget: int
    """Tokens over which the learning rate falls to 0."""
    settings: dict[str, Any] = field(default_factory=dict)
    start_below: float
    end_at_least: float


def guessers(rng: np.random.Generator) -> Expert:
    """Return a player who guesses at random, or, one in ten, one who halves what is left."""
    if rng.random() < 0.1:
        return EXPERTS["textrl/GuessNumber-v0"]
    return lambda texts: str(rng.integers(1, 21))


def calculators(rng: np.random.Generator) -> Expert:
    """Return a player who may call the tool (four in five) and may say its value (one in five)."""
    expert = EXPERTS["textrl/Calculator-v0"]
    calls, copies = rng.random() < 0.8, rng.random() < 0.2

    def play(texts: list[str]) -> str:
        if calls and (copies or len(texts) == 1):
            return expert(texts)
        return str(rng.integers(0, 10 ** int(rng.integers(1, 5))))

    return play


def reversers(rng: np.random.Generator) -> Expert:
    """Return a player who writes the letters in any order, or, one in five, backwards."""
    expert = EXPERTS["textrl/ReverseText-v0"]
    if rng.random() < 0.2:
        return expert
    return lambda texts: "".join(rng.permutation(list(expert(texts))))


def adders(rng: np.random.Generator) -> Expert:
    """Return a player who says any sum of two digits, or, two in five, the right one."""
    expert = EXPERTS["textrl/Arithmetic-v0"]
    if rng.random() < 0.4:
        return expert
    return lambda texts: str(rng.integers(0, 19))


def counters(rng: np.random.Generator) -> Expert:
    """Return a player who says any number up to six, or, two in five, the right one."""
    expert = EXPERTS["textrl/LetterCount-v0"]
    if rng.random() < 0.4:
        return expert
    return lambda texts: str(rng.integers(0, 7))


RECIPES = {
    "guess": Recipe(
        world="textrl/GuessNumber-v0",
        players=guessers,
        games=10_000,
        max_turn_tokens=3,
        max_completion_tokens=120,
        kl_coef=0.02,
        episodes=128,
        learning_rate=8e-4,
        token_budget=550_000,
        settings={"gae_lambda": 1.0},
        start_below=0.35,
        end_at_least=0.80,
    ),
    "calculator": Recipe(
        world="textrl/Calculator-v0",
        players=calculators,
        games=20_000,
        sft_epochs=4,
        max_turn_tokens=12,
        max_completion_tokens=70,
        kl_coef=0.03,
        learning_rate=2e-4,
        token_budget=250_000,
        settings={"gae_lambda": 1.0},
        start_below=0.20,
        end_at_least=0.90,
    ),
    "reverse": Recipe(
        world="textrl/ReverseText-v0",
        players=reversers,
        hidden=256,
        layers=6,
        max_turn_tokens=6,
        max_completion_tokens=16,
        learning_rate=5e-4,
        token_budget=110_000,
        start_below=0.70,
        end_at_least=0.80,
    ),
    "arithmetic": Recipe(
        world="textrl/Arithmetic-v0",
        players=adders,
        hidden=256,
        layers=6,
        games=12_000,
        sft_epochs=5,
        max_turn_tokens=4,
        max_completion_tokens=12,
        kl_coef=0.1,
        learning_rate=2e-4,
        token_budget=80_000,
        settings={"gae_lambda": 1.0},
        start_below=0.50,
        end_at_least=0.95,
    ),
    "letters": Recipe(
        world="textrl/LetterCount-v0",
        players=counters,
        hidden=256,
        layers=6,
        games=12_000,
        sft_epochs=3,
        max_turn_tokens=2,
        max_completion_tokens=12,
        kl_coef=0.1,
        learning_rate=3e-4,
        token_budget=90_000,
        settings={"gae_lambda": 1.0},
        start_below=0.60,
        end_at_least=0.90,
    ),
}


def model(recipe: Recipe, seed: int) -> PreTrainedModel:
    """Return a Llama over characters with seeded random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tiny_character_tokenizer()),
                hidden_size=recipe.hidden,
                intermediate_size=2 * recipe.hidden,
                num_hidden_layers=recipe.layers,
                num_attention_heads=recipe.hidden // 32,
                max_position_embeddings=512,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            )
        )
    return made.eval()


def demonstrations(recipe: Recipe, seed: int) -> list[dict[str, Any]]:
    """Return games as messages, in which only the player's turns are learnt."""
    rng, rows, world = np.random.default_rng(seed), [], gym.make(recipe.world)
    for _ in range(recipe.games):
        game = play_game(world, recipe.players(rng), seed=int(rng.integers(2**31)))
        rows.append({"messages": game.row()["messages"]})
    return rows


def started(recipe: Recipe, seed: int) -> PreTrainedModel:
    """Return a model that imitates the demonstrations."""
    start, tokenizer = model(recipe, seed), tiny_character_tokenizer()
    tokenizer.chat_template = PLAIN_TEMPLATE
    config = SFTConfig(
        learning_rate=1e-3,
        minibatch_size=64,
        num_epochs=recipe.sft_epochs,
        max_length=400,
        seed=seed,
        heldout_share=0.0,
    )
    rows = demonstrations(recipe, seed)
    SFTTrainer(start, tokenizer, rows, config, shown=False).train()
    return start


def make_venv(recipe: Recipe, reference: PreTrainedModel, rows: int) -> Any:
    """Return the task as a vector environment of tokens."""
    return gym.make_vec(
        "TextTurns-v0",
        num_envs=rows,
        world=recipe.world,
        reference=reference,
        tokenizer=tiny_character_tokenizer(),
        kl_coef=recipe.kl_coef,
        max_turn_tokens=recipe.max_turn_tokens,
        max_completion_tokens=recipe.max_completion_tokens,
        autoreset_mode="Disabled",
    )


def measured(recipe: Recipe, policy: PreTrainedModel, reference: PreTrainedModel) -> Any:
    """Return the mean return and KL of a policy in games of other seeds."""
    venv = make_venv(recipe, reference, EVALUATED)
    venv.reset(seed=EVALUATION_SEED)
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    found = collect(ModelSampler(split_lm(policy)), TextEnv(venv), generator)
    return float(found.scores.mean()), float(found.sequence_kl.mean())


def run(name: str, seed: int, output: Path) -> dict[str, Any]:
    """Learn a task, keeping the SFT start as a folder of `output`; return the row."""
    recipe, began, worked = RECIPES[name], time.monotonic(), time.process_time()
    reference = started(recipe, seed)
    for part in (reference, tiny_character_tokenizer()):
        part.save_pretrained(output / f"{name}-start-{seed}")
    policy = model(recipe, seed)
    policy.load_state_dict(reference.state_dict())
    before, _ = measured(recipe, policy, reference)
    config = PPOConfig(
        episodes_per_iteration=recipe.episodes,
        minibatch_size=64,
        num_epochs=2,
        learning_rate=recipe.learning_rate,
        decay_timesteps=recipe.token_budget,
        seed=seed,
        **recipe.settings,
    )
    agent = PPO(policy, make_venv(recipe, reference, recipe.episodes), config)
    curve: list[list[float]] = []
    while agent.env_steps < recipe.token_budget and time.process_time() - worked < SECONDS:
        numbers = agent.iterate()
        curve.append([agent.env_steps, numbers["rollout/score"], numbers["rollout/kl"]])
        if agent.iteration % 20 == 0:
            share, score = agent.env_steps / recipe.token_budget, numbers["rollout/score"]
            print(f"[{name}, seed {seed}] {share:.0%}: score {score:.3f}", flush=True)
    after, kl = measured(recipe, policy, reference)
    return {
        "task": name,
        "seed": seed,
        "before": before,
        "after": after,
        "kl": kl,
        "tokens": agent.env_steps,
        "minutes": (time.monotonic() - began) / 60,
        "cpu_minutes": (time.process_time() - worked) / 60,
        "passes": before < recipe.start_below and after >= recipe.end_at_least,
        "curve": curve,
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the mean return of each iteration's games against tokens, a line a seed."""
    names = [name for name in RECIPES if name in {row["task"] for row in rows}]
    figure, grid = plt.subplots(1, len(names), figsize=(3.4 * len(names), 3), layout="constrained")
    for axes, name in zip(np.atleast_1d(grid), names, strict=True):
        recipe = RECIPES[name]
        own = sorted((row for row in rows if row["task"] == name), key=lambda row: row["seed"])
        for row in own:  # one colour a seed in all panels
            tokens, score, _ = np.array(row["curve"]).T
            axes.plot(tokens / 1000, score, linewidth=1, label=f"seed {row['seed']}")
        axes.axhline(recipe.end_at_least, color="#888888", linestyle="--", linewidth=1)
        axes.set(title=recipe.world[7:], ylim=(0, 1.02), xlabel="thousand tokens")
        axes.spines[["top", "right"]].set_visible(False)
    first = np.atleast_1d(grid)[0]
    first.set_ylabel("mean return of training games")
    first.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Run what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/turn_tasks"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draw", type=Path, help="draw the rows that are there; run nothing")
    options = parser.parse_args()
    if options.draw is not None:
        draw(read_json_lines(options.output / "rows.jsonl"), options.draw)
        return 0
    torch.set_num_threads(options.threads)
    options.output.mkdir(parents=True, exist_ok=True)
    passed = []
    for name, seed in itertools.product(options.tasks, options.seeds):
        row = run(name, seed, options.output)
        append_json_line(options.output / "rows.jsonl", row)
        print(json.dumps({k: v for k, v in row.items() if k != "curve"}), flush=True)
        passed.append(row["passes"])
    return 0 if all(passed) else 1


if __name__ == "__main__":
    raise SystemExit(main())
