"""`Judged`: what an environment pays beside the KL, by reward functions of three kinds.

An ordinary function scores texts that are over, a dense one each token when it is taken, and one
that compares a group scores it when all its rows are over. `core.py` pays what is found here.
"""

from dataclasses import dataclass

import numpy as np

from textrl.envs.core_config import CoreConfig
from textrl.envs.texts import PromptSet
from textrl.errors import UserError
from textrl.scorer import Scorer, Scores

NOTHING = Scores(total=np.zeros(0), named={}, tokens=[])
"""The scores of no texts."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is paid for T new tokens of each row."""

    bonus: np.ndarray
    """What is paid for each token beside the KL. Float64 [B T]."""
    score: np.ndarray
    """The score of each episode that ends with one, else NaN. Float64 [B]."""
    failed: np.ndarray
    """Whether a reward function failed on a row, whose episode ends without a score. Bool [B]."""
    extras: dict[str, tuple[np.ndarray, np.ndarray]]
    """What infos show of it: see `StepResult`."""


def check_kinds(scorer: Scorer, config: CoreConfig, num_rows: int, prompts: PromptSet) -> None:
    """Raise UserError where a reward function could not be called as it has to be."""
    if "completion_ids" in prompts.columns:
        raise UserError(
            "the prompts have a column 'completion_ids', which is the name of the tokens that "
            "reward functions get; give it another name"
        )
    if not scorer.has_groups:
        return
    if num_rows == 1 or config.group_size < 2:
        raise UserError(
            f"a reward function compares a group, and {num_rows} rows with group_size "
            f'{config.group_size} have none; use gym.make_vec("TextRLHF-v0", num_envs=64, '
            f"group_size=4, ...)"
        )
    if config.on_length == "truncate":
        raise UserError(
            'a reward function compares a group, and on_length="truncate" leaves some of its rows '
            'without a score; use on_length="score"'
        )


def check_whole_groups(
    rows: np.ndarray, prompts: list[tuple[int | None, list[int]]], group_size: int
) -> None:
    """Raise UserError unless rows that end together are whole groups with a prompt each.

    Args:
        rows: The rows that end.
        prompts: The index of each one's prompt in the set, and its token ids.
        group_size: The number of consecutive rows of a group.
    """
    whole = len(rows) % group_size == 0
    if whole:
        groups = rows.reshape(-1, group_size)
        whole = bool((groups - groups[:, :1] == np.arange(group_size)).all())
        whole = whole and bool((groups[:, 0] % group_size == 0).all())
    if not whole:
        raise UserError(
            "a reward function compares a group, which is known only when all its rows are over, "
            "and here they end in different steps; take whole episodes with step_sequence, as our "
            "agents do"
        )
    for first in range(0, len(rows), group_size):
        if any(ids != prompts[first] for ids in prompts[first : first + group_size]):
            raise UserError(
                f"a reward function compares a group, but the rows from {rows[first]} on have "
                f"different prompts; reset all rows of a group together, without other options"
            )


def check_causal(before: np.ndarray, now: np.ndarray, text: str) -> None:
    """Raise UserError if a dense reward function says something else of a token than it said.

    Args:
        before: What was paid for the tokens so far. Shape [n].
        now: What the function says of them after more tokens. Shape [n].
        text: The text, for the message.
    """
    far = np.abs(now - before) > 1e-4 * (1 + np.abs(before))
    if far.any():
        place = int(far.argmax())
        raise UserError(
            f"a dense reward function said {before[place]:.4g} of token {place} when it was taken, "
            f"and {now[place]:.4g} after more tokens, of {text[:60]!r}; its number may depend on "
            f"the token and what stands before it only"
        )
