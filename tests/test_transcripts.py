"""Transcripts as demonstrations: SFT and the environment read the same tokens of a game."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from transformers import PreTrainedTokenizerBase

import textrl
from textrl.chat import PLAIN_TEMPLATE
from textrl.config import SFTConfig
from textrl.data import load_records
from textrl.demo.models import train_tokenizer
from textrl.encoding import sft_sequence
from textrl.envs import tiny_character_model, tiny_character_tokenizer, tiny_model
from textrl.envs.worlds.experts import EXPERTS, expert_of, played
from textrl.envs.worlds.transcripts import Transcript, append_game, play_game
from textrl.errors import UserError
from textrl.trainers import SFTTrainer

WORLDS = sorted(textrl.WORLDS)
ROOM = {"max_turn_tokens": 20, "max_prompt_tokens": 64, "max_completion_tokens": 192}


def templated(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def in_tokens(tokenizer, game: Transcript, world) -> tuple[list[int], list[bool], str | None]:
    """Play the player's turns of a game in `TextTurns-v0`.

    Returns: the ids up to the player's last token, which of them the player chose, and how the
    episode ended.
    """
    model = tiny_model(vocab_size=len(tokenizer))
    env = gym.make("TextTurns-v0", world=world, reference=model, tokenizer=tokenizer, **ROOM)
    observation, info = env.reset(options={"index": game.seed})
    own: list[int] = []
    for text in game.texts[1::2]:
        for token in [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]:
            own.append(int(observation["attention_mask"].sum()))
            observation, _, _, _, info = env.step(token)
    ids = observation["input_ids"][: own[-1] + 1].tolist()
    return ids, [place in set(own) for place in range(len(ids))], info["finish_reason"]


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("with_template", [False, True])
def test_a_game_has_the_tokens_that_sft_reads(name: str, with_template: bool) -> None:
    """The environment has them with the plain template and without one."""
    sft_tokenizer = templated(tiny_character_tokenizer())
    tokenizer = sft_tokenizer if with_template else tiny_character_tokenizer()
    for seed in range(3):
        game = play_game(gym.make(name), EXPERTS[name], seed=seed)
        ids, own, finish = in_tokens(tokenizer, game, name)
        sequence = sft_sequence(sft_tokenizer, game.row(), "game", max_length=512)
        assert (sequence.ids, sequence.counts) == (ids, own)
        assert finish == "world"
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids.count(tokenizer.eos_token_id) == len(game.texts[1::2])


class Unruly(gym.Env):
    """Texts with white space around them, empty ones, and turns to match."""

    observation_space = action_space = spaces.Text(100, min_length=0)
    texts = ("  hello you ", "\n\n and\n", "no line break", "last")

    def reset(self, *, seed=None, options=None):
        self.turns = 0
        return self.texts[0], {}

    def step(self, action):
        self.turns += 1
        info = {"role": "tool"} if self.turns == 2 else {}
        return self.texts[self.turns], 0.5, self.turns == 3, False, info


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_any_worlds_texts_are_the_same_in_both(kind: str) -> None:
    """With the template set, whatever white space a world writes: both trim it."""
    if kind == "bytes":
        tokenizer = templated(train_tokenizer(["hello you and no line break", "last"] * 20, 300))
    else:
        tokenizer = templated(tiny_character_tokenizer())
    turns = iter([" a  turn ", "", "two\nlines\n"])
    game = play_game(Unruly(), lambda texts: next(turns), seed=4)
    assert [message["role"] for message in game.messages[2::2]] == ["user", "tool", "user"]
    ids, own, _ = in_tokens(tokenizer, game, Unruly())
    sequence = sft_sequence(tokenizer, game.row(), "game", max_length=512)
    assert (sequence.ids, sequence.counts) == (ids, own)


def test_a_row_ends_with_the_player_and_says_what_it_was(tmp_path: Path) -> None:
    world = gym.make("textrl/Calculator-v0")
    expert = expert_of("textrl/Calculator-v0")
    game = play_game(world, expert, seed=5)
    assert (game.texts, game.total) == played(world, expert, seed=5)
    append_game(tmp_path / "new" / "games.jsonl", game)
    append_game(tmp_path / "new" / "games.jsonl", play_game(world, lambda texts: "1", seed=6))
    first, second = map(json.loads, (tmp_path / "new/games.jsonl").read_text().splitlines())
    assert [message["role"] for message in first["messages"]] == [
        *("user", "assistant", "tool", "assistant")
    ]
    assert first["messages"][1]["content"].startswith("calc ")
    assert (first["world"], first["seed"], first["return"]) == ("textrl/Calculator-v0", 5, 1.0)
    assert (second["seed"], second["return"], len(second["messages"])) == (6, 0.0, 2)
    assert play_game(Unruly(), lambda texts: "x").world == "Unruly"


def test_sft_learns_the_turns_of_an_expert(tmp_path: Path) -> None:
    """The whole way: games of an expert in a file, SFT, and the policy in the environment."""
    name = "textrl/ProbePrompt-v0"
    for seed in range(64):
        append_game(tmp_path / "games.jsonl", play_game(gym.make(name), EXPERTS[name], seed=seed))
    tokenizer = templated(tiny_character_tokenizer())
    model = tiny_character_model()
    config = SFTConfig(learning_rate=4e-3, num_epochs=80, minibatch_size=16)
    SFTTrainer(
        model, tokenizer, load_records(tmp_path / "games.jsonl").rows, config, shown=False
    ).train()
    venv = gym.make_vec("TextRLHF/ProbePrompt-v0", num_envs=32, autoreset_mode="Disabled")
    observation, _ = venv.reset(seed=0)
    ids = torch.as_tensor(observation["input_ids"]).long()
    with torch.no_grad():
        logits = model(ids).logits
    lengths = observation["attention_mask"].sum(1)
    actions = logits[torch.arange(32), torch.as_tensor(lengths - 1).long()].argmax(-1).numpy()
    _, rewards, _, _, _ = venv.step(actions)
    assert np.mean(rewards > 0.5) > 0.9


def test_messages_without_a_template_name_the_plain_one() -> None:
    game = play_game(gym.make("textrl/ProbeConstant-v0"), lambda texts: "b", seed=0)
    with pytest.raises(UserError, match=r"textrl\.chat\.PLAIN_TEMPLATE is a plain one"):
        sft_sequence(tiny_character_tokenizer(), game.row(), "game", max_length=64)


def test_there_is_no_expert_for_an_unknown_world() -> None:
    with pytest.raises(UserError, match="did you mean 'textrl/GuessNumber-v0'"):
        expert_of("textrl/GuesNumber-v0")
