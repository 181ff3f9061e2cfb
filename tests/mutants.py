"""Wrong variants of the maths, the agents, the trainers and the environment: one change each.

A row is (what it breaks, old text, new text); the old text occurs exactly once in its file. The
tests named with a group of rows must fail on each of them: `make mutants` tries it.
"""

# A row is a line, however long: the old text and the new one are read beside each other.
# fmt: off
# ruff: noqa: E501

import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One wrong variant."""

    file: str
    breaks: str
    old: str
    new: str
    test: str
    """pytest's arguments, as in a shell."""

    def apply(self, tree: Path) -> None:
        """Write the variant into a copy of the checkout."""
        path = tree / self.file
        path.write_text(path.read_text(encoding="utf-8").replace(self.old, self.new), "utf-8")


def wrong_rows(mutants: list[Mutant]) -> list[str]:
    """Return what is wrong with the table, a line each: texts that do not occur exactly once."""
    found = []
    for mutant in mutants:
        count = (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old)
        if count != 1 or mutant.old == mutant.new:
            found.append(f"{mutant.file}: {mutant.breaks}: {mutant.old!r} occurs {count} times")
        if not (ROOT / shlex.split(mutant.test)[0].split("::")[0]).exists():
            found.append(f"{mutant.file}: {mutant.breaks}: there is no {mutant.test}")
    return found


def of(file: str, test: str, *rows: tuple[str, str, str]) -> list[Mutant]:
    return [Mutant(file=file, breaks=b, old=old, new=new, test=test) for b, old, new in rows]


LOSSES = "tests/test_losses.py"
ADVANTAGES = "tests/test_advantages.py"
GRADIENT = "tests/agents/test_ppo_gradient.py"
CRITIC_FREE = "tests/agents/test_critic_free.py"
REWARD = "tests/trainers/test_reward_gradient.py"
TRAINERS = "tests/trainers/test_trainers.py"

MATHS = [
    *of(
        "textrl/losses.py",
        f"{LOSSES} -k 'ppo or approx_kl or reinforce or sft'",
        ("PPO clips above twice as far", "1 - clip_range, 1 + clip_range)", "1 - clip_range, 1 + 2 * clip_range)"),
        ("PPO takes the larger surrogate", "torch.minimum(ratio", "torch.maximum(ratio"),
        ("PPO's sign", "return -masked_mean(torch.minimum", "return masked_mean(torch.minimum"),
        ("the ratio upside down", "ratio = zero_masked(logprobs - old_logprobs", "ratio = zero_masked(old_logprobs - logprobs"),
        ("REINFORCE's sign", "return -masked_mean(zero_masked(logprobs", "return masked_mean(zero_masked(logprobs"),
        ("the smaller value error", "error = torch.maximum(", "error = torch.minimum("),
        ("no half in the value loss", "return 0.5 * masked_mean(error", "return masked_mean(error"),
        ("values are clipped upwards only", ".clamp(-clip_range_vf,", ".clamp(0.0,"),
        ("value clipping off", "if clip_range_vf is not None:", "if False:"),
        ("sign of k1", "masked_mean(-d, mask)", "masked_mean(d, mask)"),
        ("sign in k3", "d.expm1() - d", "d.expm1() + d"),
        ("SFT's sign", "return -masked_mean(logprobs, mask)", "return masked_mean(logprobs, mask)"),
    ),
    *of(
        "textrl/losses.py",
        f"{LOSSES} -k 'bradley or ranking'",
        ("sign of the margin", "gap = gap - margin", "gap = gap + margin"),
        ("the rejected one wins", "return -logsigmoid(gap)", "return -logsigmoid(-gap)"),
        ("rank 0 is worst", "better = ranks.unsqueeze(2) < ranks", "better = ranks.unsqueeze(2) > ranks"),
        ("ties make pairs", "better = ranks.unsqueeze(2) < ranks", "better = ranks.unsqueeze(2) <= ranks"),
        ("a ranking is divided by K, not by its pairs", "/ pairs.sum((1, 2)).clamp_min(1)", "/ scores.shape[1]"),
        ("Plackett-Luce leaves the picked one out", "(below | itself) & mask", "below & mask"),
        ("tied completions compete", "below = ranks.unsqueeze(2) < ranks", "below = ranks.unsqueeze(2) <= ranks"),
    ),
    *of(
        "textrl/preference_losses.py",
        f"{LOSSES} -k 'preference or kto or robust'",
        ("cDPO's second term", "return -(1 - flipped) * logsigmoid(logits) - flipped", "return -(1 - flipped) * logsigmoid(logits) + flipped"),
        ("robust DPO is not divided", "return kept / (1 - 2 * flipped)", "return kept"),
        ("IPO's target twice as far", "1 / (2 * settings.beta)", "1 / settings.beta"),
        ("the hinge's margin", "return (1 - settings.beta", "return (2 - settings.beta"),
        ("sign of SimPO's margin", "means - settings.simpo_margin", "means + settings.simpo_margin"),
        ("SimPO divides both by the chosen's length", "pairs.rejected / pairs.rejected_lengths\n    return -logsigmoid", "pairs.rejected / pairs.chosen_lengths\n    return -logsigmoid"),
        ("sign of ORPO's odds ratio", "return -chosen - settings.beta", "return -chosen + settings.beta"),
        ("sign of KTO's baseline", "(pairs.h_chosen - kl)", "(pairs.h_chosen + kl)"),
        ("APO lifts the rejected", ".sigmoid() + (beta", ".sigmoid() - (beta"),
        ("the chosen's reference for both", "h_rejected=rejected - ref_rejected", "h_rejected=rejected - ref_chosen"),
        ("a negative KL counts", "kl.detach().clamp_min(0.0)", "kl.detach()"),
    ),
    *of(
        "textrl/advantages.py",
        ADVANTAGES,
        ("sign of the KL in the reward", "rewards = -kl_coef *", "rewards = kl_coef *"),
        ("the score on the first token", "torch.where(mask, steps, -1).amax(dim=1)", "torch.where(mask, steps, mask.shape[1]).amin(dim=1)"),
        ("no discount of the next value", "+ gamma * next_value", "+ next_value"),
        ("no discount of later errors", "delta + gamma * gae_lambda *", "delta + gae_lambda *"),
        ("padding lends its value", "next_value = torch.where(counts, values[:, t], next_value)", "next_value = values[:, t]"),
        ("no bootstrap of a truncated row", "next_value, advantage = full_precision(after)", "next_value, advantage = torch.zeros_like(values[:, 0])"),
        ("returns without values", "return advantages, advantages + values", "return advantages, advantages"),
        ("RLOO's baseline holds the sample", "/ (group_size - 1)", "/ group_size"),
        ("GRPO's unbiased spread", "centred.square().mean(1, keepdim=True)", "centred.square().sum(1, keepdim=True) / (group_size - 1)"),
        ("Dr.GRPO and GRPO swapped", "if scale:", "if not scale:"),
    ),
    *of(
        "textrl/masking.py",
        "tests/test_masking.py",
        ("a mean over padding", "zero_masked(x, mask).sum() / count", "zero_masked(x, mask).sum() / mask.numel()"),
        ("the unbiased variance", "- mean).square(), mask)", "- mean).square(), mask) * mask.sum() / (mask.sum() - 1)"),
        ("whitening divides by the variance", "(masked_var(x, mask) + eps).sqrt()", "masked_var(x, mask) + eps"),
        ("whitening does not centre", "(zero_masked(x, mask) - mean) / divisor", "zero_masked(x, mask) / divisor"),
    ),
    *of(
        "textrl/logprobs.py",
        "tests/test_logprobs.py",
        ("sign of log-probs", "return -cross_entropy(", "return cross_entropy("),
        ("the temperature multiplies", "else logits / temperature", "else logits * temperature"),
        ("sign of the entropy", "return -(log_p.exp() *", "return (log_p.exp() *"),
        ("sign of the KL", "ratio = (log_p - log_q)", "ratio = (log_q - log_p)"),
        ("the KL's expectation under the reference", "return (log_p.exp() * ratio)", "return (log_q.exp() * ratio)"),
        ("numbers land on other positions", "index_copy(0, positions, values)", "index_copy(0, positions.flip(0), values)"),
    ),
    *of(
        "textrl/generation.py",
        "tests/agents/test_bans.py -k obey_and_both",
        ("the least length is one token short", "done[alive] + step)", "done[alive] + step + 1)"),
    ),
    *of(
        "textrl/generation.py",
        "tests/envs/test_texts.py -k turns_end",
        ("only the first end token ends", "~torch.isin(tokens, ends)", "tokens != ends[0]"),
    ),
    *of(
        "textrl/generation.py",
        "tests/test_models.py -k sampl",
        ("sampling at temperature 1", "log_p = (logits / temperature)", "log_p = logits"),
    ),
    *of(
        "textrl/logprobs.py",
        "tests/agents/test_bans.py -k 'what_is_allowed or obey_and_both'",
        ("the least length is one token long", "(positions < self.min_tokens)", "(positions <= self.min_tokens)"),
        ("a banned token keeps a probability", "BANNED = -1e30", "BANNED = -1.0"),
    ),
]

AGENTS = [
    *of(
        "agents/ppo.py",
        f"{GRADIENT} -k 'value_head-sampled-score'",
        ("sign of the entropy bonus", "loss = loss - config.ent_coef", "loss = loss + config.ent_coef"),
        ("vf_coef ignored for a value head", "loss + config.vf_coef * value_loss, value_loss", "loss + value_loss, value_loss"),
        ("value clipping off", "clip_range_vf=limit)", "clip_range_vf=None)"),
        ("sign of ptx", "weight = self.config.ptx_coef *", "weight = -self.config.ptx_coef *"),
        ("whitening off", "whitened = standardize(found.advantages, mask)", "whitened = found.advantages"),
        ("sign of the policy's half of the KL", "rollout.rewards - kl_coef * rollout.logprobs", "rollout.rewards + kl_coef * rollout.logprobs"),
        ("gae_lambda ignored", "gae_lambda=self.config.gae_lambda", "gae_lambda=1.0"),
        ("clip_range ignored", "mask, clip_range=config.clip_range", "mask, clip_range=0.2"),
        ("episodes count alike, not their tokens", "weights=rollout.mask.sum(1)", "weights=torch.ones(len(rollout.scores))"),
    ),
    *of(
        "agents/ppo.py",
        f"{GRADIENT} -k 'separate-exact-truncate'",
        ("vf_coef ignored for a critic of its own", "return self.config.vf_coef * value_loss, {", "return value_loss, {"),
        ("the exact KL's weight is not divided", "weight=kl_coef / divisor", "weight=kl_coef"),
        ("sign of the exact KL", "loss = loss + exact.weight *", "loss = loss - exact.weight *"),
        ("the KL of the state before the token is paid", "reference_states)[:, 1:]", "reference_states)[:, :-1]"),
        ("the state after a truncation pays no KL", "positions[cut, slots] = True,", "positions[cut, slots] = False,"),
        ("no bootstrap", "bootstrap_values=rollout.bootstrap_values", "bootstrap_values=None"),
    ),
    *of(
        "agents/ppo.py",
        f"{GRADIENT} -k 'learning_rate or target_kl'",
        ("critic_learning_rate ignored", "rate = config.critic_learning_rate", "rate = None"),
        ("target_kl stops after the first step", 'limit is not None and updates[-1]["approx_kl"] > limit', "limit is not None"),
        ("target_kl ignored", 'limit is not None and updates[-1]["approx_kl"] > limit', "False"),
    ),
    *of(
        "textrl/updater.py",
        f"{GRADIENT} -k clipped_to_its_norm",
        ("no gradient clipping", "clip_grad_norm_(self.parameters, self._max_grad_norm)", "clip_grad_norm_(self.parameters, math.inf)"),
    ),
    *of(
        "agents/kl_control.py",
        "tests/agents/test_ppo.py -k adaptive",
        ("kl_coef steered the wrong way", "kl / config.kl_target - 1", "1 - kl / config.kl_target"),
    ),
    *of(
        "textrl/policy.py",
        f"{GRADIENT} -k 'value_head-exact-score'",
        ("the entropy at temperature 1", "token_entropy(logits, temperature=self.temperature)", "token_entropy(logits)"),
        ("the KL the other way round", "token_kl(logits, other_logits,", "token_kl(other_logits, logits,"),
    ),
    *of(
        "textrl/policy.py",
        "tests/agents/test_bans.py -k 'what_is_allowed or obey_and_both'",
        ("an update that is not renormalised", "logits = self._logits(self.head, states, counts)", "logits = self.head(states)"),
    ),
    *of(
        "agents/collect.py",
        f"{GRADIENT} -k 'separate-sampled-truncate'",
        ("the bootstrap value is of one position early", "ends = self.lengths.unsqueeze(1)", "ends = self.lengths.unsqueeze(1) - 1"),
        ("actions that stand one further", "self._positions[row, slots] = self.lengths[row] + step", "self._positions[row, slots] = self.lengths[row] + step + 1"),
    ),
    *of(
        "agents/collect.py",
        "tests/agents/test_ppo.py -k bootstrap_values",
        ("ended rows get a bootstrap value", "torch.where(self.truncated, after, 0.0)", "after"),
    ),
    *of(
        "textrl/updater.py",
        f"{GRADIENT} -k 'value_head-sampled-score'",
        ("micro-batches count alike", "self.weights[batch].sum().item() / self.weights.sum().item()", "len(batch) / len(self.weights)"),
        ("the demonstrations' loss is dropped", "yield from more(tokens)", "yield from ()"),
    ),
    *of(
        "agents/text_agent.py",
        f"{CRITIC_FREE} -k learning_rate_falls",
        ("the learning rate rises", "1 - self.env_steps / self", "1 + self.env_steps / self"),
    ),
    *of(
        "agents/text_agent.py",
        "tests/agents/test_online_dpo.py -k gradient",
        ("updates at temperature 1", "temperature=self.env.temperature,", "temperature=1.0,"),
    ),
    *of(
        "agents/policy_gradient.py",
        f"{CRITIC_FREE} -k papers_loss",
        ("the policy's half of the KL is dropped", "rollout.rewards - kl_coef * rollout.logprobs", "rollout.rewards"),
        ("the mean reward, not the sum", "rollout.mask, 0.0).sum(1)", "rollout.mask, 0.0).mean(1)"),
    ),
    *of(
        "agents/rloo.py",
        f"{CRITIC_FREE} -k papers_loss",
        ("the baseline is of all prompts", "rloo_advantages(returns, self.env.group_size)", "rloo_advantages(returns, len(returns))"),
    ),
    *of(
        "agents/grpo.py",
        f"{CRITIC_FREE} -k papers_loss",
        ("the spread of the other variant", "scale=paper", "scale=not paper"),
        ("Dr.GRPO divides by the length", "lengths if paper else torch.full_like(lengths, self.env.max_completion_tokens)", "lengths"),
        ("a mean over tokens, not over episodes", "token_mean * part.mask.sum() / len(rows)", "token_mean"),
    ),
    *of(
        "agents/reinforce.py",
        f"{CRITIC_FREE} -k papers_loss",
        ("the baseline of two", "group_size=len(returns)", "group_size=2"),
    ),
    *of(
        "agents/online_dpo.py",
        "tests/agents/test_online_dpo.py -k 'gradient or by_hand or soft_labels'",
        ("the lengths swapped", "lengths=lengths[0],\n            rejected_lengths=lengths[1]", "lengths=lengths[1],\n            rejected_lengths=lengths[0]"),
        ("the worst preferred", "torch.cat([best[pairs], worst[pairs]])", "torch.cat([worst[pairs], best[pairs]])"),
        ("no reference", "reference = part.ref_logprobs.sum(1)", "reference = 0 * part.ref_logprobs.sum(1)"),
        ("the soft label of the other one", "torch.sigmoid(worst - best)", "torch.sigmoid(best - worst)"),
        ("a truncated sample ranks first", "group_size).nan_to_num(nan=-torch.inf)", "group_size).nan_to_num(nan=torch.inf)"),
    ),
    *of(
        "agents/online_dpo.py",
        "tests/agents/test_bans.py -k ranks_by_what_is_paid",
        ("a missing end is a bonus", "rollout.scores - self.env", "rollout.scores + self.env"),
    ),
]

TRAINING = [
    *of(
        "textrl/trainers/sft.py",
        "tests/trainers/test_sft_gradient.py",
        ("sign of the loss", "loss=-self._policy.logprobs_of", "loss=self._policy.logprobs_of"),
        ("examples count alike, not their tokens", "float(s.num_counted) for s", "1.0 for s"),
    ),
    *of(
        "textrl/trainers/reward.py",
        REWARD,
        ("sign of the margin", "[m or 0.0 for m in margins]", "[-(m or 0.0) for m in margins]"),
        ("sign of the centring", "losses + self.config.center_coef", "losses - self.config.center_coef"),
        ("the centring is not divided by K", "scores.square().sum(1) / mask.sum(1)", "scores.square().sum(1)"),
        ("the other ranking loss", 'loss_type == "plackett_luce"', 'loss_type != "plackett_luce"'),
        ("the rejected one wins", "(scores[:, 0], scores[:, 1], margin)", "(scores[:, 1], scores[:, 0], margin)"),
        ("the margin is dropped", "if any(m is not None for m in margins)", "if False"),
        ("padding takes part in a ranking", "losses = ranking_loss(scores, ranks, mask)", "losses = ranking_loss(scores, ranks)"),
        ("accuracy of the wrong order", "right = (scores.unsqueeze(2) > scores", "right = (scores.unsqueeze(2) < scores"),
    ),
    *of(
        "textrl/trainers/reward.py",
        f"{TRAINERS} -k 'learns_rankings or normalised'",
        ("the scores' mean is not taken off", "score_std = mean, std", "score_std = 0.0, std"),
    ),
    *of(
        "textrl/trainers/dpo.py",
        f"{TRAINERS} -k 'dpo or kto or soft or mix'",
        ("chosen and rejected swapped", "[p.chosen for p in pairs] + [p.rejected for p in pairs]", "[p.rejected for p in pairs] + [p.chosen for p in pairs]"),
        ("soft labels of the other one", "certainty * flipped + (1 - certainty) * (1 - flipped)", "certainty * (1 - flipped) + (1 - certainty) * flipped"),
        ("KTO's baseline is a sum", "self._reference_of_strangers[rows]).mean()", "self._reference_of_strangers[rows]).sum()"),
    ),
    *of(
        "textrl/trainers/dpo.py",
        "tests/trainers/test_dpo_gradient.py",
        ("lengths swapped", "chosen_lengths=lengths[0]", "chosen_lengths=lengths[1]"),
        ("the chosen's reference for both", "        reference[1],\n", "        reference[0],\n"),
        ("beta ignored", "beta=config.beta,", "beta=0.1,"),
    ),
    *of(
        "envs/core.py",
        "tests/envs/test_candidates.py -k potential",
        ("what a text scored before is paid again", "(known - self.potentials)[paid]", "known[paid]"),
        ("an episode begins with the last one's potential", "self.potentials[row], self._dense_paid[row] = 0.0, np.zeros(0)", "self._dense_paid[row] = np.zeros(0)"),
    ),
    *of(
        "envs/core.py",
        "tests/envs/test_text_rlhf.py",
        ("sign of the reference's half of the KL", "rewards = self.kl_coef * ref_logprobs", "rewards = -self.kl_coef * ref_logprobs"),
        ("a missing end is a bonus", "rewards[each, last] -= config", "rewards[each, last] += config"),
        ("a truncated episode is scored", "terminated = ref_logprobs.shape, ended & ~truncated", "terminated = ref_logprobs.shape, ended"),
    ),
    *of(
        "envs/core.py",
        "tests/agents/test_ppo.py -k step_sequence_give",
        ("a sequence's score on its first token", "bonus[over, last[over]] = scores.total", "bonus[over, 0] = scores.total"),
    ),
    *of(
        "envs/token_rows.py",
        "tests/envs/test_vector.py -k counts_its_places",
        ("the least length counts from the step", "positions=positions - starts.unsqueeze(1)", "positions=positions - positions[:, :1]"),
    ),
    *of(
        "envs/token_rows.py",
        f"{GRADIENT} -k 'value_head-sampled-score'",
        ("the reference at temperature 1", "temperature=self.temperature,", "temperature=1.0,"),
    ),
    *of(
        "envs/texts.py",
        "tests/envs/test_text_rlhf.py -k columns",
        ("every completion gets the first row's columns", "None if index is None else values[index]", "None if index is None else values[0]"),
    ),
]

SAVES = "tests/agents/test_saves.py"
KEPT = [
    *of(
        "textrl/durable.py",
        "tests/test_durable.py",
        ("a save that no journal announces", "write_json(folder / JOURNAL, plan)", "write_json(fresh / JOURNAL, plan)"),
        ("files of the save before stay", "sorted(earlier - set(files))", "[]"),
        ("a damaged file is not looked at", "if _checksum(path) != expected:", "if False:"),
        ("a missing file is not looked at", "if not path.is_file():", "if False:"),
        ("a text is written in its place", 'fresh = path.with_name(path.name + ".new")', "fresh = path"),
    ),
    *of(
        "textrl/checkpoint.py",
        "tests/test_durable.py",
        ("the oldest save is used", "reversed(self._steps())", "self._steps()"),
        ("saves pile up", "self._steps()[: -self._keep]", "[]"),
        ("saves by time alone never come", "return by_steps or 0 < self._seconds", "return by_steps and 0 < self._seconds"),
    ),
    *of(
        "textrl/metrics.py",
        "tests/trainers/test_resume.py",
        ("rows behind the save stay", "if rows != there:", "if False:"),
    ),
    *of(
        "agents/text_env.py",
        f"{SAVES} -k in_collecting",
        ("draws of an iteration that failed are lost", "generator.set_state(state)", "pass"),
        ("prompts of an iteration that failed are lost", "env.load_prompt_state(prompts)", "pass"),
    ),
    *of(
        "textrl/stopping.py",
        f"{SAVES} -k inside_an_update",
        ("a stop is forgotten", "if arrived:", "if False:"),
    ),
    *of(
        "textrl/digests.py",
        "tests/test_digests.py",
        ("weights may change places", "(part.long() * places)", "part.long()"),
    ),
    *of(
        "envs/texts.py",
        f"{SAVES} -k in_collecting",
        ("a stream goes on from its epoch's beginning", 'self._used, self.drawn = int(state["used"]), int(state["drawn"])', 'self.drawn = int(state["drawn"])'),
    ),
    *of(
        "textrl/updater.py",
        "tests/test_updater.py",
        ("micro-batches stay as large", "for batch in filled_batches(lengths, tokens):", "for batch in filled_batches(lengths, self.steps.micro_batch_tokens):"),
    ),
    *of(
        "agents/rollout.py",
        "tests/test_reward_failures.py",
        ("masked episodes stay", "return rollout.rows(kept.nonzero().squeeze(1))", "return rollout"),
        ("a masked episode's group stays", ".all(1).repeat_interleave(group_size)", ".any(1).repeat_interleave(group_size)"),
    ),
    *of(
        "envs/core.py",
        "tests/test_reward_failures.py -k truncated",
        ("a masked episode terminates", "terminated & ~judged.failed", "terminated"),
    ),
    *of(
        "textrl/reward_calls.py",
        "tests/test_reward_failures.py",
        ("sys.exit in a reward ends the run", "except BaseException as error:  # SystemExit", "except Exception as error:  # SystemExit"),
        ("pauses do not grow", "2.0**number", "1.0"),
        ("one try more", "range(self.patience.retries)", "range(self.patience.retries + 1)"),
    ),
    *of(
        "agents/callbacks.py",
        "tests/agents/test_callbacks.py",
        ("callbacks draw the agent's random numbers", "self.agent.acting = self._generator", "pass"),
        ("steps are told without their tokens", "self.agent.told += int(mask[:, t].sum())", "pass"),
        ("a row is over a step early", "dones = lengths == t + 1", "dones = lengths == t + 2"),
        ("the last agent is kept", "numbers[self.keep_best] > self.best", "True"),
        ("held-out prompts go on", "self.env.venv.reset(seed=EVALUATION_SEED)", "pass"),
    ),
    *of(
        "agents/rollout.py",
        "tests/test_reward_kinds.py -k leaves_its_episode_out",
        ("a failed episode stays", "masked = rollout.failed", "masked = rollout.failed & False"),
    ),
    *of(
        "envs/judging.py",
        "tests/test_reward_kinds.py -k two_groups",
        ("rows of two groups are one", "whole = bool((groups - groups[:, :1] == np.arange(group_size)).all())", "whole = bool((groups % group_size == np.arange(group_size)).all())"),
    ),
    *of(
        "envs/core.py",
        "tests/test_reward_kinds.py",
        ("dense rewards are paid from the left", "numbers[-new:]", "numbers[:new]"),
        ("a dense reward is no part of the score", "score[row] += numbers.sum()", "pass"),
        ("a dense reward of an earlier episode is compared", "self.potentials[row], self._dense_paid[row] = 0.0, np.zeros(0)", "self.potentials[row] = 0.0"),
        ("a failed dense reward goes on", "failed[row] |= bool(np.isnan(numbers).any())", "pass"),
        ("a beginning is not looked at", "if not self._causal and new.max() > 1:", "if False:"),
        ("groups are not looked at", "if scorer.has_groups and dense is not True:", "if False:"),
    ),
    *of(
        "textrl/scorer.py",
        "tests/test_reward_kinds.py",
        ("a metric counts", "if weight:", "if True:"),
        ("None counts as 0 for all", "scored |= there", "scored |= True"),
        ("dense rewards without weights", "weighted = weight * more if weight", "weighted = more if weight"),
        ("names carry the weight", "named[name] = said", "named[name] = weight * said"),
    ),
    *of(
        "textrl/reward_calls.py",
        "tests/test_reward_kinds.py",
        ("all groups in one call", "            size = group_size\n", "            size = len(texts)\n"),
        ("a group is tried row by row", "if alone and len(texts) > 1 and not isinstance(failure, TooSlow):", "if len(texts) > 1 and not isinstance(failure, TooSlow):"),
    ),
    *of(
        "textrl/time_limit.py",
        "tests/test_remote_rewards.py",
        ("one call after the other", "for _ in range(min(at_once, len(calls))):", "for _ in range(1):"),
        ("all calls at once", "for _ in range(min(at_once, len(calls))):", "for _ in calls:"),
        ("answers as they come", "return [results[index] for index in range(len(calls))]", "return list(results.values())"),
        ("calls go on after a failure", "        stopped.set()", "        pass"),
        ("a late coroutine goes on", "            future.cancel()", "            pass"),
        ("gradients in threads", "with torch.set_grad_enabled(gradients):\n            while not stopped", "with torch.set_grad_enabled(True):\n            while not stopped"),
    ),
    *of(
        "textrl/scorer.py",
        "tests/test_remote_rewards.py",
        ("own limits ignored", "patience = replace(patience, timeout=times.timeout, retries=times.retries)", "pass"),
        ("waiting functions one after the other", "together(waiting, len(waiting), ask_the_others)", "together(waiting, 1, ask_the_others)"),
        ("seconds are not counted", "cost.seconds += time.perf_counter() - began", "pass"),
    ),
    *of(
        "textrl/reward_calls.py",
        "tests/test_remote_rewards.py",
        ("remote texts in one call", "size = len(texts) if kind.remote is None else kind.remote.batch_size", "size = len(texts)"),
        ("failures are not counted", "self._failures.append(None)", "pass"),
    ),
    *of(
        "agents/samples.py",
        "tests/agents/test_callbacks.py -k 'tokens_of_a_sample'",
        ("half of the KL", "episodes.rewards - env.kl_coef * episodes.logprobs", "episodes.rewards"),
        ("tokens of the next place", "tokens[place - start] |=", "tokens[place - start - 1] |="),
    ),
    *of(
        "agents/ppo.py",
        "tests/agents/test_callbacks.py -k 'tokens_of_a_sample'",
        ("credit without the policy's half", "return self._gae(rollout, rollout.rewards - self.env.kl_coef * rollout.logprobs)", "return self._gae(rollout, rollout.rewards)"),
        ("no values of a critic of its own", "return collect(self.sampler, env, generator, values_at=values)", "return collect(self.sampler, env, generator)"),
    ),
    *of(
        "textrl/seams.py",
        "tests/agents/test_callbacks.py -k token_texts",
        ("half letters are shown", 'known = whole.startswith(before) and not whole.endswith("\\ufffd")', "known = True"),
    ),
    *of(
        "textrl/cli/model_card.py",
        "tests/test_model_card.py",
        ("somebody's card is lost", "if path.exists() and MARK not in", "if False and MARK not in"),
        ("a folder is a base of a hub", "if base and not Path(str(base)).exists():", "if base:"),
    ),
    *of(
        "textrl/machine.py",
        "tests/test_model_card.py",
        ("passwords of options", 'words.append(f"{option}={hide_password(value)}" if is_option else hide_password(word))', "words.append(word)"),
    ),
    *of(
        "textrl/trackers.py",
        "tests/test_trackers.py",
        ("a new run after a resume", "if not known.exists():", "if True:"),
        ("the tracker's run stays open", "        self._module.finish()", "        pass"),
    ),
    *of(
        "agents/rollout.py",
        "tests/test_remote_rewards.py",
        ("costs since the beginning", "now[name][1] - before[name][1]", "now[name][1]"),
    ),
    *of(
        "textrl/doctor/records.py",
        "tests/test_doctor.py",
        ("any change is a rise", "self.last - self.first > CLEAR * self.error)", "self.last > self.first)"),
        ("no trend is a rise", "higher and (self.trend > TREND or self.last", "higher and (self.last"),
        ("the error of one row", "return spread * math.sqrt(2 / self.size)", "return spread"),
    ),
    *of(
        "textrl/doctor/policy_rules.py",
        "tests/test_doctor.py",
        ("a KL below 0 by chance", "if mean < -max(5 * spread, 0.02):", "if mean < 0:"),
        ("a solved task has lost its entropy", "if len(entropy) < FEW or is_solved(record):", "if len(entropy) < FEW:"),
        ("other banned tokens than the end", "return bool(banned) and (not ends or ends <= set(banned))", "return bool(banned)"),
        ("fixed lengths never end", "if least is not None and most is not None and least >= most:", "if False:"),
        ("one update an iteration", "or (len(several) and several.max() < 2)", ""),
        ("short texts are far", "short = len(length) > 0 and length.last < 10", "short = False"),
        ("one jump explodes", "if len(rows) < 2:", "if len(rows) < 1:"),
    ),
    *of(
        "textrl/doctor/progress_rules.py",
        "tests/test_doctor.py",
        ("the objective does not count", "for series in (score, at_the_last_kl_coef(record))", "for series in (score,)"),
        ("any metric that falls or rises", "metric.trend < -TREND and metric.falls:", "True:"),
        ("shorter is worse", "if not neutral and len(metric) >= FEW", "if len(metric) >= FEW"),
        ("a small loss from the best", "and lost > 0.3 * gained", ""),
    ),
    *of(
        "textrl/doctor/rules.py",
        "tests/test_doctor.py",
        ("a reward model is solved", "if by_reward_model(record) or len(std) != len(score) or len(score) < FEW:", "if len(std) != len(score) or len(score) < FEW:"),
        ("the objective as it was logged", "values = score.values - coef.values[-1] * kl.values", "values = objective.values"),
        ("no noise of the episodes", "return max(series.error, of_episodes)", "return series.error"),
    ),
    *of(
        "textrl/doctor/trainer_rules.py",
        "tests/test_doctor.py",
        ("any fall of the chosen", "or not much:", ":"),
        ("ruin that recovers", "rises = ruined or", "rises ="),
        ("threads as many as cores", "threads * processes <= cores", "threads * processes < cores"),
    ),
    *of(
        "textrl/callbacks.py",
        "tests/trainers/test_trainer_callbacks.py",
        ("a callback cannot end the training", "        return goes_on", "        return True"),
        ("a KL cannot end the training", 'return not any(getattr(one, "stops", False) for one in leaves(self._callback))', "return True"),
        ("updates are counted for callbacks alone", "        self._trainer.num_timesteps = update\n        if self._callback is None:\n            return True\n", "        if self._callback is None:\n            return True\n        self._trainer.num_timesteps = update\n"),
        ("updates are not counted", "self._trainer.num_timesteps = update\n", "pass\n"),
    ),
    *of(
        "textrl/report/groups.py",
        "tests/test_report.py",
        ("the band of the mean", "low, high = values.min(0), values.max(0)", "low, high = values.mean(0), values.mean(0)"),
        ("seeds are settings", 'OWN = ("seed", ', 'OWN = ('),
        ("the spread of one episode", "/ math.sqrt(episodes)", ""),
    ),
    *of(
        "textrl/report/runs.py",
        "tests/test_report.py",
        ("names are not escaped", 'record, label = group.records[0], html.escape(group.label)', "record, label = group.records[0], group.label"),
    ),
    *of(
        "textrl/report/samples.py",
        "tests/test_report.py",
        ("prompts are not escaped", "html.escape(str(row.get('prompt', '')))", "str(row.get('prompt', ''))"),
        ("how sure, without a sigmoid", "1 / (1 + np.exp(-np.abs(margins)))", "np.abs(margins)"),
    ),
]

RESUMED = [
    *of(
        "agents/text_agent.py",
        SAVES,
        ("memory that ends a run loses its iteration", "self.whole = self._updater.updates == updates", "pass"),
        ("half an update is whole", "            self.whole = False", "            self.whole = True"),
        ("an iteration without a step is undone", "lambda: self.whole and self.iteration == iteration", "lambda: self.whole"),
    ),
    *of(
        "textrl/checkpoint.py",
        f"{SAVES} -k 'best or damaged or python'",
        ("the best save goes", "if self._place(old) != best:", "if True:"),
        ("the worst save is the best", "best = max(places", "best = min(places"),
        ("the best of all rows", "[-(self._every or WINDOW) :]", ""),
        ("damaged rows of a finished run", 'if rows and hashlib.sha256(rows).hexdigest() != run.get("metrics_sha256"):', "if False:"),
        ("a metric that is not logged", "if self.best_by is not None and self.best_by not in numbers:", "if False:"),
        ("a save from Python cuts the rows", "return None  # of `agent.save`", 'return b""  # of `agent.save`'),
    ),
    *of(
        "textrl/models.py",
        f"{SAVES} -k 'altered or purpose'",
        ("an altered model is used", "check_files(folder, skipped=(*NOT_THE_MODELS, *large))", "pass"),
    ),
    *of(
        "textrl/adapters.py",
        f"{SAVES} -k adapter",
        ("targets in the order of hashes", 'settings["target_modules"].sort()', 'settings["target_modules"].sort(reverse=True)'),
        ("a card that names a folder", 'place.with_name("README.md").unlink(missing_ok=True)', "pass"),
    ),
    *of(
        "textrl/loop.py",
        "tests/trainers/test_resume.py tests/trainers/test_not_finite.py",
        ("memory that ends a trainer loses its updates", "Terminated, OutOfMemory) as stop", "Terminated) as stop"),
        ("a ruined model is silent", "if last > RISEN * first > 0:", "if False:"),
        ("every loss has risen", "if last > RISEN * first > 0:", "if last > 0:"),
    ),
    *of(
        "textrl/durable.py",
        "tests/test_durable.py",
        ("a full disk in Rust is a traceback", 'or "(os error " in str(error)', ""),
        ("a committed file that is gone", "if not (fresh / name).exists() and not (folder / name).exists():", "if False:"),
        ("a foreign file of checksums", "if not all(name and isinstance(value, str) for name, value in sums.items()):", "if False:"),
    ),
    *of(
        "envs/token_rows.py",
        "tests/envs/test_vector.py tests/test_hostile.py",
        ("tokens of a failed pass stay", "self.lengths = starts", "pass"),
    ),
    *of(
        "textrl/decoding.py",
        "tests/test_conversations.py",
        ("padding is written into the text", "positions.masked_fill(~real, self._cache.max_length)", "positions"),
        ("rows that are brought forward keep their old cache", "self._cache.move(sources, targets, int(self.lengths.max()))", "pass"),
        ("states in the order of the slots", "return states[slots] if first else states", "return states"),
        ("a new token sees what comes after it", "> positions.unsqueeze(-1)", "> positions.unsqueeze(-1) + 1"),
    ),
    *of(
        "textrl/generation.py",
        "tests/test_conversations.py tests/agents/test_turns.py -k 'next_number or single_environments or wrapper_that_sees'",
        ("a row draws again what it drew", "self._drawn[rows] = places + 1", "self._drawn[rows] = places"),
    ),
    *of(
        "envs/turns_core.py",
        "tests/envs/test_text_turns.py tests/envs/test_turn_episodes.py",
        ("a turn is paid at its first token", "rewards[row, last[row]] += answers[row].reward", "rewards[row, 0] += answers[row].reward"),
        ("the score is the last turn's reward", "self.returns[row] += answer.reward", "self.returns[row] = answer.reward"),
        ("a reply that leaves no room for a token", "if end + going_on > self.ends()[row]:", "if end > self.ends()[row]:"),
        ("a turn begins before the reply", "self.lengths[row] = self.turn_starts[row] = end", "self.lengths[row] = end"),
        ("the state before a turn is forgotten", "hidden = torch.cat([before.to(states.dtype), states], dim=1)", "hidden = torch.cat([0 * before.to(states.dtype), states], dim=1)"),
        ("options choose no episode", "return episode if chosen is None else replace(episode, options=chosen.options)", "return episode"),
    ),
    *of(
        "envs/world_calls.py",
        "tests/envs/test_turn_failures.py",
        ("a world takes a turn twice", "if kept is None:", "if True:"),
        ("a late world stays", "self._worlds[row] = make_world(", "make_world("),
    ),
    *of(
        "envs/world_texts.py",
        "tests/agents/test_turn_texts.py",
        ("a cut turn has no end", "closing = [] if own and own[-1] in self.ends else [end]", "closing = []"),
        ("every turn has two ends", "closing = [] if own and own[-1] in self.ends else [end]", "closing = [end]"),
    ),
    *of(
        "agents/collect.py",
        "tests/agents/test_turns.py tests/agents/test_turn_texts.py",
        ("actions of a later turn overwrite those before", "slots = self.counts[row] + step", "slots = step"),
        ("the budget of a turn is that of all", "self.turn_starts = self.turn_starts.index_copy(", "self.turn_starts.index_copy("),
    ),
    *of(
        "agents/stepping.py",
        "tests/agents/test_turns.py tests/agents/test_wrappers.py",
        ("a wrapper may end a turn", "early := counts & over & ~may_end", "early := counts & over & False"),
    ),
    *of(
        "envs/attributes.py",
        "tests/test_hostile.py",
        ("a mask of NaN is True", "if not np.isin(flags, (0, 1)).all():", "if False:"),
    ),
    *of(
        "envs/vector.py",
        "tests/test_hostile.py tests/envs/test_vector.py",
        ("options of the first row only", "for row in listed}", "for row in listed[:1]}"),
    ),
    *of(
        "envs/vector.py",
        "tests/envs/test_turn_failures.py",
        ("a row that has not begun is forgotten", "self._unbegun[row], begun[row] = error, False", "begun[row] = False"),
        ("a row that has begun again is refused", "self._unbegun.pop(row, None)", "pass"),
    ),
    *of(
        "textrl/labels/reports.py",
        "tests/feedback/test_reports.py",
        ("a block is read once", "!= (answers, revisions)", "is None"),
        ("edits are not seen", "func.sum(Answer.revision)", "func.count()"),
        ("a labeler's rates twice", "mine[labeler].rates += 1", "mine[labeler].rates += 2"),
        ("the last task of a block is left out", "first + BLOCK - 1", "first + BLOCK - 2"),
    ),
    *of(
        "textrl/labels/reports.py",
        "tests/feedback/test_reports.py",
        ("a moment that ends a step is of the next", "bisect.bisect_left(moments, moment)", "bisect.bisect_right(moments, moment)"),
        ("the last answer is lost", "for step in range(1, STEPS)), last]", "for step in range(1, STEPS + 1))]"),
        ("complete tasks need answers too", "func.sum(Task.overlap - Task.done)).where(Task.open)", "func.sum(Task.overlap))"),
    ),
    *of(
        "textrl/labels/lead.py",
        "tests/feedback/test_api.py -k steers",
        ("all tasks are flagged", 'cast(Answer.flags, Text) != "[]"', 'cast(Answer.flags, Text) != ""'),
        ("skipped tasks are all that are answered", '"skipped": answered.where(Answer.skip_reason.is_not(None)).exists()', '"skipped": answered.exists()'),
    ),
    *of(
        "textrl/labels/asking.py",
        "tests/feedback/test_people.py",
        ("what was given up is not shown again", "            found.paused = False\n", ""),
        ("what the lead has paused is shown again", "if found.source.get(GIVEN_UP):", "if found.paused:"),
        ("more labelers are not asked for", "found.overlap = max(found.overlap, overlap or 1)", "pass"),
        ("an endless wait for those who have skipped", "or bool(everybody and everybody <= seen_by[task.id])", "or False"),
        ("what nobody ranks in time stays on the page", "task.paused, task.open = True, False", "pass"),
    ),
    *of(
        "textrl/labels/store.py",
        "tests/feedback/test_people.py -k all_tasks",
        ("all tasks are read to add one", "if len(tasks) < 500:", "if False:"),
    ),
    *of(
        "textrl/people.py",
        "tests/feedback/test_people.py",
        ("ties beat", "beaten[place] += lower + 0.5 * equal", "beaten[place] += lower + equal"),
        ("a blank sample is best", "last = MAX_OUTPUTS", "last = -1"),
        ("one group of the same texts ends the wait of all", "self._waiting -= Counter([task_id])", "del self._waiting[task_id]"),
        ("another run's end is everybody's", "if said is not None and said.given_up and not late:", "if False:"),
        ("partly ranked groups are lost", "said.rankings and (said.complete or late)", "said.rankings and said.complete"),
        ("a restart of the database ends the run", "        except OSError as error:\n            print", "        except ZeroDivisionError as error:\n            print"),
        ("a NUL ends the run", 'text.replace("\\x00", "\\u2400") for text in completions', "text for text in completions"),
        ("tools are not asked about", "columns=columns)\n            except", "columns={})\n            except"),
        ("a failure stops a run that masks", "raise RewardFailure(\n                        f\"nobody", "raise UserError(\n                        f\"nobody"),
    ),
    *of(
        "textrl/errors.py",
        "tests/test_model_card.py",
        ("the password of a reward", "^((?:collect:)?", "^("),
        ("a password in a query", "(?:password|sslpassword)", "(?:sslpassword)"),
    ),
    *of(
        "textrl/informative.py",
        "tests/test_informative.py",
        ("sure answers tell as much", "return chance * (1 - chance)", "return 0 * chance + 0.25"),
        ("what is known tells nothing", "information += told.T @ (told * known_weights.unsqueeze(1))", "pass"),
        ("odd texts first", "gains = weights * shared / (1 + weights * own)", "gains = weights * own"),
        ("a prompt twice", "free &= of_prompt != of_prompt[best]", "free[best] = False"),
        ("what is taken tells nothing", "shared = shared - 2 * share * along * across", "shared = shared - 0 * share * along * across"),
        ("the inverse stays", "inverse = inverse - share * torch.outer(step, step)", "pass"),
    ),
    *of(
        "textrl/feedback/active.py",
        "tests/feedback/test_active.py",
        ("the newest by name", "key=lambda path: int(path.name)", "key=lambda path: path.name"),
        ("what was asked is asked again", "known = [news for news in asked if news is not None]", "known = []"),
        ("one unreadable text ends the sampler", "except UserError as error:", "except ZeroDivisionError as error:"),
        ("an unreadable prompt is never shown", "[*chosen, *(one for one in in_order if one[0] not in numbers)][:count]", "chosen"),
    ),
    *of(
        "textrl/cli/push.py",
        "tests/test_push.py",
        ("old files stay beside new ones", "*(CommitOperationDelete(name) for name in old),", ""),
        ("a person's licence is deleted", "SENT[: -len(TEXTS)]", "SENT"),
    ),
    *of(
        "textrl/paths.py",
        "tests/test_refusals.py -k hub",
        ("a misspelt folder is asked of a hub", "if hint := did_you_mean(path.parts[0], folders):", "if hint := None:"),
    ),
    *of(
        "textrl/doctor/rules.py",
        "tests/test_doctor.py",
        ("every reward is relative", "return moved < 1e-6 * max", "return moved < 1e6 * max"),
        ("a relative reward is flat", "and std.last > 1e-3", "and std.last > 1e3"),
    ),
    *of(
        "textrl/labels/agreement.py",
        "tests/feedback/test_answers.py tests/feedback/test_reports.py",
        ("ties count as order", "return [(a > b) - (a < b)", "return [(a >= b) - (a < b)"),
        ("tau over all pairs", "free = (len(a) - a.count(0))", "free = (len(a))"),
        ("pairs of two are counted once", "apart[a, b] += 2 / (len(unit) - 1)", "apart[a, b] += 1 / (len(unit) - 1)"),
    ),
    *of(
        "textrl/data.py",
        "tests/test_hostile.py -k deep",
        ("deep rows go on", "        refuse_unreadable(row, place)\n", ""),
    ),
]

MUTANTS = [*MATHS, *AGENTS, *TRAINING, *KEPT, *RESUMED]
