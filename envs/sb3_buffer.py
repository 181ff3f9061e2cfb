"""A rollout buffer for SB3's on-policy agents on a language model; it returns whole episodes.

The policy in `sb3_policy.py` reads them. The variant with action masks is in `sb3_masked.py`.
"""

import itertools
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.type_aliases import DictRolloutBufferSamples
from torch import Tensor

from textrl.errors import UserError

Segment = tuple[int, int, int]
"""A part of an episode: its row, its first step, and the step after its last one."""


def require_no_discount(gamma: float) -> None:
    """Refuse a discount, since it rewards short texts.

    Raises:
        UserError: gamma is not 1.
    """
    if gamma != 1.0:
        raise UserError(
            f"gamma is {gamma}; the RLHF objective has no discount: make the agent with gamma=1.0"
        )


class EpisodeRolloutBuffer(DictRolloutBuffer):
    """A buffer that returns whole episodes: each text once, and the position of each step in it.

    An observation is a prefix of the next one, so the last observation of an episode (or of its
    part in this rollout) contains all of them. A minibatch has at least batch_size steps; the last
    minibatch has at least half as many.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        gae_lambda: float = 1.0,
        gamma: float = 1.0,
        n_envs: int = 1,
    ) -> None:
        """Make the buffer from the arguments that SB3's agents pass.

        Raises:
            UserError: gamma is not 1.
        """
        require_no_discount(gamma)
        super().__init__(
            buffer_size,
            observation_space,  # type: ignore[arg-type]  # SB3 wants the Dict that it is
            action_space,
            device,
            gae_lambda,
            gamma,
            n_envs,
        )

    def get(  # type: ignore[override]  # SB3's own dict buffer does the same
        self, batch_size: int | None = None
    ) -> Generator[DictRolloutBufferSamples, None, None]:
        """Yield shuffled minibatches of whole episodes."""
        assert self.full, "the buffer must be full before it is read"
        segments = self._segments()
        wanted = batch_size or self.buffer_size * self.n_envs
        batches: list[list[Segment]] = [[]]
        count = 0
        for index in np.random.permutation(len(segments)):  # noqa: NPY002  # SB3's own generator
            if count >= wanted:
                batches.append([])
                count = 0
            batches[-1].append(segments[index])
            count += segments[index][2] - segments[index][1]
        if len(batches) > 1 and count < wanted / 2:  # too few steps for a separate minibatch
            batches[-2:] = [batches[-2] + batches[-1]]
        for batch in batches:
            yield self._samples(batch)

    def _segments(self) -> list[Segment]:
        """Return the parts of episodes that the buffer holds."""
        starts = self.episode_starts.astype(bool).copy()
        starts[0] = True
        found = []
        for row in range(self.n_envs):
            edges = [*starts[:, row].nonzero()[0].tolist(), self.buffer_size]
            found += [(row, a, b) for a, b in itertools.pairwise(edges)]
        return found

    def _cells(self, segments: list[Segment]) -> tuple[np.ndarray, np.ndarray]:
        """Return the step and the row of every transition in some segments, in their order."""
        steps = np.concatenate([np.arange(start, end) for _, start, end in segments])
        rows = np.concatenate([np.full(end - start, row) for row, start, end in segments])
        return steps, rows

    def _samples(self, segments: list[Segment]) -> DictRolloutBufferSamples:
        steps, rows = self._cells(segments)
        episode = np.concatenate(
            [np.full(end - start, i) for i, (_, start, end) in enumerate(segments)]
        )
        last = np.array([end - 1 for _, _, end in segments])
        owners = np.array([row for row, _, _ in segments])
        lengths = self.observations["attention_mask"].sum(-1)
        observations = {
            "input_ids": self.to_torch(self.observations["input_ids"][last, owners]),
            "episode": self.to_torch(episode),
            "position": self.to_torch(lengths[steps, rows].astype(np.int64) - 1),
        }

        def column(array: np.ndarray) -> Tensor:
            return self.to_torch(array[steps, rows].reshape(len(steps)))

        return DictRolloutBufferSamples(
            observations=observations,
            actions=column(self.actions).unsqueeze(1),
            old_values=column(self.values),
            old_log_prob=column(self.log_probs),
            advantages=column(self.advantages),
            returns=column(self.returns),
        )
