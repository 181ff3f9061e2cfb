"""`TextTurns-v0`: checks, autoreset by hand, equal trajectories in all three forms, one call."""

import json
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from families import make as family
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from turn_worlds import (
    DONE,
    EOS,
    MORE,
    SIZES,
    Script,
    babbling,
    random_tokens,
    random_turns,
    scripted,
    single,
    vector,
)

import textrl
from textrl.envs import TextTurnsVectorEnv, tiny_tokenizer
from textrl.envs.sb3 import TextVecEnv
from textrl.errors import UserError

TURN = ("turn", "turn_reward", "turn_text", "reply", "world_info")
END = ("score", "finish_reason", "messages")
GUESS = "textrl/GuessNumber-v0"


@pytest.mark.parametrize("world", [None, "textrl/Calculator-v0", "textrl/HiddenFact-v0"])
def test_both_checkers_pass_without_a_warning(world: str | None) -> None:
    arguments = {} if world is None else {"world": world}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("TextTurns-v0", **arguments).unwrapped)
        sb3_check_env(gym.make("TextTurns-v0", **arguments))


def test_a_turn_by_hand() -> None:
    """Tokens are letters: "go" and a line break, then "a" and the end, then the reply."""
    env = single(scripted(), kl_coef=0.5, render_mode="ansi")
    letter = env.unwrapped.tokenizer.convert_tokens_to_ids
    observation, info = env.reset(seed=4)
    begin = [1, letter("g"), letter("o"), letter("\n")]  # 1 is <bos>
    assert observation["input_ids"][:5].tolist() == [*begin, 0]
    assert observation["prompt_length"].tolist() == [4]
    assert info == {"prompt": "go\n", "prompt_index": None, "world_info": info["world_info"]}
    assert info["world_info"]["seed"] is not None
    observation, reward, terminated, truncated, info = env.step(letter("a"))
    assert reward == pytest.approx(0.5 * info["ref_logprob"])
    assert set(info) == {"ref_logprob"}
    assert observation["attention_mask"].sum() == 5
    observation, reward, terminated, truncated, info = env.step(EOS)
    said = [*begin, letter("a"), EOS, *map(letter, "more\n")]
    assert observation["input_ids"][: len(said) + 1].tolist() == [*said, 0]
    assert reward == pytest.approx(0.5 * info["ref_logprob"])  # the world pays 0 for it
    assert [info[name] for name in TURN] == [1, 0.0, "a", "more\n", {}]
    assert not terminated | truncated
    for token in map(letter, "bcd"):  # this turn has four tokens, which are its budget
        _, _, terminated, truncated, info = env.step(token)
        assert not terminated | truncated
    assert env.render() == "go\n|a|more\n|bcd"
    observation, reward, terminated, truncated, info = env.step(letter("e"))
    assert reward == pytest.approx(0.5 * info["ref_logprob"] + 1.0)
    assert (terminated, truncated) == (True, False)
    said += [*map(letter, "bcde"), EOS, *map(letter, "end\n")]  # nobody chose that EOS
    assert observation["input_ids"][: len(said) + 1].tolist() == [*said, 0]
    assert [info[name] for name in TURN] == [2, 1.0, "bcde", "end\n", {}]
    assert (info["score"], info["finish_reason"]) == (1.0, "world")
    assert [message["content"] for message in info["messages"]] == [
        "go\n",
        "a",
        "more\n",
        "bcde",
        "end\n",
    ]
    with pytest.raises(UserError, match="has not begun or is over"):
        env.step(EOS)


def both(rows: int = 2, **settings) -> TextTurnsVectorEnv:
    """Row 0 ends with its first turn, row 1 with its second: the worlds count the makers."""
    count = iter(range(rows))

    def make() -> Script:
        return Script([DONE] if next(count) == 0 else [MORE, DONE])

    venv = vector(make, rows, **settings)
    assert isinstance(venv, TextTurnsVectorEnv)  # vector_entry_point, not copies
    return venv


def test_next_step_autoreset_by_hand() -> None:
    venv = both()
    venv.reset(seed=0)
    _, _, terminated, _, infos = venv.step(np.array([EOS, EOS]))
    assert terminated.tolist() == [True, False]
    assert infos["_score"].tolist() == [True, False]
    assert infos["_reply"].tolist() == [True, True]
    observation, rewards, terminated, _, infos = venv.step(np.array([7, EOS]))
    assert rewards[0] == 0.0  # this step only resets row 0, while row 1 ends
    assert terminated.tolist() == [False, True]
    assert observation["attention_mask"].sum(1)[0] == 4
    assert infos["prompt"].tolist() == ["go\n", None]
    assert infos["_ref_logprob"].tolist() == [False, True]
    assert infos["_world_info"].tolist() == [True, True]  # of a reset and of a step
    assert infos["world_info"][0]["seed"] is not None
    assert infos["world_info"][1] == {}
    assert venv.core.worlds._worlds[0].turns == 0
    _, _, terminated, _, infos = venv.step(np.array([EOS, EOS]))
    assert terminated.tolist() == [True, False]
    assert infos["prompt"].tolist() == [None, "go\n"]


def test_same_step_autoreset_by_hand() -> None:
    venv = both(autoreset_mode="SameStep")
    venv.reset(seed=0)
    observation, _, terminated, _, infos = venv.step(np.array([EOS, EOS]))
    assert terminated.tolist() == [True, False]
    assert observation["attention_mask"].sum(1).tolist() == [4, 4 + 1 + 5]  # EOS, "more\n"
    assert infos["_final_obs"].tolist() == [True, False]
    assert infos["final_obs"]["attention_mask"].sum(1)[0] == 4 + 1 + 4  # EOS, "end\n"
    final = infos["final_info"]
    assert (final["score"][0], final["reply"][0], final["turn"][0]) == (1.0, "end\n", 1)
    assert not final["_reply"][1]
    assert infos["prompt"].tolist() == ["go\n", None]
    assert infos["world_info"][0]["seed"] is not None  # of the game that begins
    assert infos["world_info"][1] == {}  # of the turn
    assert final["world_info"][0] == {}
    _, _, terminated, _, infos = venv.step(np.array([7, EOS]))
    assert terminated.tolist() == [False, True]
    assert infos["final_info"]["_score"].tolist() == [False, True]


def test_disabled_autoreset_by_hand() -> None:
    venv = both(autoreset_mode=AutoresetMode.DISABLED)
    venv.reset(seed=0)
    venv.step(np.array([EOS, EOS]))
    with pytest.raises(UserError, match="row 0 is over"):
        venv.step(np.array([EOS, EOS]))
    calls = venv.core.worlds._worlds[1].calls.copy()
    observation, infos = venv.reset(options={"reset_mask": np.array([True, False])})
    assert venv.core.worlds._worlds[1].calls == calls
    assert observation["attention_mask"].sum(1).tolist() == [4, 10]
    assert infos["_prompt"].tolist() == [True, False]
    _, _, terminated, _, _ = venv.step(np.array([EOS, EOS]))
    assert terminated.tolist() == [True, True]


def assert_same_info(found: dict, expected: dict) -> None:
    for name in ("ref_logprob", "turn_reward", "score"):
        assert found.get(name) == pytest.approx(expected.get(name), abs=1e-5)
    for name in (*TURN, *END):
        if name not in ("turn_reward", "score"):
            assert found.get(name) == expected.get(name), name


def play_in_three_forms(world: object, episodes: int, **settings) -> int:
    """Hold the trajectories of the three forms against each other; return how many turns ended."""
    rows = min(10, episodes)
    venv = vector(world, rows, autoreset_mode="SameStep", **settings)
    sb3 = TextVecEnv(vector(world, rows, autoreset_mode="SameStep", **settings))
    singles = [single(world, **settings) for _ in range(rows)]
    batch, infos = venv.reset(seed=3)
    sb3.seed(3)
    theirs = sb3.reset()
    now = []
    for row, env in enumerate(singles):
        observation, info = env.reset(seed=3 + row)
        assert infos["prompt"][row] == info["prompt"] == sb3.reset_infos[row]["prompt"]
        assert infos["world_info"][row] == info["world_info"]
        now.append(observation)
    rng, ends, turns = np.random.default_rng(0), 0, 0
    while ends < episodes:
        for row, observation in enumerate(now):
            for name in observation:
                assert np.array_equal(batch[name][row], observation[name])
                assert np.array_equal(theirs[name][row], observation[name])
        actions = random_tokens(rng, rows)
        batch, rewards, terminated, truncated, infos = venv.step(actions)
        theirs, paid, dones, their_infos = sb3.step(actions)
        for row, env in enumerate(singles):
            now[row], reward, ended, cut, info = env.step(actions[row])
            assert rewards[row] == pytest.approx(reward, abs=1e-5)
            assert paid[row] == pytest.approx(reward, abs=1e-5)
            assert (terminated[row], truncated[row]) == (ended, cut)
            assert dones[row] == (ended or cut)
            assert_same_info(their_infos[row], info)
            turns += "turn" in info
            source = infos["final_info"] if ended or cut else infos
            own = {
                n: source[n][row] for n in source if n[0] != "_" and source.get(f"_{n}", [])[row]
            }
            assert_same_info(own, info)
            if ended or cut:
                ends += 1
                final = infos["final_obs"]["input_ids"][row]
                assert np.array_equal(final, now[row]["input_ids"])
                last = their_infos[row]["terminal_observation"]["input_ids"]
                assert np.array_equal(last, now[row]["input_ids"])
                assert their_infos[row]["TimeLimit.truncated"] == (cut and not ended)
                now[row], begun = env.reset()
                assert sb3.reset_infos[row]["prompt"] == begun["prompt"] == infos["prompt"][row]
                assert sb3.reset_infos[row]["world_info"] == begun["world_info"]
                assert infos["world_info"][row] == begun["world_info"]
    return turns


@pytest.mark.parametrize("world", list(textrl.WORLDS))
def test_trajectories_are_equal_in_all_three_forms(world: str) -> None:
    play_in_three_forms(world, 10)


@pytest.mark.slow
@pytest.mark.parametrize("world", list(textrl.WORLDS))
def test_200_trajectories_are_equal_in_all_three_forms(world: str) -> None:
    play_in_three_forms(world, 200, max_turn_tokens=2, max_completion_tokens=48)


def test_trajectories_are_equal_where_worlds_truncate_and_texts_run_out_of_room() -> None:
    world = babbling("a reply of some length\n", "short\n", "")
    assert play_in_three_forms(world, 20, max_completion_tokens=40) > 30


MODELS = {
    "character": (None, {}),
    "banned": (None, dict(banned_token_ids=[5, 6, 9], temperature=0.7)),
    "window": ("Mistral, sliding window", {}),
    "one at a time": ("GPT-Neo", {}),
    "no cache": ("Falcon, ALiBi", dict(temperature=1.3)),
    "state": ("Mamba", {}),
}


def settings_of(name: str) -> dict:
    kind, settings = MODELS[name]
    if kind is None:
        return settings
    sizes = dict(max_prompt_tokens=32, max_completion_tokens=32)
    return settings | dict(reference=family(kind), tokenizer=tiny_tokenizer(), **sizes)


@pytest.mark.filterwarnings("ignore:.*stepped without a KV cache.*:UserWarning")
@pytest.mark.parametrize("name", list(MODELS))
def test_step_sequence_pays_what_steps_pay(name: str) -> None:
    """Turns of other lengths, rows that wait, turns in parts, whatever the model bears."""
    world = babbling("abc", "defghij", "", "k" * 9, ends=0.15)
    settings = settings_of(name)
    whole, steps = (vector(world, 6, autoreset_mode="Disabled", **settings) for _ in range(2))
    whole.reset(seed=5)
    steps.reset(seed=5)
    rng, over, waited, parts = np.random.default_rng(0), np.zeros(6, dtype=bool), 0, 0
    for _ in range(25):
        if over.any():
            whole.reset(options={"reset_mask": over})
            steps.reset(options={"reset_mask": over})
        actions, mask = random_turns(whole, rng)
        waited += int((~mask.any(1)).sum())
        rewards, infos = whole.step_sequence(actions, mask)
        counts = mask.sum(1)
        parts += int(((counts > 0) & (whole.core.lengths > whole.core.turn_starts)).sum())
        found: dict[int, dict] = {row: {} for row in range(6)}
        for slot in range(mask.shape[1]):
            result = steps.core.step(actions[:, slot], mask[:, slot])
            there = mask[:, slot]
            assert np.allclose(rewards[there, slot], result.rewards[there, 0], atol=1e-5)
            expected = result.ref_logprobs[there, 0]
            assert np.allclose(infos["ref_logprobs"][there, slot], expected, atol=1e-5)
            for row in (there & (counts == slot + 1)).nonzero()[0]:
                values = {name: array[row] for name, (array, _) in result.extras.items()}
                found[row] = values | {"score": result.score[row]}
                found[row] |= {"ended": (result.terminated[row], result.truncated[row])}
                found[row] |= {"finish_reason": result.finish_reason[row]}
        assert (rewards[~mask] == 0).all()
        assert np.array_equal(infos["observation"]["input_ids"], steps.core.input_ids)
        assert np.array_equal(whole.core.lengths, steps.core.lengths)
        for row, values in found.items():
            if not values:
                assert not infos["terminated"][row] | infos["truncated"][row]
                continue
            assert (infos["terminated"][row], infos["truncated"][row]) == values.pop("ended")
            assert infos["score"][row] == pytest.approx(values.pop("score"), nan_ok=True)
            for key, value in values.items():
                assert infos[key][row] == value, key
        over = infos["terminated"] | infos["truncated"]
    assert waited > 10
    assert parts > 5


def test_every_token_is_read_once(monkeypatch) -> None:
    """A reply enters the cache as a batch: 4 tokens of the prompt, then what is new."""
    venv = vector(scripted(MORE), 2)
    venv.reset(seed=0)
    read: list[int] = []
    model = venv.reference.base_model
    forward = model.forward

    def watched(*args, **kwargs):
        read.append(kwargs["input_ids"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", watched)
    for token in (5, EOS, 6, 7, EOS):
        venv.step(np.array([token, token]))
    assert read == [4, 1, 1 + 5, 1, 1]  # the last but two reads EOS and "more\n"
    read.clear()
    venv.step_sequence(np.array([[5, EOS], [8, 9]]), np.ones((2, 2), dtype=bool))
    assert sum(read) <= (1 + 5) + 2  # of the longest row


def test_the_spec_of_a_world_by_id_is_jsonable() -> None:
    settings = dict(world_arguments={"high": 3}, prompts=[{"target": 2}], **SIZES)
    env = gym.make("TextTurns-v0", world=GUESS, **settings)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert json.loads(env.spec.to_json())["kwargs"]["world"] == GUESS
    one, two = env.reset(seed=1), again.reset(seed=1)
    assert np.array_equal(one[0]["input_ids"], two[0]["input_ids"])
    assert one[1]["prompt"] == "Guess my number from 1 to 3.\n"


def test_the_global_generators_are_left_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()
    venv = vector(GUESS, 3)
    venv.reset(seed=0)
    for _ in range(9):
        venv.step(np.full(3, EOS))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], state)
