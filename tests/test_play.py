"""`textrl play` and `textrl tasks` as a person uses them, in a pseudo-terminal and by a pipe."""

import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import pytest
import torch

from textrl.chat import PLAIN_TEMPLATE
from textrl.cli import main
from textrl.config import SFTConfig
from textrl.data import load_records
from textrl.envs import tiny_character_model, tiny_character_tokenizer
from textrl.task_ids import TASKS
from textrl.trainers import SFTTrainer

GUESS = ["play", "--world", "textrl/GuessNumber-v0"]

WORLD = "textrl/GuessNumber-v0"


def typed(lines: str, arguments: list[str], monkeypatch, capsys) -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    main(arguments)
    return str(capsys.readouterr().out)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """A policy of characters, and one that is another."""
    tokenizer, found = tiny_character_tokenizer(), []
    for name, scale in (("policy", 1.0), ("other", 30.0)):
        model = tiny_character_model()
        with torch.no_grad():
            model.lm_head.weight.mul_(scale)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        found.append(str(tmp_path / name))
    return found[0], found[1]


def test_a_person_in_a_terminal(tmp_path: Path) -> None:
    """Binary search by what the screen says, then Ctrl+D in the next game."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "textrl", *GUESS, "--games", "2", "--save", "games.jsonl"]
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path)
    os.close(theirs)
    screen = b""

    def until(wanted: bytes) -> bytes:
        nonlocal screen
        deadline = time.monotonic() + 60
        while not re.search(wanted, screen):
            assert time.monotonic() < deadline, screen
            screen += os.read(ours, 1000)
        found, screen = screen, b""
        return found

    assert b"game 1 of 2: textrl/GuessNumber-v0, seed 0\r\n" in until(b"> $")
    low, high = 1, 20
    while True:
        guess = (low + high) // 2
        os.write(ours, b"%d\n" % guess)
        answer = until(b"\n> $")
        if b"yes" in answer:
            break
        low, high = (guess + 1, high) if b"higher" in answer else (low, guess - 1)
    assert b"[reward 1]" in answer
    assert b"game 2 of 2: textrl/GuessNumber-v0, seed 1" in answer
    os.write(ours, b"\x04")
    last = until(b"games.jsonl\r\n$")
    assert b"the game that was not over is not kept" in last
    assert b"1 game, mean return 1.000, added to games.jsonl" in last
    assert child.wait(timeout=30) == 0
    os.close(ours)
    (row,) = rows(tmp_path / "games.jsonl")
    assert row["messages"][0]["content"] == "Guess my number from 1 to 20.\n"
    assert row["messages"][-1] == {"role": "assistant", "content": str(guess)}
    assert (row["world"], row["seed"], row["return"]) == ("textrl/GuessNumber-v0", 0, 1.0)


def test_a_piped_game(monkeypatch, capsys) -> None:
    """A task id names its world; what a tool says is shown; an empty line is a turn too."""
    world = gym.make("textrl/Calculator-v0")
    question = world.reset(seed=3)[0].strip()
    sum_ = question.removesuffix("=?")
    out = typed(
        f"calc {sum_}\n\n",
        ["play", "--world", "TextRLHF/Calculator-v0", "--seed", "3"],
        monkeypatch,
        capsys,
    )
    answer = eval(sum_)  # the test's own, of two numbers
    assert out.splitlines() == [
        "game 1 of 1: textrl/Calculator-v0, seed 3",
        question,
        f"> {answer}",
        f"> no, {answer}",
        "[reward 0]",
        "1 game, mean return 0.000",
    ]


def test_no_input_at_all_is_a_clean_end(tmp_path: Path, monkeypatch, capsys) -> None:
    out = typed("", [*GUESS, "--save", str(tmp_path / "x.jsonl")], monkeypatch, capsys)
    assert out.splitlines()[-1] == "the input has ended; the game that was not over is not kept"
    assert (tmp_path / "x.jsonl").read_text() == ""


def test_an_experts_games_are_demonstrations(tmp_path: Path, capsys) -> None:
    """They are written, added to, read by SFT; without a file they are shown."""
    path = tmp_path / "new" / "games.jsonl"
    expert = [*GUESS, "--player", "expert", "--games", "30", "--save", str(path)]
    main(expert)
    assert capsys.readouterr().out == f"30 games, mean return 1.000, added to {path}\n"
    main([*expert, "--seed", "30"])
    found = rows(path)
    assert [row["seed"] for row in found] == list(range(60))
    assert {row["return"] for row in found} == {1.0}
    assert len({row["messages"][0]["content"] for row in found}) == 1
    assert len({len(row["messages"]) for row in found}) > 2
    tokenizer = tiny_character_tokenizer()
    tokenizer.chat_template = PLAIN_TEMPLATE
    trainer = SFTTrainer(
        tiny_character_model(), tokenizer, load_records(path).rows, SFTConfig(), shown=False
    )
    trainer.train()
    capsys.readouterr()
    main([*GUESS, "--player", "expert", "--seed", "1"])
    shown = capsys.readouterr().out.splitlines()
    assert shown[1:3] == ["Guess my number from 1 to 20.", "> 10"]
    assert shown[-3:] == ["yes", "[reward 1]", "1 game, mean return 1.000"]


TOKEN = r"\S+ [+-]\d+\.\d\d"


def test_a_policy_is_watched_with_its_kl(folders, tmp_path: Path, capsys) -> None:
    """KL 0 to itself; to another one, that of a turn is the sum of those of its tokens."""
    policy, other = folders
    watch = [*GUESS, "--model", other, "--games", "2", "--save", str(tmp_path / "x.jsonl")]
    main(watch)
    alone = capsys.readouterr().out
    assert alone.count("[KL +0.00, reward 0") + alone.count("[KL -0.00, reward 0") >= 11
    main([*watch, "--reference", policy])
    turns = re.findall(r"\[KL ([+-]\S+), reward \S+: (.*)\]", capsys.readouterr().out)
    assert len(turns) >= 11
    for total, tokens in turns:
        each = [float(part) for part in re.findall(r" ([+-]\d+\.\d\d)(?:  |$)", tokens)]
        assert 1 <= len(each) <= TASKS["TextRLHF/GuessNumber-v0"].max_turn_tokens
        assert sum(each) == pytest.approx(float(total), abs=0.02)
    assert sum(float(total) for total, _ in turns) > 5
    found = rows(tmp_path / "x.jsonl")
    assert [row["seed"] for row in found] == [0, 1, 0, 1]
    assert found[0]["messages"] == found[2]["messages"]  # the same policy, the same seed
    assert found[0]["messages"][-1]["role"] == "assistant"
    assert found[0]["messages"][1]["role"] == "assistant"


def test_a_watched_game_begins_as_a_persons(folders, monkeypatch, capsys) -> None:
    for seed in ("7", "8"):
        prompt = ["play", "--world", "textrl/LetterCount-v0", "--seed", seed]
        by_hand = typed("1\n", prompt, monkeypatch, capsys).splitlines()[1]
        main([*prompt, "--model", folders[0]])
        assert capsys.readouterr().out.splitlines()[1] == by_hand


def test_a_policy_with_a_chat_template_is_watched(folders, capsys) -> None:
    tokenizer = tiny_character_tokenizer()
    tokenizer.chat_template = PLAIN_TEMPLATE
    tokenizer.save_pretrained(folders[0])
    for world in ("textrl/ProbeLaterTurn-v0", "textrl/Mastermind-v0"):
        main(["play", "--world", world, "--model", folders[0]])
        assert "1 game, mean return" in capsys.readouterr().out


def test_the_tasks_are_listed_without_torch() -> None:
    script = (
        "import sys; from textrl.cli import main; main(['tasks']); "
        "print(sorted({'torch', 'transformers', 'stable_baselines3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    *lines, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    assert [line.split()[0] for line in lines] == ["id", *TASKS]
    guess = next(line for line in lines if "GuessNumber" in line)
    assert guess.split()[1:7] == ["0.95", "1", "6", "3", "32", "96"]
    assert guess.endswith("guess a number from 1 to 20 in six guesses")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--world", "TextRLHF/Reviews-v0"], "TextRLHF/Reviews-v0 is no game"),
        (["--world", "a", "--player", "robot"], "player"),
        (["--world", "a", "--player", "expert", "--model", "m"], "player is 'expert'; expected"),
        (["--world", "a", "--reference", "m"], "reference is 'm'; expected nothing without"),
        (["--world", "a", "--save", "games.txt"], "save is 'games.txt'; expected a file that"),
        (
            ["--world", "textrl/GuessNumber-v0", "--save", "folder.jsonl"],
            "folder.jsonl is a folder or a device",
        ),
        (["--world", "a", "--games", "0"], "games is 0; expected a positive number"),
        (
            ["--world", "textrl/GuesNumber-v0", "--player", "expert"],
            "no world 'textrl/GuesNumber-v0'",
        ),
    ],
)
def test_mistakes_are_one_line(options, message: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(SystemExit, match="2"):
        main(["play", *options])
    error = capsys.readouterr().err
    assert error.startswith("textrl: error: ")
    assert error.count("\n") == 1
    assert message in error
