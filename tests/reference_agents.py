"""Slow float64 objectives of whole agents, one episode at a time, differentiable by autograd.

Nothing here imports the library: models are called as transformers models, whole sequences at a
time, and everything an agent carries from collecting (log-probs, values, advantages) is computed
anew from the models as they were then.
"""

from dataclasses import dataclass

import reference
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One completion and what it got."""

    ids: Tensor
    """Prompt and completion, [L]."""
    start: int
    """Tokens of the prompt."""
    score: float | None
    """With any penalty; None where the episode was truncated."""


@dataclass(frozen=True, kw_only=True)
class Nets:
    """A policy and its critic: a head on the policy's states or on those of a trunk of its own."""

    policy: nn.Module
    head: nn.Module
    trunk: nn.Module | None

    def log_p(self, ids: Tensor, temperature: float) -> Tensor:
        return log_softmax_of(self.policy, ids, temperature)

    def values(self, ids: Tensor) -> Tensor:
        trunk = self.policy.model if self.trunk is None else self.trunk
        states = trunk(input_ids=ids.unsqueeze(0), use_cache=False).last_hidden_state[0]
        return self.head(states).squeeze(-1)


def log_softmax_of(model: nn.Module, ids: Tensor, temperature: float) -> Tensor:
    logits = model(input_ids=ids.unsqueeze(0), use_cache=False).logits[0].double()
    return (logits / temperature).log_softmax(-1)


def kl_of(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def ppo_targets(
    episodes: list[Episode], old: Nets, frozen: nn.Module, settings: dict
) -> tuple[list[list[float]], list[list[float]], float]:
    """Return whitened advantages and returns of each token, and the whitening's divisor."""
    coef, temperature = settings["kl_coef"], settings["temperature"]
    advantages, returns = [], []
    for episode in episodes:
        ids, start = episode.ids, episode.start
        count, truncated = len(ids) - start, episode.score is None
        with torch.no_grad():
            log_p = old.log_p(ids, temperature)
            log_q = log_softmax_of(frozen, ids, temperature)
            values = old.values(ids).tolist()
        state_kl = kl_of(log_p, log_q).tolist()
        rewards = []
        for t in range(count):
            before, last = start + t - 1, t == count - 1
            if settings["kl_loss"] == "sampled":
                token = int(ids[start + t])
                reward = -coef * float(log_p[before, token] - log_q[before, token])
            else:  # of the state that the token leads to, if an action follows there
                reward = -coef * state_kl[before + 1] if truncated or not last else 0.0
            if last and not truncated:
                reward += episode.score
            rewards.append(reward)
        bootstrap = values[len(ids) - 1] if truncated else 0.0
        before_each = values[start - 1 : len(ids) - 1]
        found = reference.gae(
            rewards, before_each, [True] * count, 1.0, settings["gae_lambda"], bootstrap
        )
        advantages.append(found)
        returns.append([a + v for a, v in zip(found, before_each, strict=True)])
    everything = [a for row in advantages for a in row]
    mean = sum(everything) / len(everything)
    divisor = (sum((a - mean) ** 2 for a in everything) / len(everything) + 1e-8) ** 0.5
    whitened = [[(a - mean) / divisor for a in row] for row in advantages]
    return whitened, returns, divisor


def ppo_objective(
    episodes: list[Episode],
    chosen: list[int],
    nets: Nets,
    old: Nets,
    frozen: nn.Module,
    targets: tuple[list[list[float]], list[list[float]], float],
    settings: dict,
    demonstrations: list[tuple[Tensor, int]] = (),
) -> tuple[Tensor, set[str]]:
    """Return PPO's loss on the chosen episodes, and which of its corners were met.

    `targets`: of `ppo_targets`. `settings`: kl_coef, temperature and the fields of PPOConfig.
    `demonstrations`: ids and how many of them are the prompt's.
    """
    advantages, returns, divisor = targets
    temperature, eps, eps_vf = (
        settings[name] for name in ("temperature", "clip_range", "clip_range_vf")
    )
    total, tokens, met = torch.zeros((), dtype=torch.float64), 0, set()
    for row in chosen:
        ids, start = episodes[row].ids, episodes[row].start
        log_p, values = nets.log_p(ids, temperature), nets.values(ids)
        with torch.no_grad():
            old_log_p, old_values = old.log_p(ids, temperature), old.values(ids)
            log_q = log_softmax_of(frozen, ids, temperature)
        for t in range(len(ids) - start):
            before, token, a = start + t - 1, int(ids[start + t]), advantages[row][t]
            ratio = (log_p[before, token] - old_log_p[before, token]).exp()
            now = float(ratio.detach())
            clipped = min(max(now, 1 - eps), 1 + eps)
            if clipped * a < now * a:
                met.add("above" if a > 0 else "below")
                total = total - clipped * a
            else:
                total = total - ratio * a
            error = value_error(
                values[before], float(old_values[before]), returns[row][t], eps_vf, met
            )
            total = total + settings["vf_coef"] * 0.5 * error
            entropy = -(log_p[before].exp() * log_p[before]).sum()
            total = total - settings["ent_coef"] * entropy
            if settings["kl_loss"] == "exact":
                weight = settings["kl_coef"] / divisor
                total = total + weight * kl_of(log_p[before], log_q[before])
            tokens += 1
    loss = total / tokens
    if settings["ptx_coef"]:
        loss = loss - settings["ptx_coef"] * mean_likelihood(nets, demonstrations)
    return loss, met


def value_error(
    value: Tensor, was: float, target: float, eps_vf: float | None, met: set[str]
) -> Tensor:
    """Return the critic's squared error of one token, the larger of it and the clipped one's."""
    error = (value - target) ** 2
    if eps_vf is not None:
        near = min(max(float(value.detach()), was - eps_vf), was + eps_vf)
        if (near - target) ** 2 > float(error.detach()):
            met.add("value")
            error = torch.tensor((near - target) ** 2)
    return error


def mean_likelihood(nets: Nets, demonstrations: list[tuple[Tensor, int]]) -> Tensor:
    """Return the log-likelihood of demonstrations a token; each is ids and the prompt's length."""
    likelihood, counted = torch.zeros(()), 0
    for ids, prompt in demonstrations:
        log_p = nets.log_p(ids, 1.0)  # SFT knows no temperature
        for t in range(prompt, len(ids)):
            likelihood, counted = likelihood + log_p[t - 1, ids[t]], counted + 1
    return likelihood / counted


def online_dpo_objective(
    episodes: list[Episode],
    policy: nn.Module,
    frozen: nn.Module,
    temperature: float,
    size: int,
    settings: dict,
) -> tuple[Tensor, int]:
    """Return the mean preference loss of each group's best against its worst, and the pairs."""

    def whole(model: nn.Module, episode: Episode) -> Tensor:
        log_p = log_softmax_of(model, episode.ids, temperature)
        steps = range(episode.start, len(episode.ids))
        return sum(log_p[t - 1, episode.ids[t]] for t in steps)

    losses = []
    for first in range(0, len(episodes), size):
        group = episodes[first : first + size]
        best = max(group, key=lambda e: e.score)  # the first of several, as argmax
        worst = min(group, key=lambda e: e.score)
        if best.score == worst.score:
            continue
        chosen, rejected = whole(policy, best), whole(policy, worst)
        beta = settings["beta"]
        if settings["loss_type"] == "simpo":
            lengths = [len(e.ids) - e.start for e in (best, worst)]
            means = chosen / lengths[0] - rejected / lengths[1]
            losses.append(-logsigmoid(beta * (means - settings["simpo_margin"])))
            continue
        with torch.no_grad():
            gap = whole(frozen, best) - whole(frozen, worst)
        losses.append(-logsigmoid(beta * (chosen - rejected - gap)))
    return torch.stack(losses).mean(), len(losses)


def reward_objective(
    rankings: list[tuple[list[list[int]], list[int], float]], model: nn.Module, settings: dict
) -> Tensor:
    """Return the mean loss of a reward model over (texts as ids, their ranks, margin)."""
    total = torch.zeros((), dtype=torch.float64)
    for texts, ranks, margin in rankings:
        scores = [model(input_ids=torch.tensor([ids])).logits[0, 0] for ids in texts]
        pairs = [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]
        if settings["loss_type"] == "plackett_luce":
            for i, score in enumerate(scores):
                rivals = [scores[j] for first, j in pairs if first == i]
                total = total - score + torch.stack([score, *rivals]).logsumexp(0)
        else:
            lost = [-logsigmoid(scores[i] - scores[j] - margin) for i, j in pairs]
            total = total + sum(lost) / len(pairs)
        total = total + settings["center_coef"] * sum(s**2 for s in scores) / len(scores)
    return total / len(rankings)
