import json
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.envs import PolicyKL, tiny_model, tiny_score, tiny_tokenizer
from textrl.errors import UserError
from textrl.models import split_lm

EOS = 2


def make(**kwargs) -> gym.Env:
    return gym.make("TextRLHF-v0", **kwargs)


def reference_logprob(ids: list[int], action: int, temperature: float = 1.0) -> float:
    with torch.no_grad():
        logits = tiny_model()(input_ids=torch.tensor([ids])).logits[0, -1]
    return float((logits / temperature).log_softmax(-1)[action])


@pytest.mark.parametrize("check", [gymnasium_check_env, sb3_check_env])
@pytest.mark.parametrize("mode", [None, "ansi"])
def test_check_env_without_a_warning(check, mode) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(make(render_mode=mode).unwrapped)


def test_the_default_task_has_the_documented_spaces() -> None:
    env = make()
    observation, info = env.reset(seed=0)
    assert env.observation_space["input_ids"].shape == (64 + 48,)
    assert env.observation_space["input_ids"].dtype == np.int32
    assert env.observation_space["attention_mask"].dtype == np.int8
    assert env.observation_space["prompt_length"].shape == (1,)
    assert env.action_space.n == 29
    assert env.observation_space.contains(observation)
    assert info["prompt"] in "abcdefgh"
    assert gym.make("textrl:TextRLHF-v0") is not None
    assert env.spec.max_episode_steps is None


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rewards_are_the_reference_half_and_the_score(temperature: float) -> None:
    env = make(kl_coef=0.3, max_completion_tokens=4, temperature=temperature)
    observation, info = env.reset(seed=1, options={"prompt": "c"})
    ids = [1, 5]  # <bos> c
    assert observation["input_ids"][:3].tolist() == [1, 5, 0]
    for action in (6, 8, EOS):  # d, f, end
        observation, reward, terminated, truncated, info = env.step(np.int64(action))
        expected = 0.3 * reference_logprob(ids, action, temperature)
        assert info["ref_logprob"] == pytest.approx(expected / 0.3, abs=1e-5)
        if action == EOS:
            expected += tiny_score(["c"], ["df"])[0]
        assert reward == pytest.approx(expected, abs=1e-5)
        assert type(reward) is float
        ids.append(action)
    assert (terminated, truncated) == (True, False)
    assert info["finish_reason"] == "eos"
    assert info["completion"] == "df"
    assert info["text"] == "cdf"
    assert info["score"] == 0.25
    assert observation["input_ids"][:5].tolist() == ids
    assert observation["attention_mask"].sum() == 5


def test_the_budget_terminates_is_scored_and_may_be_penalised() -> None:
    env = make(kl_coef=0.0, max_completion_tokens=2, missing_eos_penalty=0.5)
    env.reset(seed=0, options={"prompt": "a"})
    assert env.step(4)[1:4] == (0.0, False, False)
    _, reward, terminated, truncated, info = env.step(5)
    assert (terminated, truncated, info["finish_reason"]) == (True, False, "length")
    assert info["score"] == 0.25
    assert reward == pytest.approx(0.25 - 0.5)


def test_on_length_truncate_gives_no_score() -> None:
    env = make(kl_coef=0.0, max_completion_tokens=1, on_length="truncate", missing_eos_penalty=1.0)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(5)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert "score" not in info
    env.reset(seed=0)
    _, _, terminated, truncated, info = env.step(EOS)
    assert (terminated, truncated) == (True, False)
    assert "score" in info


def test_kl_coef_can_be_set_while_running() -> None:
    env = make(kl_coef=0.0)
    env.reset(seed=0, options={"prompt": "a"})
    assert env.step(5)[1] == 0.0
    env.unwrapped.kl_coef = 0.5
    assert env.step(5)[1] == pytest.approx(0.5 * reference_logprob([1, 3, 5], 5), abs=1e-5)


def test_prompts_come_in_shuffled_epochs_by_the_seed_alone() -> None:
    def prompts(seed: int, count: int) -> list[str]:
        env = make()
        first = env.reset(seed=seed)[1]["prompt"]
        return [first, *(env.reset()[1]["prompt"] for _ in range(count - 1))]

    torch.manual_seed(0)
    np.random.seed(0)
    one = prompts(7, 16)
    torch.manual_seed(1)
    np.random.seed(1)
    assert prompts(7, 16) == one
    assert sorted(one[:8]) == sorted(one[8:]) == list("abcdefgh")
    assert one[:8] != one[8:]
    assert prompts(8, 8) != one[:8]


def test_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    env = make()
    env.reset(seed=3)
    for action in (5, 6, EOS):
        env.step(action)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_group_size_repeats_each_prompt() -> None:
    env = make(group_size=3)
    seen = [env.reset(seed=0)[1]["prompt"], *(env.reset()[1]["prompt"] for _ in range(5))]
    assert len(set(seen[:3])) == len(set(seen[3:])) == 1
    assert seen[0] != seen[3]


def test_options_and_columns_and_mixed_rewards() -> None:
    seen = {}

    def by_column(prompts, completions, bonus) -> list[float]:
        seen["bonus"] = bonus
        return [float(b) for b in bonus]

    rows = [{"prompt": "a", "bonus": 1}, {"prompt": "b", "bonus": 2}]
    env = make(prompts=rows, reward=[(by_column, 0.5), tiny_score], kl_coef=0.0)
    env.reset(options={"index": 1})
    env.step(5)
    _, reward, *_ = env.step(EOS)
    assert seen["bonus"] == [2]
    assert reward == pytest.approx(0.5 * 2 + 1 / 8)
    with pytest.raises(UserError, match="index 2"):
        env.reset(options={"index": 2})
    with pytest.raises(UserError, match="options"):
        env.reset(options={"promt": "a"})


def test_action_masks() -> None:
    tokenizer = tiny_tokenizer()
    env = make(
        reference=tiny_model(vocab_size=32),
        tokenizer=tokenizer,
        reward=tiny_score,
        prompts=["a"],
        min_completion_tokens=1,
        banned_token_ids=[7],
    ).unwrapped
    env.reset(seed=0)
    masks = env.action_masks()
    assert masks.shape == (32,)
    assert not masks[[EOS, 7, 29, 30, 31]].any()
    env.step(5)
    assert env.action_masks()[EOS]
    # ids beyond the tokenizer can be taken all the same; they decode to nothing
    env.step(31)
    assert env.step(EOS)[4]["completion"] == "c"


def test_pad_equal_to_eos_keeps_the_real_eos() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<eos>"
    env = make(reference=tiny_model(), tokenizer=tokenizer, reward=tiny_score, prompts=["a"])
    env.reset(seed=0)
    env.step(4)
    observation, _, terminated, _, info = env.step(EOS)
    assert terminated
    assert info["score"] == 1 / 8
    assert observation["attention_mask"].sum() == 4


def test_render() -> None:
    env = make(render_mode="ansi")
    env.reset(seed=0, options={"prompt": "c"})
    env.step(6)
    assert env.render() == "c|d"


def test_spec_is_json_able_from_names(checkpoint: str, tmp_path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    from textrl.trainers import reward_model_from

    model = reward_model_from(checkpoint)
    model.save_pretrained(tmp_path / "rm")
    tiny_tokenizer().save_pretrained(tmp_path / "rm")
    kwargs = dict(
        reference=checkpoint, reward=str(tmp_path / "rm"), prompts=str(prompts), kl_coef=0.1
    )
    env = make(**kwargs)
    assert json.loads(env.spec.to_json())["kwargs"]["kl_coef"] == 0.1
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.reset(seed=0)[1]["prompt"] == "a"
    assert env.unwrapped.reward_model is not None


def test_policy_kl_pays_the_other_half() -> None:
    lm = split_lm(tiny_model(seed=5))

    def logprob(observation, action) -> float:
        count = int(observation["attention_mask"].sum())
        ids = torch.tensor(observation["input_ids"][:count])[None].long()
        with torch.no_grad():
            return float(lm.head(lm.hidden(ids)[0, -1]).log_softmax(-1)[action])

    plain, wrapped = make(kl_coef=0.2), PolicyKL(make(kl_coef=0.2), logprob)
    plain.reset(seed=0)
    before, _ = wrapped.reset(seed=0)
    for action in (5, 9, EOS):
        _, reward, *_ = plain.step(action)
        after, shaped, _, _, info = wrapped.step(action)
        expected = logprob(before, action)
        assert info["policy_logprob"] == expected
        assert shaped == pytest.approx(reward - 0.2 * expected)
        before = after


@pytest.mark.parametrize("check", [gymnasium_check_env, sb3_check_env])
def test_policy_kl_passes_check_env_without_a_warning(check) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Gymnasium says this of every wrapper
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version.*")
        check(PolicyKL(make().unwrapped, lambda observation, action: -1.5))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"prompts": []}, "no records"),
        ({"prompts": ["a", " "]}, "record 1: the prompt is empty"),
        ({"prompts": ["abcdef"], "max_prompt_tokens": 4}, "record 0: the prompt has 7 tokens"),
        ({"prompts": [{"promt": "a"}]}, "did you mean|missing"),
        ({"temperature": 0.0}, "temperature"),
        ({"on_length": "cut"}, "on_length"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": 1000}, "512 positions"),
        ({"reference": "/nowhere", "reward": tiny_score, "prompts": ["a"]}, "nowhere"),
        ({"reference": tiny_model(), "reward": tiny_score, "prompts": ["a"]}, "tokenizer"),
        ({"reference": "x", "prompts": ["a"]}, "reward is missing"),
        ({"reward": []}, "empty"),
        ({"reward": 3}, "reward"),
    ],
)
def test_mistakes_are_explained(kwargs, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda prompts, completions: [None], "returned None for sample 0"),
        (lambda prompts, completions: None, "returned None"),
        (lambda prompts, completions: [float("nan")], "nan for sample 0, prompt 'a'"),
        (lambda prompts, completions: [1.0, 2.0], "2 numbers for 1"),
        (lambda prompts, completions: ["good"], "'good' for sample 0"),
        (lambda prompts, completions: 1 / 0, "ZeroDivisionError.*prompt 'a'"),
    ],
)
def test_rewards_that_fail_are_never_a_silent_0(function, message: str) -> None:
    env = make(reward=function)
    env.reset(options={"prompt": "a"})
    with pytest.raises(UserError, match=message):
        env.step(EOS)


def test_misuse_is_explained() -> None:
    env = make().unwrapped
    with pytest.raises(UserError, match="reset"):
        env.step(5)
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"\[0, 29\)"):
        env.step(29)
    env.step(EOS)
    with pytest.raises(UserError, match="reset"):
        env.step(5)
