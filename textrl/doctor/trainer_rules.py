"""What can be wrong with the run of a trainer (SFT, reward model, DPO), or with any run."""

import math

from textrl.doctor.records import Finding, Record
from textrl.doctor.rules import Rule
from textrl.metrics import read_json_lines

FEW = 5
"""A run with fewer rows is too short for a verdict."""
LEFT = 5.0
"""Nats per sequence by which chosen texts may get less likely in DPO."""


def loss_does_not_fall(record: Record) -> Finding | None:
    """Find a training loss that rises, or stays."""
    loss = record.series(f"{record.stage}/loss")
    if len(loss) < FEW:
        return None
    first, most = float(loss.values[0]), float(loss.values.max())
    ruined = loss.last > 1.5 * first and most > 5 * first  # the first row is of the old weights
    rises = ruined or (loss.rises and loss.last > 1.05 * max(first, loss.first))
    below = max(first, loss.first) - loss.last > 1.5 * loss.error
    if not rises and (loss.falls or below):
        return None
    return Finding(
        name="loss_rises" if rises else "loss_flat",
        what="The loss rises: the model gets worse." if rises else "The loss does not fall.",
        how=f"The loss is {first:.3g} at first and {loss.last:.3g} at update {loss.places[-1]:g}.",
        remedies=(
            "lower the learning rate by a factor of 3 to 10"
            if rises
            else "raise the learning rate by a factor of 3 to 10, or train for longer",
            "look at the data: are the columns what they should be, are chosen and rejected "
            "different texts?",
        ),
    )


def overfit(record: Record) -> Finding | None:
    """Find a held-out part that gets worse while the training data are learnt."""
    stage = record.stage
    loss, heldout = record.series(f"{stage}/loss"), record.series(f"{stage}/heldout_loss")
    accuracy = record.series(f"{stage}/accuracy")
    outside = record.series(f"{stage}/heldout_accuracy")
    how = ""
    if len(heldout) >= 2 and heldout.values[-1] > 1.08 * heldout.values.min() and loss.falls:
        best = int(heldout.values.argmin())
        how = (
            f"The held-out loss was {heldout.values[best]:.3g} at update {heldout.places[best]:g} "
            f"and is {heldout.values[-1]:.3g} at the end; the training loss is {loss.last:.3g}."
        )
    elif len(outside):
        right = float(outside.values[-1])
        error = _error_of_share(right, record)
        gap, lost = accuracy.last - right, float(outside.values.max()) - right
        learnt = accuracy.last > 0.9 and gap > max(0.15, 3 * error)
        loses = len(outside) > 2 and accuracy.rises and lost > max(0.1, 3 * error)
        if learnt or loses:
            how = (
                f"{accuracy.last:.0%} of the training pairs are in the right order at the end, and "
                f"{right:.0%} of the held-out ones, {outside.values.max():.0%} at best."
            )
    if not how:
        return None
    return Finding(
        name="overfit",
        what=f"The {_NAMES[stage]} learns its data by heart (over-fitting).",
        how=how,
        remedies=(
            "train for fewer epochs: one is usual for a reward model",
            "collect more data, and more different ones",
            "lower the learning rate, or set weight_decay",
        ),
    )


def _error_of_share(share: float, record: Record) -> float:
    """Return the standard error of a share of the held-out pairs; 0 where their number is unknown.

    A run of a reward model keeps them in heldout_pairs.jsonl.
    """
    pairs = len(read_json_lines(record.folder / "heldout_pairs.jsonl"))
    return math.sqrt(share * (1 - share) / pairs) if pairs else 0.0


_NAMES = {"sft": "model", "reward": "reward model", "dpo": "policy"}


def no_better_than_chance(record: Record) -> Finding | None:
    """Find pairs that are ordered as if by a coin."""
    stage = record.stage
    accuracy = record.series(f"{stage}/accuracy")
    outside = record.series(f"{stage}/heldout_accuracy")
    judged = outside if len(outside) else accuracy
    if len(accuracy) < FEW or judged.last > 0.55:
        return None
    where = "held-out" if len(outside) else "training"
    return Finding(
        name="chance",
        what="Pairs are ordered no better than by a coin.",
        how=f"{judged.last:.0%} of the {where} pairs are in the right order at the end.",
        remedies=(
            "see whether chosen and rejected are mixed up in a part of the data",
            "raise the learning rate, or train on more pairs",
            "see how far labelers agree with one another: no model agrees more",
        ),
    )


def both_fall(record: Record) -> Finding | None:
    """Find a DPO that makes chosen texts less likely too."""
    chosen, rejected = record.series("dpo/chosen_reward"), record.series("dpo/rejected_reward")
    if len(chosen) < FEW or len(chosen) != len(rejected):
        return None
    margin, beta = chosen.last - rejected.last, record.setting("beta") or 0.1
    much = chosen.last < -max(0.25 * margin, 0.1) or chosen.last / beta < -LEFT
    if not chosen.falls or not rejected.falls or not much:
        return None
    return Finding(
        name="both_fall",
        what="Chosen and rejected texts both get less likely: the policy leaves both.",
        how=f"The implicit reward of the chosen texts is {chosen.told()}, that of the rejected "
        f"ones {rejected.told()}.",
        remedies=(
            "mix in the SFT loss: --loss_type '{sigmoid: 1.0, sft: 0.2}'",
            "lower the learning rate, or train for one epoch",
            "raise beta",
            "drop pairs whose two texts are nearly the same",
            "run SFT on the chosen texts first",
        ),
    )


def not_finite(record: Record) -> Finding | None:
    """Find a loss, a score or a KL that is no number any more."""
    names = [f"{record.stage}/loss", "rollout/score", "rollout/kl", "train/policy_loss"]
    for name in names:
        bad = [n for n, row in enumerate(record.rows, 1) if _is_nan(row.get(name))]
        if len(bad) > len(record.rows) // 2 or bad[-2:] == [len(record.rows) - 1, len(record.rows)]:
            return Finding(
                name="not_finite",
                what=f"{name} is no number any more.",
                how=f"{len(bad)} of {len(record.rows)} rows are not finite, the first is row "
                f"{bad[0]}.",
                remedies=(
                    "go back to a save from before it, and lower the learning rate",
                    "set precision='float32'",
                    "see whether the reward returned numbers, and whether all episodes failed",
                ),
            )
    return None


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def gradients_not_finite(record: Record) -> Finding | None:
    """Find updates that were skipped because their gradient was not finite."""
    prefix = "train" if record.stage == "agent" else record.stage
    skipped = record.series(f"{prefix}/skipped_updates")
    if not len(skipped) or skipped.values.max() < 1:
        return None
    first = int((skipped.values > 0).argmax())
    return Finding(
        name="gradients_not_finite",
        what="Gradients were not finite, and their updates were skipped.",
        how=f"{skipped.values.max():g} updates were skipped, the first before {skipped.unit} "
        f"{skipped.places[first]:g}.",
        remedies=(
            "lower the learning rate",
            "set precision='float32'",
            "look for texts or rewards of an extraordinary size",
        ),
    )


def too_many_threads(record: Record) -> Finding | None:
    """Find a thread pool that is larger than the number of cores."""
    known = [record.machine.get(name, 1) for name in ("threads", "cores", "processes")]
    if not all(isinstance(number, int | float) for number in known):
        return None
    threads, cores, processes = known
    if threads * processes <= cores or "cores" not in record.machine:
        return None
    return Finding(
        name="too_many_threads",
        what="PyTorch has more threads than this process has cores; they wait for one another.",
        how=f"There were {threads} threads in each of {processes} processes on {cores:g} cores.",
        remedies=(
            f"set OMP_NUM_THREADS={max(1, int(cores / processes))} (the option --threads of the "
            f"demo)",
        ),
    )


TRAINER_RULES: tuple[Rule, ...] = (loss_does_not_fall, overfit, no_better_than_chance, both_fall)
ANY_RULES: tuple[Rule, ...] = (not_finite, gradients_not_finite, too_many_threads)
