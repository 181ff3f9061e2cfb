"""`World`, which holds what the worlds share: spaces, options, the end of a game, rendering.

The checks of arguments are here too. The games are in the other files; read `guess_number.py` next.
"""

import re
import string
from numbers import Integral
from typing import Any, NamedTuple

import gymnasium as gym
from gymnasium import spaces

from textrl.errors import UserError, did_you_mean, shown

LONGEST_TEXT = 1_000
"""Maximum length in characters of a text that a world shows."""
LONGEST_TURN = 10_000
"""Maximum length in characters of a turn in the action space; `step` takes longer ones too."""


class Reply(NamedTuple):
    """What a world answers to a turn: its text, the reward, whether it is the end, who speaks.

    `role` is "tool" where a tool speaks, and None where the world's usual voice does.
    """

    text: str
    reward: float = 0.0
    terminated: bool = False
    role: str | None = None


class World(gym.Env[str, str]):
    """A turn-level environment; a world fills in `_begin`, `_reply` and, for options, `_check`.

    Every text ends with a line break and is printable ASCII. `step` takes any `str` whatever: one
    that a world cannot read is a turn like another. Every info has "won", which is True once the
    reward of a turn was 1.0, and a count of the turns ("turns", or the world's own word).
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}
    options_known: tuple[str, ...] = ()
    """The names that `reset(options=...)` takes."""

    def __init__(self, render_mode: str | None) -> None:
        """Make the spaces; `render_mode` is "ansi" (`render` returns the last text) or None."""
        if render_mode not in (None, "ansi"):
            raise UserError(f"render_mode is {shown(render_mode)}; expected 'ansi' or None")
        self.render_mode = render_mode
        self.observation_space = spaces.Text(LONGEST_TEXT, min_length=0, charset=string.printable)
        self.action_space = spaces.Text(LONGEST_TURN, min_length=0, charset=string.printable)
        self.turns = 0
        self._shown = ""
        self._running = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Begin a game and return its first text; the world's docstring names the options.

        Raises:
            UserError: an option is unknown or its value is not one that the world could draw.
        """
        given = known_options(options, self.options_known)
        self._check(given)  # before anything changes, so that a refusal leaves the game as it was
        super().reset(seed=seed)
        self.turns = 0
        self._shown = self._begin(given)
        self._running = True
        return self._shown, {**self._info(), "won": False}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take the agent's turn; return the reply, reward, terminated, False and info.

        Raises:
            UserError: the action is no `str`, or no game is running.
        """
        if not isinstance(action, str):
            raise UserError(f"the action is {shown(action)}; expected a str, the text of the turn")
        if not self._running:
            raise UserError("step without a game: it has ended or not begun; call reset() first")
        self.turns += 1
        reply = self._reply(action.strip())
        self._shown, self._running = reply.text, not reply.terminated
        info = {**self._info(), "won": reply.reward == 1.0}
        if reply.role is not None:
            info["role"] = reply.role
        return reply.text, reply.reward, reply.terminated, False, info

    def render(self) -> str | None:
        """Return the text that the world showed last, in render mode "ansi"."""
        return self._shown if self.render_mode == "ansi" else None

    def _check(self, options: dict[str, Any]) -> None:
        """Refuse options whose values the world could not draw; nothing changes here."""

    def _begin(self, options: dict[str, Any]) -> str:
        """Return the first text of a game, drawn where the options leave it open.

        A game with options draws as many numbers as one without, so that those after it are equal.
        """
        raise NotImplementedError

    def _reply(self, turn: str) -> Reply:
        """Return the reply to a turn without the white space around it."""
        raise NotImplementedError

    def _info(self) -> dict[str, Any]:
        """Return the world's own entries of info."""
        return {"turns": self.turns}


def verdict(right: bool, truth: object) -> Reply:
    r"""Return the reply that ends a game: "yes\n" and 1.0, or "no, " with the truth and 0.0."""
    return Reply("yes\n" if right else f"no, {truth}\n", float(right), terminated=True)


def whole_number(text: str) -> int | None:
    """Return the number that a text is, or None: digits of ASCII, at most 30, a minus before them.

    >>> whole_number("-12"), whole_number("1_000"), whole_number("12 or 13")
    (-12, None, None)
    """
    return int(text) if re.fullmatch("-?[0-9]{1,30}", text) else None


def read(pattern: str, text: str) -> tuple[str, ...]:
    """Return the groups of a pattern in a text that a world shows, for the experts.

    Raises:
        UserError: the text is not of that world.
    """
    found = re.fullmatch(pattern, text)
    if found is None:
        raise UserError(f"the expert reads {shown(text)}; expected a text of its world: {pattern}")
    return found.groups()


def known_options(options: Any, known: tuple[str, ...]) -> dict[str, Any]:
    """Return a copy of the options of a reset, whose names are all known."""
    if options is not None and not isinstance(options, dict):
        raise UserError(f"reset options are {shown(options)}; expected a dict or None")
    for name in options or {}:
        if name not in known:
            wanted = " or ".join(map(repr, known)) or "none: this world takes no options"
            near = did_you_mean(str(name), known)
            raise UserError(f"reset option {shown(name)} is unknown{near}; expected {wanted}")
    return dict(options or {})


def checked_whole(name: str, value: Any, low: int, high: int) -> int:
    """Return a whole number from low to high, or refuse the argument of that name."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        raise UserError(f"{name} is {shown(value)}; expected a whole number from {low} to {high}")
    return int(value)


def checked_text(name: str, value: Any, length: int, letters: str) -> str:
    """Return a text of `length` letters out of `letters`, or refuse the argument of that name."""
    if not isinstance(value, str) or len(value) != length or not set(value) <= set(letters):
        raise UserError(f"{name} is {shown(value)}; expected {length} of the letters {letters!r}")
    return value


def checked_letters(name: str, value: Any) -> str:
    """Return different lower-case letters, at least two, or refuse the argument of that name."""
    lower = isinstance(value, str) and set(value) <= set(string.ascii_lowercase)
    if not lower or not 2 <= len(value) == len(set(value)):
        wanted = "two or more different letters from a to z, such as 'abcd'"
        raise UserError(f"{name} is {shown(value)}; expected {wanted}")
    return str(value)
