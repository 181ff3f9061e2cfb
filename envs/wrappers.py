"""The wrapper `PolicyKL`, which pays the agent's half of the KL for agents that cannot."""

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from textrl.envs.attributes import Observation
from textrl.envs.core_config import require_exact_shaping
from textrl.errors import UserError


class PolicyKL(gym.Wrapper[Observation, np.int64, Observation, np.int64], RecordConstructorArgs):
    """Pays the agent's half of the KL: the reward becomes r_t - kl_coef * log pi(a_t | s_t).

    It is for agents that cannot subtract this term themselves. `info["policy_logprob"]` holds
    log pi (nats). Our agents subtract the term themselves and refuse this wrapper.
    """

    pays_policy_kl = True

    def __init__(
        self,
        env: gym.Env[Observation, np.int64],
        logprob_fn: Callable[[Observation, np.int64], float],
    ) -> None:
        """Wrap the environment.

        Args:
            env: A `TextRLHFEnv`, wrapped or not.
            logprob_fn: A function that returns log pi(action | observation) under the policy that
                acts at present.

        Raises:
            UserError: the environment's shaping is not "exact".
        """
        require_exact_shaping("PolicyKL", env.get_wrapper_attr("shaping"))
        if env.has_wrapper_attr("pays_policy_kl"):
            raise UserError("PolicyKL is around this environment already; leave one out")
        RecordConstructorArgs.__init__(self, logprob_fn=logprob_fn)
        super().__init__(env)
        self._logprob_fn = logprob_fn
        self._observation: Observation = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode."""
        self._observation, info = self.env.reset(seed=seed, options=options)
        return self._observation, info

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Append one token and pay both halves of the KL."""
        logprob = float(self._logprob_fn(self._observation, action))
        if not -math.inf < logprob <= 1e-5:
            raise UserError(f"logprob_fn returned {logprob}; expected a log-prob, finite and <= 0")
        self._observation, reward, terminated, truncated, info = self.env.step(action)
        info["policy_logprob"] = logprob
        shaped = float(reward) - self.env.get_wrapper_attr("kl_coef") * logprob
        return self._observation, shaped, terminated, truncated, info
