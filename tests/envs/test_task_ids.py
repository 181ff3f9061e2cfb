"""The task ids: registered as they are listed, long enough for every game, as hard as they say."""

import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import textrl
from textrl.demo import task as reviews_task
from textrl.demo.presets import PRESETS
from textrl.demo.reviews import Review, review_prompts, split_reviews
from textrl.envs import TextRLHFVectorEnv, TextTurnsVectorEnv, tiny_model, tiny_tokenizer
from textrl.envs.worlds.experts import EXPERTS, Expert
from textrl.errors import UserError
from textrl.task_ids import PROBES, TASKS, task_of_world

ON_WORLDS = [name for name, task in TASKS.items() if task.world is not None]


@pytest.mark.parametrize("name", ON_WORLDS)
def test_check_env_without_a_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(name)
        check_env(env.unwrapped)
    assert env.spec is not None
    assert env.spec.reward_threshold == textrl.WORLDS[str(TASKS[name].world)][1]
    assert env.spec.max_episode_steps is None  # TimeLimit would cut a game without its reward
    env.spec.to_json()


def test_the_ids_are_those_that_were_promised() -> None:
    issue = "ReverseText Arithmetic LetterCount GuessNumber Calculator Reviews"
    probes = "ProbeConstant ProbePrompt ProbeDelayed ProbeLaterTurn"
    assert list(TASKS) == [f"TextRLHF/{name}-v0" for name in f"{issue} {probes}".split()]
    assert list(PROBES) == [f"TextRLHF/{name}-v0" for name in probes.split()]
    assert {name for name in gym.registry if name.startswith("TextRLHF/")} == set(TASKS)
    assert task_of_world("textrl/GuessNumber-v0") is TASKS["TextRLHF/GuessNumber-v0"]
    assert task_of_world("textrl/Mastermind-v0") is None


def play(name: str, player: Expert, games: int) -> tuple[list[float], list[str], int]:
    """Return the returns and the ends of some games, and the longest text in tokens."""
    env = gym.make(name, kl_coef=0.0).unwrapped
    returns, ends, longest = [], [], 0
    for seed in range(games):
        _, info = env.reset(seed=seed)
        texts, over, total = [info["prompt"]], False, 0.0
        while not over:
            ids = env.tokenizer(player(texts), add_special_tokens=False).input_ids
            budget = TASKS[name].max_turn_tokens
            for token in [*ids, env.eos_token_id][:budget]:
                observation, reward, terminated, truncated, info = env.step(token)
                total += reward
            over = terminated or truncated
            texts += [info["turn_text"], info["reply"]]
        longest = max(longest, int(observation["attention_mask"].sum()))
        returns.append(total)
        ends.append(info["finish_reason"])
    return returns, ends, longest


@pytest.mark.parametrize("name", ON_WORLDS)
def test_the_expert_reaches_the_optimum_within_the_lengths(name: str) -> None:
    returns, ends, _ = play(name, EXPERTS[str(TASKS[name].world)], games=25)
    assert np.mean(returns) == TASKS[name].optimum
    assert set(ends) == {"world"}


BABBLE = ("zzzzzzzzzzzzzzzz", "calc 7//0+77777", "99999999999999999", "")


@pytest.mark.parametrize("name", ON_WORLDS)
def test_no_policy_is_cut_by_the_room(name: str) -> None:
    """The room of a task is for the worst of policies, and no more than it needs."""
    played = [play(name, lambda texts, said=said: said, games=8) for said in BABBLE]
    assert {end for _, ends, _ in played for end in ends} == {"world"}
    task = TASKS[name]
    room = task.max_prompt_tokens + task.max_completion_tokens
    longest = max(longest for _, _, longest in played)
    assert 0.5 * room < longest <= room


@pytest.mark.parametrize("name", ON_WORLDS)
def test_eight_rows_without_arguments(name: str) -> None:
    venv = gym.make_vec(name, num_envs=8)
    assert isinstance(venv, TextTurnsVectorEnv)
    observation, _ = venv.reset(seed=0)
    venv.step(np.full(8, 5))
    assert observation["input_ids"].shape[0] == 8
    assert venv.unwrapped.max_turn_tokens == TASKS[name].max_turn_tokens


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as of `textrl demo`, and reviews that need no network."""
    from transformers import LlamaForSequenceClassification

    letters = [chr(97 + i // 26) + chr(97 + i % 26) for i in range(60)]
    made = [Review(text=" ".join([word] * 8), ratings=(1, 2)) for word in letters]
    monkeypatch.setattr(reviews_task, "load_reviews", lambda: made)
    config = tiny_model().config
    config.num_labels = 1
    tokenizer = tiny_tokenizer(" abcdefghijklmnopqrstuvwxyz")
    tiny_model(vocab_size=30).save_pretrained(tmp_path / "sft")
    config.vocab_size = 30
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "reward_model")
    for name in ("sft", "reward_model"):
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path


def test_reviews_are_played_with_the_models_of_the_demo(models: Path) -> None:
    name = "TextRLHF/Reviews-v0"
    assert (gym.spec(name).reward_threshold, TASKS[name].optimum) == (1.0, None)
    env = gym.make(name, models=str(models))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    venv = gym.make_vec(name, num_envs=4, models=str(models), heldout=True, kl_coef=0.2)
    assert isinstance(venv, TextRLHFVectorEnv)
    assert (env.unwrapped.kl_coef, venv.unwrapped.kl_coef) == (0.1, 0.2)
    train, kept = split_reviews(reviews_task.load_reviews())
    seen = {str(prompt) for _ in range(20) for prompt in venv.reset()[1]["prompt"]}
    assert seen == set(review_prompts(kept, 4))
    assert not seen & {env.reset(options={"index": i})[1]["prompt"] for i in range(len(train))}
    for preset in PRESETS.values():  # whichever of them trained the models
        assert preset.max_prompt_tokens == TASKS[name].max_prompt_tokens
        assert preset.max_completion_tokens == TASKS[name].max_turn_tokens == 24
        assert preset.prompt_words == 4
    assert env.unwrapped.max_completion_tokens == TASKS[name].max_completion_tokens


def test_reviews_without_models_say_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"textrl demo --output_dir .* models=FOLDER"):
        gym.make("TextRLHF/Reviews-v0", models=str(tmp_path / "none"))
    with pytest.raises(UserError, match="runs/demo/sft holds no model"):
        gym.make_vec("TextRLHF/Reviews-v0", num_envs=8)
