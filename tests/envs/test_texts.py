"""Text in the environment: what ends an episode, what is scored, which template writes it."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from families_of_tokenizers import CHATML, QWEN3, gemma, llama2, llama3, phi3, qwen
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl import rewards
from textrl.agents import PPO, BestOfN, BestOfNConfig, PPOConfig
from textrl.chat import Chat
from textrl.checkpoint import save_model
from textrl.encoding import encode_prompt
from textrl.envs.candidates import CandidateActions
from textrl.errors import UserError
from textrl.evaluation import sample_and_score
from textrl.generation import ModelSampler
from textrl.models import split_lm
from textrl.rewards import RewardModel, conversational
from textrl.trainers import RewardTrainer

USER = [{"role": "user", "content": "hello"}]
SIZES = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)


def tiny(tokenizer, kind=LlamaForCausalLM, **config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(LlamaConfig(vocab_size=len(tokenizer), **SIZES, **config)).eval()


def zero(prompts, completions):
    return [0.0] * len(prompts)


def settings(tokenizer: PreTrainedTokenizerFast, **kwargs):
    given = dict(prompts=[USER], reward=zero, max_completion_tokens=6, tokenizer=tokenizer)
    return {"reference": tiny(tokenizer), **given, **kwargs}


def ids_of(tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def classifier(tokenizer, **config) -> RewardModel:
    config = dict(num_labels=1, pad_token_id=0, initializer_range=0.3) | config
    return RewardModel(tiny(tokenizer, LlamaForSequenceClassification, **config), tokenizer)


def run(env, tokens: list[int]) -> dict:
    env.reset(seed=0)
    for token in tokens:
        *_, info = env.step(token)
    return info


@pytest.mark.parametrize("make", [gemma, phi3, llama3])
def test_a_turns_end_ends_an_episode_in_every_way_of_acting(make) -> None:
    tokenizer = make()
    seen: list[str] = []

    def spy(prompts, completions):
        seen.extend(completions)
        return [1.0] * len(prompts)

    asked = settings(tokenizer, reward=spy, missing_eos_penalty=0.5, kl_coef=0.0)
    env = gym.make("TextRLHF-v0", **asked, min_completion_tokens=1)
    ends = env.unwrapped.end_token_ids
    assert len(ends) == 2
    assert ends[0] == env.unwrapped.eos_token_id == tokenizer.eos_token_id
    env.reset(seed=0)
    assert not env.unwrapped.action_masks()[list(ends)].any()
    venv = gym.make_vec("TextRLHF-v0", num_envs=2, **asked, autoreset_mode="Disabled")
    yes = ids_of(tokenizer, "yes")
    actions = np.array([[*yes, ends[0]], [*yes, ends[1]]])
    for end in ends:
        info = run(env, [*yes, end])
        assert info["finish_reason"] == "eos"
        assert info["score"] == 1.0
        assert env.unwrapped.action_masks()[list(ends)].all()
    venv.reset(seed=0)
    _, infos = venv.unwrapped.step_sequence(actions, np.ones_like(actions, dtype=bool))
    assert infos["finish_reason"].tolist() == ["eos", "eos"]
    venv.reset(seed=0)
    for column in actions.T:
        _, paid, terminated, _, _ = venv.step(column)
    assert terminated.all()
    assert paid.tolist() == [1.0, 1.0]  # no penalty for a missing end
    prompt = encode_prompt(tokenizer, USER)
    whole = [[*yes, ends[1]], [*yes * 6][:6]]
    assert env.unwrapped.score_tokens([prompt, prompt], whole).tolist() == [1.0, 1.0]
    assert {text.strip() for text in seen if len(text) < 6} == {"yes"}
    venv.reset(seed=0)
    with pytest.raises(UserError, match="actions after EOS or another end token"):
        venv.unwrapped.step_sequence(np.full((2, 2), ends[1]), np.ones((2, 2), dtype=bool))
    wrapped = CandidateActions(gym.make("TextRLHF-v0", **asked, min_completion_tokens=1), k=4)
    wrapped.reset(seed=0)
    assert not set(ends) & set(wrapped.candidates.tolist())


def test_sampling_evaluation_and_agents_stop_at_a_turns_end() -> None:
    tokenizer = gemma()
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    ids = torch.tensor([encode_prompt(tokenizer, USER)])
    model = tiny(tokenizer)
    forced = ModelSampler(split_lm(model)).sample(
        ids,
        torch.tensor([ids.shape[1]]),
        max_new_tokens=5,
        end_ids=range(len(tokenizer)),
        generator=torch.Generator().manual_seed(0),
    )
    assert forced.mask.sum() == 1
    model.generation_config.eos_token_id = list(range(5, len(tokenizer)))
    tokenizer.add_special_tokens(
        {"additional_special_tokens": tokenizer.convert_ids_to_tokens(range(5, len(tokenizer)))}
    )  # whatever is sampled ends a turn
    asked = settings(tokenizer, reference=copy.deepcopy(model))
    venv = gym.make_vec("TextRLHF-v0", num_envs=4, **asked, autoreset_mode="Disabled")
    assert end in venv.unwrapped.end_token_ids
    report = PPO(model, venv, PPOConfig(episodes_per_iteration=4)).iterate()
    assert report["rollout/eos_share"] > 0
    assert report["rollout/length"] < 3
    samples = sample_and_score(model, model, tokenizer, [USER] * 8, zero, max_new_tokens=6, seed=0)
    assert samples.lengths.mean() < 2
    agent = BestOfN(model, venv, BestOfNConfig(n=2))
    observation, _ = venv.reset(seed=0)
    agent.predict(observation)
    assert all(len(plan) <= len(ids[0]) + 4 for plan in agent._plans.values())


def test_the_space_between_prompt_and_completion_is_kept_everywhere() -> None:
    tokenizer = llama2()
    seen: list[str] = []

    def spy(prompts, completions):
        seen.extend(p + c for p, c in zip(prompts, completions, strict=True))
        return [0.0] * len(prompts)

    asked = settings(tokenizer, prompts=["The movie was"], reward=spy)
    env = gym.make("TextRLHF-v0", **asked, render_mode="ansi")
    great = tokenizer.convert_tokens_to_ids("▁great")
    env.reset(seed=0)
    env.step(great)
    assert env.render() == "The movie was| great"
    *_, info = env.step(tokenizer.eos_token_id)
    assert info["text"] == seen[-1] == "The movie was great"
    prompt = encode_prompt(tokenizer, "The movie was")
    env.unwrapped.score_tokens([prompt, prompt[:-1]], [[great], [great]])
    assert seen[-2:] == ["The movie was great", "The movie great"]


def test_a_chat_reward_model_reads_its_own_template_everywhere(monkeypatch) -> None:
    policy, judge_tok = llama2(), qwen()
    texts: list[str] = []
    encode = rewards.encode_for_scoring

    def spy(tokenizer, text, limit):
        texts.append(text)
        return encode(tokenizer, text, limit)

    monkeypatch.setattr("textrl.rewards.encode_for_scoring", spy)
    judge = classifier(judge_tok)
    env = gym.make("TextRLHF-v0", **settings(policy, reward=judge))
    yes = [policy.convert_tokens_to_ids("▁yes"), policy.eos_token_id]
    run(env, yes)
    reply = {"role": "assistant", "content": "yes"}
    right = judge_tok.apply_chat_template([*USER, reply], tokenize=False)
    env.unwrapped.score_tokens([encode_prompt(policy, USER)], [yes])
    assert texts == [right, right]
    model = tiny(policy)
    sampled = sample_and_score(model, model, policy, [USER], judge, max_new_tokens=2, seed=0)
    content = sampled.completions[0].strip()
    expected = judge_tok.apply_chat_template(
        [*USER, {"role": "assistant", "content": content}], tokenize=False
    )
    assert texts[-1] == expected
    judge_tok.chat_template = None  # then it reads the text, without the policy's markup
    run(env, yes)
    assert texts[-1] == "[INST] hello [/INST] yes"


def test_reward_training_reads_what_the_environment_has_scored() -> None:
    policy, tokenizer = gemma(), qwen(QWEN3)
    policy.chat_template += "{% if tools %}{% endif %}"  # reads them, else they were refused
    tool = {"name": "add"}
    row = {
        "prompt": USER,
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
        "tools": [tool],
    }
    model = tiny(tokenizer, LlamaForSequenceClassification, num_labels=1, pad_token_id=0)
    trainer = RewardTrainer(model.requires_grad_(True), tokenizer, [row], shown=False)
    encoded: list[list[int]] = []
    judge = trainer.reward_model()
    scores = judge.classifier.scores

    class Spy:
        def scores(self, ids):
            encoded.extend(ids)
            return scores(ids)

    judge.classifier = Spy()
    prompts = [{"prompt": USER, "tools": [tool]}]
    env = gym.make("TextRLHF-v0", **settings(policy, reward=judge, prompts=prompts))
    run(env, [*ids_of(policy, "yes"), policy.eos_token_id])
    assert encoded == trainer.train_rankings[0].encoded[:1]
    assert tokenizer.decode(encoded[0]).startswith("<|im_start|>tools add")
    plain = {"prompt": "hello", "chosen": " yes<|im_end|>", "rejected": " no"}
    trainer = RewardTrainer(model.requires_grad_(True), tokenizer, [plain], shown=False)
    env = gym.make("TextRLHF-v0", **settings(policy, reward=judge, prompts=["hello"]))
    run(env, [*ids_of(policy, " yes"), policy.eos_token_id])
    assert encoded[1:] == trainer.train_rankings[0].encoded[:1]
    long = plain | {"chosen": " yes" * 600}
    with pytest.raises(UserError, match="record 0: the text has .* tokens and the limit is 512"):
        RewardTrainer(model.requires_grad_(True), tokenizer, [long], shown=False)


def test_a_text_beyond_the_limit_names_the_sample() -> None:
    tokenizer = qwen()
    judge = classifier(tokenizer, max_position_embeddings=8)
    with pytest.raises(UserError, match="sample 1: the text has .* and the limit is 8"):
        judge(["yes", "hello " * 20], [" no", " no"])


def test_columns_and_messages_reach_template_and_functions() -> None:
    tokenizer = qwen(QWEN3)
    seen: dict = {}

    def score(prompts, completions, messages, tools):
        seen.update(prompt=prompts[0], messages=messages[0], tools=tools[0])
        return [0.0] * len(prompts)

    rows = [{"prompt": USER, "tools": [{"name": "add"}]}]
    quiet = [{"prompt": USER, "chat_template_kwargs": {"enable_thinking": False}}]
    env = gym.make("TextRLHF-v0", **settings(tokenizer, reward=score, prompts=rows))
    observation, info = env.reset(seed=0)
    length = int(observation["prompt_length"][0])
    text = tokenizer.decode(observation["input_ids"][:length])
    assert text.startswith("<|im_start|>tools add<|im_end|>\n")
    run(env, [tokenizer.eos_token_id])
    assert seen == {"prompt": info["prompt"], "messages": USER, "tools": rows[0]["tools"]}
    assert "<|im_" not in info["prompt"]
    env = gym.make("TextRLHF-v0", **settings(tokenizer, prompts=quiet))
    observation, _ = env.reset(seed=0)
    length = int(observation["prompt_length"][0])
    text = tokenizer.decode(observation["input_ids"][:length])
    assert text.endswith("<think>\n\n</think>\n\n")


def test_a_function_of_messages_is_wrapped_or_pointed_to_the_wrapper() -> None:
    tokenizer = qwen(CHATML)

    def trl_style(prompts, completions, **columns):
        assert prompts[0] == USER
        return [float(len(reply[0]["content"])) for reply in completions]

    yes = [*ids_of(tokenizer, "yes"), tokenizer.eos_token_id]
    env = gym.make("TextRLHF-v0", **settings(tokenizer, reward=conversational(trl_style)))
    assert run(env, yes)["score"] == 3.0

    def bare(completions, **columns):
        return [len(reply[0]["content"]) for reply in completions]

    env = gym.make("TextRLHF-v0", **settings(tokenizer, reward=bare))
    with pytest.raises(UserError, match=r"textrl\.rewards\.conversational"):
        run(env, yes)
    plain = settings(tokenizer, reward=conversational(trl_style), prompts=["hello"])
    with pytest.raises(UserError, match="plain text"):
        run(gym.make("TextRLHF-v0", **plain), yes)


def test_a_reply_that_is_begun_goes_on() -> None:
    tokenizer = qwen()
    begun = [*USER, {"role": "assistant", "content": "yes"}]
    judge = classifier(tokenizer)
    env = gym.make("TextRLHF-v0", **settings(tokenizer, prompts=[begun], reward=judge))
    _, info = env.reset(seed=0)
    assert info["prompt"].endswith("yes")
    chat = Chat(messages=begun)
    assert judge.text_of("", " no", chat, "here") == tokenizer.apply_chat_template(
        [*USER, {"role": "assistant", "content": "yes no"}], tokenize=False
    )


def test_a_prompt_of_eos_alone_is_a_prompt() -> None:
    tokenizer = qwen()
    tokenizer.eos_token = "<|endoftext|>"
    asked = settings(tokenizer, prompts=["<|endoftext|>"])
    venv = gym.make_vec("TextRLHF-v0", num_envs=2, **asked, autoreset_mode="Disabled")
    observation, _ = venv.reset(seed=0)
    assert observation["prompt_length"].tolist() == [[1], [1]]
    venv.step(np.array([9, 10]))


def test_end_tokens_survive_a_checkpoint(tmp_path) -> None:
    tokenizer = gemma()
    tokenizer.chat_template = None
    model = tiny(tokenizer)
    model.generation_config.eos_token_id = [1, 4]
    save_model(model, tokenizer, tmp_path)
    env = gym.make("TextRLHF-v0", reference=str(tmp_path), prompts=["hello"], reward=zero)
    assert env.unwrapped.end_token_ids == (1, 4)
