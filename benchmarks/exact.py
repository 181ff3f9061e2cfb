"""Everything about a task small enough to enumerate: the optimum, any policy's value, the frontier.

With all completions y of a prompt x listed, the optimum of E[score] - kl_coef * KL(pi || pi_ref) is

    pi*(y|x) = pi_ref(y|x) exp(score(x, y) / kl_coef) / Z(x),    J* = kl_coef * log Z(x),

(2305.18290, eq. 4 and appendix A.1) and a policy's own value is a sum, free of sampling noise.
Float64 throughout; the mean over prompts stands for the expectation over them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

ScoreOf = Callable[[str, str], float]
"""(prompt, completion) -> score."""
TOLERANCE = 1e-6
"""What float32 log-probs may add to an exact value; a policy higher above the optimum is a bug."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """What a policy is worth, exactly, mean over prompts."""

    score: float
    kl: float
    """KL(policy || reference), nats per sequence."""

    def objective(self, kl_coef: float) -> float:
        """Return score - kl_coef * KL."""
        return self.score - kl_coef * self.kl


def regret_of(
    value: Value, reference: Value, best_objective: Callable[[float], float], kl_coef: float
) -> float:
    """Return (J* - J(policy)) / (J* - J(reference)): 0 is the optimum, 1 is the reference.

    Args:
        value: What the policy is worth.
        reference: What the reference is worth.
        best_objective: J* by kl_coef.
        kl_coef: Score units per nat.

    Raises:
        AssertionError: the policy lies above the exact frontier, here or at another kl_coef; then
            the evaluation is wrong.
    """
    for other in (kl_coef, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0):
        above = value.objective(other) - best_objective(other)
        assert above < TOLERANCE, f"{above} above the frontier at kl_coef {other}: a bug"
    best = best_objective(kl_coef)
    return (best - value.objective(kl_coef)) / (best - reference.objective(kl_coef))


class Enumeration:
    """All completions of some prompts: their scores and their probability under any policy.

    A completion is EOS after fewer than `max_tokens` tokens, or any `max_tokens` tokens; every
    token of the vocabulary counts, as it does in the environment.
    """

    def __init__(
        self,
        prompts: list[str],
        tokenizer: PreTrainedTokenizerBase,
        reference: PreTrainedModel,
        score: ScoreOf,
        max_tokens: int,
    ) -> None:
        """List the completions, score each and weigh it under the reference."""
        self.max_tokens, self.eos = max_tokens, int(tokenizer.convert_tokens_to_ids("<eos>"))
        self.vocab_size = int(reference.config.vocab_size)
        going = [t for t in range(self.vocab_size) if t != self.eos]
        self._going = torch.tensor(going)
        self._prompts = [torch.tensor(tokenizer(prompt).input_ids) for prompt in prompts]
        self.completions = self._list_completions()
        texts = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in self.completions]
        rows = [[score(prompt, text) for text in texts] for prompt in prompts]
        self.scores = torch.tensor(rows, dtype=torch.float64)
        """[P N]."""
        self.ref_logprobs = self.logprobs(reference)
        """[P N], in nats."""

    @torch.no_grad()
    def logprobs(self, policy: PreTrainedModel) -> Tensor:
        """Return the log-prob of every completion, nats, [P N]; each row sums to probability 1."""
        return torch.stack([self._logprobs_after(policy, prompt) for prompt in self._prompts])

    def value(self, logprobs: Tensor) -> Value:
        """Return what the policy with these log-probs [P N] is worth."""
        p = logprobs.exp()
        kl = p * (logprobs - self.ref_logprobs).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        return Value(score=float((p * self.scores).sum(1).mean()), kl=float(kl.sum(1).mean()))

    def optimum(self, kl_coef: float) -> Tensor:
        """Return the log-probs of the best policy at this kl_coef, nats, [P N]."""
        return (self.ref_logprobs + self.scores / kl_coef).log_softmax(1)

    def best_objective(self, kl_coef: float) -> float:
        """Return J*, mean over prompts."""
        return float(kl_coef * (self.ref_logprobs + self.scores / kl_coef).logsumexp(1).mean())

    def regret(self, value: Value, kl_coef: float) -> float:
        """Return (J* - J(policy)) / (J* - J(reference)); see `regret_of`."""
        return regret_of(value, self.value(self.ref_logprobs), self.best_objective, kl_coef)

    def best_of_n(self, n: int) -> Tensor:
        """Return the log-probs of best-of-n sampling from the reference, nats, [P N].

        P(score <= s) of the best is P_ref(score <= s)^n; completions of equal score share it in
        proportion to their probability.
        """
        rows = []
        for scores, logprobs in zip(self.scores, self.ref_logprobs, strict=True):
            levels, level_of = scores.unique(return_inverse=True)
            mass = torch.zeros(len(levels), dtype=torch.float64)
            mass.index_add_(0, level_of, logprobs.exp())
            upto = (mass.cumsum(0) / mass.sum()).clamp_max(1.0)
            below = torch.cat([torch.zeros(1, dtype=torch.float64), upto[:-1]])
            best = upto.pow(n) - below.pow(n)
            rows.append(logprobs + (best / mass).log()[level_of])
        return torch.stack(rows)

    def _list_completions(self) -> list[list[int]]:
        """Return the token ids of every completion in the order of `_logprobs_after`."""
        result: list[list[int]] = []
        prefixes: list[list[int]] = [[]]
        for step in range(self.max_tokens):
            if step == self.max_tokens - 1:
                return result + [[*p, t] for p in prefixes for t in range(self.vocab_size)]
            result += [[*p, self.eos] for p in prefixes]
            prefixes = [[*p, t] for p in prefixes for t in self._going.tolist()]
        return result

    def _logprobs_after(self, policy: PreTrainedModel, prompt: Tensor) -> Tensor:
        """Return the log-prob of every completion of one prompt, [N].

        One pass over all sequences of max_tokens - 1 tokens without EOS gives the distribution
        after every shorter prefix too.
        """
        depth, width = self.max_tokens - 1, len(self._going)
        deepest = torch.zeros(1, 0, dtype=torch.long)
        if depth:
            deepest = torch.cartesian_prod(*[self._going] * depth).view(-1, depth)
        ids = torch.cat([prompt.expand(len(deepest), -1), deepest], dim=1)
        logits = torch.cat(
            [policy(input_ids=part).logits[:, len(prompt) - 1 :] for part in ids.split(2048)]
        )
        log_p = logits.double().log_softmax(-1)
        reached = torch.zeros(1, dtype=torch.float64)  # log-prob of each prefix so far
        leaves = []
        for step in range(self.max_tokens):
            after = log_p[:: width ** (depth - step), step]  # [width^step, V]
            joint = reached.unsqueeze(1) + after
            if step == depth:
                leaves.append(joint.flatten())
            else:
                leaves.append(joint[:, self.eos])
                reached = joint[:, self._going].flatten()
        return torch.cat(leaves)
