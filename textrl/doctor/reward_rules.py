"""What can be wrong with the reward of an agent's run, one function for each illness."""

from collections.abc import Callable

import numpy as np

from textrl.doctor.records import Finding, Record, Series

Rule = Callable[[Record], Finding | None]
FEW = 4
"""A run with fewer rows is too short for a verdict about a trend."""


def is_solved(score: Series) -> bool:
    """Return whether a reward from 0 to 1 is almost all earned: little is left to learn."""
    within = len(score) > 0 and score.values.min() >= -1e-6 and score.values.max() <= 1 + 1e-6
    return bool(within and score.last >= 0.9)


def constant_reward(record: Record) -> Finding | None:
    """Find a reward without a spread, which teaches nothing."""
    score, std = record.series("rollout/score"), record.series("rollout/score_std")
    if len(std) < 2:
        return None
    largest, size = float(std.values.max()), float(abs(score.values).max())
    if largest > 1e-6 * (1 + size):
        return None
    return Finding(
        name="constant_reward",
        what="Every episode gets the same reward, so there is nothing to learn from.",
        how=f"The standard deviation of the score is {largest:.1g} in all {len(std)} iterations; "
        f"the score is {score.last:.3g}.",
        remedies=(
            "call the reward function by hand on two completions, a good and a bad one",
            "see whether it reads the completion, or only the prompt or a column",
            "see whether a limit (min, max, a parser that always fails) flattens it",
        ),
    )


def flat_groups(record: Record) -> Finding | None:
    """Find groups of equal samples, from which agents that compare them learn nothing."""
    share, score = record.series("rollout/flat_groups"), record.series("rollout/score")
    if len(share) < 2 or is_solved(score) or float(np.median(share.values)) < 0.5:
        return None
    return Finding(
        name="flat_groups",
        what="In most groups all samples get the same score, so that nothing can be compared.",
        how=f"The share of such groups is {share.told()}.",
        remedies=(
            "give more samples per prompt (group_size)",
            "take prompts that the policy solves sometimes: neither never nor always",
            "give a reward with steps between wrong and right",
            "raise the temperature, or start from a policy with more entropy",
        ),
    )


def out_of_range(record: Record) -> Finding | None:
    """Find scores that lie where the reward model has never seen a text."""
    score, std = record.series("rollout/score"), record.series("rollout/score_std")
    if not len(score) or not len(std) or is_solved(score):
        return None
    by_model = bool(record.settings.get("reward")) and ":" not in str(record.settings["reward"])
    if by_model and (abs(score.first) > 3 or std.first > 3):
        return Finding(
            name="reward_out_of_range",
            what="The reward model's scores are not those of a normalised one.",
            how=f"The first scores have mean {score.first:.3g} and standard deviation "
            f"{std.first:.3g}; on samples of the SFT policy they should be 0 and 1.",
            remedies=(
                "train the reward model with --normalize_on SAMPLES, samples of this policy",
                "see whether it reads the text as it was trained to (chat template, separator)",
                "scale kl_coef with the reward",
            ),
        )
    if len(score) < FEW or std.first <= 0 or score.last - score.first < 5 * std.first:
        return None
    return Finding(
        name="reward_out_of_range",
        what="The reward has left the range in which the reward model knows anything.",
        how=f"The mean score is {score.told()}, {(score.last - score.first) / std.first:.1f} "
        f"standard deviations of the first scores ({std.first:.2g}).",
        remedies=(
            "read samples: the policy has probably found what the reward model does not know",
            "raise kl_coef, or stop earlier (--stop_at_kl)",
            "collect rankings of the present policy's samples and train the reward model on them",
        ),
    )


def masked(record: Record) -> Finding | None:
    """Find many episodes that are left out because their reward failed."""
    failed, score = record.series("rollout/reward_failures"), record.series("rollout/masked")
    left_out = float(score.values.sum()) if len(score) else 0.0
    episodes = record.settings.get("episodes_per_iteration", 256) * max(len(score), 1)
    if left_out < 0.05 * episodes:
        return None
    calls = f"; {failed.values.sum():g} calls of the reward failed" if len(failed) else ""
    return Finding(
        name="episodes_masked",
        what="Many episodes are left out because the reward or the world failed on them.",
        how=f"{left_out:g} of {episodes:g} episodes were left out{calls}.",
        remedies=(
            "call the reward on such a text by hand (on_reward_error='stop' names one)",
            "raise reward_timeout or reward_retries",
        ),
    )


def starved(record: Record) -> Finding | None:
    """Find a machine that waits for the reward."""
    reward = record.series("time/reward_seconds")
    collect, update = record.series("time/collect_seconds"), record.series("time/update_seconds")
    if not len(reward) or len(collect) != len(update):
        return None
    whole = float(collect.values.sum() + update.values.sum())
    share = float(reward.values.sum()) / max(whole, 1e-9)
    mean = float(reward.values.mean())
    if share < 0.5 or mean < 0.5:
        return None
    return Finding(
        name="starved",
        what="The run waits for its reward most of the time.",
        how=f"Rewards took {share:.0%} of the time, {mean:.3g} s an iteration.",
        remedies=(
            "mark a reward that waits for another machine with @remote, so that its calls run at "
            "the same time (docs/rewards.md)",
            "score a whole batch in one call",
            "use a smaller reward model, or a GPU for it",
        ),
    )
