"""`EXPERTS`, which holds for every world a player that reaches its best value, and `played`.

Tests show with them that the best value is reached; demonstrations are written with them.

An expert is a function `expert(texts) -> turn`. `texts` are all texts of the game so far, in order,
the world's and the agent's in turn: world, agent, world, ..., world. It knows nothing else: neither
the environment nor its arguments. The texts of the agent need not be the expert's own, so that it
can take over any running game.
"""

from typing import Any

import gymnasium as gym

from textrl.envs.worlds import (
    arithmetic,
    calculator,
    guess_number,
    hidden_fact,
    letter_count,
    mastermind,
    probes,
    reverse_text,
)
from textrl.envs.worlds.transcripts import Player, play_game
from textrl.errors import UserError, did_you_mean

Expert = Player

EXPERTS: dict[str, Expert] = {
    "textrl/GuessNumber-v0": guess_number.expert,
    "textrl/Mastermind-v0": mastermind.expert,
    "textrl/Calculator-v0": calculator.expert,
    "textrl/HiddenFact-v0": hidden_fact.expert,
    "textrl/ReverseText-v0": reverse_text.expert,
    "textrl/Arithmetic-v0": arithmetic.expert,
    "textrl/LetterCount-v0": letter_count.expert,
    "textrl/ProbeConstant-v0": probes.expert,
    "textrl/ProbePrompt-v0": probes.expert,
    "textrl/ProbeDelayed-v0": probes.expert,
    "textrl/ProbeLaterTurn-v0": probes.expert,
}


def expert_of(world: str) -> Expert:
    """Return the expert of a world.

    Raises:
        UserError: the world has none.
    """
    if world not in EXPERTS:
        hint = did_you_mean(world, EXPERTS)
        raise UserError(f"no expert plays {world!r}{hint}; known: {', '.join(EXPERTS)}")
    return EXPERTS[world]


def played(
    world: gym.Env[str, str],
    player: Expert,
    *,
    seed: int | None = None,
    options: dict[str, Any] | None = None,
) -> tuple[list[str], float]:
    r"""Return the texts of one game, from the world's first to its last, and the sum of rewards.

    >>> import textrl
    >>> world = gym.make("textrl/Calculator-v0")
    >>> played(world, calculator.expert, options={"question": "37*45"})
    (['37*45=?\n', 'calc 37*45', '1665\n', '1665', 'yes\n'], 1.0)
    """
    game = play_game(world, player, seed=seed, options=options)
    return game.texts, game.total
