"""The yardstick itself: enumeration, optimum, best-of-n and regret against slow loops and hand."""

import doctest
import importlib
import itertools
import math

import numpy as np
import pytest
import torch
from exact import Enumeration
from frontier_estimate import best_of_n_scores, estimate_frontier
from statistics_of_seeds import bootstrap_interval, interquartile_mean, summary

from textrl.envs import tiny_model, tiny_tokenizer
from textrl.evaluation import best_of_kl

PROMPTS, VOCABULARY = ["a", "b"], 6


def score(prompt: str, completion: str) -> float:
    return completion.count("c") - 0.5 * len(completion) + (prompt == "b") * completion.count("a")


@pytest.fixture(scope="module")
def small() -> Enumeration:
    model = tiny_model(vocab_size=VOCABULARY, hidden_size=16)
    with torch.no_grad():
        model.lm_head.weight.mul_(40)  # far from uniform
    return Enumeration(PROMPTS, tiny_tokenizer("abc"), model, score, max_tokens=3)


def slow(policy, prompt: str) -> dict[tuple[int, ...], float]:
    """Return the probability of every completion from one forward pass a prefix."""
    found, start = {}, tiny_tokenizer("abc")(prompt).input_ids
    for count in range(1, 4):
        for ids in itertools.product(range(VOCABULARY), repeat=count):
            if 2 in ids[:-1] or (count < 3 and ids[-1] != 2):
                continue
            p = 1.0
            for t, token in enumerate(ids):
                with torch.no_grad():
                    logits = policy(input_ids=torch.tensor([start + list(ids[:t])])).logits[0, -1]
                p *= float(logits.double().softmax(-1)[token])
            found[ids] = p
    return found


def test_every_completion_has_its_probability(small: Enumeration) -> None:
    policy = tiny_model(vocab_size=VOCABULARY, hidden_size=16, seed=5)
    # EOS at once, 5 before EOS, 25 before EOS or 5 more tokens: 1 + 5 + 25 * 6
    assert len(small.completions) == 1 + 5 + 25 * 6
    logprobs = small.logprobs(policy)
    assert torch.allclose(logprobs.exp().sum(1), torch.ones(2, dtype=torch.float64))
    for row, prompt in enumerate(PROMPTS):
        expected = slow(policy, prompt)
        assert len(expected) == len(small.completions)
        for ids, logp in zip(small.completions, logprobs[row], strict=True):
            assert math.exp(logp) == pytest.approx(expected[tuple(ids)], rel=1e-5)


def test_one_token_completions() -> None:
    model = tiny_model(vocab_size=VOCABULARY, hidden_size=16)
    single = Enumeration(PROMPTS, tiny_tokenizer("abc"), model, score, max_tokens=1)
    assert single.completions == [[token] for token in range(VOCABULARY)]
    with torch.no_grad():
        ids = torch.tensor([tiny_tokenizer("abc")("b").input_ids])
        expected = model(input_ids=ids).logits[0, -1].double().log_softmax(-1)
    assert torch.allclose(single.ref_logprobs[1], expected, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["exact", "frontier_estimate", "overoptimization", "statistics_of_seeds"]
)
def test_doctests(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


def test_the_optimum_attains_j_star_and_nothing_else_does(small: Enumeration) -> None:
    for kl_coef in (0.1, 1.0):
        best = small.best_objective(kl_coef)
        optimum = small.value(small.optimum(kl_coef))
        assert optimum.objective(kl_coef) == pytest.approx(best, abs=1e-9)
        assert small.regret(optimum, kl_coef) == pytest.approx(0.0, abs=1e-9)
        start = small.value(small.ref_logprobs)
        assert start.kl == 0.0
        assert small.regret(start, kl_coef) == pytest.approx(1.0)
        for seed in range(5):
            noise = torch.randn(small.scores.shape, generator=torch.Generator().manual_seed(seed))
            other = (small.optimum(kl_coef) + 0.3 * noise).log_softmax(1)
            assert small.value(other).objective(kl_coef) < best - 1e-4


def test_a_policy_above_the_frontier_is_a_bug(small: Enumeration) -> None:
    good = small.value(small.optimum(0.5))
    cheat = type(good)(score=good.score + 1e-3, kl=good.kl)
    with pytest.raises(AssertionError, match="above the frontier"):
        small.regret(cheat, 0.5)


def test_best_of_n_is_the_distribution_of_the_best_of_n(small: Enumeration) -> None:
    rng, n = np.random.default_rng(0), 3
    logprobs = small.best_of_n(n)
    assert torch.allclose(logprobs.exp().sum(1), torch.ones(2, dtype=torch.float64))
    for row in range(2):
        p, scores = small.ref_logprobs[row].exp().numpy(), small.scores[row].numpy()
        drawn = rng.choice(len(p), size=(200_000, n), p=p / p.sum())
        expected = scores[drawn].max(1).mean()
        found = float((logprobs[row].exp() * small.scores[row]).sum())
        assert found == pytest.approx(expected, abs=0.01)
    assert small.value(small.best_of_n(1)).kl == pytest.approx(0.0, abs=1e-9)
    assert 0 < small.value(logprobs).kl <= best_of_kl(n)


def test_seeds_summed_up_by_hand() -> None:
    assert interquartile_mean([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 100.0]) == 4.5  # 3, 4, 5, 6
    # of ten values the third and the eighth count half: (.5*3 + 4 + 5 + 6 + 7 + .5*8) / 5
    assert interquartile_mean([*range(1, 10), 1000]) == pytest.approx(5.5)
    low, high = bootstrap_interval([1.0, 2.0, 3.0, 4.0])
    assert 1.0 <= low < 2.5 < high <= 4.0
    assert summary([3.0, 1.0, 2.0])["worst"] == 3.0


def test_the_frontier_of_a_gaussian_score_is_the_square_root() -> None:
    scores = np.random.default_rng(0).normal(size=(16, 4096))
    frontier = estimate_frontier(scores)
    assert frontier.kl[0] == 0.0
    assert (np.diff(frontier.kl) > -1e-9).all()
    for kl in (0.5, 1.0, 2.0, 4.0):  # E = s, KL = s^2 / 2
        assert frontier.score_at(kl) == pytest.approx(math.sqrt(2 * kl), abs=0.06)
    assert frontier.kl[-1] <= math.log(4096)
    assert frontier.share(math.sqrt(2.0) / 2, 1.0) == pytest.approx(0.5, abs=0.03)


def test_best_of_n_from_samples() -> None:
    scores = np.array([[3.0, 1.0, 2.0, 5.0]])
    pairs = [max(pair) for pair in itertools.combinations(scores[0], 2)]
    assert best_of_n_scores(scores, 2)[0] == pytest.approx(np.mean(pairs))
    assert best_of_n_scores(scores, 4)[0] == 5.0
    assert best_of_n_scores(scores, 1)[0] == pytest.approx(scores.mean())
