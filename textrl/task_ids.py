"""`TASKS`: the task ids, what each is made of, how long its texts are, and its optimum.

`textrl/__init__.py` registers them, `textrl tasks` lists them, `textrl benchmark --task` and
`textrl probe` train on them. This module imports the standard library only.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TaskId:
    """A task for a token policy; the lengths are those for the built-in model of characters."""

    purpose: str
    """What the policy has to do, in one line."""
    world: str | None
    """The id of the world; None for a task of one turn that a reward model scores."""
    reward_threshold: float | None = None
    """The mean return of a good policy; None: that of the world (`textrl.WORLDS`)."""
    turns: int = 1
    """Maximum number of turns of an episode."""
    max_turn_tokens: int
    """Maximum number of tokens of a turn, its end token among them."""
    max_prompt_tokens: int
    """Room for the first text."""
    max_completion_tokens: int
    """Room for all turns and replies: whatever the policy says, no episode is truncated."""
    optimum: float | None
    """The largest mean return of any policy, which the world's expert reaches; None: unknown."""
    has_heldout: bool = False
    """Whether `heldout=True` makes the environment with prompts that are kept for evaluation."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the environment's registration."""
        if self.world is None:  # its entry point knows the lengths
            return {}
        return {
            "world": self.world,
            "max_turn_tokens": self.max_turn_tokens,
            "max_prompt_tokens": self.max_prompt_tokens,
            "max_completion_tokens": self.max_completion_tokens,
        }

    @property
    def own_tokens(self) -> int:
        """The maximum number of tokens of an episode that the policy chooses."""
        return self.turns * self.max_turn_tokens


TASKS: dict[str, TaskId] = {
    "TextRLHF/ReverseText-v0": TaskId(
        purpose="say four letters backwards",
        world="textrl/ReverseText-v0",
        max_turn_tokens=5,
        max_prompt_tokens=16,
        max_completion_tokens=16,
        optimum=1.0,
    ),
    "TextRLHF/Arithmetic-v0": TaskId(
        purpose="add two digits",
        world="textrl/Arithmetic-v0",
        max_turn_tokens=3,
        max_prompt_tokens=8,
        max_completion_tokens=16,
        optimum=1.0,
    ),
    "TextRLHF/LetterCount-v0": TaskId(
        purpose="count a letter in six letters",
        world="textrl/LetterCount-v0",
        max_turn_tokens=2,
        max_prompt_tokens=24,
        max_completion_tokens=12,
        optimum=1.0,
    ),
    "TextRLHF/GuessNumber-v0": TaskId(
        purpose="guess a number from 1 to 20 in six guesses",
        world="textrl/GuessNumber-v0",
        turns=6,
        max_turn_tokens=3,
        max_prompt_tokens=32,
        max_completion_tokens=96,
        optimum=1.0,
    ),
    "TextRLHF/Calculator-v0": TaskId(
        purpose="answer a sum of two-digit numbers, with a calculator to call",
        world="textrl/Calculator-v0",
        turns=4,
        max_turn_tokens=12,
        max_prompt_tokens=40,
        max_completion_tokens=144,
        optimum=1.0,
    ),
    "TextRLHF/Reviews-v0": TaskId(
        purpose="continue a movie review well; needs the models of `textrl demo`",
        world=None,
        reward_threshold=1.0,
        max_turn_tokens=24,
        max_prompt_tokens=32,
        max_completion_tokens=24,
        optimum=None,
        has_heldout=True,
    ),
    "TextRLHF/ProbeConstant-v0": TaskId(
        purpose="probe 1: one letter, always the same",
        world="textrl/ProbeConstant-v0",
        max_turn_tokens=1,
        max_prompt_tokens=8,
        max_completion_tokens=8,
        optimum=1.0,
    ),
    "TextRLHF/ProbePrompt-v0": TaskId(
        purpose="probe 2: the letter that the first text names",
        world="textrl/ProbePrompt-v0",
        max_turn_tokens=1,
        max_prompt_tokens=8,
        max_completion_tokens=8,
        optimum=1.0,
    ),
    "TextRLHF/ProbeDelayed-v0": TaskId(
        purpose="probe 3: a letter that is paid three tokens later",
        world="textrl/ProbeDelayed-v0",
        max_turn_tokens=4,
        max_prompt_tokens=20,
        max_completion_tokens=12,
        optimum=1.0,
    ),
    "TextRLHF/ProbeLaterTurn-v0": TaskId(
        purpose="probe 4: a letter that is paid a turn later",
        world="textrl/ProbeLaterTurn-v0",
        turns=2,
        max_turn_tokens=1,
        max_prompt_tokens=8,
        max_completion_tokens=24,
        optimum=1.0,
    ),
}
"""The tasks by their id. The return of `Reviews-v0` is in standard deviations of the scores of
the SFT model's samples."""

PROBES = tuple(name for name in TASKS if "/Probe" in name)
"""The ladder of `textrl probe`, the easiest first."""


def task_of_world(world: str) -> TaskId | None:
    """Return the task on a world, or None if there is none."""
    return next((task for task in TASKS.values() if task.world == world), None)
