"""Where the time goes: every stage's tokens per second and share of the machine's matrix products.

    python benchmarks/throughput.py                          the small model, a few minutes
    python benchmarks/throughput.py --sizes 30m smollm2      larger ones
    python benchmarks/throughput_switches.py                 each optimisation on and off
    python benchmarks/throughput.py --peer trl               against TRL (throughput_peer.py)
    python benchmarks/throughput.py --peer sb3               SB3's PPO, prefixes shared or naive

A row is a stage, a model, a length and a batch. Tokens are random: speed does not depend on them.
MFU is the model's FLOPs over what one large matrix product does in the same time, measured just
before; memory is the peak of the process while the row ran.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
from sb3_speed import speed as speed_of_sb3
from throughput_model import SIZES, Cost, cost_of, make_model, matrix_product_rate
from transformers import DynamicCache, LlamaForSequenceClassification, PreTrainedModel

from textrl.agents import PPO, PPOConfig
from textrl.benchmark.run import forget_peak_memory, peak_memory_mb
from textrl.classifiers import split_classifier
from textrl.config import DPOConfig, RewardConfig, SFTConfig, TrainingConfig
from textrl.decoding import Decoder
from textrl.engine import make_accelerator
from textrl.envs import TextRLHFVectorEnv, tiny_tokenizer
from textrl.generation import ModelSampler
from textrl.loop import FitTask, _fit_update
from textrl.losses import bradley_terry_loss
from textrl.memory import keep_freed_memory
from textrl.models import split_lm
from textrl.policy import PolicyModule
from textrl.trainers.dpo import Pair, dpo_loss_sum, reference_logprobs
from textrl.types import Sequence, stack_sequences
from textrl.updater import LossSum, Updater

STAGES = ("sft", "reward", "dpo", "ppo", "generation", "stepping")
SECONDS = 3.0
"""How long a row is measured at least."""
Work = tuple[Callable[[], object], int, float]
"""What is timed, and the tokens and FLOPs of one call."""


def sequences(count: int, length: int, vocab_size: int, prompt: int = 1) -> list[Sequence]:
    """Return random sequences of one length whose first tokens do not count."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocab_size, (count, length), generator=generator).tolist()
    counts = [i >= prompt for i in range(length)]
    return [Sequence(ids=row, counts=counts) for row in ids]


def updates(model: PreTrainedModel, task: FitTask, config: TrainingConfig) -> Callable[[], object]:
    """Return what takes one optimiser step on the whole of a small task."""
    accelerator = make_accelerator(model.device)
    updater = Updater(
        [(model, 1e-5)], accelerator=accelerator, betas=(0.9, 0.99), max_grad_norm=1.0
    )
    rows = list(range(len(task.lengths)))
    return lambda: _fit_update(rows, task, config, updater)


def sft(model: PreTrainedModel, cost: Cost, length: int, batch: int) -> Iterator[tuple[str, Work]]:
    """Yield a step of SFT: every token but the first counts."""
    policy = PolicyModule(split_lm(model))
    data = sequences(batch, length, policy.lm.vocab_size)

    def loss(rows: list[int]) -> LossSum:
        batch = stack_sequences([data[i] for i in rows], policy.device)
        return LossSum(loss=-policy.logprobs_of(batch).sum(), metrics={})

    task = FitTask(
        examples=(),
        stage="sft",
        lengths=[length] * batch,
        weights=[length - 1.0] * batch,
        loss=loss,
    )
    flops = cost.update([length] * batch, batch * (length - 1))
    yield "sft", (updates(model, task, SFTConfig()), batch * length, flops)


def reward(
    model: PreTrainedModel, cost: Cost, length: int, batch: int
) -> Iterator[tuple[str, Work]]:
    """Yield a step of the reward model on pairs."""
    model.config.num_labels = 1
    classifier = LlamaForSequenceClassification(model.config)
    classifier.base_model.load_state_dict(model.base_model.state_dict())
    scored = split_classifier(classifier)
    data = [s.ids for s in sequences(2 * batch, length, model.config.vocab_size)]

    def loss(rows: list[int]) -> LossSum:
        scores = scored.scores([data[i] for row in rows for i in (row, batch + row)])
        return LossSum(loss=bradley_terry_loss(scores[::2], scores[1::2]).sum(), metrics={})

    task = FitTask(
        examples=(),
        stage="reward",
        lengths=[2 * length] * batch,
        weights=[1.0] * batch,
        loss=loss,
    )
    flops = cost.update([length] * 2 * batch, 0)
    yield "reward", (updates(classifier, task, RewardConfig()), 2 * batch * length, flops)


def dpo(model: PreTrainedModel, cost: Cost, length: int, batch: int) -> Iterator[tuple[str, Work]]:
    """Yield DPO's reference pass, and a step on pairs that share a quarter, their prompt."""
    policy, prompt = PolicyModule(split_lm(model)), length // 4
    data = sequences(2 * batch, length, policy.lm.vocab_size, prompt)
    pairs = []
    for chosen, other in zip(data[:batch], data[batch:], strict=True):
        ids = chosen.ids[:prompt] + other.ids[prompt:]
        pairs.append(Pair(chosen=chosen, rejected=Sequence(ids=ids, counts=other.counts)))
    reference, kl = reference_logprobs(policy, pairs, 4096), torch.zeros(())
    task = FitTask(
        examples=(),
        stage="dpo",
        lengths=[2 * length] * batch,
        weights=[1.0] * batch,
        loss=lambda rows: dpo_loss_sum(
            policy, [pairs[i] for i in rows], reference[:, rows], DPOConfig(), kl
        ),
    )
    lengths, counted = [length] * batch + [length - prompt] * batch, 2 * batch * (length - prompt)
    forward = cost.forward(lengths, counted)
    yield (
        "dpo, reference",
        (lambda: reference_logprobs(policy, pairs, 4096), sum(lengths), forward),
    )
    work = updates(model, task, DPOConfig())
    yield "dpo, step", (work, sum(lengths), cost.update(lengths, counted))


def ppo(model: PreTrainedModel, cost: Cost, length: int, batch: int) -> Iterator[tuple[str, Work]]:
    """Yield PPO's parts: sampling, the environment's pass, and an epoch of updates."""
    prompt = length // 4
    venv = environment(model, length, batch)
    config = PPOConfig(episodes_per_iteration=batch, minibatch_size=batch, num_epochs=1)
    policy = type(model)(model.config)
    policy.load_state_dict(model.state_dict())
    agent = PPO(policy, venv, config)
    new, lengths = length - prompt, [length] * batch
    tokens, forward = batch * new, cost.forward(lengths, batch * new)
    rollout = agent.collect()
    actions, mask = rollout.completion_ids.numpy(), rollout.mask.numpy()

    def score() -> None:
        venv.reset(seed=0)
        venv.step_sequence(actions, mask)

    yield "ppo, collect (with score)", (agent.collect, tokens, 2 * forward)
    yield "ppo, score", (score, tokens, forward)
    flops = cost.update(lengths, tokens)
    yield "ppo, update", (lambda: agent.train_on(rollout, agent.steps()), tokens, flops)


def generation(
    model: PreTrainedModel, cost: Cost, length: int, batch: int
) -> Iterator[tuple[str, Work]]:
    """Yield sampling of three quarters of the length, and transformers' own for comparison."""
    prompt, lm = length // 4, split_lm(model)
    ids = torch.tensor([s.ids for s in sequences(batch, prompt, lm.vocab_size)])
    lengths, generator = torch.full((batch,), prompt), torch.Generator().manual_seed(0)
    new = length - prompt

    def ours() -> None:
        ModelSampler(lm).sample(ids, lengths, max_new_tokens=new, end_ids=(), generator=generator)

    def theirs() -> None:
        ends = {"eos_token_id": None, "pad_token_id": 0, "max_new_tokens": new}
        model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, top_p=1.0, **ends
        )

    flops = cost.forward([length] * batch, batch * new)
    yield "generation", (ours, batch * new, flops)
    yield "generation, transformers' own", (theirs, batch * new, flops)


def stepping(
    model: PreTrainedModel, cost: Cost, length: int, batch: int
) -> Iterator[tuple[str, Work]]:
    """Yield the environment's steps, its `step_sequence`, and a bare decode loop."""
    venv, prompt = environment(model, length, batch), length // 4
    new, lm = length - prompt, split_lm(model)
    rng = np.random.default_rng(0)
    actions = rng.integers(3, lm.vocab_size, size=(batch, new))
    ids = torch.tensor([s.ids for s in sequences(batch, prompt, lm.vocab_size)])

    def steps() -> None:
        venv.reset(seed=0)
        for column in actions.T:
            venv.step(column)

    def sequence() -> None:
        venv.reset(seed=0)
        venv.step_sequence(actions, np.ones_like(actions, dtype=bool))

    @torch.no_grad()
    def bare() -> None:
        decoder = Decoder(lm, batch, length)
        states = decoder.prefill(torch.arange(batch), ids, torch.full((batch,), prompt))
        for column in torch.as_tensor(actions.T):
            lm.head(states)
            states = decoder.step(column)

    @torch.no_grad()
    def plain() -> None:
        cache = {lm.cache_argument: DynamicCache(config=model.config)}
        model(input_ids=ids, use_cache=True, **cache)
        for column in torch.as_tensor(actions.T):
            model(input_ids=column.unsqueeze(1), use_cache=True, **cache)

    flops = cost.forward([length] * batch, batch * new)
    works = {"steps": steps, "step_sequence": sequence}
    works |= {"bare decode loop": bare, "bare loop of transformers": plain}
    for name, work in works.items():
        yield f"stepping, {name}", (work, batch * new, flops)


def environment(model: PreTrainedModel, length: int, batch: int) -> TextRLHFVectorEnv:
    """Return an environment with prompts of a quarter of the length and a free score."""
    tokenizer = tiny_tokenizer()
    prompt = length // 4
    text = tokenizer.decode([3] * (prompt - 1))
    return TextRLHFVectorEnv(
        num_envs=batch,
        reference=model,
        tokenizer=tokenizer,
        reward=lambda prompts, completions: [0.0] * len(prompts),
        prompts=[text],
        max_prompt_tokens=prompt,
        max_completion_tokens=length - prompt,
        autoreset_mode="Disabled",
    )


WORKS = {
    "sft": sft,
    "reward": reward,
    "dpo": dpo,
    "ppo": ppo,
    "generation": generation,
    "stepping": stepping,
}


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Return the median seconds and the CPU seconds of a call, and the peak memory meanwhile."""
    work()
    forget_peak_memory()
    times, cpu = [], time.process_time()
    while sum(times) < SECONDS or len(times) < 3:
        began = time.monotonic()
        work()
        times.append(time.monotonic() - began)
    return {
        "seconds": float(np.median(times)),
        "cpu_seconds": (time.process_time() - cpu) / len(times),
        "peak_mb": peak_memory_mb(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| stage | model | length | batch | tokens per second | CPU s | peak MB | GFLOP | MFU |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['stage']} | {row['model']} | {row['length']} | {row['batch']} "
            f"| {row['tokens'] / row['seconds']:.0f} | {row['cpu_seconds']:.2f} "
            f"| {row['peak_mb']:.0f} | {row['flops'] / 1e9:.0f} | {row['mfu']:.0%} |"
        )
    return "\n".join(lines)


def against(peer: str, rest: list[str]) -> None:
    """Compare with others, pair by pair in one run: TRL, or SB3 on an environment read naively."""
    if peer == "trl":
        script = Path(__file__).with_name("throughput_peer.py")
        raise SystemExit(subprocess.call([sys.executable, str(script), *rest]))
    if rest:
        raise SystemExit(f"unknown options {' '.join(rest)}")
    rates = speed_of_sb3(pairs=5)
    ratios = np.divide(rates["shared"], rates["naive"])
    print(f"shared over naive: {np.median(ratios):.1f}x ({ratios.min():.1f} to {ratios.max():.1f})")


def main() -> None:
    """Measure the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--sizes", nargs="+", default=["4m"], choices=SIZES)
    parser.add_argument("--lengths", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--batches", nargs="+", type=int, default=[32])
    parser.add_argument("--output", type=Path, default=Path("runs/throughput.json"))
    parser.add_argument("--peer", choices=("trl", "sb3"), help="compare with it, and nothing else")
    options, rest = parser.parse_known_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if options.peer:
        against(options.peer, rest)
        return
    if rest:
        parser.error(f"unknown options {' '.join(rest)}")
    keep_freed_memory()
    rows: list[dict[str, Any]] = []
    for size in options.sizes:
        for length in options.lengths:
            for batch in options.batches:
                for stage in options.stages:
                    model = make_model(size)
                    for name, (work, tokens, flops) in WORKS[stage](
                        model, cost_of(model), length, batch
                    ):
                        rate = matrix_product_rate()
                        row = measured(work) | {"tokens": tokens, "flops": flops, "rate": rate}
                        row |= {"stage": name, "model": size, "length": length, "batch": batch}
                        row["mfu"] = flops / row["seconds"] / rate
                        rows.append(row)
                        print(table([row]).splitlines()[-1], flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=1))
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
