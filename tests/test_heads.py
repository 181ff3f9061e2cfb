"""Heads that do more than a matrix keep states and critics; what sees ahead is refused."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

import textrl  # noqa: F401
from textrl.agents import PPO, PPOConfig
from textrl.decoding import Decoder
from textrl.envs import VectorCandidateActions, tiny_model, tiny_score, tiny_tokenizer
from textrl.envs.sb3 import TextVecEnv
from textrl.envs.sb3_policy import CausalLMPolicy, SubtractPolicyKL
from textrl.errors import UserError
from textrl.evaluation import sample_completions
from textrl.models import split_lm
from textrl.trainers import DPOTrainer, SFTTrainer

SMALL = dict(vocab_size=29, hidden_size=24, num_hidden_layers=2, num_attention_heads=2)
SMALL |= dict(intermediate_size=32, pad_token_id=0, bos_token_id=1, eos_token_id=2)
HEADS: dict[str, dict[str, Any]] = {
    "gemma2": dict(num_key_value_heads=1, head_dim=8, final_logit_softcapping=3.0),
    "cohere": dict(logit_scale=0.1),
    "granite": dict(logits_scaling=5.0),
    "opt": dict(ffn_dim=32, word_embed_proj_dim=12),
    "bert": dict(is_decoder=True),
    "llama": {},
}


def make(kind: str, std: float = 0.2, **changes: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(kind, **(SMALL | HEADS.get(kind, {}) | changes))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=std)
    return model


def task(kind: str, **changes: Any) -> gym.vector.VectorEnv:
    common = dict(num_envs=4, tokenizer=tiny_tokenizer(), reward=tiny_score, prompts=["a", "bc"])
    common |= dict(max_completion_tokens=4, autoreset_mode="SameStep", reference=make(kind))
    return gym.make_vec("TextRLHF-v0", **(common | changes))


@pytest.mark.parametrize("kind", HEADS)
def test_states_are_hidden_and_logits_are_the_models(kind: str) -> None:
    model = make(kind)
    lm = split_lm(model)
    ids = torch.tensor([[1, 5, 6, 7, 8]])
    logits = model(input_ids=ids).logits
    assert lm.state_size == {"opt": 12}.get(kind, 24)
    assert lm.hidden(ids).shape == (1, 5, lm.state_size)
    assert torch.allclose(lm.head(lm.hidden(ids)), logits, atol=1e-5)
    decoder = Decoder(lm, 1, 5)
    assert lm.max_cached >= 5
    decoder.prefill(torch.tensor([0]), ids[:, :4], torch.tensor([4]))
    assert torch.allclose(lm.head(decoder.step(ids[:, 4])), logits[:, -1], atol=1e-5)


def test_a_cap_is_seen_before_it_matters() -> None:
    model = make("gemma2", std=0.01)  # its logits are so small that the cap changes no digit
    lm = split_lm(model)
    torch.nn.init.normal_(model.get_output_embeddings().weight, std=5.0)
    ids = torch.tensor([[1, 5, 6]])
    logits = model(input_ids=ids).logits
    assert float(logits.detach().abs().max()) > 2.5
    assert torch.allclose(lm.head(lm.hidden(ids)), logits, atol=1e-5)


@pytest.mark.parametrize("critic", ["value_head", "separate"])
@pytest.mark.parametrize("kind", ["gemma2", "cohere", "opt"])
def test_critics_learn_on_such_states(kind: str, critic: str) -> None:
    agent = PPO(make(kind), task(kind), PPOConfig(episodes_per_iteration=4, critic=critic))
    numbers = agent.iterate()
    assert numbers["train/first_ratio_error"] < 1e-5
    head = agent.critic if critic == "value_head" else agent.critic.head
    assert float(head[-1].weight.detach().abs().max()) > 0


@pytest.mark.parametrize("kind", ["gemma2", "opt"])
def test_stock_policies_and_candidates_see_the_states(kind: str) -> None:
    options = dict(n_steps=2, gamma=1.0, policy_kwargs={"model": make(kind)})
    A2C(CausalLMPolicy, TextVecEnv(task(kind)), **options).learn(8, callback=SubtractPolicyKL())
    candidates = VectorCandidateActions(task(kind), k=3)
    observation, _ = candidates.reset(seed=0)
    assert candidates.observation_space.contains(observation)
    lm = split_lm(make(kind))
    first = candidates.unwrapped.core.input_ids[0, :3]
    length = candidates.unwrapped.core.lengths[0]
    expected = lm.hidden(torch.tensor(first[None, :length]).long())[0, -1]
    assert np.allclose(observation[0], expected.detach().numpy(), atol=1e-5)


def seeing_ahead() -> dict[str, PreTrainedModel]:
    bart = dict(d_model=24, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2)
    bart |= dict(decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=29)
    t5 = dict(d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=29)
    return {
        "bert": make("bert", is_decoder=False),
        "roberta": make("roberta", is_decoder=False),
        "llama": make("llama", is_causal=False),
        "bart": BartForConditionalGeneration(BartConfig(**bart)).eval(),
        "t5": T5ForConditionalGeneration(T5Config(**t5)).eval(),
    }


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "bart", "t5"])
def test_models_that_see_ahead_are_refused_in_a_line(kind: str) -> None:
    model, tokenizer = seeing_ahead()[kind], tiny_tokenizer()
    pair = {"prompt": "a", "chosen": "bc", "rejected": "d"}
    attempts = [
        lambda: task("llama", reference=model),
        lambda: PPO(model.requires_grad_(True), task("llama")),
        lambda: SFTTrainer(model, tokenizer, [{"text": "ab"}] * 4, shown=False),
        lambda: DPOTrainer(model, tokenizer, [pair] * 4, shown=False),
        lambda: sample_completions(model, tokenizer, ["a"], max_new_tokens=2, seed=0),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for attempt in attempts:
            with pytest.raises(UserError, match=r"causal") as caught:
                attempt()
            assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated")  # peft's own call
def test_prompt_tuning_is_refused_in_a_line() -> None:
    peft = pytest.importorskip("peft", reason="the optional adapters")
    for kind in (peft.PromptTuningConfig, peft.PrefixTuningConfig):
        adapter = kind(task_type="CAUSAL_LM", num_virtual_tokens=3)
        with pytest.raises(UserError, match=r"use.*LoRA") as caught:
            split_lm(peft.get_peft_model(tiny_model(), adapter))
        assert "\n" not in str(caught.value)
