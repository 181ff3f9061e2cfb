"""What turns cost: a rollout of many turns against one turn with as many tokens, and naive ways.

    python benchmarks/turns_speed.py [--pairs 7] [--turns 4] [--tokens 12] [--reply 12]

Four ways collect 64 rows of as many tokens of the policy, in turn, in one process:

    one turn     `TextRLHF-v0`: all tokens in one completion
    turns        `TextTurns-v0`: the world's replies are read into the caches
    re-encoded   the same, but each turn reads the whole text again, in the policy and the reference
    one by one   the same, one environment after the other, each turn by transformers' `generate` on
                 the whole text, and one pass of the reference (what libraries without a batched
                 environment do); measured on 4 rows and multiplied

The policy is a Llama of 4M parameters over characters. End tokens are banned, so that every turn
has all its tokens. Times are CPU seconds of the process (and wall seconds), medians of pairs.
"""

import argparse
import functools
import json
import statistics
import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

import textrl  # noqa: F401  # registers the environments
from textrl.agents.collect import collect
from textrl.agents.text_env import TextEnv
from textrl.envs import tiny_character_tokenizer
from textrl.generation import ModelConversation, ModelSampler
from textrl.models import split_lm

ROWS, PROMPT = 64, "A prompt of thirty-two letters.\n"
FEW = 4
"""Rows that are measured one by one."""


class Parrot(gym.Env[str, str]):
    """A world that answers every turn with the same text, and ends after some turns."""

    seconds = 0.0
    """Time that all worlds have taken."""

    def __init__(self, turns: int, reply: int) -> None:
        """Take the number of turns and of letters of a reply."""
        self.observation_space = self.action_space = spaces.Text(100, charset=string.printable)
        self.turns, self.text, self.left = turns, "abcdefghij"[: reply - 1].ljust(reply, "."), 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        """Show the prompt."""
        super().reset(seed=seed)
        self.left = self.turns
        return PROMPT, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Answer."""
        began = time.process_time()
        self.left -= 1
        result = self.text, 0.0, self.left == 0, False, {}
        Parrot.seconds += time.process_time() - began
        return result


def model(seed: int) -> PreTrainedModel:
    """Return a Llama of 4M parameters over characters, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=103,
                hidden_size=256,
                intermediate_size=512,
                num_hidden_layers=6,
                num_attention_heads=8,
                max_position_embeddings=2048,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            )
        ).eval()


def environments(options: argparse.Namespace, reference: PreTrainedModel) -> tuple[Any, Any]:
    """Return the environment of one turn and that of many."""
    shared = {
        "num_envs": ROWS,
        "reference": reference,
        "tokenizer": tiny_character_tokenizer(),
        "kl_coef": 0.1,
        "banned_token_ids": [2],
        "max_prompt_tokens": len(PROMPT) + 1,
        "autoreset_mode": "Disabled",
    }
    tokens = options.turns * options.tokens
    one = gym.make_vec(
        "TextRLHF-v0",
        reward=lambda prompts, completions: [0.0] * len(prompts),
        prompts=[PROMPT],
        max_completion_tokens=tokens,
        **shared,
    )
    many = gym.make_vec(
        "TextTurns-v0",
        world=functools.partial(Parrot, options.turns, options.reply),
        max_completion_tokens=tokens + options.turns * (options.reply + 1) + 1,
        max_turn_tokens=options.tokens,
        **shared,
    )
    return one, many


class Forgetful(ModelConversation):
    """A conversation that reads the whole text again at every turn."""

    def sample(self, *arguments: Any, **settings: Any) -> Any:
        """Forget what was read, then sample."""
        if self._decoder is not None:
            self._decoder.lengths[:] = 0
        return super().sample(*arguments, **settings)


class ForgetfulSampler(ModelSampler):
    """A sampler of forgetful conversations."""

    def converse(self, num_rows: int, max_length: int, generator: torch.Generator) -> Any:
        """Return a forgetful conversation."""
        return Forgetful(self, num_rows, max_length, generator)


def re_encoded(policy: PreTrainedModel, many: Any) -> int:
    """Collect with nothing kept between turns; return the number of tokens."""
    core = many.unwrapped.core
    kept = core._logprobs

    def reading_all(*arguments: Any) -> Any:
        core._forget(torch.arange(ROWS).numpy())
        return kept(*arguments)

    core._logprobs = reading_all
    try:
        sampler = ForgetfulSampler(split_lm(policy))
        return int(collect(sampler, TextEnv(many), torch.Generator()).mask.sum())
    finally:
        del core._logprobs


@torch.no_grad()
def one_by_one(policy: PreTrainedModel, reference: PreTrainedModel, options: Any) -> int:
    """Play some rows one after the other, each turn from the whole text; return the tokens."""
    tokenizer, count = tiny_character_tokenizer(), 0
    for _ in range(FEW):
        world = Parrot(options.turns, options.reply)
        text, _ = world.reset()
        ids, over = tokenizer(text, return_tensors="pt").input_ids, False
        while not over:
            grown = policy.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                max_new_tokens=options.tokens,
                min_new_tokens=options.tokens,
                pad_token_id=0,
            )
            reference(input_ids=grown).logits.log_softmax(-1)
            count += options.tokens
            reply, _, over, _, _ = world.step(tokenizer.decode(grown[0, ids.shape[1] :]))
            added = tokenizer(reply, add_special_tokens=False, return_tensors="pt").input_ids
            ids = torch.cat([grown, torch.tensor([[2]]), added], dim=1)
    return count


def timed(work: Callable[[], int]) -> tuple[float, float, int]:
    """Return CPU seconds, wall seconds and tokens of some work."""
    cpu, wall = time.process_time(), time.perf_counter()
    tokens = work()
    return time.process_time() - cpu, time.perf_counter() - wall, tokens


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Return the medians of all ways, and their ratios."""
    policy, reference = model(0), model(1)
    one, many = environments(options, reference)
    sampler = ModelSampler(split_lm(policy))

    def rollout(venv: Any) -> int:
        return int(collect(sampler, TextEnv(venv), torch.Generator()).mask.sum())

    ways: dict[str, Callable[[], int]] = {
        "one turn": lambda: rollout(one),
        "turns": lambda: rollout(many),
        "re-encoded": lambda: re_encoded(policy, many),
        "one by one": lambda: one_by_one(policy, reference, options),
    }
    for work in ways.values():
        work()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    tokens, Parrot.seconds = {}, 0.0
    for _ in range(options.pairs):
        for name, work in ways.items():
            cpu, wall, tokens[name] = timed(work)
            scale = ROWS / FEW if name == "one by one" else 1
            times[name].append((cpu * scale, wall * scale))
    assert tokens["one turn"] == tokens["turns"] == tokens["re-encoded"], tokens
    ratios = {
        f"{slow} / {fast}": statistics.median(
            a[0] / b[0] for a, b in zip(times[slow], times[fast], strict=True)
        )
        for slow, fast in (
            ("turns", "one turn"),
            ("re-encoded", "turns"),
            ("one by one", "turns"),
        )
    }
    return {
        "shape": {"rows": ROWS, "turns": options.turns, "tokens": options.tokens},
        "reply": options.reply,
        "threads": torch.get_num_threads(),
        "cpu_seconds": {n: statistics.median(c for c, _ in t) for n, t in times.items()},
        "wall_seconds": {n: statistics.median(w for _, w in t) for n, t in times.items()},
        "world_seconds": Parrot.seconds / options.pairs,
        "ratios": ratios,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--reply", type=int, default=12)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measured(options)
    print(json.dumps(found, indent=1))
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
