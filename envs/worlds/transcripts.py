"""`play_game`, one game of a world with any player, and its transcript as a demonstration.

`textrl play --save` writes transcripts, `textrl sft` reads them. Experts are in `experts.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym

from textrl.durable import append_json_line
from textrl.errors import UserError, shown

Player = Callable[[list[str]], str]
"""From all texts of the game so far, the world's and the player's in turn, to the next turn."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A turn of a game, and what the world answered."""

    text: str
    reply: str
    role: str
    """Who speaks in the reply, "user" or "tool"."""
    reward: float
    over: bool
    """Whether the game is over."""


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """All that was said in a game, and what the world paid for it."""

    world: str
    """The id of the world."""
    seed: int | None
    """The seed of the world's reset."""
    messages: list[dict[str, str]]
    """What was said, as `role` and `content`; the player's turns are the assistant's."""
    total: float
    """The sum of the rewards."""

    @property
    def texts(self) -> list[str]:
        """The texts, the world's and the player's in turn."""
        return [message["content"] for message in self.messages]

    def row(self) -> dict[str, Any]:
        """Return the game as a demonstration, up to the player's last turn.

        What the world says after that turn is left out: nobody answers it.
        """
        own = [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]
        return {
            "messages": self.messages[: own[-1] + 1],
            "world": self.world,
            "seed": self.seed,
            "return": self.total,
        }


def play_game(
    world: gym.Env[str, str],
    player: Player,
    *,
    seed: int | None = None,
    options: dict[str, Any] | None = None,
    after_turn: Callable[[Turn], None] = lambda turn: None,
) -> Transcript:
    r"""Play a game to its end.

    Args:
        world: The world.
        player: Who takes the turns.
        seed: The seed of the world's reset.
        options: Options of the world's reset.
        after_turn: A function that is called with each turn once the world has answered it.

    >>> import textrl
    >>> world = gym.make("textrl/ProbeConstant-v0")
    >>> play_game(world, lambda texts: "b", seed=0).row()["messages"]
    [{'role': 'user', 'content': 'say b\n'}, {'role': 'assistant', 'content': 'b'}]
    """
    name = type(world.unwrapped).__name__ if world.spec is None else world.spec.id
    text, _ = _called(f"reset of {name}", partial(world.reset, seed=seed, options=options))
    messages, total, over = [{"role": "user", "content": text}], 0.0, False
    while not over:
        said = player([message["content"] for message in messages])
        step = partial(world.step, said)
        text, reward, terminated, truncated, info = _called(f"step of {name}", step)
        if not isinstance(text, str) or not math.isfinite(reward):
            raise UserError(
                f"step of {name} returned the text {shown(text)} and the reward {shown(reward)}; "
                f"expected a string and a finite number"
            )
        over = terminated or truncated
        role = str(info.get("role", "user"))
        messages += [{"role": "assistant", "content": said}, {"role": role, "content": text}]
        total += float(reward)
        after_turn(Turn(text=said, reply=text, role=role, reward=float(reward), over=over))
    return Transcript(world=name, seed=seed, messages=messages, total=total)


def _called(what: str, call: Callable[[], Any]) -> Any:
    """Return what a world returns; UserError where it raises."""
    try:
        return call()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} raised {type(error).__name__}: {error}") from error


def append_game(path: Path, game: Transcript) -> None:
    """Add a game to a file of demonstrations, which is made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    append_json_line(path, game.row())
