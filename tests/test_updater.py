"""Memory that runs out in an update: halved micro-batches give equal gradients, said once."""

import warnings

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from textrl.agents import PPO, PPOConfig
from textrl.config import SFTConfig
from textrl.envs import TextRLHFVectorEnv, tiny_model, tiny_tokenizer
from textrl.errors import UserError
from textrl.trainers import SFTTrainer
from textrl.updater import SmallerMicroBatches, Updater, halved_until_it_fits

TEXTS = [{"text": "abcdefghijklmnop"[: 4 + i % 8]} for i in range(32)]
ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate"),
]


def failing_above(limit: int, error: Exception, monkeypatch, seen: list[int]) -> None:
    """Let memory run out in every micro-batch with more than so many texts."""
    real = Updater._add_gradients

    def add_gradients(self, losses) -> None:
        def checked():
            for number, loss in enumerate(losses):
                texts = seen[-1]
                if texts > limit and number > 0:  # in the second: the first has a gradient already
                    raise error
                yield loss

        real(self, checked())

    monkeypatch.setattr(Updater, "_add_gradients", add_gradients)


def weights(model) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("error", ERRORS, ids=["python", "gpu", "cpu"])
def test_halving_goes_on_until_it_fits(error: Exception) -> None:
    tried = []

    def work(tokens: int) -> None:
        tried.append(tokens)
        if tokens > 300:
            raise error

    with pytest.warns(SmallerMicroBatches, match="micro_batch_tokens=256"):
        assert halved_until_it_fits(work, 1024, 10) == 256
    assert tried == [1024, 512, 256]
    with pytest.raises(UserError, match="one text of 400 tokens"):
        halved_until_it_fits(work, 1024, 400)
    assert tried[3:] == [1024, 512, 400]


def test_other_errors_are_not_taken_for_it() -> None:
    def work(tokens: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        halved_until_it_fits(work, 1024, 10)


def sft(monkeypatch=None) -> tuple[Tensor, list[str]]:
    model, seen = tiny_model(), [0]
    config = SFTConfig(minibatch_size=16, learning_rate=1e-2, micro_batch_tokens=64)
    trainer = SFTTrainer(model, tiny_tokenizer(), TEXTS, config, shown=False)
    loss = trainer._loss

    def counted(sequences):
        seen.append(len(sequences))
        return loss(sequences)

    trainer._loss = counted
    if monkeypatch is not None:
        failing_above(3, ERRORS[1], monkeypatch, seen)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    return weights(model), [str(warning.message) for warning in caught]


def test_a_trainer_goes_on_with_smaller_micro_batches(monkeypatch) -> None:
    whole, silent = sft()
    found, said = sft(monkeypatch)
    moved = (whole - weights(tiny_model())).abs().max()
    assert (found - whole).abs().max() < 1e-2 * moved  # AdamW makes much of rounding near 0
    assert not [message for message in silent if "micro_batch_tokens" in message]
    assert 1 <= len([message for message in said if "micro_batch_tokens" in message]) <= 3


@pytest.mark.parametrize("critic", ["value_head", "separate"])
def test_ppo_goes_on_with_smaller_micro_batches(critic: str, monkeypatch) -> None:
    def trained(fails: bool) -> Tensor:
        venv = TextRLHFVectorEnv(num_envs=16, max_completion_tokens=6, kl_coef=0.1)
        config = PPOConfig(
            episodes_per_iteration=16,
            minibatch_size=8,
            learning_rate=1e-2,
            micro_batch_tokens=1000,
            critic=critic,
            ptx_coef=0.5,
        )
        agent = PPO(tiny_model(), venv, config, demonstrations=TEXTS)
        with monkeypatch.context() as patch:
            if fails:
                evaluate, seen = agent.evaluate, [0]

                def counted(part, **options):
                    seen.append(len(part.input_ids))
                    return evaluate(part, **options)

                patch.setattr(agent, "evaluate", counted)
                failing_above(3, ERRORS[0], patch, seen)
            agent.iterate()
        return torch.cat([weights(agent.policy), weights(agent.critic)])

    start = weights(tiny_model())
    whole = trained(fails=False)
    with pytest.warns(SmallerMicroBatches):
        found = trained(fails=True)
    # AdamW turns rounding into whole steps where a gradient is nearly 0, so that single weights
    # differ on some processors; together they have moved alike
    moved = (whole[: len(start)] - start).abs().mean()
    assert float((found - whole).abs().mean()) < 1e-3 * float(moved)


def test_memory_that_runs_out_in_the_optimisers_step_is_not_tried_again(monkeypatch) -> None:
    """A step that has changed some weights must not be taken twice."""
    layer, calls = torch.nn.Linear(2, 2), []
    updater = Updater(
        [(layer, 0.1)], accelerator=Accelerator(cpu=True), betas=(0.9, 0.99), max_grad_norm=1.0
    )

    def step() -> None:
        calls.append(1)
        raise MemoryError

    monkeypatch.setattr(updater.optimizer, "step", step)
    with pytest.raises(MemoryError):
        updater.update(64, 8, lambda tokens: [layer(torch.ones(2)).sum()])
    assert calls == [1]
