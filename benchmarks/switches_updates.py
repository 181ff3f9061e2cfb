"""Switches of the updates: packing, order, LM head, DPO's reference, PPO's values and log-probs."""

from collections.abc import Callable, Iterator

import torch
from switches_setup import Setup, Switch, Work, gradient_step, loss_sum, with_packing
from torch import Tensor

from textrl.agents import PPO, PPOConfig
from textrl.envs import TextRLHFVectorEnv, tiny_tokenizer
from textrl.logprobs import token_logprobs
from textrl.loop import epoch_minibatches
from textrl.losses import dpo_loss
from textrl.models import SplitLM
from textrl.policy import PolicyModule
from textrl.trainers.dpo import sequence_logprobs
from textrl.types import Sequence, stack_sequences


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
        gradient_step(setup.model, lambda: -PolicyModule(lm).logprobs_of(batch).sum()),
        gradient_step(setup.model, all_logits),
    )


def reference_once(setup: Setup) -> Iterator[Switch]:
    """Yield a DPO step with the reference's log-probs at hand, against computing them each time."""
    policy, data = PolicyModule(setup.lm), setup.prompted[:64]
    with torch.no_grad():
        reference = sequence_logprobs(policy, data).view(2, -1)

    def loss(known: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def value() -> Tensor:
            chosen, rejected = sequence_logprobs(policy, data).view(2, -1)
            first, second = known()
            return dpo_loss(chosen, rejected, first, second).sum()

        return value

    @torch.no_grad()
    def again() -> Tensor:
        return sequence_logprobs(policy, data).view(2, -1)

    yield (
        "DPO: the reference's log-probs once",
        gradient_step(setup.model, loss(lambda: reference)),
        gradient_step(setup.model, loss(again)),
    )


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
        lambda: shared.train_on(rollout, shared.steps()) and None,
        lambda: own.train_on(other, own.steps()) and None,
    )

    def recomputed() -> None:
        with torch.no_grad():
            shared.logprobs(rollout)
        shared.train_on(rollout, shared.steps())

    yield (
        "PPO: log-probs kept from sampling",
        lambda: shared.train_on(rollout, shared.steps()) and None,
        recomputed,
    )
