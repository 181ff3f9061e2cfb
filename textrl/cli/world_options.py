"""The options of `textrl tasks`, `textrl probe` and `textrl play`.

The text under each field is its help. This module imports the standard library only.
"""

from dataclasses import dataclass
from typing import Literal

from textrl.bounds import Positive, Seed, check_fields, require


@dataclass(frozen=True, kw_only=True)
class TasksConfig:
    """The list of the task ids; there are no options."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """The agent that is probed."""

    agent: str
    """Name of an agent as in `textrl benchmark`: ppo, sb3:PPO, package.module:Class. `textrl probe
    NAME` is short for `textrl probe --agent NAME`."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class PlayConfig:
    """The world, and who plays."""

    world: str
    """Id of a world (textrl/GuessNumber-v0) or of a task (TextRLHF/GuessNumber-v0). `textrl play
    ID` is short for `textrl play --world ID`."""
    player: Literal["person", "expert"] = "person"
    """Who plays: a person, who types the turns, or the world's built-in expert."""
    model: str | None = None
    """Folder or hub id of a policy to watch instead; its turns are sampled."""
    reference: str | None = None
    """Folder or hub id of the reference of the KL of a watched policy; the default is the policy
    itself, so that the KL is 0."""
    games: Positive[int] = 1
    """Number of games."""
    seed: Seed[int] = 0
    """Seed of the first game, and of the sampling of a policy. The next games have the next
    seeds."""
    save: str | None = None
    """File of demonstrations (.jsonl) to which the finished games are added, in the format of the
    data of `textrl sft`."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range, or options that contradict each other."""
        check_fields(self)
        one = self.model is None or self.player == "person"
        require(self, "player", one, "nothing beside a model, which plays itself")
        watched = self.reference is None or self.model is not None
        require(self, "reference", watched, "nothing without a model to compare with it")
        named = self.save is None or self.save.endswith((".jsonl", ".ndjson"))
        require(self, "save", named, "a file that ends with .jsonl")
