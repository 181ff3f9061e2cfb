"""What every world keeps; `test_worlds_by_hand.py` plays each of them."""

import math
import string
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit

import textrl
from textrl import envs
from textrl.envs.worlds.experts import EXPERTS, played
from textrl.errors import UserError

IDS = sorted(textrl.WORLDS)


def make(name: str, **arguments) -> gym.Env:
    return gym.make(f"textrl/{name}-v0", **arguments).unwrapped


# What every world keeps.


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("mode", [None, "ansi"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_check_env_without_a_warning(name: str, mode, wrapped: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # its advice to check the world without gym.make's wrappers, which this test does too
        warnings.filterwarnings("ignore", ".*is different from the unwrapped version")
        env = gym.make(name, render_mode=mode)
        check_env(env if wrapped else env.unwrapped)


@pytest.mark.parametrize("name", IDS)
def test_the_registration(name: str) -> None:
    env = gym.make(name)
    assert env.spec.max_episode_steps is None  # TimeLimit would cut a game without its reward
    assert 0 < env.spec.reward_threshold <= 1.0
    env.spec.to_json()
    for space in (env.observation_space, env.action_space):
        assert isinstance(space, gym.spaces.Text)
        assert space.min_length == 0
        assert space.character_set == set(string.printable)
    assert gym.make(f"textrl:{name}") is not None


def test_every_world_has_an_expert() -> None:
    assert sorted(EXPERTS) == IDS
    assert sorted(id for id in gym.registry if id.startswith("textrl/")) == IDS


@pytest.mark.parametrize("name", IDS)
def test_the_expert_reaches_the_best_value(name: str) -> None:
    env = gym.make(name)
    firsts = set()
    for seed in range(200):
        texts, total = played(env, EXPERTS[name], seed=seed)
        firsts.add(texts[0])
        assert total == 1.0, texts
        assert len(texts[0]) < 48
        for text in texts[::2]:
            assert text.endswith("\n")
            assert text.isascii()
            assert text[:-1].isprintable()
    if name.split("/")[1] in ("Calculator-v0", "ReverseText-v0", "Arithmetic-v0"):
        assert len(firsts) > 40  # there are 30,000, 4,096 and 100


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("GuessNumber", {"low": -50, "high": 1000}),
        ("GuessNumber", {"low": 3, "high": 3, "guesses": 1}),
        ("Mastermind", {"colors": 6, "pegs": 4, "guesses": 12}),
        ("Mastermind", {"colors": 2, "pegs": 1, "guesses": 2}),
        ("Calculator", {"digits": 9, "calls": 1, "operators": "*"}),
        ("HiddenFact", {"max_turns": 2, "fixed_prices": False}),
        ("ReverseText", {"length": 100, "letters": "xyz"}),
        ("Arithmetic", {"digits": 9, "operators": "-*"}),
        ("LetterCount", {"length": 100, "letters": "no"}),
        ("ProbeConstant", {"target": "z"}),
        ("ProbePrompt", {"letters": "qrst"}),
        ("ProbeDelayed", {"target": "a", "length": 9}),
        ("ProbeLaterTurn", {"target": "a", "max_turns": 5}),
    ],
)
def test_the_expert_reads_the_arguments_from_the_texts(name: str, arguments) -> None:
    env = gym.make(f"textrl/{name}-v0", **arguments)
    for seed in range(20):
        texts, total = played(env, EXPERTS[f"textrl/{name}-v0"], seed=seed)
        assert total == 1.0, texts


@pytest.mark.parametrize("name", IDS)
def test_an_expert_takes_over_a_running_game(name: str) -> None:
    """A turn of nonsense first, where a world has more than one; then the expert."""
    env = gym.make(name)
    for seed in range(20):
        text, _ = env.reset(seed=seed)
        reply, _, over, _, _ = env.step("nonsense")
        texts = [text, "nonsense", reply]
        while not over:
            turn = EXPERTS[name](texts)
            reply, reward, over, _, _ = env.step(turn)
            texts += [turn, reply]
        if len(texts) > 3 and "Probe" not in name:
            assert reward == 1.0, texts


@pytest.mark.parametrize("name", IDS)
def test_equal_seeds_give_equal_games(name: str) -> None:
    def games(env: gym.Env) -> list:
        first = played(env, EXPERTS[name], seed=11)
        return [first, *(played(env, EXPERTS[name]) for _ in range(5))]

    one, other = gym.make(name), gym.make(name)
    played(other, EXPERTS[name], seed=5)  # what was played before does not matter
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    first = games(one)
    assert (np.random.get_state()[1] == state).all()  # and no part comes from the global generator
    np.random.seed(1)
    assert games(other) == first


GARBAGE = [
    "",
    " \t\n",
    "\x00",
    "\ud800",  # half a surrogate: no valid UTF-8
    "\u017ftra\u00dfe \u0661\u0662 \uff15 \u00b2",
    "\u0665",  # digits for int(), not for a world
    "1_0",
    "+5",
    "-",
    "9" * 10_000,
    "-" * 10_000,
    "(" * 10_000,
    "calc",
    "calc ",
    "calc " + "(" * 99,
    "calc " + "9" * 10_000,
    "calc 9**9**9",
    "calc ()",
    "calc \ud800",
    "a" * 1_000_000,
    "city?" * 2000,
    "{} %s \\ \r\n",
]


@pytest.mark.parametrize("name", IDS)
def test_no_text_whatever_raises(name: str) -> None:
    env = gym.make(name).unwrapped
    random = np.random.default_rng(0)
    alphabet = [
        *string.printable,
        "\u00e9",
        "\u00df",
        "\ufb00",
        "\u0663",
        "\U0001f600",
        "\u2028",
        "\ud800",
        "\x00",
    ]
    words = ["calc", "city", "?", "AAB", "10", "b", "**", "//", "(", ")"]
    drawn = []
    for _ in range(300):
        source = alphabet if random.random() < 0.5 else words
        size = int(random.integers(0, 40))
        drawn.append("".join(source[i] for i in random.integers(len(source), size=size)))
    over = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Python's parser warns of texts such as 1if
        for number, turn in enumerate(GARBAGE + drawn):
            if over:
                env.reset(seed=number)
            text, reward, over, truncated, info = env.step(turn)
            assert text in env.observation_space
            assert text.endswith("\n")
            assert len(text) < 48
            assert type(reward) is float
            assert 0.0 <= reward <= 1.0
            assert type(over) is bool
            assert truncated is False
            assert info["won"] is (reward == 1.0)


@pytest.mark.parametrize("name", IDS)
def test_every_game_ends(name: str) -> None:
    env = gym.make(name)
    for turn in ("", "nonsense", "calc 1", "Which city?", "\ud800"):
        texts, total = played(env, lambda texts, turn=turn: turn, seed=0)
        assert total < 1.0  # reverse_text pays a letter at its place
        assert len(texts) <= 2 * 8 + 1


@pytest.mark.parametrize("name", IDS)
def test_misuse_is_refused(name: str) -> None:
    env = gym.make(name).unwrapped
    with pytest.raises(UserError, match=r"call reset\(\) first"):
        env.step("a")
    env.reset(seed=0)
    with pytest.raises(UserError, match="the action is 3; expected a str"):
        env.step(3)
    with pytest.raises(UserError, match="expected a dict or None"):
        env.reset(options=[1])
    with pytest.raises(UserError, match="reset option 'no_such' is unknown"):
        env.reset(options={"no_such": 1})
    with pytest.raises(UserError, match="render_mode is 'human'; expected 'ansi' or None"):
        type(env)(render_mode="human")
    over = False
    while not over:  # nothing of the above ended the game
        over = env.step("nonsense")[2]
    with pytest.raises(UserError, match=r"call reset\(\) first"):
        env.step("a")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("GuessNumber", {"low": "1"}, "low is '1'; expected a whole number from -1000000"),
        ("GuessNumber", {"low": True}, "low is True"),
        ("GuessNumber", {"low": 5, "high": 4}, "low is 5; expected at most high, which is 4"),
        ("GuessNumber", {"guesses": 0}, "guesses is 0; expected a whole number from 1 to 100"),
        ("GuessNumber", {"high": math.nan}, "high is nan"),
        ("Mastermind", {"colors": 1}, "colors is 1; expected a whole number from 2 to 8"),
        ("Mastermind", {"pegs": 7}, "pegs is 7"),
        ("Mastermind", {"guesses": None}, "guesses is None"),
        ("Calculator", {"digits": 0}, "digits is 0"),
        ("Calculator", {"calls": 0}, "calls is 0"),
        ("Calculator", {"operators": "+/"}, r"operators is '\+/'; expected some of '\+-\*'"),
        ("Calculator", {"operators": ""}, "operators is ''"),
        ("Arithmetic", {"operators": "++"}, "operators is"),
        ("Arithmetic", {"operators": ["+"]}, "operators is"),
        ("HiddenFact", {"max_turns": 1}, "max_turns is 1"),
        ("HiddenFact", {"fixed_prices": 1}, "fixed_prices is 1; expected True or False"),
        ("ReverseText", {"letters": "aa"}, "letters is 'aa'; expected two or more different"),
        ("ReverseText", {"letters": "aB"}, "letters is 'aB'"),
        ("LetterCount", {"letters": 3}, "letters is 3"),
        ("LetterCount", {"length": 101}, "length is 101"),
        ("ProbeConstant", {"target": "bb"}, "target is 'bb'; expected 1 of the letters"),
        ("ProbePrompt", {"letters": "a"}, "letters is 'a'"),
        ("ProbeDelayed", {"length": 1}, "length is 1"),
        ("ProbeLaterTurn", {"max_turns": 1}, "max_turns is 1"),
    ],
)
def test_arguments_are_checked(name: str, arguments, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(name, **arguments)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("GuessNumber", {"target": 21}, r"options\['target'\] is 21; expected .* from 1 to 20"),
        ("GuessNumber", {"target": None}, r"options\['target'\] is None"),
        ("GuessNumber", {"tarket": 2}, "'tarket' is unknown .did you mean 'target'.*; expected"),
        ("Mastermind", {"code": "ABE"}, r"\['code'\] is 'ABE'; expected 3 of the letters 'ABCD'"),
        ("Mastermind", {"code": "AB"}, r"\['code'\] is 'AB'"),
        ("Calculator", {"question": "9**9"}, r"options\['question'\]: the expression is '9\*\*9'"),
        ("Calculator", {"question": 7}, r"options\['question'\]: the expression is 7"),
        ("Calculator", {"question": "1" + "+1" * 20}, "at most 30 characters"),
        ("Arithmetic", {"question": "1//0"}, "division by zero"),
        ("HiddenFact", {"city": "Osloo"}, "is 'Osloo'; expected one of Rome, .*mean 'Oslo'"),
        ("HiddenFact", {"city": ["Oslo"]}, r"options\['city'\] is \['Oslo'\]"),
        ("ReverseText", {"text": "abc"}, r"options\['text'\] is 'abc'; expected 4 of the letters"),
        ("LetterCount", {"letter": "z"}, r"options\['letter'\] is 'z'"),
        ("ProbePrompt", {"target": "ab"}, r"options\['target'\] is 'ab'"),
        ("ProbeConstant", {"target": "b"}, "none: this world takes no options"),
    ],
)
def test_options_are_checked_before_anything_changes(name: str, options, message: str) -> None:
    env, twin = make(name), make(name)
    for each in (env, twin):
        each.reset(seed=3)
    with pytest.raises(UserError, match=message):
        env.reset(seed=4, options=options)
    assert env.step("nonsense") == twin.step("nonsense")
    assert env.reset() == twin.reset()  # the refused seed was not taken


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("GuessNumber", {"target": 7}),
        ("Mastermind", {"code": "ABC"}),
        ("Calculator", {"question": "37*45"}),
        ("HiddenFact", {"city": "Oslo"}),
        ("ReverseText", {"text": "abcd"}),
        ("Arithmetic", {"question": "1+1"}),
        ("LetterCount", {"text": "aaaaaa", "letter": "b"}),
        ("ProbePrompt", {"target": "c"}),
    ],
)
def test_options_set_one_game_and_leave_the_next_as_they_were(name: str, options) -> None:
    env, twin = make(name), make(name)
    expert = EXPERTS[f"textrl/{name}-v0"]
    chosen = {tuple(played(env, expert, seed=seed, options=options)[0]) for seed in range(5)}
    assert len(chosen) == 1
    played(twin, expert, seed=4)
    assert [played(env, expert) for _ in range(5)] == [played(twin, expert) for _ in range(5)]


def test_render() -> None:
    env = make("GuessNumber", render_mode="ansi")
    text, _ = env.reset(seed=0, options={"target": 7})
    assert env.render() == text
    env.step("3")
    assert env.render() == "higher\n"
    env = make("GuessNumber")
    env.reset(seed=0)
    assert env.render() is None


def test_stock_wrappers() -> None:
    env = RecordEpisodeStatistics(TimeLimit(gym.make("textrl/GuessNumber-v0"), 2))
    env.reset(seed=0, options={"target": 7})
    assert env.step("1")[2:4] == (False, False)
    *_, terminated, truncated, info = env.step("2")
    assert (terminated, truncated) == (False, True)
    assert info["episode"]["l"] == 2
    env.reset(options={"target": 7})
    info = env.step("7")[-1]
    assert (info["episode"]["r"], info["episode"]["l"], info["won"]) == (1.0, 1, True)


def test_a_vector_of_worlds() -> None:
    venv = gym.make_vec("textrl/Calculator-v0", num_envs=2, digits=1)
    texts, _ = venv.reset(seed=0, options={"question": "2*3"})
    assert texts == ("2*3=?\n", "2*3=?\n")
    texts, rewards, terminated, _, infos = venv.step(("calc 2*3", "7"))
    assert texts == ("6\n", "no, 6\n")
    assert rewards.tolist() == [0.0, 0.0]
    assert terminated.tolist() == [False, True]
    assert infos["role"].tolist() == ["tool", None]


# The import.


def test_worlds_load_no_torch() -> None:
    """Playing a game takes milliseconds, not the seconds of torch; and this test can fail."""
    code = (
        "import sys, gymnasium as gym, textrl\n"
        "from textrl.envs.worlds.experts import EXPERTS, played\n"
        "for name in EXPERTS: played(gym.make(name), EXPERTS[name], seed=0)\n"
        "print(sorted({{'torch', 'transformers', 'stable_baselines3'}} & set(sys.modules)))\n"
        "{more}\n"
    )
    for more, found in (("", "[]"), ("print('torch' in sys.modules)", "[]\nFalse")):
        command = [sys.executable, "-c", code.format(more=more)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == found


def test_the_names_of_envs_load_when_used() -> None:
    for name in envs.__all__:
        assert getattr(envs, name).__name__ == name
    assert set(envs.__all__) == set(envs._MODULES)
    with pytest.raises(AttributeError, match="no attribute 'no_such'"):
        _ = envs.no_such
