"""What can be wrong with the policy of an agent and its updates, one function for each illness."""

import json
from typing import Any

import numpy as np

from textrl.doctor.records import Finding, Record
from textrl.doctor.reward_rules import constant_reward
from textrl.doctor.rules import FEW, Rule, at_the_last_kl_coef, is_relative, is_solved, per_token

USELESS = -0.25
"""Explained variance below which a critic does harm; small batches alone make -0.1 of a new one."""
FAR, VERY_FAR = 1.0, 5.5
"""Nats per token from which on a policy has left the reference, and the same where a task is solved
or its completions have few tokens: choosing one of 200 tokens for certain costs 5.3."""
FAR_IN_ALL = 200.0
"""Nats per sequence from which on a policy has left the reference, however long its texts are."""


def sampling_disagrees(record: Record) -> Finding | None:
    """Find a ratio that is not 1 before the first step of an iteration."""
    error = record.series("train/first_ratio_error")
    if not len(error) or float(error.values.max()) < 0.02:
        return None
    worst = int(error.values.argmax())
    return Finding(
        name="sampling_disagrees",
        what="Sampling and training give the same tokens other probabilities.",
        how=f"The ratio at the first minibatch is 1 off by {error.values[worst]:.2g} at iteration "
        f"{error.places[worst]:g}; rounding gives 0.00001.",
        remedies=(
            "set precision='float32'",
            "leave the policy in eval mode, and do not change its weights or its dropout between "
            "sampling and training",
        ),
    )


def kl_negative(record: Record) -> Finding | None:
    """Find a negative KL, which is none, beyond its error: in all rows, or in one half of them."""
    kl, error = record.series("rollout/kl"), record.series("rollout/kl_error")
    if len(kl) < 2 or len(kl) != len(error):
        return None
    half = len(kl) // 2
    for rows in (slice(None), slice(None, half), slice(half, None)):
        values, errors = kl.values[rows], error.values[rows]
        mean, spread = float(values.mean()), float((errors**2).sum() ** 0.5) / len(values)
        if mean < -max(5 * spread, 0.02):
            return Finding(
                name="kl_negative",
                what="The KL to the reference is negative, which no KL is.",
                how=f"Its mean over {len(values)} iterations from {kl.places[rows][0]:g} on is "
                f"{mean:.3g} nats per sequence with a standard error of {spread:.2g}.",
                remedies=(
                    "make sure that the tokens are sampled from the policy whose log-probs are "
                    "taken: no top_k, no top_p, no other temperature, no dropout",
                    "make sure that policy and reference read the same tokens, and that the mask "
                    "covers the same ones",
                ),
            )
    return None


def kl_explodes(record: Record) -> Finding | None:
    """Find a policy that has left the reference, or pays more KL than it earns."""
    kl, length = record.series("rollout/kl"), record.series("rollout/length")
    if len(kl) < 2:
        return None
    how = _costs(record) or _jumps(record)
    short = len(length) > 0 and length.last < 10
    limit = VERY_FAR if short or is_solved(record) else FAR
    far = per_token(record)
    if len(far) and (far.last > limit or kl.last > FAR_IN_ALL):
        how = (
            f"The KL is {kl.told()}, in nats per sequence; that is {far.last:.2g} per token at the "
            f"end."
        )
    if how is None:
        return None
    return Finding(
        name="kl_explodes",
        what="The KL explodes: the policy has left the reference.",
        how=how,
        remedies=(
            "lower the learning rate by a factor of 3 to 10",
            "raise kl_coef, or let kl_target adapt it",
            "stop early: --stop_at_kl, or --keep_best heldout/score",
        ),
    )


def _costs(record: Record) -> str | None:
    """Say that the KL has eaten up what was gained and more; None if it has not."""
    kl, coef = record.series("rollout/kl"), record.series("rollout/kl_coef")
    objective, std = at_the_last_kl_coef(record), record.series("rollout/score_std")
    if len(kl) < FEW or not len(kl) == len(coef) == len(std) == len(objective):
        return None
    if is_relative(record) or constant_reward(record):  # what was gained does not show
        return None
    lost = objective.first - objective.last
    if not objective.falls or lost < float(std.values[0]) or coef.last * kl.last < 0.5 * lost:
        return None
    return (
        f"The KL is {kl.told()}, in nats per sequence, and costs more than the reward has gained: "
        f"score minus kl_coef times KL is {objective.told()}."
    )


def _jumps(record: Record) -> str | None:
    """Say that the KL cost far more than scores differ by, in two rows at least; else None."""
    objective, kl = record.series("rollout/objective"), record.series("rollout/kl")
    std = record.series("rollout/score_std")
    if not len(objective) == len(kl) == len(std) or not len(kl):
        return None
    fall = objective.values[0] - objective.values
    rows = ((fall > 5 * max(float(std.values[0]), 1e-6)) & (kl.values > 5.0)).nonzero()[0]
    if len(rows) < 2:
        return None
    worst = int(objective.values.argmin())
    return (
        f"The KL jumped to {kl.values[worst]:.3g} nats per sequence at iteration "
        f"{kl.places[worst]:g}, which made the objective {objective.values[worst]:.3g}, from "
        f"{objective.values[0]:.3g} at first."
    )


def entropy_gone(record: Record) -> Finding | None:
    """Find a policy that says one thing only."""
    entropy, score = record.series("rollout/entropy"), record.series("rollout/score")
    if len(entropy) < FEW or is_solved(record):
        return None
    most = float(entropy.values.max())
    if most < 0.05 or entropy.last > 0.1 * most:
        return None
    return Finding(
        name="entropy_gone",
        what="The entropy is gone: the policy says one thing only and cannot find another.",
        how=f"The entropy is {most:.3g} nats per token at most and {entropy.last:.3g} at iteration "
        f"{entropy.places[-1]:g}, while the score is {score.last:.3g}.",
        remedies=(
            "lower the learning rate, or go back to a save from before the fall",
            "raise kl_coef",
            "give PPO an entropy bonus (ent_coef=0.01)",
            "collect more episodes per iteration",
        ),
    )


def never_ends(record: Record) -> Finding | None:
    """Find completions without an end token, from the beginning or in the end."""
    share, length = record.series("rollout/eos_share"), record.series("rollout/length")
    if len(share) < 2 or _may_not_end(record):
        return None
    begins = float(share.values[:3].mean())
    if float(share.values.max()) <= 0.02:
        return Finding(
            name="eos_never",
            what="No completion ends by itself: the end token never comes.",
            how=f"The share of episodes with an end token is at most {share.values.max():.2g} in "
            f"all {len(share)} iterations; they have {length.last:.3g} tokens.",
            remedies=(
                "see whether the SFT data end with an end token, and train SFT on such data",
                "give the end tokens of the model's chats (tokenizer, generation_config)",
                "raise max_completion_tokens: what is longer cannot end",
                "set missing_eos_penalty",
            ),
        )
    runs_out = begins >= 0.1 and share.last <= 0.05
    grows = begins >= 0.2 and share.last < 0.25 * begins and length.rises
    if not runs_out and not grows:
        return None
    return Finding(
        name="length_to_budget",
        what="The length runs to the budget: the policy no longer ends its completions.",
        how=f"The share of episodes with an end token is {begins:.2g} at first and "
        f"{share.last:.2g} at iteration {share.places[-1]:g}; they end with {length.last:.3g} "
        f"tokens.",
        remedies=(
            "see whether the reward pays for length, and take the length out of it",
            "set missing_eos_penalty, or on_length='truncate'",
            "raise kl_coef",
        ),
    )


def _may_not_end(record: Record) -> bool:
    """Return whether the settings forbid end tokens: all lengths are fixed, or EOS is banned."""
    least, most = record.setting("min_completion_tokens"), record.setting("max_completion_tokens")
    if least is not None and most is not None and least >= most:
        return True
    banned = record.settings.get("banned_token_ids") or []
    ends = _end_ids(record)
    return bool(banned) and (not ends or ends <= set(banned))


def _end_ids(record: Record) -> set[int]:
    """Return the end tokens of the run's model, where it has saved one; else none."""
    found: set[int] = set()
    for place in (record.folder, *sorted(record.folder.glob("checkpoints/*"))):
        try:
            known: Any = json.loads((place / "config.json").read_text(encoding="utf-8"))
            ids = known["eos_token_id"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found |= {ids} if isinstance(ids, int) else set(ids or [])
    return found


def critic_useless(record: Record) -> Finding | None:
    """Find a critic whose values are worse than a constant."""
    explained = record.series("train/explained_variance")
    if len(explained) < 2 * FEW or is_solved(record):
        return None
    later = explained.values[len(explained) // 4 :]
    typical, error = float(np.median(later)), float(later.std() / len(later) ** 0.5)
    steady = len(later) >= 30 and typical < -max(0.1, 5 * error) and explained.trend < 2
    if typical > USELESS and not steady:
        return None
    return Finding(
        name="explained_variance_negative",
        what="The critic is worse than a constant: its values add noise to the advantages.",
        how=f"The explained variance is {typical:.3g} in the median of the later iterations and "
        f"{explained.last:.3g} at iteration {explained.places[-1]:g}; 0 is a constant, 1 is "
        f"perfect.",
        remedies=(
            "lower critic_learning_rate (or learning_rate where the critic has none of its own)",
            "raise vf_coef, if it is small",
            "give the critic a trunk of its own (critic='separate')",
            "normalise the reward to a standard deviation of about 1",
        ),
    )


def clip_fraction(record: Record) -> Finding | None:
    """Find updates that do nothing, or of which nearly every token is clipped."""
    clipped, moved = record.series("train/clip_fraction"), record.series("train/approx_kl")
    if len(clipped) < 2:
        return None
    halves = np.array_split(clipped.values, 2)
    if max(float(half.mean()) for half in halves) > 0.5:
        return Finding(
            name="clip_fraction_high",
            what="Most tokens are clipped: each iteration tries to go much too far.",
            how=f"The clip fraction is {clipped.told()}; 0.05 to 0.3 is usual.",
            remedies=(
                "lower the learning rate by a factor of 3 to 10",
                "see whether clip_range is 0.2, as usual",
                "lower num_epochs, or stop an iteration's updates early (target_kl)",
                "raise minibatch_size",
            ),
        )
    several = record.series("train/updates").values
    still = len(moved) == 0 or float(moved.values.max()) < 1e-5
    if float(clipped.values.max()) > 0 or not still or (len(several) and several.max() < 2):
        return None
    return Finding(
        name="clip_fraction_zero",
        what="The updates do nothing: no token is ever clipped and the policy does not move.",
        how=f"The clip fraction is 0 in all {len(clipped)} iterations, and the KL of an update is "
        f"at most {moved.values.max() if len(moved) else 0.0:.1g} nats per token.",
        remedies=(
            "raise the learning rate by a factor of 10",
            "see whether the weights take a gradient (requires_grad, an adapter that is off)",
        ),
    )


POLICY_RULES: tuple[Rule, ...] = (
    sampling_disagrees,
    kl_negative,
    kl_explodes,
    entropy_gone,
    never_ends,
    clip_fraction,
    critic_useless,
)
