"""GEM's environments (`pip install gem-llm`, Apache-2.0) as worlds, by their ids.

The games `game:...` and the tasks `rg:...` need no network, except where a game's words come from
NLTK's data, which is not fetched unasked. The ids `math:`, `code:`, `qa:`, `logic:` and `eval:`
load data sets from the Hugging Face Hub when they are made.
"""

import copy
import logging
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from textrl.envs.worlds.foreign import ForeignWorld, making
from textrl.errors import UserError, did_you_mean, needing


class GemWorld(ForeignWorld):
    r"""A GEM environment: `GemWorld("game:GuessTheNumber-v0-easy")` plays what `gem.make` makes.

    An observation is what GEM's own wrapper shows of the newest turn: its prefix, the observation
    and, on a line of its own, its suffix, which in many games holds the board. Most games read a
    move from `\boxed{...}`. Equal seeds give equal games, and `reset(seed=s)` plays GEM's game of
    seed s; but an `rg:` environment draws a new data set after every `size` resets, so there an
    equal seed means an equal question only as long as fewer resets were made.

    Args:
        game: An id of GEM's registry.
        settings: What `gem.make` takes beside the id; GEM ignores names that it does not know.
    """

    def __init__(self, game: str, **settings: Any) -> None:
        super().__init__(f"GEM's {game}")
        with self.isolated():
            gem = _gem()
            known = list(gem.envs.registration.ENV_REGISTRY)
            if game not in known:
                hint = did_you_mean(game, known)
                raise UserError(f"GEM has no environment {game!r}{hint}; it has {len(known)}")
            with making(self.who):
                self._game = gem.make(game, **settings)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Return the rules and the first state of a new game."""
        self.no_options(options)
        number = self.begin(seed)
        with self.isolated(number):
            text, info = self._game.reset(seed=number)
        return self.started(_shown(text, info), _rest(info))

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Return the game's reply to one turn and what it pays."""
        action = self.taken(action)
        with self.isolated():
            text, reward, terminated, truncated, info = self._game.step(action)
        return self.replied(_shown(text, info), reward, terminated, truncated, _rest(info))


def _gem() -> ModuleType:
    """Return the package, whose import would set up the root logger of the whole process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with needing("worlds"):
            import gem
            import gem.envs
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    return gem  # type: ignore[no-any-return]


def _shown(text: object, info: Mapping[str, Any]) -> object:
    """Return the observation between its prefix and its suffix, as GEM's wrapper shows it."""
    if not isinstance(text, str):  # a picture, say: the caller refuses it
        return text
    line = "\n" if text and not text.endswith("\n") and info.get("suffix") else ""
    return f"{info.get('prefix', '')}{text}{line}{info.get('suffix', '')}"


def _rest(info: Mapping[str, Any]) -> dict[str, Any]:
    return {k: copy.deepcopy(v) for k, v in info.items() if k not in ("prefix", "suffix")}
