"""What each optimisation brings: the same work with it and without it, in turn, in one process.

    python benchmarks/throughput_switches.py                 the small model
    python benchmarks/throughput_switches.py --size smollm2  SmolLM2-135M, where a switch has models

A row gives the ratio of the seconds (without over with; above 1 it pays), the median of the pairs,
the peak memory of both, and how far the results differ where they should not: the largest
difference of the losses or log-probs. Data are movie reviews, cut to real lengths.
"""

import argparse
import ctypes
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import torch
from throughput_model import SIZES, make_model
from torch import Tensor
from transformers import PreTrainedModel

from textrl import generation
from textrl.agents import PPO, PPOConfig
from textrl.batching import epoch_minibatches
from textrl.benchmark import forget_peak_memory, peak_memory_mb
from textrl.config import SFTConfig, TrainingConfig
from textrl.demo_models import train_tokenizer
from textrl.encoding import encode_text
from textrl.envs import TextRLHFVectorEnv, tiny_tokenizer
from textrl.generation import Decoder, sample
from textrl.logprobs import token_logprobs
from textrl.loop import FitTask, LossSum, Updater, _fit_update, keep_freed_memory, make_accelerator
from textrl.losses import dpo_loss
from textrl.models import SplitLM, load_tokenizer, split_lm
from textrl.pretrained import smollm2_folder
from textrl.reviews import load_reviews
from textrl.trainers.dpo import sequence_logprobs
from textrl.types import Sequence, stack_sequences

PROMPT = 12
"""Tokens of a sequence that do not count, where a prompt is wanted."""
Work = Callable[[], Tensor | None]
"""Does the work; returns what must be equal with the switch on and off."""
Switch = tuple[str, Work, Work]
"""Its name, the work with it, the work without it."""


class Setup:
    """A model and real texts for it."""

    def __init__(self, size: str) -> None:
        """Load the model; the texts are reviews of 8 words or more."""
        self.model: PreTrainedModel = make_model(size)
        self.lm: SplitLM = split_lm(self.model)
        texts = [review.text for review in load_reviews() if len(review.text.split()) >= 8]
        tokenizer = load_tokenizer(smollm2_folder()) if size == "smollm2" else None
        tokenizer = tokenizer or train_tokenizer(texts[:3000])
        ids = [encode_text(tokenizer, text) for text in texts[:512]]
        ids = [row for row in ids if len(row) > PROMPT + 4]
        self.texts = [Sequence(ids=row, counts=[i > 0 for i in range(len(row))]) for row in ids]
        self.long = sorted(self.texts[:256], key=lambda s: -len(s.ids))[:64]
        self.prompted = [
            Sequence(ids=row, counts=[i >= PROMPT for i in range(len(row))]) for row in ids
        ]


def gradient_step(model: PreTrainedModel, loss: Callable[[], Tensor]) -> Work:
    """Return forward and backward of a loss; the loss is what must be equal."""

    def work() -> Tensor:
        model.zero_grad(set_to_none=False)
        value = loss()
        value.backward()
        return value.detach()

    return work


def loss_sum(lm: SplitLM, data: list[Sequence]) -> Tensor:
    """Return the summed SFT loss of sequences."""
    return -lm.token_logprobs(stack_sequences(data, lm.device)).sum()


def with_packing(lm: SplitLM, **changes: float) -> SplitLM:
    """Return the model with another idea of what packing costs."""
    return replace(lm, packing=replace(lm.packing, **changes))


def packing(setup: Setup) -> Iterator[Switch]:
    """Yield what is saved of padding and of beginnings that several texts share."""
    lm, data = setup.lm, setup.texts[:32]
    padded = with_packing(lm, pass_cost=1 << 40)
    by_length = with_packing(lm, max_length=0)

    def step(lm: SplitLM, data: list[Sequence]) -> Work:
        return gradient_step(setup.model, lambda: loss_sum(lm, data))

    yield "texts packed into rows, against padding", step(lm, data), step(padded, data)
    yield "texts packed, against passes of like lengths", step(lm, data), step(by_length, data)
    pairs = []
    for one, other in zip(setup.long[:16], setup.long[16:32], strict=True):
        prompt = one.ids[: 2 * len(one.ids) // 3]
        for end in (one.ids[len(prompt) :], other.ids[-len(prompt) // 2 :]):
            counts = [False] * len(prompt) + [True] * len(end)
            pairs.append(Sequence(ids=prompt + end, counts=counts))
    apart = [[s.ids[0], *s.ids[1:]] for s in pairs]
    for number, ids in enumerate(apart):  # no two begin alike
        ids[0] = 5 + number
    strangers = [Sequence(ids=ids, counts=s.counts) for ids, s in zip(apart, pairs, strict=True)]
    yield (
        "a pair's prompt read once (two thirds of each text)",
        step(lm, pairs),
        step(lm, strangers),
    )


def batches_by_length(setup: Setup) -> Iterator[Switch]:
    """Yield minibatches of like lengths against random ones, both packed."""
    lm, data = setup.lm, setup.texts[:256]
    lengths = [len(s.ids) for s in data]
    shuffled = [list(range(i, i + 32)) for i in range(0, 256, 32)]
    by_length = epoch_minibatches(lengths, 32, torch.Generator().manual_seed(0))

    def steps(minibatches: list[list[int]]) -> Work:
        def work() -> None:
            for rows in minibatches:
                setup.model.zero_grad(set_to_none=False)
                loss_sum(lm, [data[i] for i in rows]).backward()

        return work

    yield "minibatches of like lengths", steps(by_length), steps(shuffled)


def head_where_it_counts(setup: Setup) -> Iterator[Switch]:
    """Yield the LM head on the completion's positions, in chunks, against all logits at once."""
    lm = setup.lm
    batch = stack_sequences(setup.prompted[:64], lm.device)
    lengths = torch.tensor([len(s.ids) - 1 for s in setup.prompted[:64]])

    def all_logits() -> Tensor:
        logits = lm.head(lm.hidden(batch.input_ids, lengths))
        found = token_logprobs(logits[:, :-1], batch.input_ids[:, 1:])
        return -found.masked_fill(~batch.mask[:, 1:], 0.0).sum()

    yield (
        "LM head where a token counts, in chunks",
        gradient_step(setup.model, lambda: -lm.token_logprobs(batch).sum()),
        gradient_step(setup.model, all_logits),
    )


def reference_once(setup: Setup) -> Iterator[Switch]:
    """Yield a DPO step with the reference's log-probs at hand, against computing them each time."""
    lm, data = setup.lm, setup.prompted[:64]
    with torch.no_grad():
        reference = sequence_logprobs(lm, data).view(2, -1)

    def loss(known: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def value() -> Tensor:
            chosen, rejected = sequence_logprobs(lm, data).view(2, -1)
            first, second = known()
            return dpo_loss(chosen, rejected, first, second).sum()

        return value

    @torch.no_grad()
    def again() -> Tensor:
        return sequence_logprobs(lm, data).view(2, -1)

    yield (
        "DPO: the reference's log-probs once",
        gradient_step(setup.model, loss(lambda: reference)),
        gradient_step(setup.model, loss(again)),
    )


def sampling(setup: Setup) -> Iterator[Switch]:
    """Yield what generation leaves out: finished rows, a group's repeated prompts."""
    lm = setup.lm
    prompts = torch.tensor([s.ids[:PROMPT] for s in setup.prompted[:16]]).repeat_interleave(4, 0)
    lengths = torch.full((len(prompts),), PROMPT)

    def draw(new: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        found = sample(lm, prompts, lengths, max_new_tokens=new, eos_id=-1, generator=generator)
        return found.logprobs

    def apart() -> Tensor:
        def prefilled(
            lm: SplitLM, ids: Tensor, lengths: Tensor, new: int
        ) -> tuple[Decoder, Tensor]:
            decoder = Decoder(lm, len(ids), int(lengths.max()) + new)
            return decoder, decoder.prefill(torch.arange(len(ids)), ids, lengths)

        with mock.patch.object(generation, "_prefilled", prefilled):
            return draw(4)

    yield "a group's prompt read once (12 + 4 tokens, groups of 4)", lambda: draw(4), apart


def ppo(setup: Setup) -> Iterator[Switch]:
    """Yield what PPO saves: a trunk for the values, log-probs known from sampling."""

    def agent(critic: str) -> PPO:
        policy = type(setup.model)(setup.model.config)
        policy.load_state_dict(setup.model.state_dict())
        venv = TextRLHFVectorEnv(
            num_envs=32,
            reference=setup.model,
            tokenizer=tiny_tokenizer(),
            reward=lambda prompts, completions: [float(len(text)) for text in completions],
            prompts=["abc"],
            max_prompt_tokens=8,
            max_completion_tokens=32,
            autoreset_mode="Disabled",
        )
        sizes = {"episodes_per_iteration": 32, "minibatch_size": 32, "num_epochs": 1}
        return PPO(policy, venv, PPOConfig(critic=critic, learning_rate=1e-6, **sizes))

    shared, own = agent("value_head"), agent("separate")
    rollout, other = shared.collect(), own.collect()
    yield (
        "PPO: values from the policy's trunk",
        lambda: shared.train_on(rollout) and None,
        lambda: own.train_on(other) and None,
    )

    def recomputed() -> None:
        with torch.no_grad():
            shared.logprobs(rollout)
        shared.train_on(rollout)

    yield (
        "PPO: log-probs kept from sampling",
        lambda: shared.train_on(rollout) and None,
        recomputed,
    )


@contextmanager
def given_back() -> Iterator[None]:
    """Let glibc give freed memory back to the system, as it does by default."""
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    mallopt(-3, 128 * 1024)
    mallopt(-1, 128 * 1024)
    try:
        yield
    finally:
        keep_freed_memory()


def machine(setup: Setup) -> Iterator[Switch]:
    """Yield what is set on the machine: threads, the allocator, AdamW's kernel, bfloat16."""
    lm, batch = setup.lm, setup.texts[:32]
    length = sum(len(s.ids) for s in batch)

    def step(config: TrainingConfig, fused: bool = True) -> Work:
        task = FitTask(
            stage="sft",
            lengths=[len(s.ids) for s in batch],
            weights=[float(s.num_counted) for s in batch],
            loss=lambda rows: LossSum(loss=loss_sum(lm, [batch[i] for i in rows]), metrics={}),
        )
        accelerator = make_accelerator(setup.model.device)
        updater = Updater([(setup.model, 1e-9)], accelerator=accelerator, max_grad_norm=1.0)
        updater.optimizer.param_groups[0]["fused"] = fused
        rows = list(range(len(batch)))
        return lambda: torch.tensor(_fit_update(rows, task, config, updater)["loss"])

    usual = step(SFTConfig())

    def with_default_allocator() -> Tensor | None:
        with given_back():
            return usual()

    def with_one_thread() -> Tensor | None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return usual()
        finally:
            torch.set_num_threads(threads)

    yield f"{torch.get_num_threads()} threads, against one", usual, with_one_thread
    yield f"freed memory kept ({length} tokens)", usual, with_default_allocator
    yield "fused AdamW", usual, step(SFTConfig(), fused=False)
    yield "bfloat16 matrix products", step(SFTConfig(precision="bfloat16")), usual


def compiled(setup: Setup) -> Iterator[Switch]:
    """Yield the trunk through torch.compile, at one shape, against the plain one."""
    lm = setup.lm
    same = [
        Sequence(ids=s.ids[:16], counts=s.counts[:16]) for s in setup.prompted[:64]
    ]  # one shape: a new one compiles anew
    batch = stack_sequences(same, lm.device)
    trunk = torch.compile(lm.trunk)
    fast = replace(lm, trunk=trunk)
    yield (
        "torch.compile of the trunk (one shape, compiled before)",
        gradient_step(setup.model, lambda: -fast.token_logprobs(batch).sum()),
        gradient_step(setup.model, lambda: -lm.token_logprobs(batch).sum()),
    )


SWITCHES = {
    "packing": packing,
    "length": batches_by_length,
    "head": head_where_it_counts,
    "reference": reference_once,
    "sampling": sampling,
    "ppo": ppo,
    "machine": machine,
    "compile": compiled,
}


def compare(switch: Switch, pairs: int) -> dict[str, Any]:
    """Return the ratios of the pairs, the memory of both ways and how far the results differ."""
    name, *ways = switch
    results = [way() for way in ways]
    seconds: list[list[float]] = []
    peaks = [0.0, 0.0]
    for _ in range(pairs):
        seconds.append([])
        for index, way in enumerate(ways):
            forget_peak_memory()
            before = time.monotonic()
            way()
            seconds[-1].append(time.monotonic() - before)
            peaks[index] = max(peaks[index], peak_memory_mb())
    on, off = results
    ratios = [without / with_it for with_it, without in seconds]
    difference = None
    if on is not None and off is not None:
        difference = float(((on - off).abs() / off.abs().clamp_min(1)).max())
    return {
        "switch": name,
        "ratio": float(np.median(ratios)),
        "ratios": ratios,
        "seconds": seconds,
        "peak_mb": peaks,
        "relative_difference": difference,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| switch | speed with it (least to most) | peak MB, with and without it | difference |",
        "|---|---|---|---|",
    ]
    for row in rows:
        span = f"{row['ratio']:.2f}x ({min(row['ratios']):.2f} to {max(row['ratios']):.2f})"
        memory = " and ".join(f"{peak:.0f}" for peak in row["peak_mb"])
        far = row["relative_difference"]
        differ = "other batches" if far is None else f"{far:.0e}"
        lines.append(f"| {row['switch']} | {span} | {memory} | {differ} |")
    return "\n".join(lines)


def main() -> None:
    """Measure the switches asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--switches", nargs="+", default=list(SWITCHES), choices=SWITCHES)
    parser.add_argument("--size", default="4m", choices=SIZES)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("runs/throughput_switches.json"))
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    keep_freed_memory()
    rows = []
    for name in options.switches:
        for switch in SWITCHES[name](Setup(options.size)):
            rows.append(compare(switch, options.pairs))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
