"""Other people's environments as worlds, with the real packages.

A package that is not installed skips its tests; `make test-worlds` has them all and sets
TEXTRL_WORLDS=1, which makes a missing one a failure.
"""

import importlib.util
import json
import logging
import os
import random
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from textrl.envs.worlds.factory import FactoryWorld, tool_calls
from textrl.envs.worlds.foreign import AnyText, ForeignWorld
from textrl.envs.worlds.gem import GemWorld
from textrl.envs.worlds.http_world import HttpWorld
from textrl.envs.worlds.making import make_world
from textrl.envs.worlds.reasoning_gym_world import ReasoningGymWorld
from textrl.envs.worlds.text_arena import TextArenaWorld
from textrl.errors import UserError

ODD = ("", " ", "\n", "é✓\u2028", "[[", "\\boxed{", "9" * 300, "\ud800", "\x00", "[0]")


def needs(package: str) -> None:
    """Not imported here: the adapter must bear what a first import prints and warns of."""
    if importlib.util.find_spec(package) is None:
        assert not os.environ.get("TEXTRL_WORLDS"), f"{package} is missing: make test-worlds"
        pytest.skip(f"{package} is not installed")


def quietly(module: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def checked(world: type, **arguments: Any) -> None:
    """Gymnasium's check_env, which wants a spec; any warning is an error here."""
    spec = EnvSpec("Adapter-v0", entry_point=world, kwargs=arguments)
    check_env(gym.make(spec, disable_env_checker=True).unwrapped)


def played(world: gym.Env[str, str], seed: int, turns: list[str]) -> list[Any]:
    """A game as the list of all that it gave."""
    found: list[Any] = [world.reset(seed=seed)]
    for turn in turns:
        found.append(world.step(turn))
        assert isinstance(found[-1][1], float)
        if found[-1][2] or found[-1][3]:
            break
    return found


def interleaved(make: Callable[[], gym.Env[str, str]], turns: list[str]) -> None:
    """Two worlds a turn in turn play what each plays alone, and nobody's generator is moved."""
    alone = [played(make(), seed, turns) for seed in (3, 4)]
    random.seed(11)
    np.random.seed(12)
    before = random.getstate(), np.random.get_state()
    worlds = [make(), make()]
    found: list[list[Any]] = [[w.reset(seed=seed)] for w, seed in zip(worlds, (3, 4), strict=True)]
    for turn in turns:
        for row, world in enumerate(worlds):
            if len(found[row]) < len(alone[row]):
                found[row].append(world.step(turn))
    assert found == alone
    assert random.getstate() == before[0]
    for one, two in zip(np.random.get_state(), before[1], strict=True):
        assert np.array_equal(one, two)


def takes_any_text(world: gym.Env[str, str]) -> None:
    for text in ODD:
        world.reset(seed=5)
        reply, reward, terminated, truncated, info = world.step(text)
        assert reply in world.observation_space
        assert isinstance(reward, float)
        assert (type(terminated), type(truncated), type(info)) == (bool, bool, dict)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# --- what they share


def test_any_text_holds_all_texts_and_samples_few_characters() -> None:
    space = AnyText(seed=0)
    assert all(text in space for text in ODD)
    assert 3 not in space
    samples = [space.sample() for _ in range(50)]
    assert all(1 <= len(text) <= 16 and text.isprintable() for text in samples)
    assert len(set(samples)) > 40
    assert space == AnyText() != AnyText(7)
    assert space != gym.spaces.Text(1_000_000)


class Drawing(ForeignWorld):
    """A world whose foreign code draws from both global generators and prints."""

    def __init__(self) -> None:
        super().__init__("Drawing")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        number = self.begin(seed)
        with self.isolated(number):
            print("noise")
            warnings.warn("noise", stacklevel=1)
            return self.started(f"{random.random()} {np.random.rand()}", {})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.taken(action)
        with self.isolated():
            if action == "raise":
                raise KeyError("mine")
            text = f"{random.random()} {np.random.rand()}"
        reward: Any = {"nan": float("nan"), "none": None}.get(action, 1)
        return self.replied(text, reward, action == "end", action == "end", {})


def test_the_global_generators_are_lent_and_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    interleaved(Drawing, ["a", "b", "end"])
    one, two = Drawing(), Drawing()
    assert [one.reset(seed=1), one.reset(), one.reset()] == [
        two.reset(seed=1),
        two.reset(),
        two.reset(),
    ]
    first, draw = one.reset(seed=9)[0], random.Random(9)
    drawn = [first, one.step("a")[0], one.step("a")[0]]
    assert [float(text.split()[0]) for text in drawn] == [draw.random() for _ in range(3)]
    assert capsys.readouterr().out == ""
    checked(Drawing)
    state = random.getstate()
    with pytest.raises(KeyError):
        one.step("raise")
    assert random.getstate() == state


def test_order_and_replies_are_checked() -> None:
    world = Drawing()
    with pytest.raises(UserError, match=r"Drawing: step\(\) when no episode runs.*reset"):
        world.step("a")
    world.reset(seed=0)
    with pytest.raises(UserError, match="an action of type int, 3; expected a str"):
        world.step(3)  # type: ignore[arg-type]
    for odd, found in (("nan", "nan"), ("none", "None")):
        with pytest.raises(UserError, match=f"a reward of {found}; expected a finite number"):
            world.step(odd)
    assert world.step("end")[2:4] == (True, False), "an end that was scored is no truncation"
    with pytest.raises(UserError, match="the episode is over"):
        world.step("a")


# --- GEM


def test_gem_plays_a_hand_checked_game() -> None:
    needs("gem")
    world = GemWorld("game:GuessTheNumber-v0-easy")
    number = random.Random(3).randint(1, 10)  # what GEM draws first after its seed
    text, info = world.reset(seed=3)
    assert "between 1 and 10 (inclusive) within 4 turns" in text
    assert text.endswith("start the game.\nEnter your next guess.")
    assert info == {}
    hint = "lower" if number < 10 else "higher"
    guess = 10 if number < 10 else 9
    assert world.step(f"\\boxed{{{guess}}}") == (
        f"At turn 1, you guessed {guess}, and the target number is {hint} than {guess}.\n"
        "Enter your next guess.",
        0.0,
        False,
        False,
        {},
    )
    last = world.step(f"I say \\boxed{{{number}}}")
    won = f"Congratulations! You guessed the correct number {number} in 2 turns."
    assert last == (f"{won}\nEnter your next guess.", 1.0, True, False, {})
    with pytest.raises(UserError, match="the episode is over"):
        world.step("x")


def test_a_gem_game_that_runs_out_of_turns_is_terminated() -> None:
    """GEM says terminated and truncated; the last guess was scored (1 - distance / 9)."""
    needs("gem")
    world = GemWorld("game:GuessTheNumber-v0-easy")
    number = random.Random(3).randint(1, 10)
    wrong = [n for n in range(1, 11) if n != number][:4]
    *_, last = played(world, 3, [f"\\boxed{{{n}}}" for n in wrong])
    assert last[0].startswith("You have reached the maximum number of turns.")
    assert last[1:4] == (pytest.approx(1 - abs(wrong[-1] - number) / 9), True, False)


GEM_OFFLINE = (
    "game:GuessTheNumber-v0-easy",
    "game:Mastermind-v0-easy",
    "game:Minesweeper-v0-easy",
    "game:FifteenPuzzle-v0-easy",
    "game:Sudoku-v0-easy",
    "game:TowerofHanoi-v0-easy",
    "game:Game2048-v0-easy",
    "rg:letter_counting",
)


@pytest.mark.parametrize("game", GEM_OFFLINE)
def test_gem_games_that_need_no_network(game: str, offline: None) -> None:
    needs("gem")
    checked(GemWorld, game=game)
    interleaved(lambda: GemWorld(game), ["\\boxed{1}", "\\boxed{up}", "\\boxed{12}", "x"])
    takes_any_text(GemWorld(game))


def test_gem_refuses_in_one_line(offline: None) -> None:
    needs("gem")
    for game, message in (
        ("game:GuessTheNumber-v0-esy", "did you mean 'game:GuessTheNumber-v0-easy'"),
        ("game:FifteenPuzzle-v0-random", "could not be made: TypeError"),  # a fault of GEM 0.1.0
    ):
        with pytest.raises(UserError, match=message):
            GemWorld(game)
    with pytest.raises(UserError, match="takes no options; found level"):
        GemWorld("game:GuessTheNumber-v0-easy").reset(options={"level": 2})


def test_importing_gem_leaves_the_root_logger_alone() -> None:
    """In a process of its own: GEM's import calls logging.basicConfig, which pytest forestalls."""
    needs("gem")
    code = (
        "import logging; from textrl.envs.worlds.gem import GemWorld; "
        "GemWorld('game:GuessTheNumber-v0-easy'); root = logging.getLogger(); "
        "print(root.handlers, root.level)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == f"[] {logging.WARNING}\n", done.stderr


@pytest.mark.parametrize(
    ("package", "world"),
    [
        ("gem", lambda: GemWorld("game:Hangman-v0-easy")),
        ("gem", lambda: GemWorld("game:WordSearch-v0-easy")),  # looks before it fetches
        ("textarena", lambda: TextArenaWorld("Hangman-v0")),
        ("textarena", lambda: TextArenaWorld("DontSayIt-v0", opponent="random")),
    ],
)
def test_missing_words_are_not_fetched(
    package: str,
    world: Callable[[], object],
    offline: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
) -> None:
    needs(package)
    nltk = quietly("nltk")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    real = nltk.download
    with pytest.raises(UserError, match="NLTK's data 'words' is not on.*nltk.downloader words"):
        world()
    assert nltk.download is real


# --- TextArena


def test_text_arena_plays_a_hand_checked_game() -> None:
    needs("textarena")
    world = TextArenaWorld("GuessTheNumber-v0")
    number = random.Random(3).randint(1, 20)
    text, info = world.reset(seed=3)
    assert text.startswith("[GAME] You are Player 0. You are playing Guess The Number.\n")
    assert text.endswith("\nEnter your guess.")
    assert info == {}
    assert world.step("[1]") == ("[GAME] The target number is higher.", 0.0, False, False, {})
    assert world.step("20")[0] == "[GAME] The target number is lower.", "brackets are put round it"
    text, reward, terminated, truncated, info = world.step(f"[{number}]")
    assert text == "[GAME] Congratulations! You guessed the correct number."
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert info["turn_count"] == 3


def test_two_players_against_a_script() -> None:
    """O takes 0, 3, 6, X takes 1 and 2: the first column wins. Then from the other seat."""
    needs("textarena")
    world = TextArenaWorld("TicTacToe-v0", opponent=["[1]", "[2]"])
    for _ in range(2):  # the script begins anew
        first, second, third, last = played(world, 0, ["[0]", "[3]", "[6]"])
        assert "you will be 'O'" in first[0]
        assert "[Player 1] [1]" in second[0]
        assert "[Player 0]" not in second[0], "our own move is not said again"
        assert "\n O | X | 2 \n" in second[0]
        assert "\n O | X | X \n---+---+---\n O | 4 | 5 \n" in third[0]
        assert "\n O | X | X \n---+---+---\n O | 4 | 5 \n---+---+---\n O | 7 | 8 \n" in last[0]
        assert last[0].endswith("[GAME] Player 0 has won!")
        assert last[1:4] == (1.0, True, False)
    other = TextArenaWorld("TicTacToe-v0", opponent=["[0]", "[3]", "[6]"], player=1)
    first, second, last = played(other, 0, ["[1]", "[2]"])
    assert "[Player 0] [0]" in first[0], "the opponent began"
    assert last[0].endswith("[GAME] Player 0 has won!")
    assert last[1:4] == (-1.0, True, False)


def test_an_opponent_sees_the_whole_game_and_is_not_isolated() -> None:
    needs("textarena")
    seen = []

    def opponent(text: str) -> str:
        seen.append(text)
        random.random()
        return "[1]" if len(seen) == 1 else "[2]"

    random.seed(0)
    played(TextArenaWorld("TicTacToe-v0", opponent=opponent), 0, ["[0]", "[3]"])
    assert "You are Player 1 in Tic Tac Toe" in seen[0]
    assert seen[1].startswith(seen[0])
    again = random.Random(0)
    assert [again.random(), again.random(), again.random()][2] == random.random()


def test_the_random_opponent_plays_to_the_end() -> None:
    needs("textarena")
    world = TextArenaWorld("TicTacToe-v0", opponent="random")
    results = set()
    for seed in range(12):
        world.reset(seed=seed)
        for cell in range(9):
            _, reward, over, _, _ = world.step(f"[{cell}]")
            if not over:
                continue
            results.add(reward)
            break
    assert results <= {-1.0, 0.0, 1.0}
    assert len(results) > 1


def test_a_game_begins_where_every_game_begins() -> None:
    """KuhnPoker shuffles the deck of the last episode."""
    needs("textarena")
    world = TextArenaWorld("KuhnPoker-v0", opponent="random")
    games = [played(world, seed, ["[check]"] * 3) for seed in (1, 2, 1, 1)]
    assert games[0] == games[2] == games[3]


def test_a_swapped_reward_is_put_right() -> None:
    """ThreeCardMonte calls set_invalid_move(0.0, "Bad action..."), reward and reason swapped."""
    needs("textarena")
    world = TextArenaWorld("ThreeCardMonte-v0")
    *_, last = played(world, 0, ["left", "right"])
    assert last[1:4] == (0.0, True, False)
    assert "Bad action" in last[0]


TEXT_ARENA_OFFLINE = (
    ("GuessTheNumber-v0", None),
    ("Mastermind-v0", None),
    ("Blackjack-v0", None),
    ("PegJump-v0", None),
    ("TowerOfHanoi-v0", None),
    ("Bandit-v0", None),
    ("Secretary-v0", None),
    ("FrozenLake-v0-random", None),
    ("RushHour-v0", None),
    ("ThreeCardMonte-v0", None),
    ("TicTacToe-v0", "random"),
    ("KuhnPoker-v0", "random"),
    ("Nim-v0", "random"),
    ("ConnectFour-v0", "random"),
    ("PigDice-v0-short", "random"),
)


@pytest.mark.parametrize(("game", "opponent"), TEXT_ARENA_OFFLINE)
def test_text_arena_games_that_need_no_network(
    game: str, opponent: str | None, offline: None, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("textarena")
    checked(TextArenaWorld, game=game, opponent=opponent)
    turns = ["[1]", "[0 1]", "[up]", "[roll]", "[bet]", "[1 2]", "[3]"]
    interleaved(lambda: TextArenaWorld(game, opponent=opponent), turns)
    takes_any_text(TextArenaWorld(game, opponent=opponent))
    assert capsys.readouterr().out == ""


def test_text_arena_refuses_in_one_line() -> None:
    needs("textarena")
    for make, message in (
        (lambda: TextArenaWorld("TicTacTo-v0"), "did you mean 'TicTacToe-v0'"),
        (lambda: TextArenaWorld("TicTacToe-v0").reset(seed=0), "begin with 1 player.*opponent="),
        (lambda: TextArenaWorld("Nim-v0", opponent="best"), "opponent 'best'; expected None"),
        (lambda: TextArenaWorld("Nim-v0", opponent=[]), "expected None, 'random'"),
        (lambda: TextArenaWorld("Nim-v0", player=1), "player 1; expected 0"),
        (lambda: TextArenaWorld("Nim-v0", heaps=3), "could not be made: TypeError"),
        (
            lambda: TextArenaWorld("Taboo-v0", opponent="random").reset(seed=0),
            "begin with 2 player.*at least 4",
        ),
        (
            lambda: TextArenaWorld("GuessTheNumber-v0").reset(options={"level": 2}),
            "takes no options",
        ),
    ):
        with pytest.raises(UserError, match=message):
            make()
    silent = TextArenaWorld("TicTacToe-v0", opponent=lambda text: None)  # type: ignore[arg-type]
    silent.reset(seed=0)
    with pytest.raises(UserError, match="the opponent gave None; expected a text"):
        silent.step("[0]")


# --- reasoning-gym


def test_reasoning_gym_plays_a_hand_checked_question() -> None:
    needs("reasoning_gym")
    world = ReasoningGymWorld("letter_counting", size=20, seed=1, min_words=1, max_words=1)
    for index in range(20):
        text, info = world.reset(options={"index": index})
        assert info == {"index": index}
        _, letter, _, word, _ = text.split('"')
        right = str(word.lower().count(letter))
        last = world.step(f" {right}\n")
        assert last == ("", 1.0, True, False, {"index": index, "answer": right})
        world.reset(options={"index": index})
        assert world.step(str(int(right) + 1))[1] < 1.0
    drawn = {world.reset(seed=seed)[1]["index"] for seed in range(40)}
    assert len(drawn) > 10


@pytest.mark.parametrize("task", ["letter_counting", "spell_backward", "chain_sum", "maze"])
def test_reasoning_gym_tasks(task: str, offline: None) -> None:
    needs("reasoning_gym")
    checked(ReasoningGymWorld, task=task, size=10)
    interleaved(lambda: ReasoningGymWorld(task, size=10), ["1"])
    takes_any_text(ReasoningGymWorld(task, size=10))


def test_a_text_that_the_parser_cannot_read_is_worth_nothing_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs("reasoning_gym")
    world = ReasoningGymWorld("prime_factorization", size=3)
    world.reset(seed=0)
    _, reward, _, _, info = world.step("x")
    assert reward == 0.0
    assert "ValueError" in info["error"]
    world.reset(seed=0)
    monkeypatch.setattr(type(world._items), "score_answer", lambda self, answer, entry: 1 / 0)
    with pytest.raises(UserError, match="item .* cannot be scored: ZeroDivisionError"):
        world.step("2")


def test_reasoning_gym_refuses_in_one_line() -> None:
    needs("reasoning_gym")
    for make, message in (
        (lambda: ReasoningGymWorld("leter_counting"), "did you mean 'letter_counting'"),
        (lambda: ReasoningGymWorld("letter_counting", words=1), "no setting 'words'"),
        (lambda: ReasoningGymWorld("letter_counting", max_words=0), "could not be made: Assert"),
        (lambda: ReasoningGymWorld("maze", size=3).reset(options={"index": 3}), "number 0 to 2"),
        (lambda: ReasoningGymWorld("maze", size=3).reset(options={"item": 3}), "'index' alone"),
    ):
        with pytest.raises(UserError, match=message):
            make()


# --- HTTP

Answer = Callable[[str, dict[str, Any]], tuple[int, bytes, dict[str, str]]]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body["_token"] = self.headers.get("Authorization")
            status, data, headers = answer(self.path, body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # a client that waited long enough
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


GAME: dict[str, Any] = {}


def guessing(path: str, body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
    """Guess a digit, the seed's last: one game a server, as OpenEnv's simplest form."""
    if path == "/reset":
        GAME.update(number=body["seed"] % 10, turns=0)
        reply: dict[str, Any] = {"observation": {"text": "A digit?"}, "reward": None, "done": False}
    else:
        GAME["turns"] += 1
        won = body["action"]["text"] == str(GAME["number"])
        said = {"text": "Yes." if won else "No.", "turns": GAME["turns"]}
        reply = {"observation": said, "reward": float(won) or None, "done": won}
    return 200, json.dumps(reply).encode(), {}


def test_http_plays_a_hand_checked_game() -> None:
    with serving(guessing) as url:
        world = HttpWorld(url + "/", timeout=5)
        assert world.reset(seed=47) == ("A digit?", {})
        assert world.step("4") == ("No.", 0.0, False, False, {"turns": 1})
        assert world.step("7") == ("Yes.", 1.0, True, False, {"turns": 2})
        with pytest.raises(UserError, match="the episode is over"):
            world.step("7")
        checked(HttpWorld, url=url)
        world.reset(seed=47)
        for text in ODD:
            assert world.step(text)[0] == "No."
        made = make_world(url, {"timeout": 3})
        assert made.reset(seed=1)[0] == "A digit?"


def test_http_forms_of_text_end_and_headers() -> None:
    def answer(path: str, body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        said = json.dumps([body.get("action"), body.get("level"), body["_token"]])
        ends = {"terminated": False, "truncated": path == "/step"}
        return 200, json.dumps({"observation": said, "reward": 2, **ends}).encode(), {}

    with serving(answer) as url:
        world = HttpWorld(url, action_field=None, headers={"Authorization": "k"}, timeout=5)
        assert world.reset(options={"level": 3}) == ('[null, 3, "k"]', {})
        assert world.step("go") == ('["go", null, "k"]', 2.0, False, True, {})
        with pytest.raises(UserError, match="options that are no JSON"):
            world.reset(options={"level": object()})


@pytest.mark.parametrize(
    ("status", "data", "message"),
    [
        (500, b"broken\nhere", r"/step: status 500 Internal Server Error: broken\\nhere"),
        (404, b"", "/step: status 404"),
        (302, b"", "a redirect to '/reset'; give that URL"),
        (307, b"", "a redirect to"),
        (200, b"<html>", "the reply is no JSON: b'<html>'"),
        (200, b"[" * 100_000, "the reply is no JSON"),
        (200, b"[1]", r"a reply of \[1\]; expected a JSON object"),
        (200, b'{"done": true}', "no field 'observation'; found done"),
        (
            200,
            b'{"observation": {"a": 1, "b": 2}, "done": true}',
            "no text 'text'.*found a, b; say",
        ),
        (200, b'{"observation": 3, "done": true}', "no text 'text' in the observation; 3"),
        (200, b'{"observation": "x", "reward": 1}', "no field 'done' or 'terminated'"),
        (200, b'{"observation": "x", "reward": "much", "done": true}', "reward 'much'; expected"),
        (200, b'{"observation": "x", "reward": NaN, "done": true}', "a reward of nan"),
        (200, b'{"observation": "x", "reward": 1, "done": "no"}', "done 'no'; expected true"),
    ],
)
def test_http_errors_are_one_line(status: int, data: bytes, message: str) -> None:
    def answer(path: str, body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        if path == "/reset":
            return guessing(path, body)
        return status, data, {"Location": "/reset"}

    with serving(answer) as url:
        world = HttpWorld(url, timeout=5)
        world.reset(seed=0)
        with pytest.raises(UserError, match=message) as caught:
            world.step("x")
        assert "\n" not in str(caught.value)


def test_http_limits_and_refusals() -> None:
    def slow(path: str, body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        time.sleep(1)
        return guessing(path, body)

    with serving(slow) as url:
        began = time.monotonic()
        with pytest.raises(UserError, match=r"no reply within 0.1 s \(timeout=\)"):
            HttpWorld(url, timeout=0.1).reset(seed=0)
        assert time.monotonic() - began < 0.9
    with pytest.raises(UserError, match="/reset: .*refused"):
        HttpWorld(url, timeout=5).reset(seed=0)
    for bad in (
        "ftp://host",
        "file:///etc",
        "http://",
        "http://host:x",
        "host:80",
        "http://h/?a=1",
    ):
        with pytest.raises(UserError, match="expected http://HOST:PORT"):
            HttpWorld(bad)
    with pytest.raises(UserError, match="name or password in it") as caught:
        HttpWorld("http://ann:secret@host")
    assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match="expected seconds above 0"):
        HttpWorld("http://host", timeout=0)


def test_a_reply_that_dribbles_is_cut_off() -> None:
    """Each byte comes in time, the whole of it does not."""
    listener = socket.create_server(("127.0.0.1", 0))

    def dribble() -> None:
        link, _ = listener.accept()
        with link, listener:
            link.recv(65536)
            link.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            for _ in range(100):
                try:
                    link.sendall(b" ")
                except OSError:
                    return
                time.sleep(0.05)

    thread = threading.Thread(target=dribble, daemon=True)
    thread.start()
    began = time.monotonic()
    with pytest.raises(UserError, match="no reply within 0.3 s"):
        HttpWorld(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0.3).reset(seed=0)
    assert time.monotonic() - began < 2
    thread.join(10)


def test_openenvs_own_server() -> None:
    """openenv-core's FastAPI server over a shared environment, and over one a request."""
    needs("fastmcp")
    needs("openenv")
    uvicorn = quietly("uvicorn")
    server_module = quietly("openenv.core.env_server.http_server")
    interfaces = quietly("openenv.core.env_server.interfaces")
    types = quietly("openenv.core.env_server.types")

    class Say(types.Action):  # type: ignore[misc,name-defined]
        text: str

    class Said(types.Observation):  # type: ignore[misc,name-defined]
        text: str

    class Digit(interfaces.Environment):  # type: ignore[misc,name-defined]
        number = -1

        def reset(self, seed: int | None = None, **_: object) -> Said:
            self.number = (seed or 0) % 10
            return Said(text="A digit?")

        def step(self, action: Say, **_: object) -> Said:
            won = action.text == str(self.number)
            return Said(text="Yes." if won else "No.", reward=float(won), done=won)

        @property
        def state(self) -> Any:
            return types.State()

    shared = Digit()
    for factory, replies in ((lambda: shared, ["No.", "Yes."]), (Digit, ["No.", "No."])):
        app = server_module.create_fastapi_app(factory, Say, Said)
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            world = HttpWorld(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=20)
            assert world.reset(seed=47) == ("A digit?", {})
            found = [world.step("4"), world.step("7")]
        finally:
            server.should_exit = True
            thread.join(20)
        assert [reply[0] for reply in found] == replies
        assert found[-1][1:4] == (float(replies[-1] == "Yes."), replies[-1] == "Yes.", False)


# --- TRL's environment_factory


class Door:
    """An environment as TRL's documentation has them: tools are public methods."""

    def reset(self, **row: Any) -> str | None:
        self.row = row
        self.code, self.open = random.randrange(1000), False
        return " The door is locked."

    def look(self) -> str:
        """Return the code."""
        return f"A note says {self.code}."

    def enter(self, code: int) -> bool:
        """Enter a code."""
        self.open = int(code) == self.code
        return self.open

    def pages(self) -> list[dict[str, str]]:
        """Return content blocks."""
        return [{"type": "text", "text": "page"}]

    def _hidden(self) -> str:
        return "never"

    @property
    def costly(self) -> str:
        raise AssertionError("properties are not tools")


class ScoredDoor(Door):
    def get_reward(self) -> float:
        return 1.0 if self.open else -1.0


def call(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


def test_a_factorys_tools_are_called_by_turns() -> None:
    world = FactoryWorld(ScoredDoor, prompt="Open it.")
    assert sorted(tool.__name__ for tool in world.tools) == ["enter", "look", "pages"]
    assert world.reset(seed=3) == ("Open it. The door is locked.", {"role": "user"})
    code = random.Random(3).randrange(1000)
    assert world.environment.row == {"prompt": [{"role": "user", "content": "Open it."}]}
    info = {"role": "tool", "tools": ["look"]}
    assert world.step(call("look")) == (f"A note says {code}.", 0.0, False, False, info)
    two = f"I try <tool_call>{call('enter', code=code)}</tool_call>\n<tool_call>{call('pages')}"
    text, reward, terminated, _, info = world.step(two + "</tool_call>")
    assert (text, reward, terminated) == ("True\npage", 0.0, False)
    assert info == {"role": "tool", "tools": ["enter", "pages"]}
    assert world.step("It is open.") == ("", 1.0, True, False, {"role": "user"})
    with pytest.raises(UserError, match="the episode is over"):
        world.step("x")
    checked(FactoryWorld, factory=ScoredDoor)
    interleaved(lambda: FactoryWorld(ScoredDoor), [call("look"), call("enter", code=1), "done"])
    takes_any_text(world)


def test_mistakes_of_the_model_are_told_to_it_as_trl_tells_them() -> None:
    world = FactoryWorld(Door())
    world.reset(seed=0)
    for turn, reply in (
        (call("reset"), "{'error': 'Tool reset not found.'}"),
        (call("_hidden"), "{'error': 'Tool _hidden not found.'}"),
        (call("enter", code="x"), "invalid literal for int"),
        (call("enter", number=1), "unexpected keyword argument 'number'"),
    ):
        text, reward, terminated, _, _ = world.step(turn)
        assert reply in text
        assert text.startswith("{'error': ")
        assert (reward, terminated) == (0.0, False)
    assert world.step("bye")[1:3] == (0.0, True)


def test_rewards_are_those_of_trl() -> None:
    seen: list[dict[str, Any]] = []

    def reward(environments: list[Door], **given: Any) -> list[float | None]:
        seen.append(given)
        return [0.25 if environments[0].open else None]

    world = FactoryWorld(ScoredDoor, reward=reward)
    code = random.Random(1).randrange(1000)
    world.reset(seed=1, options={"prompt": "Go.", "level": 2})
    assert world.environment.row["level"] == 2
    world.step(call("enter", code=code))
    assert world.step("done")[1] == 1.25
    assert seen[0]["level"] == [2]
    assert seen[0]["prompts"] == [[{"role": "user", "content": "Go. The door is locked."}]]
    assert [said["role"] for said in seen[0]["completions"][0]] == [
        "assistant",
        "tool",
        "assistant",
    ]
    assert "prompt" not in seen[0]
    world.reset(seed=1)
    assert world.step("done")[1] == -1.0, "None is no score"

    def few(completions: list[Any]) -> list[float]:
        return [float(len(completions[0]))]

    world = FactoryWorld(Door, reward=few, max_tool_turns=1)
    world.reset(seed=1)
    world.step(call("look"))
    assert world.step(call("look"))[1:3] == (3.0, True), "a call too many is not made"


def test_a_factory_that_is_none_is_refused() -> None:
    class NoReset:
        def look(self) -> str:
            return ""

    class Later(Door):
        async def wait(self) -> str:
            return ""

    class Number(Door):
        def reset(self, **row: Any) -> Any:
            return 3

    class Picture(Door):
        def photo(self) -> list[dict[str, str]]:
            return [{"type": "image", "image": "..."}]

    with pytest.raises(UserError, match=r"NoReset has no method reset\(\)"):
        FactoryWorld(NoReset)
    with pytest.raises(UserError, match="wait is a coroutine"):
        FactoryWorld(Later)
    with pytest.raises(UserError, match=r"reset\(\) gave 3; expected a text or None"):
        FactoryWorld(Number).reset(seed=0)
    world = FactoryWorld(Picture, reward=lambda environments: ["much"])  # type: ignore[list-item]
    with pytest.raises(UserError, match=r"prompt \['a'\]; expected a text"):
        world.reset(options={"prompt": ["a"]})
    world.reset(seed=0)
    with pytest.raises(UserError, match="photo gave content that is no text"):
        world.step(call("photo"))
    with pytest.raises(UserError, match="reward gave 'much'; expected a number"):
        world.step("done")


def test_what_is_a_tool_call() -> None:
    one = {"name": "a", "arguments": {}}
    assert tool_calls('[{"name": "a"}, {"name": "a"}]') == [one, one]
    for text in (
        "",
        "[]",
        "3",
        "null",
        '{"name": 3}',
        '{"name": "a", "arguments": [1]}',
        "[" * 9999,
    ):
        assert tool_calls(text) == [], text
    assert tool_calls('<tool_call>{"name": "a"}</tool_call><tool_call>{</tool_call>') == []


# --- make_world


class Echo(gym.Env[str, str]):
    observation_space = gym.spaces.Text(9)
    action_space = gym.spaces.Text(9)

    def __init__(self, mark: str = "!") -> None:
        self.mark = mark

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        return self.mark, {}


@pytest.fixture
def registered() -> Iterator[None]:
    gym.register("tests/Echo-v0", entry_point=Echo)
    yield
    del gym.registry["tests/Echo-v0"]


def test_make_world_takes_ids_factories_and_instances(registered: None) -> None:
    made = make_world("tests/Echo-v0", {"mark": "?"})
    assert made.reset()[0] == "?"
    assert isinstance(made, gym.wrappers.OrderEnforcing), "Gymnasium's wrappers"
    assert "PassiveEnvChecker" not in str(made)
    assert make_world(Echo, {"mark": "#"}).reset()[0] == "#"
    echo = Echo()
    assert make_world(echo) is echo
    for given in (ScoredDoor, ScoredDoor()):
        door = make_world(given)
        assert isinstance(door, FactoryWorld)
        door.reset(seed=0)
        assert door.step("done")[1] == -1.0


def test_make_world_finds_the_adapters() -> None:
    needs("gem")
    needs("textarena")
    needs("reasoning_gym")
    assert isinstance(make_world("gem/game:GuessTheNumber-v0-easy"), GemWorld)
    game = make_world("textarena/TicTacToe-v0", {"opponent": "random"})
    assert isinstance(game, TextArenaWorld)
    task = make_world("reasoning_gym/letter_counting", {"size": 3, "max_words": 2, "min_words": 1})
    assert isinstance(task, ReasoningGymWorld)


def test_make_world_refuses_in_one_line(registered: None) -> None:
    for world, arguments, message in (
        ("tests/Ecko-v0", {}, "no world 'tests/Ecko-v0'.*did you mean 'tests/Echo-v0'"),
        ("tests/Echo-v7", {}, "world 'tests/Echo-v7'|no world"),
        ("nowhere:Echo-v0", {}, "no world 'nowhere:Echo-v0'"),
        ("", {}, "world ''"),
        ("gem/", {}, "expected gem/ and an id"),
        ("ftp://host", {}, "expected http:// or https://"),
        ("tests/Echo-v0", {"sign": "?"}, "with arguments sign: .*unexpected keyword"),
        (Echo, {"sign": "?"}, "world Echo with arguments sign: .*unexpected keyword"),
        (Echo(), {"mark": "?"}, "is made already; found arguments mark"),
        ("CartPole-v1", {}, "world 'CartPole-v1': its observation_space is Box.*spaces.Text"),
        (lambda: 3, {}, "world <lambda>: 3; expected an id"),
        (3, {}, "world of type int: 3; expected an id"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            make_world(world, arguments)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("package", "world", "extra"),
    [
        ("gem", "gem/game:GuessTheNumber-v0-easy", "worlds"),
        ("textarena", "textarena/GuessTheNumber-v0", r"worlds\]' and pip install --no-deps"),
        ("reasoning_gym", "reasoning_gym/letter_counting", "reasoning"),
    ],
)
def test_a_missing_package_names_what_to_install(
    package: str, world: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"pip install 'textrl-gym\[{extra}"):
        make_world(world)


def test_importing_the_adapters_imports_no_foreign_package() -> None:
    """In this process others may have been imported; what the modules hold tells."""
    for name in ("gem", "text_arena", "reasoning_gym_world", "foreign", "making"):
        module = sys.modules[f"textrl.envs.worlds.{name}"]
        held = {
            v.__name__.split(".")[0] for v in vars(module).values() if isinstance(v, ModuleType)
        }
        assert not held & {"gem", "textarena", "reasoning_gym", "nltk"}
