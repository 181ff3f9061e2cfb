"""Tasks small enough to enumerate, with a real tiny transformer as their reference.

Four are of one turn; the fifth, "turns", is the game of `two_turns.py` with the same reference.

Nine tokens (pad, bos, eos, letters a to f), four prompts, at most four tokens: 4,681 completions
of each prompt. The reference is a two-layer Llama after SFT on strings of a Markov chain, so its
probabilities span orders of magnitude and it ends its texts itself. Scores are standardised on the
reference to mean 0 and one spread.
"""

import functools
from typing import Any

import gymnasium as gym
import numpy as np
from exact import Enumeration, ScoreOf
from gymnasium.vector import VectorEnv
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from two_turns import TurnEnumeration, make_two_turns

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.config import SFTConfig
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.rewards import RewardModel
from textrl.trainers import SFTTrainer

LETTERS = "abcdef"
PROMPTS = ["ab", "bd", "ce", "fa"]
MAX_TOKENS = 4
HIDDEN = 32
SPREAD = 0.6
"""Standard deviation of every score on the reference."""
RARE = "fbf"
WORTH = {"a": 0.0, "b": 1.0, "c": -1.0, "d": 0.6, "e": -0.4, "f": 0.2}


def dense(prompt: str, completion: str) -> float:
    """Return the sum of the letters' worth."""
    return sum(WORTH[letter] for letter in completion)


def sparse(prompt: str, completion: str) -> float:
    """Return 1 for a completion with the rare string in it (3 in 100), else 0."""
    return float(RARE in completion)


def length(prompt: str, completion: str) -> float:
    """Return minus the distance from two letters and then EOS."""
    return -float(abs(len(completion) - 2))


def prompted(prompt: str, completion: str) -> float:
    """Return how often the prompt's first letter comes again."""
    return float(completion.count(prompt[0]))


TASKS: dict[str, ScoreOf] = {
    "dense": dense,
    "sparse": sparse,
    "length": length,
    "prompt": prompted,
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of all tasks."""
    return tiny_tokenizer(LETTERS)


@functools.cache
def reference() -> PreTrainedModel:
    """Return the reference; do not train it, take `new_policy()`."""
    rng = np.random.default_rng(0)
    chain = rng.dirichlet(np.full(len(LETTERS), 0.7), size=len(LETTERS))
    rows = []
    for _ in range(4000):
        text = LETTERS[rng.integers(len(LETTERS))]
        while rng.random() < 0.8 and len(text) < 9:
            text += LETTERS[rng.choice(len(LETTERS), p=chain[LETTERS.index(text[-1])])]
        rows.append({"text": text})
    model = tiny_model(vocab_size=3 + len(LETTERS), hidden_size=HIDDEN)
    config = SFTConfig(learning_rate=5e-3, minibatch_size=100, num_epochs=3)
    SFTTrainer(model, tokenizer(), rows, config, shown=False).train()
    return model


def new_policy() -> PreTrainedModel:
    """Return a copy of the reference, to be trained."""
    policy = tiny_model(vocab_size=3 + len(LETTERS), hidden_size=HIDDEN)
    policy.load_state_dict(reference().state_dict())
    return policy


@functools.cache
def enumeration(task: str) -> Enumeration | TurnEnumeration:
    """Return all completions of a task, with its standardised score, or all games of "turns"."""
    if task == "turns":
        return TurnEnumeration(tokenizer(), reference())
    return Enumeration(PROMPTS, tokenizer(), reference(), score_of(task), MAX_TOKENS)


@functools.cache
def score_of(task: str) -> ScoreOf:
    """Return the task's score, standardised on the reference's completions of all prompts."""
    raw = TASKS[task]
    enumerated = Enumeration(PROMPTS, tokenizer(), reference(), raw, MAX_TOKENS)
    p = enumerated.ref_logprobs.exp() / len(PROMPTS)
    mean = float((p * enumerated.scores).sum())
    std = float((p * (enumerated.scores - mean).square()).sum().sqrt())

    def standardised(prompt: str, completion: str) -> float:
        return SPREAD * (raw(prompt, completion) - mean) / std

    return standardised


def make_venv(
    task: str,
    *,
    kl_coef: float,
    num_envs: int = 256,
    group_size: int = 1,
    reward_model: RewardModel | None = None,
    **options: Any,
) -> VectorEnv:
    """Return the task as a vector environment.

    Args:
        task: a key of TASKS, or "turns".
        kl_coef: score units per nat.
        num_envs: rows.
        group_size: rows of one prompt.
        reward_model: weighs nothing in the score; the critic may start from it.
        options: further arguments of the environment.
    """
    settings = {"autoreset_mode": "Disabled", "num_envs": num_envs, "kl_coef": kl_coef} | options
    settings["group_size"] = group_size
    if task == "turns":
        return make_two_turns(tokenizer(), reference(), **settings)
    function = score_of(task)

    def score(prompts: list[str], completions: list[str]) -> list[float]:
        return [function(p, c) for p, c in zip(prompts, completions, strict=True)]

    rewards: list[Any] = [score] if reward_model is None else [score, (reward_model, 0.0)]
    return gym.make_vec(
        "TextRLHF-v0",
        reference=reference(),
        tokenizer=tokenizer(),
        reward=rewards,
        prompts=PROMPTS,
        max_prompt_tokens=4,
        max_completion_tokens=MAX_TOKENS,
        **settings,
    )
