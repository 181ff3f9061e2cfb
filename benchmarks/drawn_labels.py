"""Labels that raters would give on the small tasks, and a reward model trained on them.

Each label is a Bradley-Terry draw from the task's score, so what learns from pairs has the same
optimum as what learns from the score itself, at beta = kl_coef.
"""

import functools
import tempfile

import numpy as np
from small_tasks import PROMPTS, enumeration, reference, tokenizer

from textrl.config import RewardConfig
from textrl.rewards import RewardModel
from textrl.trainers import RewardTrainer, reward_model_from
from textrl.types import Sequence

REWARD_MODEL_RATERS, REWARD_MODEL_PAIRS = 64, 4000
"""Bradley-Terry draws for each pair, and the pairs, of the reward model."""


@functools.cache
def prompt_ids(prompt: str) -> list[int]:
    """Return the tokens of a prompt."""
    ids: list[int] = tokenizer()(prompt).input_ids
    return ids


@functools.cache
def encoded(prompt: str, index: int) -> Sequence:
    """Return a prompt and the tokens of a completion, of which the completion counts."""
    ids = prompt_ids(prompt)
    completion = enumeration("dense").completions[index]  # the same in all tasks
    counts = [False] * len(ids) + [True] * len(completion)
    return Sequence(ids=ids + completion, counts=counts)


def labelled(
    task: str, seed: int, *, raters: int, flipped: float = 0.0, count: int
) -> list[tuple[str, int, int, float]]:
    """Return (prompt, index of the chosen completion, of the rejected one, share of raters for it).

    Both are samples of the reference; each rater's label is a Bradley-Terry draw from their scores,
    and a share of the labels is then turned round.
    """
    rng = np.random.default_rng([seed, 1])
    enumerated, rows = enumeration(task), []
    for index, prompt in enumerate(PROMPTS):
        p = enumerated.ref_logprobs[index].exp().numpy()
        drawn = rng.choice(len(p), size=(count // len(PROMPTS), 2), p=p / p.sum())
        scores = enumerated.scores[index].numpy()[drawn]
        first_wins = 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
        first_wins = first_wins * (1 - flipped) + (1 - first_wins) * flipped
        shares = rng.binomial(raters, first_wins) / raters
        for (a, b), share in zip(drawn.tolist(), shares.tolist(), strict=True):
            best_first = (prompt, a, b, share) if share >= 0.5 else (prompt, b, a, 1 - share)
            rows.append(best_first)
    return rows


@functools.cache
def reward_model(task: str) -> RewardModel:
    """Return a reward model of the task, trained on labels of its score, for the critic's trunk."""
    with tempfile.TemporaryDirectory() as folder:
        reference().save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        model = reward_model_from(folder)
    texts = [
        str(tokenizer().decode(ids, skip_special_tokens=True))
        for ids in enumeration(task).completions
    ]
    rows = [
        {"prompt": prompt, "chosen": texts[chosen], "rejected": texts[rejected]}
        for prompt, chosen, rejected, certainty in labelled(
            task, 99, raters=REWARD_MODEL_RATERS, count=REWARD_MODEL_PAIRS
        )
        if texts[chosen]
        and texts[rejected]
        and texts[chosen] != texts[rejected]
        and certainty > 0.5
    ]
    config = RewardConfig(learning_rate=2e-3, minibatch_size=100)
    RewardTrainer(model, tokenizer(), rows, config, shown=False).train()
    return RewardModel(model, tokenizer())
