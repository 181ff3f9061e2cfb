"""What a model cannot read is said in a line: ids, positions, frequencies, adapters of its own."""

import copy
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from test_heads import make
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

import textrl  # noqa: F401
from textrl.agents import PPO, RLOO, PPOConfig, RLOOConfig
from textrl.decoding import Decoder
from textrl.envs import tiny_model, tiny_score, tiny_tokenizer
from textrl.errors import UserError
from textrl.evaluation import sample_and_score, sample_completions
from textrl.limits import max_positions
from textrl.models import split_lm
from textrl.rewards import RewardModel
from textrl.trainers import DPOTrainer, SFTTrainer

PAIR = {"prompt": "a", "chosen": "bc", "rejected": "d"}


def task(num_envs: int = 4, **changes: Any) -> gym.vector.VectorEnv:
    common = dict(num_envs=num_envs, tokenizer=tiny_tokenizer(), reward=tiny_score)
    common |= dict(prompts=["a", "bc"], max_completion_tokens=4, autoreset_mode="Disabled")
    return gym.make_vec("TextRLHF-v0", **(common | changes))


def one_line(attempt: Any, pattern: str) -> None:
    with pytest.raises(UserError, match=pattern) as caught:
        attempt()
    assert "\n" not in str(caught.value)


def test_a_tokenizer_longer_than_the_embedding() -> None:
    tokenizer, model = tiny_tokenizer(), tiny_model()
    tokenizer.add_tokens(["<x>"])
    pattern = rf"{len(tokenizer)} tokens, LlamaForCausalLM {len(tokenizer) - 1}.*resize"
    for attempt in (
        lambda: task(reference=tiny_model(), tokenizer=tokenizer),
        lambda: SFTTrainer(model, tokenizer, [{"text": "ab"}] * 4, shown=False),
        lambda: DPOTrainer(model, tokenizer, [PAIR] * 4, shown=False),
        lambda: sample_completions(model, tokenizer, ["a"], max_new_tokens=2, seed=0),
    ):
        one_line(attempt, pattern)


def test_an_embedding_larger_than_the_tokenizer_serves() -> None:
    model = make("llama", vocab_size=40)
    venv = task(reference=copy.deepcopy(model))
    assert venv.single_action_space.n == 40
    numbers = PPO(model, venv, PPOConfig(episodes_per_iteration=4)).iterate()
    assert numbers["train/first_ratio_error"] < 1e-5


@pytest.mark.parametrize(("kind", "size", "limit"), [("gpt2", 16, 16), ("roberta", 16, 14)])
def test_texts_beyond_the_positions_are_named(kind: str, size: int, limit: int) -> None:
    changes = dict(is_decoder=True, pad_token_id=1) if kind == "roberta" else {}
    if kind == "roberta":
        changes["bos_token_id"] = 0
    model = make(kind, max_position_embeddings=size, **changes)
    assert max_positions(model) == limit
    fits, longer = "b" * (limit - 2), "b" * limit  # BOS and EOS stand beside them
    tokenizer = tiny_tokenizer()
    rows = [{"text": fits}, {"text": longer}]
    one_line(
        lambda: SFTTrainer(model, tokenizer, rows, shown=False),
        rf"1 has \d+ tokens.*{limit} positions",
    )
    SFTTrainer(model, tokenizer, rows[:1] * 2, shown=False).train()
    pair = PAIR | {"chosen": longer}
    one_line(
        lambda: DPOTrainer(model, tokenizer, [PAIR, pair], shown=False),
        rf"1 has \d+ tokens.*{limit} positions",
    )
    one_line(
        lambda: sample_completions(model, tokenizer, ["a", "bc"], max_new_tokens=limit - 2, seed=0),
        rf"prompt 1 has {limit + 1} tokens.*{limit} positions",
    )


def test_an_encoders_positions_begin_after_its_pad() -> None:
    sizes = dict(vocab_size=29, hidden_size=24, num_hidden_layers=1, num_attention_heads=2)
    sizes |= dict(intermediate_size=32, max_position_embeddings=12, num_labels=1, pad_token_id=1)
    config = AutoConfig.for_model("roberta", **sizes)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    reward = RewardModel(model, tiny_tokenizer())
    assert reward.max_length == 10
    assert np.isfinite(reward(["a"], ["b" * 7])).all()
    one_line(lambda: reward(["a", "a"], ["b", "b" * 40]), r"sample 1.*10")


def with_frequencies(rope_type: str) -> PreTrainedModel:
    rope: dict[str, Any] = {"rope_type": rope_type, "rope_theta": 1e4, "factor": 4.0}
    if rope_type == "longrope":
        rope |= dict(short_factor=[1.0] * 6, long_factor=[4.0] * 6)
        rope |= dict(original_max_position_embeddings=12)
        sizes = dict(max_position_embeddings=64, original_max_position_embeddings=12)
        return make("phi3", **sizes, rope_parameters=rope)
    return make("llama", max_position_embeddings=12, rope_parameters=rope)


@pytest.mark.parametrize(("kind", "beyond"), [("longrope", 12), ("dynamic", 12)])
def test_texts_are_read_as_if_alone_whatever_their_company(kind: str, beyond: int) -> None:
    model = with_frequencies(kind)
    with torch.no_grad():
        texts = [[1, *range(3, 3 + n)] for n in (4, 11, 14, 18, 4)]
        expected = []
        for text in texts:
            model(torch.tensor([[1]]))  # dynamic frequencies remember the last long text
            expected.append(model(torch.tensor([text])).logits[0])
        model(torch.tensor([texts[3]]))
        lm = split_lm(model)
        assert lm.packing.alone_beyond == beyond
        ids = torch.tensor([text + [0] * (19 - len(text)) for text in texts])
        states = lm.hidden(ids, torch.tensor([len(text) for text in texts]))
        for state, logits in zip(states, expected, strict=True):
            assert torch.allclose(lm.head(state[: len(logits)]), logits, atol=1e-4)
        decoder = Decoder(lm, 1, 24)
        state = decoder.prefill(
            torch.tensor([0]), torch.tensor([texts[3][:10]]), torch.tensor([10])
        )
        for n in range(10, 15):
            model(torch.tensor([[1]]))
            logits = model(torch.tensor([texts[3][:n]])).logits[0, -1]
            assert torch.allclose(lm.head(state)[0], logits, atol=1e-4), n
            state = decoder.step(torch.tensor([texts[3][n]]))
    one_line(lambda: task(reference=model, max_prompt_tokens=10), rf"frequencies.*beyond {beyond}")
    assert split_lm(make("llama")).packing.alone_beyond == sys.maxsize


def adapted(model: PreTrainedModel) -> Any:
    peft = pytest.importorskip("peft", reason="the optional adapters")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


def test_an_adapter_on_the_reference_itself_is_refused() -> None:
    base = tiny_model()
    venv = task(reference=base)
    policy = adapted(base)
    one_line(lambda: PPO(policy, venv, PPOConfig(episodes_per_iteration=4)), "share.*deepcopy")
    score = lambda prompts, completions: [0.0] * len(prompts)  # noqa: E731
    arguments = dict(max_new_tokens=2, seed=0)
    one_line(
        lambda: sample_and_score(policy, base, tiny_tokenizer(), ["a"], score, **arguments), "share"
    )
    PPO(adapted(tiny_model()), venv, PPOConfig(episodes_per_iteration=4)).iterate()


@pytest.mark.parametrize("kind", ["lora value_head", "lora separate", "frozen layers"])
def test_an_agent_is_loaded_as_it_was_saved(kind: str, tmp_path: Path) -> None:
    policy = tiny_model()
    if kind == "frozen layers":
        policy.get_input_embeddings().requires_grad_(False)
        agent: Any = RLOO(policy, task(group_size=2), RLOOConfig(episodes_per_iteration=4))
    else:
        config = PPOConfig(episodes_per_iteration=4, critic=kind.split()[1])
        agent = PPO(adapted(policy), task(), config)
    agent.iterate()
    agent.save(tmp_path / "a")
    again = type(agent).load(tmp_path / "a", task(group_size=agent.env.group_size))

    def state(one: Any) -> dict[str, Any]:
        return {n: p.detach() for n, p in one.policy.named_parameters() if p.requires_grad}

    assert (again.env_steps, again.iteration) == (agent.env_steps, 1)
    for _ in range(2):
        assert state(again).keys() == state(agent).keys()
        for name, value in state(agent).items():
            assert torch.equal(state(again)[name], value), name
        agent.iterate()
        again.iterate()
