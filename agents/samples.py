"""Episodes as rows for people: texts, scores, and each token with its KL, reward and credit."""

import math
from typing import Any

from textrl.agents.rollout import Rollout
from textrl.agents.text_env import TextEnv
from textrl.seams import decode, decode_completion, token_texts

DIGITS = 4


def samples_of(episodes: Rollout, env: TextEnv, agent: Any) -> list[dict[str, Any]]:
    """Return a dict for each episode, as it is kept in samples.jsonl.

    "by_token" holds what comes after the prompt: each token's text, and of the policy's own tokens
    "kl" (log pi - log pi_ref, nats) and "reward" (with both halves of the KL), with a critic also
    "value" (before the token) and "advantage" (not whitened).
    """
    has_credit = len(episodes.mask) > 0 and hasattr(agent, "credit")  # a trainer has none
    credit = agent.credit(episodes) if has_credit else None
    numbers = {
        "kl": episodes.logprobs - episodes.ref_logprobs,
        "reward": episodes.rewards - env.kl_coef * episodes.logprobs,
    }
    if credit is not None:
        numbers |= {"value": episodes.values, "advantage": credit.advantages}
    rows = []
    for row in range(len(episodes.mask)):
        tokenizer, start = env.tokenizer, int(episodes.prompt_lengths[row])
        ids = episodes.input_ids[row, : int(episodes.text_lengths[row])].tolist()
        tokens: list[dict[str, Any]] = [
            {"text": text} for text in token_texts(tokenizer, ids, start)
        ]
        own = episodes.mask[row].nonzero().squeeze(1)
        for place, slot in zip(episodes.positions[row, own].tolist(), own.tolist(), strict=True):
            known = {name: float(values[row, slot]) for name, values in numbers.items()}
            tokens[place - start] |= {name: round(value, DIGITS) for name, value in known.items()}
        scores = episodes.named_scores[row].tolist()
        rows.append(
            {
                "prompt": decode(tokenizer, ids[:start]),
                "completion": decode_completion(
                    tokenizer, ids[:start], ids[start:], env.end_token_ids
                ),
                "score": _known(float(episodes.scores[row])),
                "scores": {
                    name: _known(score)
                    for name, score in zip(env.reward_names, scores, strict=True)
                },
                "kl": float(episodes.sequence_kl[row]),
                "by_token": tokens,
            }
        )
    return rows


def _known(score: float) -> float | None:
    return None if math.isnan(score) else score
