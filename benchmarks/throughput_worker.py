"""One trainer of one library, a block of optimiser steps at a time: what `throughput_peer.py` runs.

    python throughput_worker.py JOB.json

Two of these run in turn on the same data and weights, one with textrl, one with TRL in an
environment of its own (this file imports nothing of textrl there). After each block it writes a
JSON line to its standard output and waits on its standard input: for "block", for "finish" (run to
the end), or for the end of it (stop here).
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

Job = dict[str, Any]


class Turns:
    """Counts the optimiser's steps and stops after each block until it is told to go on."""

    def __init__(self, job: Job) -> None:
        self.losses: list[float] = []
        self._block, self._steps, self._alone = job["block"], 0, False
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what the libraries print is no answer

    def start(self, extra_seconds: float) -> None:
        """Say what had to be computed before, once an epoch, and wait for the first turn."""
        self._answer({"extra_seconds": extra_seconds})
        self._wait()
        register_optimizer_step_post_hook(lambda *_: self._count())

    def _count(self) -> None:
        self._steps += 1
        if self._steps % self._block == 0 and not self._alone:
            self._answer(
                {
                    "seconds": time.monotonic() - self._began,
                    "cpu_seconds": time.process_time() - self._cpu,
                    "peak_mb": peak_mb(),
                    "losses": self.losses[-self._block :],
                }
            )
            self._wait()

    def _answer(self, content: dict[str, Any]) -> None:
        print(json.dumps(content), file=self._answers, flush=True)

    def _wait(self) -> None:
        word = sys.stdin.readline().strip()
        if not word:
            os._exit(0)
        self._alone = word == "finish"
        self._began, self._cpu = time.monotonic(), time.process_time()


def peak_mb() -> float:
    """Return the most memory that this process has held (ru_maxrss would count its parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def rows_of(job: Job) -> list[dict[str, Any]]:
    """Return the data of a job."""
    return [json.loads(line) for line in Path(job["data"]).read_text().splitlines()]


def textrl_trainer(job: Job, turns: Turns) -> tuple[Callable[[], object], float]:
    """Return what trains with textrl's trainer of the job's stage, and DPO's reference pass.

    The pass in seconds, over all pairs as if there were one epoch: TRL repeats it in each step.
    """
    from stable_baselines3.common.logger import KVWriter, Logger

    from textrl.models import load_causal_lm, load_classifier, load_tokenizer, split_lm
    from textrl.policy import PolicyModule
    from textrl.trainers import (
        DPOConfig,
        DPOTrainer,
        RewardConfig,
        RewardTrainer,
        SFTConfig,
        SFTTrainer,
    )
    from textrl.trainers.dpo import reference_logprobs

    class Losses(KVWriter):
        def write(self, key_values: dict[str, Any], *_: object) -> None:
            turns.losses.append(key_values[f"{job['stage']}/loss"])

    trainers: dict[str, Any] = {"sft": SFTTrainer, "reward": RewardTrainer, "dpo": DPOTrainer}
    configs: dict[str, Any] = {"sft": SFTConfig, "reward": RewardConfig, "dpo": DPOConfig}
    load = load_classifier if job["stage"] == "reward" else load_causal_lm
    rows = rows_of(job)
    options = {"center_coef": 0.0} if job["stage"] == "reward" else {}
    trainer = trainers[job["stage"]](
        load(job["model"], dtype="float32"),
        load_tokenizer(job["model"]),
        rows,
        configs[job["stage"]](
            learning_rate=job["learning_rate"],
            minibatch_size=job["batch"],
            num_epochs=job["epochs"],
            heldout_share=0.0,
            warmup_share=0.0,
            precision=job["precision"],
            **options,
        ),
        logger=Logger(folder=None, output_formats=[Losses()]),
        shown=False,
    )
    write_in_order(job, rows, trainer)
    if job["stage"] != "dpo":
        return trainer.train, 0.0
    began = time.monotonic()
    reference_logprobs(PolicyModule(split_lm(trainer.model)), trainer.train_pairs, 4096)
    return trainer.train, time.monotonic() - began


def write_in_order(job: Job, rows: list[dict[str, Any]], trainer: Any) -> None:
    """Write the rows in the order in which our trainer's first epoch takes them, for TRL's."""
    from textrl.loop import epoch_minibatches

    lengths = {
        "sft": lambda: [len(s.ids) for s in trainer.train_sequences],
        "reward": lambda: [ranking.num_tokens for ranking in trainer.train_rankings],
        "dpo": lambda: [pair.num_tokens for pair in trainer.train_pairs],
    }[job["stage"]]()
    order = epoch_minibatches(lengths, job["batch"], torch.Generator().manual_seed(0))
    lines = [json.dumps(rows[i]) for batch in order for i in batch]
    Path(job["data_in_order"]).write_text("\n".join(lines) + "\n")


def trl_trainer(job: Job, turns: Turns) -> tuple[Callable[[], object], float]:
    """Return what trains with TRL's trainer of the job's stage, its defaults kept where they run.

    Against its defaults: the job's precision, no gradient checkpointing (it is slower), no saving;
    the optimiser's settings and the learning rate's course are textrl's.
    """
    import trl
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    kinds = {"sft": "SFT", "reward": "Reward", "dpo": "DPO"}
    kind = kinds[job["stage"]]
    auto: Any = AutoModelForSequenceClassification if kind == "Reward" else AutoModelForCausalLM
    model = auto.from_pretrained(job["model"], dtype=torch.float32)
    data = job["data_in_order" if job["in_order"] else "data"]
    config = getattr(trl, f"{kind}Config")(
        output_dir=str(Path(job["data"]).parent / "trl"),
        per_device_train_batch_size=job["batch"],
        num_train_epochs=job["epochs"],
        learning_rate=job["learning_rate"],
        adam_beta2=0.99,
        max_grad_norm=1.0,
        max_length=512,
        use_cpu=True,
        bf16=job["precision"] == "bfloat16",
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_steps=1,
        train_sampling_strategy="sequential" if job["in_order"] else "random",
    )
    trainer = getattr(trl, f"{kind}Trainer")(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows_of(job | {"data": data})),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
    )
    follow(trainer, job, turns)
    return trainer.train, 0.0


def follow(trainer: Any, job: Job, turns: Turns) -> None:
    """Give TRL's trainer the course of our learning rate, and note its losses."""
    last = job["epochs"] * job["block"] - 1

    def cosine(update: int) -> float:
        return 0.5 + 0.5 * math.cos(math.pi * max(update - 1, 0) / last)

    optimizer = trainer.create_optimizer()
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine)
    step = trainer.training_step

    def recorded(*arguments: Any, **options: Any) -> Any:
        loss = step(*arguments, **options)
        turns.losses.append(float(loss))
        return loss

    trainer.training_step = recorded


def textrl_ppo(job: Job, turns: Turns) -> tuple[Callable[[], object], float]:
    """Return what trains with our PPO."""
    from textrl.agents import PPO, PPOConfig
    from textrl.envs import TextRLHFVectorEnv
    from textrl.models import load_causal_lm, load_tokenizer
    from textrl.rewards import RewardModel

    venv = TextRLHFVectorEnv(
        num_envs=job["batch"],
        reference=load_causal_lm(job["model"], dtype="float32"),
        tokenizer=load_tokenizer(job["model"]),
        reward=RewardModel.from_pretrained(job["reward"], dtype="float32"),
        prompts=[row["prompt"] for row in rows_of(job)],
        kl_coef=job["kl_coef"],
        max_prompt_tokens=job["prompt_tokens"],
        max_completion_tokens=job["new_tokens"],
        autoreset_mode="Disabled",
    )
    agent = PPO(
        load_causal_lm(job["model"], dtype="float32"),
        venv,
        PPOConfig(
            episodes_per_iteration=job["batch"],
            minibatch_size=job["batch"],
            num_epochs=job["epochs"],
            learning_rate=job["learning_rate"],
            critic=job["critic"],
            precision=job["precision"],
        ),
    )

    def train() -> None:
        for _ in range(job["iterations"]):
            agent.iterate()
        agent.save(job["output"])

    return train, 0.0


def trl_ppo_config(job: Job) -> Any:
    """Return the settings of TRL's PPO for the job, its defaults kept where they run here."""
    from trl.experimental.ppo import PPOConfig

    return PPOConfig(
        output_dir=job["output"],
        per_device_train_batch_size=job["batch"],
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=job["epochs"],
        total_episodes=job["batch"] * job["iterations"],
        local_rollout_forward_batch_size=job["batch"],
        response_length=job["new_tokens"],
        stop_token="eos",
        temperature=1.0,
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        adam_beta2=0.99,
        kl_coef=job["kl_coef"],
        num_sample_generations=0,
        use_cpu=True,
        bf16=job["precision"] == "bfloat16",
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )


def trl_ppo(job: Job, turns: Turns) -> tuple[Callable[[], object], float]:
    """Return what trains with the last PPO that TRL had: four models of their own."""
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )
    from trl.experimental.ppo import PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    ids = [tokenizer(row["prompt"]).input_ids for row in rows_of(job)]
    classifier = AutoModelForSequenceClassification.from_pretrained
    trainer = PPOTrainer(
        args=trl_ppo_config(job),
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
        ref_model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
        reward_model=classifier(job["reward"], num_labels=1, dtype=torch.float32),
        value_model=classifier(job["reward"], num_labels=1, dtype=torch.float32),
        train_dataset=Dataset.from_list([{"input_ids": row} for row in ids]),
    )

    def train() -> None:
        trainer.train()
        trainer.save_model(job["output"])
        tokenizer.save_pretrained(job["output"])

    return train, 0.0


def main() -> None:
    """Train as the job says, a block a turn."""
    job: Job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    turns = Turns(job)
    if job["stage"] == "ppo":
        make = trl_ppo if job["library"] == "trl" else textrl_ppo
    else:
        make = trl_trainer if job["library"] == "trl" else textrl_trainer
    train, extra_seconds = make(job, turns)
    turns.start(extra_seconds)
    train()


if __name__ == "__main__":
    main()
