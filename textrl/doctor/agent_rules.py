"""What can be wrong with the training of an agent, one function for each illness.

`reward_rules.py` has what can be wrong with its reward.
"""

import numpy as np

from textrl.doctor.records import TREND, Finding, Record, Series
from textrl.doctor.reward_rules import (
    FEW,
    Rule,
    constant_reward,
    flat_groups,
    is_solved,
    masked,
    out_of_range,
    starved,
)

USELESS = -0.25
"""Explained variance below which a critic does harm; small batches alone make -0.1 of a new one."""


def per_token(record: Record) -> Series:
    """Return the KL in nats per token."""
    kl, length = record.series("rollout/kl"), record.series("rollout/length")
    if len(length) != len(kl):
        return kl
    return Series(unit=kl.unit, places=kl.places, values=kl.values / length.values.clip(min=1.0))


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
    """Find a negative KL, which is none, beyond its error."""
    kl, error = record.series("rollout/kl"), record.series("rollout/kl_error")
    if len(kl) < 2 or len(kl) != len(error):
        return None
    mean = float(kl.values.mean())
    spread = float((error.values**2).sum() ** 0.5) / len(kl)
    if mean > -max(4 * spread, 0.02):
        return None
    return Finding(
        name="kl_negative",
        what="The KL to the reference is negative, which no KL is.",
        how=f"Its mean over {len(kl)} iterations is {mean:.3g} nats per sequence with a standard "
        f"error of {spread:.2g}.",
        remedies=(
            "make sure that the tokens are sampled from the policy whose log-probs are taken: no "
            "top_k, no top_p, no other temperature, no dropout",
            "make sure that policy and reference read the same tokens, and that the mask covers "
            "the same ones",
        ),
    )


def reward_flat(record: Record) -> Finding | None:
    """Find a score that does not rise, and no objective that does."""
    score, objective = record.series("rollout/score"), record.series("rollout/objective")
    kl = record.series("rollout/kl")
    if len(score) < FEW or is_solved(score) or constant_reward(record) or score.rises:
        return None
    if len(objective) == len(score) and objective.rises:
        return None
    if score.falls:
        return Finding(
            name="reward_falls",
            what="The reward falls: the policy gets worse.",
            how=f"The mean score is {score.told()}.",
            remedies=(
                "lower the learning rate by a factor of 3 to 10",
                "see whether the reward has the right sign",
                "run `textrl probe AGENT` for an agent of your own",
            ),
        )
    still = abs(kl.last) < 0.05
    remedies = (
        ("raise the learning rate by a factor of 3 to 10, or train for longer",)
        if still
        else (
            "collect more episodes per iteration: the reward is noisy",
            "see whether the policy gets the reward sometimes: if never, start from SFT on "
            "demonstrations, or give a reward with steps",
            "lower the learning rate: the policy moves, and not towards the reward",
        )
    )
    moved = f"the KL ends at {kl.last:.2g} nats per sequence, so the policy "
    moved += "has hardly moved" if still else "moves, and the reward does not follow"
    return Finding(
        name="reward_flat",
        what="The reward is flat.",
        how=f"The mean score is {score.told()}, which is within the noise; {moved}.",
        remedies=remedies,
    )


def gibberish(record: Record) -> Finding | None:
    """Find a reward that rises while something independent of it says that texts get worse."""
    score, entropy = record.series("rollout/score"), record.series("rollout/entropy")
    if len(score) < FEW or not score.rises or is_solved(score):
        return None
    for prefix in ("heldout/scores/", "rollout/scores/"):
        for name, metric in record.named(prefix).items():
            if len(metric) >= FEW and metric.trend < -TREND and metric.falls:
                return Finding(
                    name="gibberish",
                    what=f"The reward rises while {name} falls: the policy games the reward.",
                    how=f"The mean score is {score.told()}; {name} is {metric.told()}.",
                    remedies=_AGAINST_GAMING,
                )
    far = per_token(record)
    if len(entropy) and entropy.last > 1.5 * entropy.first and far.last > 0.3:
        return Finding(
            name="gibberish",
            what="The reward rises while the texts dissolve: the policy games the reward.",
            how=f"The mean score is {score.told()}; the entropy rises, {entropy.told()} in nats "
            f"per token, and the KL is {far.last:.2g} nats per token.",
            remedies=_AGAINST_GAMING,
        )
    return None


_AGAINST_GAMING = (
    "read samples (samples.jsonl of --heldout)",
    "raise kl_coef by a factor of 3, or stop earlier (--stop_at_kl)",
    "train the reward model on samples of the present policy",
    "add what is missing to the reward: a second reward with a weight",
)


def kl_explodes(record: Record) -> Finding | None:
    """Find a policy that has left the reference, or pays more KL than it earns."""
    kl, far, score = record.series("rollout/kl"), per_token(record), record.series("rollout/score")
    objective = record.series("rollout/objective")
    if len(kl) < FEW or is_solved(score):
        return None
    std, coef = record.series("rollout/score_std"), record.series("rollout/kl_coef")
    costs = (
        len(objective) == len(kl) == len(std) == len(coef)
        and objective.falls
        and objective.first - objective.last > float(std.values[0])
        and coef.last * kl.last > 0.5 * (objective.first - objective.last)
    )
    jumped = _jump(record)
    if far.last < 1.0 and not costs and jumped is None:
        return None
    if jumped is None:
        paid = f", and the objective, score minus kl_coef times KL, is {objective.told()}"
        how = (
            f"The KL is {kl.told()}, in nats per sequence; that is {far.last:.2g} per token"
            f"{paid if costs else ''}."
        )
    else:
        how = (
            f"The KL jumped to {kl.values[jumped]:.3g} nats per sequence at iteration "
            f"{kl.places[jumped]:g}, which made the objective {objective.values[jumped]:.3g}, "
            f"from {objective.values[0]:.3g} at first."
        )
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


def _jump(record: Record) -> int | None:
    """Return the row at which the KL cost far more than scores differ by; None if there is none."""
    objective, kl = record.series("rollout/objective"), record.series("rollout/kl")
    std = record.series("rollout/score_std")
    if not len(objective) == len(kl) == len(std) or not len(kl):
        return None
    worst = int(objective.values.argmin())
    fell = float(objective.values[0] - objective.values[worst])
    jumped = fell > 5 * max(float(std.values[0]), 1e-6) and float(kl.values[worst]) > 5.0
    return worst if jumped else None


def entropy_gone(record: Record) -> Finding | None:
    """Find a policy that says one thing only."""
    entropy, score = record.series("rollout/entropy"), record.series("rollout/score")
    if len(entropy) < FEW or is_solved(score) or entropy.first < 0.05:
        return None
    if entropy.last > 0.1 * entropy.first:
        return None
    return Finding(
        name="entropy_gone",
        what="The entropy is gone: the policy says one thing only and cannot find another.",
        how=f"The entropy is {entropy.told()}, in nats per token, while the score is "
        f"{score.last:.3g}.",
        remedies=(
            "lower the learning rate, or go back to a save from before the fall",
            "raise kl_coef",
            "give PPO an entropy bonus (ent_coef=0.01)",
            "collect more episodes per iteration",
        ),
    )


def never_ends(record: Record) -> Finding | None:
    """Find completions without an end token."""
    share, length = record.series("rollout/eos_share"), record.series("rollout/length")
    if len(share) < 2 or record.settings.get("banned_token_ids"):
        return None
    begins = float(share.values[:3].mean())
    if share.last > 0.05 or (begins < 0.1 and float(share.values.max()) > 0.02):
        return None
    if begins < 0.1:
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
    return Finding(
        name="length_to_budget",
        what="The length runs to the budget: the policy no longer ends its completions.",
        how=f"The share of episodes with an end token is {begins:.2g} at first and "
        f"{share.last:.2g} at iteration {share.places[-1]:g}; the length is {length.told()} "
        f"tokens.",
        remedies=(
            "see whether the reward pays for length, and take the length out of it",
            "set missing_eos_penalty, or on_length='truncate'",
            "raise kl_coef",
        ),
    )


def critic_useless(record: Record) -> Finding | None:
    """Find a critic whose values are worse than a constant."""
    explained = record.series("train/explained_variance")
    if len(explained) < 2 * FEW or is_solved(record.series("rollout/score")):
        return None
    typical = float(np.median(explained.values[len(explained) // 4 :]))
    if typical > USELESS:
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
                "lower num_epochs, or stop an iteration's updates early (target_kl)",
                "raise minibatch_size",
            ),
        )
    several = record.series("train/updates").values
    still = len(moved) == 0 or float(moved.values.max()) < 1e-6
    if float(clipped.values.max()) > 0 or not still or (len(several) and several.max() < 2):
        return None
    return Finding(
        name="clip_fraction_zero",
        what="The updates do nothing: no token is ever clipped and the policy does not move.",
        how=f"The clip fraction is 0 in all {len(clipped)} iterations, and the KL of an update is "
        f"{moved.values.max() if len(moved) else 0.0:.1g} nats per token.",
        remedies=(
            "raise the learning rate by a factor of 10",
            "see whether the weights take a gradient (requires_grad, an adapter that is off)",
        ),
    )


AGENT_RULES: tuple[Rule, ...] = (
    sampling_disagrees,
    kl_negative,
    constant_reward,
    flat_groups,
    gibberish,
    kl_explodes,
    entropy_gone,
    reward_flat,
    out_of_range,
    never_ends,
    clip_fraction,
    critic_useless,
    masked,
    starved,
)
