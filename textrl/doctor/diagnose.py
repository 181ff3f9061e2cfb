"""The findings about a run, in words."""

from textrl.doctor.policy_rules import POLICY_RULES
from textrl.doctor.progress_rules import PROGRESS_RULES
from textrl.doctor.records import Finding, Record
from textrl.doctor.reward_rules import REWARD_RULES
from textrl.doctor.rules import FEW
from textrl.doctor.trainer_rules import ANY_RULES, TRAINER_RULES

AGENT_RULES = (*PROGRESS_RULES, *REWARD_RULES, *POLICY_RULES)


def diagnose(record: Record) -> list[Finding]:
    """Return what is wrong with a run, the worst first."""
    stage = record.stage
    rules = {"agent": AGENT_RULES, "": ()}.get(stage, TRAINER_RULES)
    found = [rule(record) for rule in (*rules, *ANY_RULES)]
    return [finding for finding in found if finding is not None]


def in_words(record: Record, findings: list[Finding], name: str) -> str:
    """Return the findings as text.

    Args:
        record: The run.
        findings: What `diagnose` found.
        name: How the run is called.
    """
    if not findings:
        return f"{name}: {_healthy(record)}"
    lines = [f"{name}: {len(findings)} finding{'s' if len(findings) > 1 else ''}"]
    for number, finding in enumerate(findings, 1):
        lines.append(f"{number}. {finding.what} {finding.how}")
        lines += [f"   {'try' if i == 0 else 'or'}: {r}" for i, r in enumerate(finding.remedies)]
    return "\n".join(lines)


def _healthy(record: Record) -> str:
    """Return what a run without findings did."""
    stage = record.stage
    if stage == "agent":
        score, kl = record.series("rollout/score"), record.series("rollout/kl")
        if len(score) and len(kl):
            short = ", too few to judge whether it learns" if len(score) < 2 * FEW else ""
            return (
                f"nothing wrong found in {len(score)} iterations{short}. The score is "
                f"{score.told()}; the KL ends at {max(kl.last, 0.0):.3g} nats per sequence"
            )
    elif stage and len(loss := record.series(f"{stage}/loss")):
        return f"nothing wrong found in {loss.places[-1]:g} updates. The loss is {loss.told()}"
    if any(name.startswith(("heldout/", "rollout/masked")) for name in record.names):
        return "it ended before its first iteration was over, so that nothing can be said"
    return (
        "there are no metrics of textrl's agents or trainers, so that nothing can be said; "
        "`textrl report` draws what there is"
    )
