"""`TextTurns-v0`, single and vector: many turns with a world. `TextTurnsEnv` documents it.

What it shares with `TextRLHF-v0` is in `token_env.py` and `vector.py`, the computation in
`turns_core.py`, the worlds of this package in `worlds/`.
"""

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from textrl.envs.attributes import TokenAttributes
from textrl.envs.core_config import checked_arguments, takes_fields
from textrl.envs.token_env import TokenEnv
from textrl.envs.turns_config import TurnsConfig
from textrl.envs.turns_core import TurnsCore
from textrl.envs.vector import TokenVectorEnv, check_rows
from textrl.errors import UserError


class TurnAttributes(TokenAttributes):
    """Attributes of `TextTurns-v0`, whose rewards are those of its worlds."""

    core: TurnsCore

    reward_names: tuple[str, ...] = ()
    """There are none: a world pays."""
    reward_model = None
    """There is none: a world pays."""
    missing_eos_penalty = 0.0
    """There is none: a turn that reaches its budget is a turn."""
    on_length = "score"
    """An episode that has no room left is truncated, but has the score that was paid so far."""

    def score_tokens(self, prompts: list[list[int]], completions: list[list[int]]) -> np.ndarray:
        """Refuse to score texts that were not played.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{self.core.worlds.name} pays for turns that are taken, and scores no text by itself; "
            f"use an agent that learns from episodes, such as PPO"
        )


class TextTurnsEnv(TurnAttributes, TokenEnv):
    """Turns with a world as a token MDP whose reward is the world's, with reference-KL shaping.

    ## World
    A world is a turn-level `gymnasium.Env` whose observations and actions are texts
    (`gymnasium.spaces.Text`): a game, a tool, a user. It is given by its id, by a function that
    makes one, or as it is, and can be played alone.

    ## State and observation
    The state is all tokens so far, the world's and the policy's. The observation is a `Dict`:
    | key | space | meaning |
    |---|---|---|
    | `input_ids` | `Box(0, V - 1, (L,), int32)` | the whole text, right-padded with 0 |
    | `attention_mask` | `Box(0, 1, (L,), int8)` | 1 on real tokens, 0 on padding |
    | `prompt_length` | `Box(0, max_prompt_tokens, (1,), int32)` | tokens of the first text |

    L = max_prompt_tokens + max_completion_tokens. An observation is a prefix of every later one:
    the tokens of the policy stay as it chose them.

    ## Action
    `Discrete(V)`: the next token. A turn ends with an end token (EOS, or one that ends a turn of
    the model's chats: `end_token_ids`) or with its `max_turn_tokens`-th token. Then
    `world.step(text of the turn)` runs, and the world's reply is appended. With a chat template a
    reply is rendered as a message of the user, or of a tool (`info["role"]` of the world); without
    one it is appended as it is.

    ## Reward
        r_t = kl_coef * log pi_ref(a_t | s_t)  +  [last token of a turn] * (reward of the world)
    The agent pays the other half of the KL, -kl_coef * log pi(a_t | s_t), as in `TextRLHF-v0`. The
    world's tokens are no actions and have no reward.

    ## End of an episode
    `terminated` and `truncated` are the world's. If its reply, and a token after it, has no room
    within `max_completion_tokens` after the first text, the episode is `truncated` too.
    `finish_reason` in `info` is "world", "world_limit" (the world truncated), "length" (no room) or
    "world_error" (only with on_world_error="mask").

    ## Info
    Each step has `ref_logprob` (nats). The last step of a turn also has `turn` (its number, from
    1), `turn_reward`, `turn_text`, `reply` and `world_info`; the last step of an episode `score`
    (the sum of the world's rewards), `finish_reason` and `messages` (all that was said).
    A reset has `prompt` (the world's first text), `prompt_index` and `world_info`.

    ## Reset
    `reset(seed=)` alone determines the seeds of the world's resets and the rows of `prompts`, whose
    columns are options of the world's reset. `options={"index": i}` chooses the seed i, and the row
    i of the prompts if there are any. All other options go to the world's reset.
    """

    core: TurnsCore

    @takes_fields(TurnsConfig)
    def __init__(self, *, render_mode: str | None = None, **arguments: Any) -> None:
        """Make the environment; without arguments, a tiny model guesses a number.

        Args:
            render_mode: "ansi" (`render` returns the text), "human" (each step prints the new part
                of the text) or None.
            arguments: The fields of `TurnsConfig`, which explains them.

        Raises:
            UserError: an argument is unknown or out of range, or a model or world does not load.
        """
        config = checked_arguments(TurnsConfig, arguments, type(self))
        super().__init__(TurnsCore(1, config), render_mode)

    def close(self) -> None:
        """Close the world."""
        self.core.worlds.close()


class TextTurnsVectorEnv(TurnAttributes, TokenVectorEnv):
    """B episodes of `TextTurnsEnv` at once: one reference, one world for each row.

    Row i of `reset(seed=s)` is equal to the single environment with seed s + i. With `group_size`
    G, each G consecutive rows are a group whose worlds begin alike. `step_sequence` takes a turn of
    every row, or a part of it; a row whose mask is False waits. `autoreset_mode` is Gymnasium's, as
    in `TextRLHFVectorEnv`.
    """

    core: TurnsCore

    @takes_fields(TurnsConfig)
    def __init__(
        self,
        num_envs: int = 1,
        *,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        **arguments: Any,
    ) -> None:
        """Make the environment.

        Args:
            num_envs: Number of rows, a multiple of group_size.
            render_mode: "ansi" or None.
            autoreset_mode: Gymnasium's autoreset mode.
            arguments: The fields of `TurnsConfig`, which explains them.

        Raises:
            UserError: an argument is unknown or out of range, or a model or world does not load.
        """
        config = checked_arguments(TurnsConfig, arguments, type(self))
        check_rows(num_envs, config.group_size, render_mode, autoreset_mode)
        super().__init__(TurnsCore(num_envs, config), render_mode, autoreset_mode)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the worlds, of which there are none if the environment could not be made."""
        if "core" in self.__dict__:
            self.core.worlds.close()
