"""What can be wrong with the reward of an agent's run, one function for each illness."""

import numpy as np

from textrl.doctor.records import Finding, Record
from textrl.doctor.rules import FEW, Rule, by_people, by_reward_model, is_solved


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
    share = record.series("rollout/flat_groups")
    most = max(float(np.median(share.values)), share.last) if len(share) else 0.0
    if len(share) < 2 or is_solved(record) or most < 0.5:
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
    if not len(score) or not len(std):
        return None
    if by_reward_model(record) and (abs(score.first) > 3 or std.first > 3):
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
    gain, most = score.last - score.first, float(std.values.max())
    is_function = bool(record.settings.get("reward")) and not by_reward_model(record)
    if len(score) < FEW or most <= 0 or gain < 5 * (std.first if by_reward_model(record) else most):
        return None
    if is_function or is_solved(record):
        return None
    return Finding(
        name="reward_out_of_range",
        what="The reward has left the range in which the reward model knows anything.",
        how=f"The mean score is {score.told()}, and the standard deviation of an iteration's "
        f"scores {std.first:.2g} at first and {most:.2g} at most.",
        remedies=(
            "read samples: the policy has probably found what the reward model does not know",
            "raise kl_coef, or stop earlier (--stop_at_kl)",
            "collect rankings of the present policy's samples and train the reward model on them",
        ),
    )


def masked(record: Record) -> Finding | None:
    """Find many episodes that are left out because their reward failed."""
    failed, left_out = record.series("rollout/reward_failures"), record.series("rollout/masked")
    kept, size = record.series("rollout/episodes"), record.setting("episodes_per_iteration")
    known = float(kept.values.sum() + left_out.values.sum()) if len(kept) else 0.0
    episodes = known or (size or 0.0) * len(left_out)
    count = float(left_out.values.sum())
    if not episodes or count < 0.05 * episodes:
        return None
    calls = f"; {failed.values.sum():g} calls of the reward failed" if len(failed) else ""
    return Finding(
        name="episodes_masked",
        what="Many episodes are left out because the reward or the world failed on them.",
        how=f"{count:g} of {episodes:g} episodes were left out{calls}.",
        remedies=(
            "call the reward on such a text by hand (on_reward_error='stop' names one)",
            "raise reward_timeout or reward_retries, or timeout and retries of @remote",
        ),
    )


def starved(record: Record) -> Finding | None:
    """Find a machine that waits for the reward."""
    reward = record.series("time/reward_seconds")
    collect, update = record.series("time/collect_seconds"), record.series("time/update_seconds")
    if not len(reward) or len(collect) != len(update):
        return None
    whole = float(collect.values.sum() + update.values.sum())
    share = min(float(reward.values.sum()) / max(whole, 1e-9), 1.0)
    mean = float(reward.values.mean())
    if share < 0.5 or mean < 0.5 or by_people(record):
        return None
    return Finding(
        name="starved",
        what="The run waits for its reward most of the time.",
        how=f"Rewards took {share:.0%} of the time, {mean:.3g} s an iteration.",
        remedies=(
            "mark a reward that waits for another machine with @remote(...), so that its calls run "
            "at the same time, or raise its at_once (docs/rewards.md)",
            "score a whole batch in one call",
            "use a smaller reward model, or a GPU for it",
        ),
    )


REWARD_RULES: tuple[Rule, ...] = (constant_reward, flat_groups, out_of_range, masked, starved)
