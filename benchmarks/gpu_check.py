"""What must hold on a GPU, in a few minutes: `python benchmarks/gpu_check.py [--output FILE]`.

CI has no GPU, so this is run by hand. It holds the identities (step = step_sequence, the first
ratio is 1, the KL at the start is 0, the GPU agrees with the CPU), trains by SFT, DPO and PPO, and
prints tokens per second and peak memory. Any check that fails is named, and the command then exits
with 1.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.agents import GRPO, PPO, GRPOConfig, PPOConfig
from textrl.envs import tiny_tokenizer
from textrl.trainers import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

Numbers = dict[str, Any]
ROWS, TOKENS = 64, 64


def model(hidden: int = 256, layers: int = 6) -> LlamaForCausalLM:
    """Return a Llama with seeded weights that reads the tiny tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=29,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def letters(prompts: list[str], completions: list[str]) -> list[float]:
    """Return the share of "c" in each completion."""
    return [completion.count("c") / TOKENS for completion in completions]


def environment(device: str, **options: Any) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Return ROWS rows of the letters task, its reference on the device."""
    return gym.make_vec(
        "TextRLHF-v0",
        num_envs=ROWS,
        reference=model().to(device),
        tokenizer=tiny_tokenizer(),
        reward=letters,
        prompts=["a", "bcd", "efghij"],
        max_completion_tokens=TOKENS,
        autoreset_mode="Disabled",
        device=device,
        **options,
    )


def stepping() -> Numbers:
    """Hold step against step_sequence, and the GPU's log-probs against the CPU's."""
    actions = np.random.default_rng(0).integers(3, 29, (ROWS, TOKENS))
    found = {}
    for device in ("cpu", "cuda"):
        venv = environment(device)
        venv.reset(seed=0)
        _, infos = venv.step_sequence(actions, np.ones_like(actions, bool))  # type: ignore[attr-defined]
        found[device] = infos["ref_logprobs"]
    venv.reset(seed=0)
    began = time.monotonic()
    stepped = np.stack([venv.step(actions[:, t])[4]["ref_logprob"] for t in range(TOKENS)], axis=1)
    seconds = time.monotonic() - began
    return {
        "step against step_sequence": float(abs(stepped - found["cuda"]).max()),
        "GPU against CPU": float(abs(found["cpu"] - found["cuda"]).max()),
        "tokens per second": ROWS * TOKENS / seconds,
        "passed": bool(
            abs(stepped - found["cuda"]).max() < 1e-3
            and abs(found["cpu"] - found["cuda"]).max() < 1e-3
        ),
    }


def ppo(precision: str, critic: str) -> Numbers:
    """Train by PPO; hold the identities of the first minibatch and that the score rises."""
    torch.cuda.reset_peak_memory_stats()
    config = PPOConfig(
        episodes_per_iteration=4 * ROWS,
        minibatch_size=ROWS,
        num_epochs=1,
        learning_rate=1e-3,
        precision=precision,
        critic=critic,
    )
    agent = PPO(model().to("cuda"), environment("cuda", kl_coef=0.001), config)
    began = time.monotonic()
    rows = [agent.iterate() for _ in range(12)]
    seconds = time.monotonic() - began
    first, last = rows[0], rows[-1]
    return {
        "first ratio error": first["train/first_ratio_error"],
        "KL at the start": first["rollout/kl"],
        "score": [first["rollout/score"], last["rollout/score"]],
        "tokens per second": agent.env_steps / seconds,
        "peak MB": torch.cuda.max_memory_allocated() / 1e6,
        "passed": bool(
            first["train/first_ratio_error"] < (1e-4 if precision == "float32" else 1e-2)
            and abs(first["rollout/kl"]) < (1e-2 if precision == "float32" else 0.5)
            and last["rollout/score"] > first["rollout/score"] + 0.01
        ),
    }


def grpo() -> Numbers:
    """Train by GRPO; the score rises."""
    config = GRPOConfig(episodes_per_iteration=4 * ROWS, minibatch_size=ROWS, learning_rate=1e-3)
    venv = environment("cuda", kl_coef=0.001, group_size=4)
    agent = GRPO(model().to("cuda"), venv, config)
    scores = [agent.iterate()["rollout/score"] for _ in range(12)]
    return {"score": [scores[0], scores[-1]], "passed": scores[-1] > scores[0] + 0.01}


def trainers() -> Numbers:
    """Train by SFT and DPO; SFT's loss falls, and DPO starts from log 2."""
    policy = model().to("cuda")
    texts = [{"text": "abcdefghijklmnop"[: 4 + i % 12]} for i in range(256)]
    pairs = [{"prompt": "ab", "chosen": "cdef", "rejected": "zyx"}] * 64
    before = copy.deepcopy(policy.state_dict())
    sft = SFTTrainer(policy, tiny_tokenizer(), texts, SFTConfig(num_epochs=4), shown=False)
    loss = sft.train()
    dpo = DPOTrainer(policy, tiny_tokenizer(), pairs, DPOConfig(num_epochs=1), shown=False).train()
    moved = any(not torch.equal(v, before[k]) for k, v in policy.state_dict().items())
    return {"sft": loss, "dpo": dpo, "passed": moved}


CHECKS: dict[str, Callable[[], Numbers]] = {
    "stepping": stepping,
    "ppo, float32, value head": lambda: ppo("float32", "value_head"),
    "ppo, float32, separate critic": lambda: ppo("float32", "separate"),
    "ppo, bfloat16, value head": lambda: ppo("bfloat16", "value_head"),
    "grpo": grpo,
    "sft and dpo": trainers,
}


def main() -> None:
    """Run every check and print its numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", help="a JSON file for the numbers")
    output = parser.parse_args().output
    if not torch.cuda.is_available():
        sys.exit("no GPU here: torch.cuda.is_available() is False")
    results: dict[str, Numbers] = {}
    print(torch.cuda.get_device_name(), torch.__version__, flush=True)
    for name, check in CHECKS.items():
        try:
            results[name] = check()
        except Exception as error:  # the other checks still say what holds
            results[name] = {"passed": False, "error": f"{type(error).__name__}: {error}"}
        print(name, json.dumps(results[name], default=str), flush=True)
    if output:
        Path(output).write_text(json.dumps(results, indent=2, default=str) + "\n")
    failed = [name for name, numbers in results.items() if not numbers["passed"]]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
