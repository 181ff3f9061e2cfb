"""Acting token by token, in an environment that has no `step_sequence`, such as a wrapped one.

What the environment shows and pays is held against what our agents learn from: a wrapper that takes
other tokens, pays other rewards or ends episodes early is refused.
"""

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from textrl.agents.base import Observation
from textrl.agents.text_env import FAILED, Paid, TextEnv, observed_texts
from textrl.errors import UserError


class StepByStep:
    """Takes one token of every row at a time; rows that are over go on in an ignored episode.

    Unless the environment resets rows in the same step, the ignored episode is a fixed one. Thus
    all rows of a group draw equally many episodes from their streams.
    """

    def __init__(self, env: TextEnv) -> None:
        """Begin with rows that have just been reset."""
        self.env = env
        self._over = np.zeros(env.num_envs, dtype=bool)
        self._dense = np.zeros(env.num_envs)  # the dense part of each score that has been paid
        self._same_step = env.venv.metadata.get("autoreset_mode") is AutoresetMode.SAME_STEP

    def pay(
        self, actions: np.ndarray, mask: np.ndarray, lengths: np.ndarray, may_end: np.ndarray
    ) -> Paid:
        """Take one token of some rows; return what the environment pays for it.

        Args:
            actions: The tokens. Shape [B 1].
            mask: Bool, True for the rows that act. Shape [B 1].
            lengths: The number of tokens of each text before. Shape [B].
            may_end: Whether the episode of a row may end with this token. Bool [B].

        Raises:
            UserError: a wrapper changes what is paid, taken or ended.
        """
        env, counts = self.env, mask[:, 0]
        if self._over.any() and not self._same_step:
            env.venv.reset(options={"reset_mask": self._over, "index": 0})
        tokens = np.where(counts, actions[:, 0], env.allowed.filler)
        observation, rewards, terminated, truncated, infos = env.venv.step(tokens)
        if not isinstance(infos, dict):
            raise UserError(f"{env.venv} gives its infos in another form; leave that wrapper out")
        over = self._over = terminated | truncated
        failed = _failed(infos, over)
        if (early := counts & over & ~may_end & ~failed).any():
            raise UserError(
                f"a wrapper ended the episode of row {int(early.argmax())} in the middle of a "
                f"turn, but the agent samples whole turns: let the environment end them, by an end "
                f"token or the token budget"
            )
        ids, after = _texts(observation, infos, over)
        _check_tokens(ids, lengths, tokens, counts)
        ref_logprobs = _info(infos, "ref_logprob", over)
        scores = np.where(over, _info(infos, "score", over, missing=np.nan), np.nan)
        paid = self._beside_the_kl(infos, over, scores)
        paid -= env.missing_eos_penalty * (terminated & ~np.isin(tokens, env.end_token_ids))
        _check_rewards(rewards, env.kl_coef * ref_logprobs + paid, counts)
        return Paid(
            rewards=np.where(counts, rewards, 0.0)[:, None],
            ref_logprobs=np.where(counts, ref_logprobs, 0.0)[:, None],
            scores=scores,
            named_scores=env.named_scores(_named(infos, over, env.reward_names)),
            ended=over,
            truncated=truncated,
            failed=failed,
            input_ids=ids,
            lengths=after,
        )

    def _beside_the_kl(
        self, infos: dict[str, Any], over: np.ndarray, scores: np.ndarray
    ) -> np.ndarray:
        """Return what the step pays for a turn, or for a token and for what ended with it, [B]."""
        dense = _info(infos, "dense_reward", over)
        self._dense += dense
        rest = np.where(over & ~np.isnan(scores), scores - self._dense, 0.0)
        self._dense[over] = 0.0
        of_turn = _info(infos, "turn_reward", over, missing=np.nan)
        return np.where(np.isnan(of_turn), dense + rest, of_turn)


def _texts(
    observation: Observation, infos: dict[str, Any], over: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the texts after a step and their lengths; with same-step autoreset, the final ones."""
    ids, lengths = observed_texts(observation)
    if "final_obs" not in infos or not over.any():
        return ids, lengths
    ids, lengths = ids.copy(), lengths.copy()
    final = infos["final_obs"]
    for row in over.nonzero()[0]:
        own = {name: final[name][row] for name in observation} if isinstance(final, dict) else None
        own = final[row] if own is None else own
        ids[row], lengths[row] = own["input_ids"], int(np.sum(own["attention_mask"]))
    return ids, lengths


def _check_tokens(
    ids: np.ndarray, places: np.ndarray, tokens: np.ndarray, rows: np.ndarray
) -> None:
    """Raise UserError if a row shows a different token from the one that the agent gave."""
    shown = ids[np.arange(len(tokens)), np.minimum(places, ids.shape[1] - 1)]
    if (other := rows & (shown != tokens)).any():
        row = int(other.argmax())
        raise UserError(
            f"a wrapper took token {shown[row]} in row {row} where the agent gave {tokens[row]}, "
            f"so that it would learn of tokens never taken; leave that wrapper out"
        )


def _check_rewards(rewards: np.ndarray, expected: np.ndarray, rows: np.ndarray) -> None:
    """Raise UserError if a row's reward is not what the unwrapped environment pays."""
    far = np.abs(rewards - expected) > 1e-4 * (1 + np.abs(expected))
    if (other := rows & far).any():
        row = int(other.argmax())
        raise UserError(
            f"row {row} was paid {rewards[row]:.4g} where the environment pays "
            f"{expected[row]:.4g}: a wrapper that changes rewards changes half of the KL alone (or "
            f"the rows have settings of their own); change the reward function instead: "
            f"reward=[score, (bonus, 1.0)]"
        )


def _info(infos: dict[str, Any], name: str, over: np.ndarray, missing: float = 0.0) -> np.ndarray:
    """Return one entry of this step's infos, [B], and `missing` for the rows that have none.

    With same-step autoreset, the entries of the rows that ended are in `final_info`.
    """
    values = np.full(len(over), missing)
    for source, rows in ((infos, np.ones_like(over)), (infos.get("final_info", {}), over)):
        if name in source:
            there = rows & np.asarray(source.get(f"_{name}", np.ones_like(over)), dtype=bool)
            values[there] = np.asarray(source[name])[there].astype(np.float64)
    return values


def _failed(infos: dict[str, Any], over: np.ndarray) -> np.ndarray:
    """Return the rows whose episode ended because the reward function or the world failed."""
    failed = np.zeros_like(over)
    for source in (infos, infos.get("final_info", {})):
        if "finish_reason" in source:
            failed |= over & np.isin(np.asarray(source["finish_reason"]).astype(str), FAILED)
    return failed


def _named(infos: dict[str, Any], over: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Return the entry `scores` of this step's infos, object [B] of dicts, None where none is.

    Gymnasium's SyncVectorEnv makes a dict of arrays of dicts.
    """
    values = np.full(len(over), None, dtype=object)
    for source, rows in ((infos, np.ones_like(over)), (infos.get("final_info", {}), over)):
        if "scores" not in source:
            continue
        said, there = source["scores"], rows & np.asarray(source["_scores"], dtype=bool)
        for row in there.nonzero()[0]:
            if isinstance(said, dict):
                values[row] = {name: said[name][row] for name in names if name in said}
            else:
                values[row] = said[row]
    return values
