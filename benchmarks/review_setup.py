"""The review task of the demo for the benchmarks: SFT model, reward model, held-out prompts."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.demo.config import DemoConfig
from textrl.demo.presets import PRESETS
from textrl.demo.reviews import load_reviews, split_reviews
from textrl.demo.run import Job, environment, train_reward_model, train_sft
from textrl.envs import TextRLHFVectorEnv
from textrl.evaluation import Sampled, sample_and_score
from textrl.memory import keep_freed_memory
from textrl.models import load_causal_lm, load_tokenizer
from textrl.rewards import RewardModel

HELDOUT_PROMPTS = 64
PART = 64
"""Samples of every held-out prompt that are drawn and kept at once."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A policy measured on the held-out prompts; arrays are per prompt, so that they pair up."""

    step: int
    score: list[float] = field(repr=False)
    """Mean score of a prompt's samples, [P]."""
    kl: list[float] = field(repr=False)
    """Mean sampled KL of a prompt's samples, nats per sequence, [P]."""


class ReviewSetup:
    """Everything that a policy trained on the reviews is compared with."""

    def __init__(self, folder: Path, threads: int) -> None:
        """Train the SFT and the reward model of the demo's preset `tiny` unless they lie here."""
        torch.set_num_threads(threads)
        keep_freed_memory()
        train, heldout = split_reviews(load_reviews())
        self.job = Job(
            config=DemoConfig(output_dir=str(folder)),
            preset=PRESETS["tiny"],
            folder=folder,
            train=train,
            heldout=heldout,
        )
        if not (folder / "sft" / "model.safetensors").exists():
            train_sft(self.job)
        if not (folder / "reward_model" / "model.safetensors").exists():
            train_reward_model(self.job)
        self.reference: PreTrainedModel = load_causal_lm(folder / "sft")
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(folder / "sft")
        self.score = RewardModel.from_pretrained(folder / "reward_model")
        self.prompts = self.job.prompts(heldout)[:HELDOUT_PROMPTS]

    def new_policy(self) -> PreTrainedModel:
        """Return the SFT model, to be trained."""
        return load_causal_lm(self.job.folder / "sft", dtype="float32")

    def environment(
        self, rows: int, group_size: int, reward: RewardModel | None = None
    ) -> TextRLHFVectorEnv:
        """Return the environment on the training prompts, with another reward model if given."""
        return environment(self.job, rows, group_size, reward)

    def samples(
        self, policy: PreTrainedModel, prompts: list[str], repeats: int, seed: int
    ) -> Sampled:
        """Return so many completions of every prompt, a prompt's in consecutive rows."""
        return sample_and_score(
            policy,
            self.reference,
            self.tokenizer,
            [prompt for prompt in prompts for _ in range(repeats)],
            self.score,
            max_new_tokens=self.job.preset.max_completion_tokens,
            seed=seed,
        )

    def reference_samples(self, count: int) -> tuple[list[list[str]], np.ndarray]:
        """Return texts and scores of so many SFT samples of every held-out prompt, [P N].

        They are drawn in parts that are kept in the folder, so that a killed run goes on.
        """
        texts: list[list[str]] = [[] for _ in self.prompts]
        scores = []
        for part in range(-(-count // PART)):
            path = self.job.folder / f"reference_samples_{len(self.prompts)}_{PART}_{part}.json"
            if not path.exists():
                found = self.samples(self.reference, self.prompts, PART, seed=1000 + part)
                content = {"completions": found.completions, "scores": found.scores}
                path.write_text(json.dumps(content))
                print(f"  reference samples {(part + 1) * PART}/{count}", flush=True)
            rows = json.loads(path.read_text())
            for index in range(len(self.prompts)):
                texts[index] += rows["completions"][index * PART : (index + 1) * PART]
            scores.append(np.array(rows["scores"]).reshape(-1, PART))
        return texts, np.concatenate(scores, axis=1)[:, :count]

    def measure(self, policy: PreTrainedModel, step: int, repeats: int = 4) -> Point:
        """Return a policy's score and KL on every held-out prompt."""
        found = self.samples(policy, self.prompts, repeats, seed=1)
        scores = np.array(found.scores).reshape(-1, repeats).mean(1)
        kl = found.kl.reshape(-1, repeats).mean(1)
        return Point(step=step, score=scores.tolist(), kl=kl.tolist())
