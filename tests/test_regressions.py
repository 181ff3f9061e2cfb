"""Bugs that a review found, each with the input that showed it."""

import copy
import json
import math
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
)

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.agents import PPO, OnlineDPO, OnlineDPOConfig, PPOConfig
from textrl.checkpoint import save_model
from textrl.config import RewardConfig
from textrl.data import load_records, prompt_key, split_by_prompt
from textrl.decoding import Decoder
from textrl.demo import run as demo
from textrl.demo.config import DemoConfig
from textrl.encoding import ranked_texts
from textrl.envs import tiny_model, tiny_score, tiny_tokenizer
from textrl.errors import UserError
from textrl.models import split_lm
from textrl.rewards import RewardModel, make_scorer
from textrl.trainers import RewardTrainer, SFTTrainer, reward_model_from

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<eos>z{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)


def make_vec(rows: int = 8, **kwargs):
    settings = dict(max_completion_tokens=4, autoreset_mode="Disabled") | kwargs
    return gym.make_vec("TextRLHF-v0", num_envs=rows, **settings)


def test_a_frozen_policy_is_refused() -> None:
    venv = make_vec()
    frozen = copy.deepcopy(venv.reference)
    with pytest.raises(UserError, match="requires_grad_"):
        PPO(frozen, venv, PPOConfig(episodes_per_iteration=8))
    PPO(frozen.requires_grad_(True), venv, PPOConfig(episodes_per_iteration=8))


@pytest.mark.parametrize(
    "function",
    [
        lambda prompts, completions: [len(c) for c in completions],
        lambda completions, **kwargs: [len(c) for c in completions],
        lambda completions, prompts: [len(c) for c in completions],
        lambda p, c: [len(x) for x in c],
        lambda p, c, **columns: [len(x) for x in c],
        lambda completions: [len(c) for c in completions],
    ],
)
def test_reward_functions_of_every_form(function) -> None:
    columns = {"bonus": [1], "completions": [["other"]], "prompts": ["other"]}
    assert make_scorer(function)(["ab"], ["abcd"], columns).tolist() == [4.0]


def test_a_live_classifier_is_pointed_to_reward_model(checkpoint: str) -> None:
    with pytest.raises(UserError, match=r"RewardModel\(model, tokenizer\)"):
        make_scorer(reward_model_from(checkpoint))
    scorer = make_scorer(RewardModel(reward_model_from(checkpoint), tiny_tokenizer()))
    assert isinstance(scorer.functions[0], RewardModel)


def test_local_attention_is_not_stepped_past_its_window() -> None:
    config = GPTNeoConfig(
        vocab_size=40,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        window_size=4,
        attention_types=[[["global", "local"], 1]],
        bos_token_id=1,
        eos_token_id=2,
    )
    model = GPTNeoForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    lm = split_lm(model)
    ids = [1, 5, 6, 7, 8, 9, 10, 11]
    decoder = Decoder(lm, 1, 16)
    decoder.prefill(torch.tensor([0]), torch.tensor([ids[:2]]), torch.tensor([2]))
    for token in ids[2:]:
        state = decoder.step(torch.tensor([token]))
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0, -1]
    assert torch.allclose(lm.head(state[0]), expected, atol=1e-4)


def test_positions_of_gpt2_are_checked() -> None:
    config = GPT2Config(vocab_size=29, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    model = GPT2LMHeadModel(config)
    settings = dict(reference=model, tokenizer=tiny_tokenizer(), reward=tiny_score, prompts=["a"])
    with pytest.raises(ValueError, match="32 positions"):
        gym.make("TextRLHF-v0", **settings)


def test_peft_policies_train_and_are_saved_merged(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the optional adapters")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    policy = peft.get_peft_model(tiny_model(), lora)
    agent = PPO(policy, make_vec(), PPOConfig(episodes_per_iteration=8, learning_rate=1e-2))
    numbers = agent.iterate()
    assert numbers["train/first_ratio_error"] < 1e-5
    agent.save(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[1, 5, 6]])
    with torch.no_grad():
        assert torch.allclose(loaded(input_ids=ids).logits, policy(input_ids=ids).logits, atol=1e-5)
        assert not torch.allclose(loaded(input_ids=ids).logits, tiny_model()(input_ids=ids).logits)
    PPO.load(tmp_path, make_vec())
    make_vec(reference=policy, tokenizer=tiny_tokenizer(), reward=tiny_score, prompts=["a"])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": None, "rejected": "b"},
        {"chosen": None, "rejected": "b"},
        {"prompt": "a", "completions": ["b", None], "ranks": [0, 1]},
        {"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": [{"role": "assistant", "content": "b"}], "rejected": "c"},
        {"prompt": "a", "completions": ["b", "c"], "ranks": [0, None]},
    ],
)
def test_reward_data_that_would_train_on_garbage(row, checkpoint: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    config = RewardConfig(heldout_share=0.5)
    with pytest.raises(UserError):
        RewardTrainer(reward_model_from(checkpoint), tokenizer, [row, row], config, shown=False)


def test_average_ranks_keep_their_order() -> None:
    row = {"completions": ["a", "b", "c"], "ranks": [1.5, 0, 1.5]}
    assert ranked_texts(row, "here")[1] == [1, 0, 1]
    assert ranked_texts(row | {"ranks": [0, 0.5, 0.9]}, "here")[1] == [0, 1, 2]


def test_chat_rewards_are_trained_on_what_the_environment_scores(
    checkpoint: str, monkeypatch
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    prompt = [{"role": "user", "content": "b"}]
    row = {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": "cd"}],
        "rejected": [{"role": "assistant", "content": "e"}],
    }
    trainer = RewardTrainer(reward_model_from(checkpoint), tokenizer, [row], shown=False)
    judge, seen = trainer.reward_model(), []
    monkeypatch.setattr(judge, "raw_scores", lambda texts: seen.extend(texts) or [0.0] * len(texts))
    env = gym.make(
        "TextRLHF-v0", reference=tiny_model(), tokenizer=tokenizer, reward=judge, prompts=[prompt]
    )
    env.reset(seed=0)
    for token in tokenizer("cd<eos>", add_special_tokens=False).input_ids:
        env.step(token)
    assert trainer._whole_texts(row, "here")[0] == seen[0]
    whole = {"chosen": prompt + row["chosen"], "rejected": prompt + row["rejected"]}
    assert trainer._whole_texts(whole, "here")[0] == seen[0]


def test_csv_fields_may_hold_any_line_separator(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('text,n\nhello\x85world\u2028!,1\n"two\nlines",2\n', encoding="utf-8")
    assert [r["text"] for r in load_records(path).rows] == ["hello\x85world\u2028!", "two\nlines"]


def test_a_dict_of_splits_is_no_list_of_prompts() -> None:
    with pytest.raises(ValueError, match="one split"):
        gym.make("TextRLHF-v0", prompts={"train": [{"prompt": "a"}]})


def test_implicit_prompts_end_at_a_word() -> None:
    one = {"chosen": "Q A: yes", "rejected": "Q A: you"}
    other = {"chosen": "Q A: yes", "rejected": "Q A: no"}
    assert prompt_key(one) == prompt_key(other)
    chat = [{"messages": [{"role": "user", "content": "a"}, {"content": c}]} for c in "bc"]
    assert prompt_key(chat[0]) == prompt_key(chat[1])
    with pytest.raises(UserError, match="leaves no prompt"):
        split_by_prompt(load_records([{"prompt": "a"}]), 0.999999)


def test_seeds_reach_the_reset_rows_only() -> None:
    venv, twin = make_vec(), make_vec()
    venv.reset(seed=0)
    twin.reset(seed=0)
    mask = np.arange(8) < 4
    venv.reset(seed=5, options={"reset_mask": mask})
    twin.reset(options={"reset_mask": mask})
    ours, theirs = (env.reset()[1]["prompt"] for env in (venv, twin))
    assert (ours[4:] == theirs[4:]).all()
    expected = make_vec().reset(seed=np.arange(8))[1]["prompt"]
    assert (expected == make_vec().reset(seed=0)[1]["prompt"]).all()
    venv.reset(seed=[3, *[None] * 7])


def test_a_reward_that_fails_once_takes_the_tokens_back() -> None:
    calls = []

    def flaky(prompts: list[str], completions: list[str]) -> list[float]:
        calls.append(completions)
        if len(calls) == 1:
            raise ConnectionError("away")
        return [1.0] * len(prompts)

    venv, steady = make_vec(reward=flaky), make_vec(reward=lambda p, c: [1.0] * len(p))
    for env in (venv, steady):
        env.reset(seed=0)
    actions, mask = np.full((8, 4), 5), np.ones((8, 4), dtype=bool)
    with pytest.raises(UserError, match="away"):
        venv.step_sequence(actions, mask)
    again, _ = venv.step_sequence(actions, mask)
    assert np.allclose(again, steady.step_sequence(actions, mask)[0], atol=1e-6)


def test_small_misuses_of_the_environment() -> None:
    venv = make_vec()
    venv.reset(seed=0)
    with pytest.raises(UserError, match="T > 0"):
        venv.step_sequence(np.zeros((8, 0), dtype=int), np.zeros((8, 0), dtype=bool))
    with pytest.raises(UserError, match="integer"):
        venv.step(np.full(8, 0.5))
    with pytest.raises(UserError, match="options"):
        venv.reset(options={"prompt": None})
    env = gym.make("TextRLHF-v0")
    env.reset(seed=0)
    env.step(np.array([5]))


def test_exact_kl_without_anything_to_tell_apart() -> None:
    venv = make_vec(reward=lambda prompts, completions: [0.0] * len(prompts))
    agent = PPO(tiny_model(), venv, PPOConfig(episodes_per_iteration=8, kl_loss="exact"))
    # all that is left is rounding, times 1 / sqrt(1e-8): what advantages without spread are, too
    assert agent.iterate()["train/grad_norm"] < 10.0


def test_truncated_batches_log_nan_without_a_warning() -> None:
    venv = make_vec(on_length="truncate", max_completion_tokens=1)
    agent = PPO(tiny_model(), venv, PPOConfig(episodes_per_iteration=8))
    assert math.isnan(agent.iterate()["rollout/score"])


def test_a_tokenizer_without_eos_is_refused_by_trainers() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no EOS"):
        SFTTrainer(tiny_model(), tokenizer, [{"text": "abc"}], shown=False)


def test_a_trained_reward_head_is_kept_and_unknown_names_explained(
    checkpoint: str, tmp_path: Path
) -> None:
    model = reward_model_from(checkpoint, seed=3)
    save_model(model, tiny_tokenizer(), tmp_path)
    again = reward_model_from(tmp_path, seed=4)
    assert torch.equal(again.score.weight, model.score.weight)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(plain.score.weight, model.score.weight)
    with pytest.raises(UserError, match="nowhere"):
        reward_model_from(tmp_path / "nowhere")


def test_agents_are_loaded_by_their_own_class(tmp_path: Path) -> None:
    venv = make_vec(group_size=4)
    OnlineDPO(tiny_model(), venv, OnlineDPOConfig(episodes_per_iteration=8)).save(tmp_path)
    with pytest.raises(UserError, match="online_dpo agent, not ppo"):
        PPO.load(tmp_path, venv)


def test_a_demo_that_cannot_start_deletes_nothing(tmp_path: Path, monkeypatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("{}")
    (run / "summary.json").write_text(json.dumps({"precious": True}))

    def offline() -> None:
        raise UserError("no network")

    monkeypatch.setattr(demo, "load_reviews", offline)
    with pytest.raises(UserError, match="no network"):
        demo.run(DemoConfig(output_dir=str(run), overwrite=True, threads=1))
    assert (run / "summary.json").exists()
