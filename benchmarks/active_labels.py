"""How many labels an active choice of pairs saves: the most informative ones against random ones.

    python benchmarks/active_labels.py [--seeds 0 1 2 3 4] [--labels 500] [--output FOLDER]
    python benchmarks/active_labels.py --quick     # 3 seeds, 250 labels, for CI

The texts are the demo's movie reviews, four a prompt. The labelers are synthetic: they prefer a
text by the mean of people's ratings of it, with logistic noise, as in examples/collect_loop.py. The
reward model is a last layer on MiniLM's states of the texts, fitted to all labels after every round
of 25. The accuracy is that on pairs of other reviews. The random choice takes a random pair of a
random prompt; the active one takes what `textrl.informative.most_informative` says. Both ask each
prompt once, and begin with a random round. A seed is a split of the reviews, and its curves are
means over some repetitions. The random choice is made twice, and the second one is the control: it
is compared with the first, and the active one with the mean of both. The exit status is 1 where the
bar is missed: in the mean over seeds, 70% of 250 and of 350 labels are enough, the accuracy at
equal labels is higher by more than the bar, and neither holds of the control.
"""

import argparse
import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from textrl.demo.pretrained import minilm_folder
from textrl.demo.reviews import load_reviews
from textrl.informative import most_informative

BATCH = 25
"""Number of labels of a round."""
PER_PROMPT = 4
NOISE = 0.5
"""Scale of the labelers' logistic noise, in standard deviations of the ratings."""
RIDGE = 1000.0
"""Weight of the squared norm of the last layer, of standardised states."""
TESTED = 20_000
"""Number of held-out pairs."""
SHARE = 0.7
"""The bar: the share of the random choice's labels with which the active one is as good."""
GAIN = 0.01
"""The bar of the accuracy at equal labels, in the mean over rounds and seeds; it is the only one of
--quick."""
CHOICES = ("active", "control")
PAIRS = list(itertools.combinations(range(PER_PROMPT), 2))


@torch.no_grad()
def states_of(texts: list[str]) -> Tensor:
    """Return MiniLM's mean state of each text, standardised, float64 [N H]."""
    folder = minilm_folder()
    model, tokenizer = (
        AutoModel.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    order = np.argsort([len(text) for text in texts])
    found: list[Tensor] = []
    for start in range(0, len(texts), 64):
        part = [texts[i] for i in order[start : start + 64]]
        batch = tokenizer(part, padding=True, truncation=True, max_length=64, return_tensors="pt")
        mask = batch.attention_mask.unsqueeze(2)
        found.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
        if start % 1024 == 0:
            print(f"states of {start} of {len(texts)} texts", flush=True)
    states = torch.cat(found)[torch.as_tensor(np.argsort(order))].double()
    return (states - states.mean(0)) / states.std()


def fitted(differences: Tensor, preferred: Tensor, start: Tensor) -> Tensor:
    """Return the last layer with the least penalised Bradley-Terry loss, by Newton's method, [H].

    Args:
        differences: First text's state minus the second's, [N H].
        preferred: 1 where the first text was preferred, else 0, [N].
        start: Where to begin, [H].
    """
    layer, unit = start.clone(), torch.eye(len(start), dtype=torch.float64)
    for _ in range(20):
        chance = (differences @ layer).sigmoid()
        gradient = differences.T @ (chance - preferred) + RIDGE * layer
        weights = (chance * (1 - chance)).unsqueeze(1)
        step = torch.linalg.solve((differences * weights).T @ differences + RIDGE * unit, gradient)
        layer = layer - step
        if step.norm() < 1e-6:
            break
    return layer


@dataclass(frozen=True)
class Pool:
    """The pairs that can be asked for, what labelers would say, and held-out pairs."""

    differences: Tensor
    """Of all pairs of all prompts, [N H]."""
    prompts: np.ndarray
    """The prompt of each pair, [N]."""
    preferred: Tensor
    """What the labelers say of each pair, [N]."""
    test: Tensor
    """Differences of held-out pairs, the better text first, [M H]."""


def pool(states: Tensor, ratings: np.ndarray, seed: int) -> Pool:
    """Return the pool of a seed: a fifth of the texts are held out."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(ratings))
    held = order[: len(order) // 5]
    first, second = rng.choice(held, (2, TESTED))
    better = ratings[first] > ratings[second]
    unequal = ratings[first] != ratings[second]
    test = states[np.where(better, first, second)] - states[np.where(better, second, first)]
    rest = order[len(held) : len(order) - (len(order) - len(held)) % PER_PROMPT]
    groups = rest.reshape(-1, PER_PROMPT)
    left, right = (np.concatenate([groups[:, pair[side]] for pair in PAIRS]) for side in (0, 1))
    felt = (ratings[left] - ratings[right]) / NOISE
    return Pool(
        differences=states[left] - states[right],
        prompts=np.tile(np.arange(len(groups)), len(PAIRS)),
        preferred=torch.as_tensor(rng.random(len(felt)) < 1 / (1 + np.exp(-felt))).double(),
        test=test[torch.as_tensor(unequal)],
    )


def curve(asked: Pool, active: bool, labels: int, seed: int) -> list[float]:
    """Return the held-out accuracy after each round."""
    rng = np.random.default_rng(1000 + seed)
    free = np.ones(len(asked.prompts), dtype=bool)
    chosen: list[int] = []
    layer = torch.zeros(asked.differences.shape[1], dtype=torch.float64)
    accuracies = []
    while len(chosen) < labels:
        open_pairs = np.flatnonzero(free)
        if active and chosen:
            wanted, known = asked.differences[open_pairs], asked.differences[chosen]
            ranked = most_informative(
                wanted,
                wanted @ layer,
                known,
                known @ layer,
                BATCH,
                asked.prompts[open_pairs].tolist(),
            )
            new = open_pairs[ranked]
        else:
            prompts = rng.choice(np.unique(asked.prompts[open_pairs]), BATCH, replace=False)
            new = [rng.choice(np.flatnonzero(asked.prompts == prompt)) for prompt in prompts]
        free &= ~np.isin(asked.prompts, asked.prompts[new])
        chosen += [int(pair) for pair in new]
        layer = fitted(asked.differences[chosen], asked.preferred[chosen], layer)
        accuracies.append(float((asked.test @ layer > 0).double().mean()))
    return accuracies


def share_needed(active: np.ndarray, random: np.ndarray, labels: int) -> float:
    """Return the share of so many labels with which the active choice is as good as the random one.

    Both accuracies are means over three rounds, [rounds]. It is 1 if the active one never is.
    """
    target = random[labels // BATCH - 3 : labels // BATCH].mean()
    smooth = np.convolve(active[: labels // BATCH], np.ones(3) / 3, mode="valid")
    reached = np.flatnonzero(smooth >= target)
    return float((reached[0] + 3) * BATCH / labels) if len(reached) else 1.0


def draw(curves: dict[str, np.ndarray], path: Path) -> None:
    """Draw the mean accuracy of both choices, and each seed's, against the number of labels."""
    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    labels = BATCH * (1 + np.arange(curves["random"].shape[1]))
    for name, colour in (("random", "#888888"), ("active", "#0b57d0")):
        axes.plot(labels, curves[name].T, color=colour, linewidth=0.6, alpha=0.4)
        axes.plot(labels, curves[name].mean(0), color=colour, linewidth=2, label=f"{name} choice")
    axes.set(xlabel="labels", ylabel="held-out pairs in the right order")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> int:
    """Compare both choices; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--labels", type=int, default=500)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="3 seeds, 250 labels, 6,000 texts")
    parser.add_argument("--output", type=Path, default=Path("runs/active_labels"))
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.labels, options.texts = [0, 1, 2], 250, 6000
    options.output.mkdir(parents=True, exist_ok=True)
    reviews = load_reviews()[: options.texts]
    ratings = np.array([review.mean for review in reviews])
    ratings = (ratings - ratings.mean()) / ratings.std()
    states = states_of([review.text for review in reviews])
    found: dict[str, list[list[float]]] = {"random": [], "active": [], "control": []}
    for seed in options.seeds:
        asked, began = pool(states, ratings, seed), time.monotonic()
        for name, curves in found.items():
            start = 50_000 if name == "control" else 0
            every_time = [
                curve(asked, name == "active", options.labels, start + 100 * seed + repetition)
                for repetition in range(options.repetitions)
            ]
            curves.append(np.mean(every_time, axis=0).tolist())
        ends = {name: f"{np.mean(curves[-1][-3:]):.3f}" for name, curves in found.items()}
        print(f"seed {seed}: accuracy {ends}, {time.monotonic() - began:.0f} s", flush=True)
    both = {name: np.array(curves) for name, curves in found.items()}
    passed = {name: passes(name, both, quick=options.quick) for name in CHOICES}
    row = {"seeds": options.seeds} | {name: both[name].tolist() for name in both}
    (options.output / "results.json").write_text(json.dumps(row))
    draw(both, options.output / "active_labels.png")
    return 0 if passed == {"active": True, "control": False} else 1


def passes(name: str, curves: dict[str, np.ndarray], *, quick: bool) -> bool:
    """Print how a choice compares with the random one; return whether that is above the bars."""
    random, mine = curves["random"], curves[name]
    if name == "active":
        random = (random + curves["control"]) / 2
    gain = float((mine - random)[:, 1:].mean())
    print(f"{name}: accuracy at equal labels {gain:+.4f}, mean over rounds and seeds")
    good = gain > GAIN
    for labels in (150, 250, 350, 500):
        if labels > mine.shape[1] * BATCH:
            break
        share = share_needed(mine.mean(0), random.mean(0), labels)
        each = ", ".join(f"{share_needed(one, random.mean(0), labels):.2f}" for one in mine)
        print(f"{name}: {share:.2f} of {labels} labels is enough; by seed {each}")
        good = good and (quick or labels not in (250, 350) or share <= SHARE)
    return good


if __name__ == "__main__":
    raise SystemExit(main())
