"""`EXPERTS`, which holds for every world a player that reaches its best value, and `played`.

Tests show with them that the best value is reached; demonstrations are written with them.

An expert is a function `expert(texts) -> turn`. `texts` are all texts of the game so far, in order,
the world's and the agent's in turn: world, agent, world, ..., world. It knows nothing else: neither
the environment nor its arguments. The texts of the agent need not be the expert's own, so that it
can take over any running game.
"""

from collections.abc import Callable
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

Expert = Callable[[list[str]], str]

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
    text, _ = world.reset(seed=seed, options=options)
    texts, total, over = [text], 0.0, False
    while not over:
        turn = player(texts)
        text, reward, terminated, truncated, _ = world.step(turn)
        texts += [turn, text]
        total += float(reward)
        over = terminated or truncated
    return texts, total
