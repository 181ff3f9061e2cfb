"""Each world played by hand; `test_worlds.py` holds what they have in common."""

import math
import warnings

import gymnasium as gym
import numpy as np
import pytest

import textrl  # noqa: F401  # registers the worlds
from textrl.envs.worlds.calculator import evaluate
from textrl.envs.worlds.experts import EXPERTS, played
from textrl.envs.worlds.guess_number import binary_search, optimal_guesses
from textrl.errors import UserError


def make(name: str, **arguments) -> gym.Env:
    return gym.make(f"textrl/{name}-v0", **arguments).unwrapped


def game(env: gym.Env, *turns: str, **options) -> list[tuple[str, float, bool]]:
    """Play the turns; return the first text and what each turn got."""
    first, _ = env.reset(seed=0, options=options or None)
    got = [env.step(turn)[:3] for turn in turns]
    return [first, *got]


def test_guess_number_by_hand() -> None:
    env = make("GuessNumber")
    assert env.guesses == 6  # 20 numbers: 2^4 - 1 < 20 <= 2^5 - 1, so 5 at worst, and one more
    assert game(env, "10", "15", "x", " 13 \n", target=13) == [
        "Guess my number from 1 to 20.\n",
        ("higher\n", 0.0, False),
        ("lower\n", 0.0, False),
        ("a number?\n", 0.0, False),
        ("yes\n", 1.0, True),
    ]
    turns = [
        "0",
        "21",
        "\u0661\u0663",
        "-13",
        "13.0",
        "12",
    ]  # five that are none, and the sixth is the last
    replies = game(env, *turns, target=13)[1:]
    assert [text for text, _, _ in replies[:5]] == ["a number?\n"] * 5
    assert replies[5] == ("no, 13\n", 0.0, True)
    env.reset(seed=0, options={"target": 13})
    assert env.step("5")[-1] == {"guesses": 1, "won": False}
    assert env.step("13")[-1] == {"guesses": 2, "won": True}
    assert env.reset()[1] == {"guesses": 0, "won": False}


def test_guess_number_draws_every_number() -> None:
    env = make("GuessNumber", low=-1, high=2)
    drawn = set()
    for seed in range(100):
        env.reset(seed=seed)
        drawn |= {n for n in range(-1, 3) if n == env._target}
    assert drawn == {-1, 0, 1, 2}


@pytest.mark.parametrize(("low", "high"), [(1, 20), (1, 1), (0, 7), (-9, 53), (1, 127), (1, 128)])
def test_binary_search_wins_within_the_optimum(low: int, high: int) -> None:
    optimum = optimal_guesses(high - low + 1)
    assert optimum == math.ceil(math.log2(high - low + 2))
    env = make("GuessNumber", low=low, high=high, guesses=optimum)
    used = []
    for target in range(low, high + 1):
        texts, total = played(env, binary_search(low, high), options={"target": target})
        assert total == 1.0
        used.append(len(texts) // 2)
    assert max(used) == optimum  # it is no looser a bound than it says


def test_mastermind_by_hand() -> None:
    # AAB against ADB: A and B are right, the second A has no partner left
    # BAD against ADB: none at its place, all three elsewhere
    # DDD against ADB: one D is right
    got = game(make("Mastermind"), "AAB", "bad", "DDD", "ABE", "AB", "", "ADB", code="ADB")
    assert got == [
        "Guess my code: 3 letters from A to D.\n",
        ("2 right, 0 misplaced\n", 0.0, False),
        ("0 right, 3 misplaced\n", 0.0, False),
        ("1 right, 0 misplaced\n", 0.0, False),
        ("3 letters?\n", 0.0, False),
        ("3 letters?\n", 0.0, False),
        ("3 letters?\n", 0.0, False),
        ("yes\n", 1.0, True),
    ]
    got = game(make("Mastermind", guesses=2), "AAA", "", code="ADB")
    assert got[-1] == ("no, ADB\n", 0.0, True)
    env = make("Mastermind", colors=8, pegs=2)
    assert game(env, "\ufb00", "ff", code="FF")[1:] == [  # the ligature is FF in capitals
        ("2 letters?\n", 0.0, False),
        ("yes\n", 1.0, True),
    ]


def test_the_mastermind_expert_finds_every_code() -> None:
    env = make("Mastermind")
    lengths = []
    for number in range(4**3):
        code = "".join("ABCD"[number // 4**i % 4] for i in range(3))
        texts, total = played(env, EXPERTS["textrl/Mastermind-v0"], options={"code": code})
        assert total == 1.0, texts
        lengths.append(len(texts) // 2)
    assert max(lengths) <= 8


def test_calculator_by_hand() -> None:
    env = make("Calculator")
    calls = ["calc 37*45", "calc  2 + ", "calc 9**9**9"]
    assert game(env, *calls, "1665", question="37*45") == [
        "37*45=?\n",
        ("1665\n", 0.0, False),
        ("error: not a sum\n", 0.0, False),
        ("error: not a sum\n", 0.0, False),
        ("yes\n", 1.0, True),
    ]
    # the fourth call is an answer, and a wrong one
    got = game(env, *["calc 37*45"] * 4, question="37*45")
    assert got[3:] == [("1665\n", 0.0, False), ("no, 1665\n", 0.0, True)]
    for answer, reward in (
        ("1665", 1.0),
        (" 1665\n", 1.0),
        ("1665 or 1666", 0.0),
        ("calculate", 0),
    ):
        assert game(env, answer, question="37*45")[1][1:] == (reward, True)
    assert game(env, "-8", question="37-45")[1] == ("yes\n", 1.0, True)
    assert game(env, "calc (1+2)*3", question="7//2")[1][0] == "9\n"


def test_calculator_info() -> None:
    env = make("Calculator")
    assert env.reset(seed=0)[1] == {"calls": 0, "won": False}
    assert env.step("calc 1+1")[-1] == {"calls": 1, "won": False, "role": "tool"}
    assert env.step("no idea")[-1] == {"calls": 1, "won": False}
    assert env.reset()[1] == {"calls": 0, "won": False}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("37*45", 1665),
        (" 2 + 3 * 4 ", 14),  # * binds more
        ("(2+3)*4", 20),
        ("10-4-3", 3),  # from the left
        ("-7//2", -4),  # (-7)//2, rounded down
        ("--3", 3),
        ("7//-2", -4),
        ("0", 0),
        ("999999999999*2", 1_999_999_999_998),
        ("(" * 40 + "1" + ")" * 40, 1),
        ("1" + "+1" * 49, 50),
    ],
)
def test_evaluate(text: str, value: int) -> None:
    assert evaluate(text) == value
    assert type(evaluate(text)) is int


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("9**9**9", "operators"),
        ("1/2", "operators"),
        ("1" * 13, "at most 12 digits"),
        ("999999999999*999999999999*9", "too large"),  # (10^12 - 1)^2 * 9 > 10^24
        ("1" + "+1" * 50, "at most 100 characters"),
        ("-" * 80 + "1", "too deep"),
        ("(" * 100, "not a sum"),
        ("(" * 50 + ")" * 50, "not a sum"),
        ("1//0", "division by zero"),
        ("1//(2-2)", "division by zero"),
        ("", "not a sum"),
        ("   ", "not a sum"),
        ("()", "not a sum"),
        ("2(3)", "not a sum"),
        ("+3", "not a sum"),
        ("1 2", "not a sum"),
        ("(1", "not a sum"),
        ("(*1)", "not a sum"),
        ("007", "not a sum"),
        ("a", "not a sum"),
        ("True", "not a sum"),
        ("1.5", "not a sum"),
        ("1_000", "not a sum"),
        ("0x10", "not a sum"),
        ("1,2", "not a sum"),
        ("1if 1else 2", "not a sum"),
        ("(1).__class__", "not a sum"),
        ("__import__('os').getpid()", "not a sum"),
        ("abs(1)", "not a sum"),
        ("[1][0]", "not a sum"),
        ("1<2", "not a sum"),
        ("1<<9", "not a sum"),
        ("~1", "not a sum"),
        ("lambda: 1", "not a sum"),
        ("1\n2", "not a sum"),
        ("1\x00", "not a sum"),
        ("\u0661+\u0661", "not a sum"),
        (None, "a str such as"),
        (3, "a str such as"),
    ],
)
def test_evaluate_refuses(text, why: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match=why):
            evaluate(text)


def test_hidden_fact_by_hand() -> None:
    env = make("HiddenFact")
    assert game(env, "Which city?", "5", city="Oslo") == [
        "Ticket price? Rome 3, Oslo 5, Lima 4, Bern 7\n",
        ("Oslo\n", 0.0, False),
        ("yes\n", 1.0, True),
    ]
    assert game(env, "WHERE to?", "3", city="Oslo")[1:] == [
        ("Oslo\n", 0.0, False),
        ("no, 5\n", 0.0, True),
    ]
    # no question mark, the wrong question; then the last of three turns is the answer
    assert game(env, "city", "what?", "Which city?", city="Oslo")[1:] == [
        ("a price?\n", 0.0, False),
        ("a price?\n", 0.0, False),
        ("no, 5\n", 0.0, True),
    ]
    assert game(env, "3 5 4 7", city="Oslo")[1] == ("a price?\n", 0.0, False)
    assert game(env, "5 city?", city="Oslo")[1] == ("Oslo\n", 0.0, False)


def test_the_fact_is_hidden_until_asked() -> None:
    """One first text for every city, and each city is drawn: no guess beats a quarter."""
    env = make("HiddenFact")
    firsts = {env.reset(seed=0, options={"city": c})[0] for c in ("Rome", "Oslo", "Lima", "Bern")}
    assert len(firsts) == 1
    wins = []
    for seed in range(400):
        env.reset(seed=seed)
        wins.append(env.step("5")[1])
    assert 0.15 < np.mean(wins) < 0.35  # 0.25, standard error 0.022
    env = make("HiddenFact", fixed_prices=False)
    assert len({env.reset(seed=seed)[0] for seed in range(50)}) > 40


@pytest.mark.parametrize(
    ("answer", "reward"),
    [
        ("dcba", 1.0),
        (" dcba\n", 1.0),
        ("dcab", 0.5),  # d and c of 4
        ("d", 0.25),  # 1 of 4
        ("dcbaa", 0.8),  # 4 of 5: longer than the target
        ("dcba" * 10, 0.1),  # 4 of 40
        ("abcd", 0.0),
        ("DCBA", 0.0),
        ("", 0.0),
    ],
)
def test_reverse_text_by_hand(answer: str, reward: float) -> None:
    first, (reply, got, over) = game(make("ReverseText"), answer, text="abcd")
    assert first == "reverse abcd\n"
    assert got == pytest.approx(reward)
    assert over
    assert reply == ("yes\n" if reward == 1.0 else "no, dcba\n")


def test_single_turn_worlds_by_hand() -> None:
    env = make("Arithmetic")
    assert game(env, "7", question="3+4") == ["3+4=?\n", ("yes\n", 1.0, True)]
    assert game(env, "8", question="3+4")[1] == ("no, 7\n", 0.0, True)
    assert game(env, "calc 3+4", question="3+4")[1] == ("no, 7\n", 0.0, True)
    env = make("LetterCount")
    # b a c a b c: a twice
    chosen = {"text": "bacabc", "letter": "a"}
    assert game(env, "2", **chosen) == ["count a in bacabc\n", ("yes\n", 1.0, True)]
    assert game(env, "3", **chosen)[1] == ("no, 2\n", 0.0, True)
    assert game(env, "0", text="bbbbbb", letter="a")[1] == ("yes\n", 1.0, True)
    assert env.reset(seed=0, options={"text": "bacabc"})[0].endswith(" in bacabc\n")


def test_probes_by_hand() -> None:
    constant = make("ProbeConstant")
    assert game(constant, "b") == ["say b\n", ("yes\n", 1.0, True)]
    assert game(constant, "bad")[1] == ("yes\n", 1.0, True)  # the first character decides
    assert game(constant, "ab")[1] == ("no, b\n", 0.0, True)
    prompt = make("ProbePrompt")
    assert game(prompt, "c", target="c") == ["say c\n", ("yes\n", 1.0, True)]
    assert game(prompt, "b", target="c")[1] == ("no, c\n", 0.0, True)
    assert {prompt.reset(seed=seed)[0][4] for seed in range(50)} == set("abcd")
    delayed = make("ProbeDelayed")
    assert game(delayed, "bxyz") == ["say b and 3 more\n", ("yes\n", 1.0, True)]
    assert game(delayed, "bxyzxyz")[1] == ("yes\n", 1.0, True)
    assert game(delayed, "bxy")[1] == ("no, b\n", 0.0, True)
    assert game(delayed, "xbbb")[1] == ("no, b\n", 0.0, True)
    later = make("ProbeLaterTurn")
    assert game(later, "b", "x") == ["say b\n", ("and then?\n", 0.0, False), ("yes\n", 1.0, True)]
    assert game(later, "x", "b")[1:] == [("and then?\n", 0.0, False), ("no, b\n", 0.0, True)]
    longer = make("ProbeLaterTurn", max_turns=3)
    assert [r for _, r, _ in game(longer, "b", "x", "x")[1:]] == [0.0, 0.0, 1.0]
