"""What all rules share: a rule, how long a run has to be, what a solved task is."""

import math
from collections.abc import Callable

import numpy as np

from textrl.doctor.records import Finding, Record, Series
from textrl.resolve import PEOPLE

Rule = Callable[[Record], Finding | None]
FEW = 4
"""A run with fewer rows is too short for a verdict about a trend."""


def is_solved(record: Record) -> bool:
    """Return whether almost all of the reward is earned, so that little is left to learn.

    That is a reward from 0 to 1 of which 0.85 is earned; or a reward function (a reward model can
    be gamed) whose score stays at its own maximum while its spread is a tenth of what it was.
    """
    score, std = record.series("rollout/score"), record.series("rollout/score_std")
    if not len(score):
        return False
    low, high = float(score.values.min()), float(score.values.max())
    if low >= -1e-6 and high <= 1 + 1e-6 and score.last >= 0.85:
        return True
    if by_reward_model(record) or len(std) != len(score) or len(score) < FEW:
        return False
    narrow = std.last <= 0.1 * float(std.values.max())
    return narrow and score.last >= high - 0.05 * (high - low) > low


def by_reward_model(record: Record) -> bool:
    """Return whether the reward is known to be a model's: the folder or hub id of one."""
    return bool(record.settings.get("reward")) and ":" not in str(record.settings["reward"])


def is_relative(record: Record) -> bool:
    """Return whether samples are scored against one another, so that their mean never moves."""
    score, std = record.series("rollout/score"), record.series("rollout/score_std")
    if len(score) < 2 or not len(std):
        return False
    moved = float(score.values.max() - score.values.min())
    return moved < 1e-6 * max(float(abs(score.values).max()), 1.0) and std.last > 1e-3


def by_people(record: Record) -> bool:
    """Return whether labelers are the reward, for whom a run waits most of the time."""
    return str(record.settings.get("reward")).startswith(PEOPLE)


def noise(record: Record, series: Series) -> float:
    """Return the standard error of `last - first` of a score or an objective.

    It is the larger one of two: from how far neighbouring rows lie apart, and from the spread of
    the scores over an iteration's episodes.
    """
    std, episodes = record.series("rollout/score_std"), record.series("rollout/episodes")
    count = episodes.first if len(episodes) else record.setting("episodes_per_iteration")
    if not len(std) or not count:
        return series.error
    of_episodes = float(std.values.mean()) * math.sqrt(2 / (count * series.size))
    return max(series.error, of_episodes)


def at_the_last_kl_coef(record: Record) -> Series:
    """Return score minus kl_coef times KL, with the kl_coef of the end in all rows."""
    objective, coef = record.series("rollout/objective"), record.series("rollout/kl_coef")
    score, kl = record.series("rollout/score"), record.series("rollout/kl")
    if not len(score) or not len(score) == len(kl) == len(coef):
        return objective
    values = score.values - coef.values[-1] * kl.values
    return Series(unit=score.unit, places=score.places, values=values)


def per_token(record: Record) -> Series:
    """Return the KL in nats per token; empty where lengths are not logged."""
    kl, length = record.series("rollout/kl"), record.series("rollout/length")
    if len(length) != len(kl):
        return Series(unit=kl.unit, places=kl.places[:0], values=kl.values[:0])
    return Series(unit=kl.unit, places=kl.places, values=kl.values / np.maximum(length.values, 1))
