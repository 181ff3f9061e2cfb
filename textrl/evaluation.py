"""Evaluation of a policy on held-out prompts: score, KL, length, and the samples themselves."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.adapters import check_apart
from textrl.chat import Chat, Messages, end_ids
from textrl.encoding import encode_prompt
from textrl.errors import UserError
from textrl.generation import ModelSampler, Sampler, Samples
from textrl.limits import check_lengths, check_vocabulary
from textrl.models import SplitLM, eos_id, split_lm
from textrl.policy import PolicyModule
from textrl.reward_kinds import ORDINARY, kind_of
from textrl.rewards import Reward, RewardModel, make_scorer
from textrl.seams import decode, decode_completion
from textrl.trainable import check_same_width
from textrl.types import Sequence as TokenSequence
from textrl.types import stack_sequences

PROMPTS_PER_PASS = 128


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Completions of a policy for some prompts, with their log-probs and scores."""

    prompts: list[str]
    completions: list[str]
    token_ids: list[list[int]]
    """The token ids of each completion, including the end token."""
    logprobs: list[list[float]]
    """The policy's log-probs, in nats per token."""
    ref_logprobs: list[list[float]]
    """The reference's log-probs, in nats per token."""
    scores: list[float]

    @property
    def kl(self) -> np.ndarray:
        """Sampled KL(pi || pi_ref) in nats per sequence, [N]."""
        pairs = zip(self.logprobs, self.ref_logprobs, strict=True)
        return np.array([sum(own) - sum(ref) for own, ref in pairs])

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each completion, [N]."""
        return np.array([len(ids) for ids in self.token_ids])


ScoreFunction = Callable[[list[str], list[str]], Sequence[float]]


def sample_and_score(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Messages | Chat],
    score: ScoreFunction,
    *,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    sampler: Sampler | None = None,
) -> Sampled:
    """Sample one completion per prompt; return log-probs under policy and reference, and scores.

    A reward model with a chat template renders the messages of chat prompts with its own template.
    Raises UserError if a text is too long for a model or a score is not finite.
    """
    _check_models(policy, reference, tokenizer)
    encoded, ends = _encoded(tokenizer, prompts), end_ids(tokenizer, policy)
    needed = [len(ids) + max_new_tokens for ids in encoded]
    for model in (policy, reference):
        check_lengths(model, needed, f"with max_new_tokens={max_new_tokens}, prompt")
    token_ids, logprobs, ref_logprobs = _drawn(
        sampler or ModelSampler(split_lm(policy)),
        None if policy is reference else split_lm(reference),
        encoded,
        max_new_tokens=max_new_tokens,
        ends=ends,
        generator=torch.Generator().manual_seed(seed),
        temperature=temperature,
    )
    completions = [
        decode_completion(tokenizer, prompt, ids, ends)
        for prompt, ids in zip(encoded, token_ids, strict=True)
    ]
    texts = [
        prompt if isinstance(prompt, str) else decode(tokenizer, ids)
        for prompt, ids in zip(prompts, encoded, strict=True)
    ]
    chats = list(map(_chat, prompts))
    scores = make_scorer(_by_position(score))(texts, completions, {}, chats)
    return Sampled(
        prompts=texts,
        completions=completions,
        token_ids=token_ids,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        scores=scores.tolist(),
    )


def sample_completions(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Messages | Chat],
    *,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
) -> list[str]:
    """Sample one completion per prompt; return the texts."""
    return sample_and_score(
        policy,
        policy,
        tokenizer,
        prompts,
        lambda texts, completions: [0.0] * len(texts),
        max_new_tokens=max_new_tokens,
        seed=seed,
        temperature=temperature,
    ).completions


def _by_position(score: ScoreFunction) -> Reward:
    """Return a reward function that is called by position, whatever its parameter names are."""
    if isinstance(score, RewardModel):
        return score
    if kind_of(score) != ORDINARY:
        raise UserError(
            f"{score} is dense or compares a group, and here each completion is scored as a text; "
            f"give a function that does so"
        )

    def scored(prompts: list[str], completions: list[str]) -> Sequence[float]:
        return score(prompts, completions)

    scored.__name__ = str(getattr(score, "__name__", type(score).__name__))
    return scored


def _chat(prompt: str | Messages | Chat) -> Chat | None:
    if isinstance(prompt, str):
        return None
    return prompt if isinstance(prompt, Chat) else Chat(messages=prompt)


def best_of(samples: Sampled, n: int) -> Sampled:
    """Return the best-scored of each n consecutive samples (of one prompt).

    Raises:
        UserError: the number of samples is not a multiple of n.
    """
    if n < 1 or len(samples.scores) % n:
        count = len(samples.scores)
        raise UserError(f"{count} samples are no multiple of n = {n!r}; draw n for each prompt")
    scores = np.array(samples.scores).reshape(-1, n)
    rows = scores.argmax(1) + np.arange(len(scores)) * n

    def picked(values: list[Any]) -> list[Any]:
        return [values[int(row)] for row in rows]

    return Sampled(**{name: picked(values) for name, values in samples.__dict__.items()})


def best_of_kl(n: int) -> float:
    """Return an upper bound of best-of-n's KL to the policy it samples from, nats per sequence.

        log n - (n - 1) / n

    Source: Stiennon et al. 2020, 2009.01325, appendix G.3; a bound by 2401.01879.

    >>> round(best_of_kl(16), 3)
    1.835
    """
    return math.log(n) - (n - 1) / n


def summarize(
    samples: Sampled, judge: ScoreFunction | None = None, *, kl: float | None = None
) -> dict[str, float]:
    """Return the means that a report shows.

    Args:
        samples: One sample per prompt.
        judge: An independent judge that was never trained on; texts above 0.05 count as positive.
        kl: The KL, if it is not to be computed from the samples (best-of-n).
    """
    scores, sequence_kl = np.array(samples.scores), samples.kl
    result = {
        "score": float(scores.mean()),
        "score_std": float(scores.std()),
        "kl": float(sequence_kl.mean()) if kl is None else kl,
        "length": float(samples.lengths.mean()),
    }
    if judge is not None:
        verdicts = make_scorer(_by_position(judge))(samples.prompts, samples.completions, {})
        result["judge_positive"] = float((verdicts > 0.05).mean())
    return result


def _check_models(
    policy: PreTrainedModel, reference: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    check_vocabulary(policy, tokenizer)
    if policy is not reference:
        check_apart(policy, reference)
        check_same_width(policy, reference)


def _encoded(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str | Messages | Chat]
) -> list[list[int]]:
    if isinstance(prompts, str):
        raise UserError(f"prompts are one text, {prompts[:40]!r}; expected a list of them")
    eos_id(tokenizer)  # raises an error if there is no EOS: texts could not end
    return [encode_prompt(tokenizer, prompt, f"prompt {row}") for row, prompt in enumerate(prompts)]


def _drawn(
    sampler: Sampler,
    reference: SplitLM | None,
    encoded: list[list[int]],
    *,
    max_new_tokens: int,
    ends: Sequence[int],
    generator: torch.Generator,
    temperature: float,
) -> tuple[list[list[int]], list[list[float]], list[list[float]]]:
    """Sample one completion per prompt; return token ids, log-probs and reference log-probs.

    Without a reference, the reference log-probs are those of the sampler.
    """
    token_ids: list[list[int]] = []
    logprobs: list[list[float]] = []
    ref_logprobs: list[list[float]] = []
    for start in range(0, len(encoded), PROMPTS_PER_PASS):
        part = encoded[start : start + PROMPTS_PER_PASS]
        samples = _sample(sampler, part, max_new_tokens, ends, generator, temperature)
        counts = samples.mask.sum(1).tolist()
        ids = [row[:n] for row, n in zip(samples.completion_ids.tolist(), counts, strict=True)]
        own = [row[:n] for row, n in zip(samples.logprobs.tolist(), counts, strict=True)]
        token_ids += ids
        logprobs += own
        ref_logprobs += (
            own if reference is None else _teacher_forced(reference, part, ids, temperature)
        )
    return token_ids, logprobs, ref_logprobs


def _sample(
    sampler: Sampler,
    encoded: list[list[int]],
    max_new_tokens: int,
    ends: Sequence[int],
    generator: torch.Generator,
    temperature: float,
) -> Samples:
    lengths = torch.tensor([len(ids) for ids in encoded])
    prompt_ids = torch.zeros(len(encoded), int(lengths.max()), dtype=torch.long)
    for row, ids in enumerate(encoded):
        prompt_ids[row, : len(ids)] = torch.tensor(ids)
    return sampler.sample(
        prompt_ids,
        lengths,
        max_new_tokens=max_new_tokens,
        end_ids=ends,
        generator=generator,
        temperature=temperature,
    )


@torch.no_grad()
def _teacher_forced(
    lm: SplitLM, prompts: list[list[int]], completions: list[list[int]], temperature: float
) -> list[list[float]]:
    sequences = [
        TokenSequence(ids=p + c, counts=[False] * len(p) + [True] * len(c))
        for p, c in zip(prompts, completions, strict=True)
    ]
    logprobs = PolicyModule(lm).logprobs_of(stack_sequences(sequences, lm.device), temperature)
    return [
        row[len(p) : len(p) + len(c)].tolist()
        for row, p, c in zip(logprobs, prompts, completions, strict=True)
    ]
