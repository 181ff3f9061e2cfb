"""Slow float64 loops written from the formulas alone: what the fast code must agree with.

Nothing here imports the library. Lists in, lists out; one sequence or one pair at a time.
"""

import math


def log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    total = math.log(sum(math.exp(x - top) for x in logits)) + top
    return [x - total for x in logits]


def entropy(logits: list[float]) -> float:
    return -sum(math.exp(lp) * lp for lp in log_softmax(logits))


def kl(logits: list[float], others: list[float]) -> float:
    pairs = zip(log_softmax(logits), log_softmax(others), strict=True)
    return sum(math.exp(p) * (p - q) for p, q in pairs)


def kl_rewards(
    score: float, logprobs: list[float], ref: list[float], mask: list[bool], coef: float
) -> list[float]:
    last = max(t for t, counts in enumerate(mask) if counts)
    rewards = []
    for t, counts in enumerate(mask):
        reward = -coef * (logprobs[t] - ref[t]) if counts else 0.0
        rewards.append(reward + (score if t == last else 0.0))
    return rewards


def gae(
    rewards: list[float],
    values: list[float],
    mask: list[bool],
    gamma: float,
    lam: float,
    bootstrap: float = 0.0,
) -> list[float]:
    """Definition as a sum: A_t = sum_k (gamma lam)^k delta_{t+k}, over the tokens that count."""
    steps = [t for t, counts in enumerate(mask) if counts]
    advantages = [0.0] * len(mask)
    deltas = []
    for position, t in enumerate(steps):
        after = values[steps[position + 1]] if position + 1 < len(steps) else bootstrap
        deltas.append(rewards[t] + gamma * after - values[t])
    for position, t in enumerate(steps):
        tail = deltas[position:]
        advantages[t] = sum((gamma * lam) ** k * delta for k, delta in enumerate(tail))
    return advantages


def ppo_loss(new: list[float], old: list[float], advantages: list[float], eps: float) -> float:
    terms = []
    for n, o, a in zip(new, old, advantages, strict=True):
        ratio = math.exp(n - o)
        clipped = min(max(ratio, 1 - eps), 1 + eps)
        terms.append(-min(ratio * a, clipped * a))
    return sum(terms) / len(terms)


def value_loss(new: list[float], old: list[float], returns: list[float], eps: float) -> float:
    terms = []
    for n, o, r in zip(new, old, returns, strict=True):
        clipped = min(max(n, o - eps), o + eps)
        terms.append(max((n - r) ** 2, (clipped - r) ** 2))
    return 0.5 * sum(terms) / len(terms)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def ranking(scores: list[float], ranks: list[int]) -> float:
    losses = [
        -log_sigmoid(scores[i] - scores[j])
        for i in range(len(scores))
        for j in range(len(scores))
        if ranks[i] < ranks[j]
    ]
    return sum(losses) / len(losses) if losses else 0.0


def plackett_luce(scores: list[float], ranks: list[int]) -> float:
    total = 0.0
    for i in range(len(scores)):
        rivals = [scores[j] for j in range(len(scores)) if ranks[j] > ranks[i]]
        total -= scores[i] - math.log(math.exp(scores[i]) + sum(math.exp(s) for s in rivals))
    return total


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def preference(
    kind: str,
    chosen: float,
    rejected: float,
    ref_chosen: float,
    ref_rejected: float,
    beta: float,
    eps: float = 0.0,
    lengths: tuple[int, int] = (1, 1),
    kl: float = 0.0,
    margin: float = 0.5,
) -> float:
    good, bad = chosen - ref_chosen, rejected - ref_rejected
    x = beta * (good - bad)
    mean_chosen, mean_rejected = chosen / lengths[0], rejected / lengths[1]
    if kind in ("sigmoid", "cdpo"):
        return -(1 - eps) * log_sigmoid(x) - eps * log_sigmoid(-x)
    if kind == "robust":
        return (-(1 - eps) * log_sigmoid(x) + eps * log_sigmoid(-x)) / (1 - 2 * eps)
    if kind == "ipo":
        return (good - bad - 1 / (2 * beta)) ** 2
    if kind == "hinge":
        return max(0.0, 1 - x)
    if kind == "simpo":
        return -log_sigmoid(beta * mean_chosen - beta * mean_rejected - beta * margin)
    if kind == "orpo":
        p, q = math.exp(mean_chosen), math.exp(mean_rejected)
        ratio = (p / (1 - p)) / (q / (1 - q))
        return -mean_chosen - beta * log_sigmoid(math.log(ratio))
    if kind == "kto":
        baseline = max(0.0, kl)
        return (1 - sigmoid(beta * (good - baseline))) + (1 - sigmoid(beta * (baseline - bad)))
    if kind == "apo_zero":
        return (1 - sigmoid(beta * good)) + sigmoid(beta * bad)
    if kind == "sft":
        return -mean_chosen
    raise KeyError(kind)


def rloo(scores: list[float], size: int) -> list[float]:
    result = []
    for i, score in enumerate(scores):
        start = i - i % size
        others = [scores[j] for j in range(start, start + size) if j != i]
        result.append(score - sum(others) / len(others))
    return result


def grpo(scores: list[float], size: int, scale: bool) -> list[float]:
    result = []
    for i, score in enumerate(scores):
        group = scores[i - i % size : i - i % size + size]
        mean = sum(group) / size
        spread = math.sqrt(sum((s - mean) ** 2 for s in group) / size + 1e-8) if scale else 1.0
        result.append((score - mean) / spread)
    return result
