"""What can be wrong with what an agent learns: nothing, the wrong thing, or something it loses."""

from textrl.doctor.records import CLEAR, TREND, Finding, Record, Series
from textrl.doctor.reward_rules import constant_reward
from textrl.doctor.rules import (
    FEW,
    Rule,
    at_the_last_kl_coef,
    is_relative,
    is_solved,
    noise,
    per_token,
)

NEUTRAL = ("length", "tokens", "cost", "seconds", "time")
"""Words in the name of a metric of which neither more nor less is better."""


def reward_flat(record: Record) -> Finding | None:
    """Find a score that does not rise, and no objective that does."""
    score, kl = record.series("rollout/score"), record.series("rollout/kl")
    if len(score) < 2 * FEW or is_solved(record) or constant_reward(record) or fell(record):
        return None
    if is_relative(record):
        return None
    if any(_rises(record, series) for series in (score, at_the_last_kl_coef(record))):
        return None
    still = not abs(kl.last) >= 0.05
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


def _rises(record: Record, series: Series) -> bool:
    return series.rises or series.last - series.first > CLEAR * noise(record, series)


def fell(record: Record) -> str | None:
    """Return how far the score fell, below its beginning or from its best; None if it did not."""
    score, std = record.series("rollout/score"), record.series("rollout/score_std")
    if len(score) < FEW:
        return None
    error, step = noise(record, score), 0.3 * (float(std.values.mean()) if len(std) else 0.0)
    if score.falls and score.first - score.last > max(CLEAR * error, step):
        return f"The mean score is {score.told()}."
    best = float(score.windows.max())
    lost, gained = best - score.last, best - score.first
    if lost > max((CLEAR + 1) * error, step) and lost > 0.3 * gained:
        place = score.places[int(score.windows.argmax())]
        return (
            f"The mean score was {best:.3g} from {score.unit} {place:g} on, at its best, and is "
            f"{score.last:.3g} at the end."
        )
    return None


def reward_falls(record: Record) -> Finding | None:
    """Find a score that falls, from its beginning or from its best."""
    how = fell(record)
    if how is None:
        return None
    return Finding(
        name="reward_falls",
        what="The reward falls: the policy gets worse.",
        how=how,
        remedies=(
            "go back to the best save (--keep_best), and lower the learning rate by a factor of 3 "
            "to 10",
            "see whether the reward has the right sign",
            "run `textrl probe AGENT` for an agent of your own",
        ),
    )


def gibberish(record: Record) -> Finding | None:
    """Find a reward that rises while something independent of it says that texts get worse."""
    score, entropy = record.series("rollout/score"), record.series("rollout/entropy")
    if len(score) < FEW or not score.rises:
        return None
    for prefix in ("heldout/scores/", "rollout/scores/"):
        for name, metric in record.named(prefix).items():
            neutral = any(word in name.lower() for word in NEUTRAL)
            if not neutral and len(metric) >= FEW and metric.trend < -TREND and metric.falls:
                return Finding(
                    name="gibberish",
                    what=f"The reward rises while {name} falls: if more of it is better, the "
                    f"policy games the reward.",
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


def heldout_falls(record: Record) -> Finding | None:
    """Find a score that rises in training and falls on held-out prompts."""
    score, heldout = record.series("rollout/score"), record.series("heldout/score")
    std = record.series("heldout/score_std")
    if len(heldout) < FEW or not score.rises or not heldout.falls:
        return None
    if len(std) and heldout.first - heldout.last < 0.3 * float(std.values.mean()):
        return None
    return Finding(
        name="heldout_falls",
        what="The reward rises in training and falls on held-out prompts.",
        how=f"The mean score is {score.told()}; held-out it is {heldout.told()}.",
        remedies=(
            "keep the best agent (--keep_best heldout/score)",
            "train on more prompts, or for fewer passes over them",
            "see whether held-out prompts are of the same kind",
        ),
    )


PROGRESS_RULES: tuple[Rule, ...] = (gibberish, heldout_falls, reward_falls, reward_flat)
