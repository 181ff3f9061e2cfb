"""What the fault tests train on: tiny models, data files and a reward, in a folder of their own."""

import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import peft
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.config import RewardConfig
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.models import load_causal_lm
from textrl.trainers import RewardTrainer
from textrl.trainers.reward import reward_model_from

TEXTS = [{"text": "abcdefghijklm"[: 2 + index]} for index in range(11)]
PAIRS = [{"prompt": p, "chosen": "bcd", "rejected": "zz"} for p in "abcdefghijk"]
PROMPTS = [{"prompt": letter} for letter in "abcdefgh"]
REWARD = "def letters(prompts, completions):\n    return [float(len(c)) for c in completions]\n"


@dataclass(frozen=True)
class Inputs:
    """The inputs of all runs."""

    folder: Path

    def write(self) -> None:
        """Write the files and train a reward model."""
        for name, rows in (("texts", TEXTS), ("pairs", PAIRS), ("prompts", PROMPTS)):
            lines = [json.dumps(row) for row in rows]
            (self.folder / f"{name}.jsonl").write_text("\n".join(lines))
        (self.folder / "my_reward.py").write_text(REWARD)
        sys.path.insert(0, str(self.folder))
        self._save(tiny_model(), self.folder / "model")
        for command in ("sft", "reward"):
            folder = Path(self.adapter(command))
            self._save(self.new_model(command, lora=True), folder)
            config = folder / "adapter_config.json"
            settings = json.loads(config.read_text())
            config.write_text(json.dumps(settings | {"base_model_name_or_path": self.model}))
        trainer = RewardTrainer(
            self.new_model("reward", lora=False),
            self.tokenizer,
            PAIRS,
            RewardConfig(minibatch_size=4),
            output_dir=self.folder / "reward",
            shown=False,
        )
        trainer.train()

    @property
    def model(self) -> str:
        """The folder of the policy to start from."""
        return str(self.folder / "model")

    def adapter(self, command: str) -> str:
        """Return the folder of a LoRA adapter of that policy."""
        kind = "reward_adapter" if command == "reward" else "adapter"
        return str(self.folder / kind)

    def _save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of all models."""
        return tiny_tokenizer()

    def adapted(self, model: PreTrainedModel, task: str = "CAUSAL_LM") -> Any:
        """Return a model with a fresh LoRA adapter."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type=task)
            return peft.get_peft_model(model, settings)

    def new_model(self, command: str, *, lora: bool) -> Any:
        """Return the model that a run starts from."""
        if command == "reward":
            model = reward_model_from(self.model)
            return self.adapted(model, "SEQ_CLS") if lora else model
        model = load_causal_lm(self.model)
        return self.adapted(model) if lora else model.requires_grad_(True)

    def reward_of(self, critic: str) -> str:
        """Return the reward of a run: a model where its critic starts from one."""
        return str(self.folder / "reward") if critic == "reward_model" else "my_reward:letters"

    def venv(self, critic: str, group_size: int) -> Any:
        """Return the environment of a run in Python."""
        reward: Any = self.reward_of(critic)
        if reward.startswith("my_reward"):
            import my_reward

            reward = my_reward.letters
        return gym.make_vec(
            "TextRLHF-v0",
            num_envs=16,
            prompts=PROMPTS,
            reference=self.model,
            reward=reward,
            max_completion_tokens=8,
            group_size=group_size,
        )
