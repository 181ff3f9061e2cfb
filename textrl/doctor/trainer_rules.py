"""What can be wrong with the run of a trainer (SFT, reward model, DPO), or with any run."""

from collections.abc import Callable

from textrl.doctor.records import Finding, Record

Rule = Callable[[Record], Finding | None]
FEW = 5
"""A run with fewer rows is too short for a verdict."""


def loss_does_not_fall(record: Record) -> Finding | None:
    """Find a training loss that rises, or stays."""
    loss = record.series(f"{record.stage}/loss")
    if len(loss) < FEW:
        return None
    first = float(loss.values[0])
    rises = loss.last > 1.5 * first or (loss.rises and loss.last > 1.05 * first)
    if loss.falls and not rises:
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
    if len(heldout) >= 2 and heldout.values[-1] > 1.1 * heldout.values.min() and loss.falls:
        best = int(heldout.values.argmin())
        how = (
            f"The held-out loss was {heldout.values[best]:.3g} at update {heldout.places[best]:g} "
            f"and is {heldout.values[-1]:.3g} at the end; the training loss is {loss.last:.3g}."
        )
    elif len(outside) and accuracy.last > 0.9 and accuracy.last - outside.values[-1] > 0.2:
        how = (
            f"{accuracy.last:.0%} of the training pairs are in the right order at the end, and "
            f"{outside.values[-1]:.0%} of the held-out ones."
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
    margin = chosen.last - rejected.last
    if not chosen.falls or not rejected.falls or chosen.last > -max(0.5 * margin, 0.1):
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
    threads, cores = record.machine.get("threads"), record.machine.get("cores")
    if not threads or not cores or threads <= cores:
        return None
    return Finding(
        name="too_many_threads",
        what="PyTorch has more threads than this process has cores; they wait for one another.",
        how=f"There were {threads} threads on {cores:g} cores.",
        remedies=(f"set OMP_NUM_THREADS={max(1, int(cores))} (the option --threads of the demo)",),
    )


TRAINER_RULES: tuple[Rule, ...] = (loss_does_not_fall, overfit, no_better_than_chance, both_fall)
ANY_RULES: tuple[Rule, ...] = (gradients_not_finite, too_many_threads)
