"""RL4LMs' IMDB protocol: continue the first half of a review positively (2210.01241, section 4).

    python benchmarks/rl4lms_imdb.py                                online: GPT-2 and IMDB by name
    python benchmarks/rl4lms_imdb.py --base runs/demo-tiny          offline: the demo's models

Prompt: the first half of a review's words, cut to 64 tokens. 48 new tokens, EOS withheld. 10 rows x
128 steps x 50 iterations = 64,000 token-steps of PPO (Stable-Baselines3's MaskablePPO here; batch
64, 5 epochs), beta 0.1 steered by the mean KL a token to 0.5 (both from their gpt2_ppo.yml). Score:
P(positive) of a sentiment classifier on prompt and continuation. Perplexity is the policy's on
people's own second halves, as theirs is; beside it the reference's on the generated texts.

Not as theirs: tokens are drawn from the full softmax, minibatches are whole episodes, and the KL
is between the policy without EOS and the reference with it, so -log(1 - P(EOS)) a token too large.

Published with GPT-2: sentiment 0.489 -> 0.605, perplexity 32.2 -> 33.5. The online form needs
`pip install -e '.[hub,contrib]'`, a network and preferably a GPU; it has not been run here, where
there is neither.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from sb3_contrib import MaskablePPO
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.envs.sb3 import (
    MaskableCausalLMPolicy,
    MaskableEpisodeRolloutBuffer,
    SubtractPolicyKL,
    TextVecEnv,
)
from textrl.memory import keep_freed_memory
from textrl.models import load_causal_lm, load_tokenizer, split_lm
from textrl.policy import PolicyModule
from textrl.types import Sequence, stack_sequences

PROMPT_TOKENS, NEW_TOKENS = 64, 48
ROWS, STEPS, ITERATIONS = 10, 128, 50
TARGET_KL = 0.5
"""Nats a token."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Models and texts of one form of the task."""

    policy: str | Path
    learning_rate: float
    score: Any
    train: list[str]
    """Reviews that prompts are made of."""
    test: list[str]


def online() -> Protocol:
    """Return the published form: GPT-2 tuned on IMDB, a DistilBERT classifier."""
    from datasets import load_dataset

    name = "lvwerra/distilbert-imdb"
    classifier = AutoModelForSequenceClassification.from_pretrained(name).eval()
    tokenizer = AutoTokenizer.from_pretrained(name, truncation_side="left")

    @torch.no_grad()
    def positive(prompts: list[str], completions: list[str]) -> list[float]:
        texts = [prompt + text for prompt, text in zip(prompts, completions, strict=True)]
        batch = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
        chances: list[float] = classifier(**batch).logits.softmax(-1)[:, 1].tolist()
        return chances

    data = load_dataset("stanfordnlp/imdb")
    return Protocol(
        policy="lvwerra/gpt2-imdb",
        learning_rate=1e-6,
        score=positive,
        train=data["train"].shuffle(seed=0)["text"][:20_000],
        test=data["test"].shuffle(seed=0)["text"][:5_000],
    )


def offline(base: Path) -> Protocol:
    """Return the same protocol on the review snippets with the demo's SFT and reward model."""
    from review_setup import ReviewSetup

    setup = ReviewSetup(base, torch.get_num_threads())

    def positive(prompts: list[str], completions: list[str]) -> list[float]:
        scores = torch.tensor(setup.score(prompts, completions))
        chances: list[float] = scores.sigmoid().tolist()
        return chances

    return Protocol(
        policy=base / "sft",
        learning_rate=1e-4,
        score=positive,
        train=[review.text for review in setup.job.train],
        test=[review.text for review in setup.job.heldout],
    )


def halves(
    texts: list[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[dict[str, str]], list[str]]:
    """Return prompts (the first half of the words, cut to 64 tokens) and people's second halves."""
    prompts, endings = [], []
    for text in texts:
        words = text.split()
        if len(words) < 8:
            continue
        first = " ".join(words[: len(words) // 2])
        ids = tokenizer(first).input_ids[:PROMPT_TOKENS]
        prompts.append({"prompt": str(tokenizer.decode(ids, skip_special_tokens=True))})
        endings.append(" " + " ".join(words[len(words) // 2 :]))
    return prompts, endings


class SteerKL(SubtractPolicyKL):
    """Pays the agent's half of the KL and steers beta as RL4LMs does, by the mean KL a token."""

    def __init__(self) -> None:
        super().__init__()
        self._kl: list[float] = []

    def _on_step(self) -> bool:
        ref = np.array([info["ref_logprob"] for info in self.locals["infos"]])
        self._kl += (self.locals["log_probs"].cpu().numpy() - ref).tolist()
        return super()._on_step()

    def _on_rollout_end(self) -> None:
        kl_coef = float(self.training_env.get_attr("kl_coef")[0])
        error = np.clip(np.mean(self._kl) / TARGET_KL - 1, -0.2, 0.2)
        self.training_env.set_attr("kl_coef", kl_coef * (1 + 0.1 * float(error)))
        self._kl.clear()


@torch.no_grad()
def perplexity(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[dict[str, str]],
    endings: list[str],
) -> float:
    """Return exp of the policy's mean negative log-likelihood a token on people's endings."""
    lm, total, count = split_lm(policy), 0.0, 0
    for start in range(0, len(prompts), 32):
        sequences = []
        for row, ending in zip(
            prompts[start : start + 32], endings[start : start + 32], strict=True
        ):
            prompt = tokenizer(row["prompt"]).input_ids
            rest = tokenizer(ending, add_special_tokens=False).input_ids[:NEW_TOKENS]
            counts = [False] * len(prompt) + [True] * len(rest)
            sequences.append(Sequence(ids=prompt + rest, counts=counts))
        batch = stack_sequences(sequences, lm.device)
        total -= float(PolicyModule(lm).logprobs_of(batch)[batch.mask].double().sum())
        count += int(batch.mask.sum())
    return float(np.exp(total / count))


def evaluate(agent: MaskablePPO, protocol: Protocol, count: int) -> dict[str, float]:
    """Return sentiment and both perplexities on test prompts."""
    policy = agent.policy
    assert isinstance(policy, MaskableCausalLMPolicy)
    tokenizer = load_tokenizer(protocol.policy)
    prompts, endings = halves(protocol.test, tokenizer)
    prompts, endings = prompts[:count], endings[:count]
    venv = make_venv(protocol, prompts, rows=min(64, len(prompts)))
    scores: list[float] = []
    ref: list[float] = []
    for start in range(0, len(prompts), venv.num_envs):
        venv.set_options([{"index": (start + i) % len(prompts)} for i in range(venv.num_envs)])
        observation = venv.reset()
        for _ in range(NEW_TOKENS):
            masks = np.stack(venv.env_method("action_masks"))
            actions, _ = policy.predict(observation, action_masks=masks)
            observation, _, _, infos = venv.step(actions)
            ref += [info["ref_logprob"] for info in infos]
        scores += [info["score"] for info in infos]
    return {
        "sentiment": float(np.mean(scores[: len(prompts)])),
        "perplexity_on_people": perplexity(policy.model, tokenizer, prompts, endings),
        "reference_perplexity_on_samples": float(np.exp(-np.mean(ref))),
    }


def make_venv(protocol: Protocol, prompts: list[dict[str, str]], rows: int) -> TextVecEnv:
    """Return the task for SB3; EOS is withheld for all 48 tokens."""
    return TextVecEnv(
        gym.make_vec(
            "TextRLHF-v0",
            num_envs=rows,
            reference=protocol.policy,
            reward=protocol.score,
            prompts=prompts,
            kl_coef=0.1,
            max_prompt_tokens=PROMPT_TOKENS,
            max_completion_tokens=NEW_TOKENS,
            min_completion_tokens=NEW_TOKENS,
            autoreset_mode="SameStep",
        )
    )


def main() -> None:
    """Train by the protocol and print the numbers before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, help="demo run for the offline form")
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--eval_prompts", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/rl4lms_imdb.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    protocol = online() if options.base is None else offline(options.base)
    tokenizer = load_tokenizer(protocol.policy)
    agent = MaskablePPO(
        MaskableCausalLMPolicy,
        make_venv(protocol, halves(protocol.train, tokenizer)[0], ROWS),
        n_steps=STEPS,
        batch_size=64,
        n_epochs=5,
        learning_rate=protocol.learning_rate,
        gamma=1.0,
        gae_lambda=0.95,
        policy_kwargs={"model": load_causal_lm(protocol.policy, dtype="float32")},
        rollout_buffer_class=MaskableEpisodeRolloutBuffer,
        seed=options.seed,
    )
    before, began = evaluate(agent, protocol, options.eval_prompts), time.monotonic()
    agent.learn(options.iterations * ROWS * STEPS, callback=SteerKL())
    seconds = time.monotonic() - began
    after = evaluate(agent, protocol, options.eval_prompts)
    result = {"before": before, "after": after, "tokens": agent.num_timesteps, "seconds": seconds}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1))
    for name, value in before.items():
        print(f"{name}: {value:.3f} -> {after[name]:.3f}")
    print(f"{agent.num_timesteps} tokens in {seconds:.0f} s")
    print(f"score {before['sentiment']:.3f} before, {after['sentiment']:.3f} after")


if __name__ == "__main__":
    main()
