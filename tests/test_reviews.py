import numpy as np
import pytest

from textrl.demo import fetch
from textrl.demo.reviews import (
    Review,
    krippendorff_alpha,
    load_reviews,
    review_pairs,
    review_rankings,
    split_reviews,
)
from textrl.errors import UserError


def made(count: int = 60) -> list[Review]:
    rng = np.random.default_rng(0)
    return [
        Review(text=f"text {i}", ratings=tuple(rng.integers(-4, 5, 15).tolist()))
        for i in range(count)
    ]


def test_krippendorff_alpha_by_hand() -> None:
    # items (1, 2) and (3, 3). Observed: each pair both ways, by item size: (1 + 1) / 4 = 0.5.
    # Expected: values 1 2 3 3, all 12 ordered pairs: 2 (1 + 4 + 4 + 1 + 1 + 0) / 12 = 22 / 12
    assert krippendorff_alpha([[1, 2], [3, 3]]) == pytest.approx(1 - 0.5 / (22 / 12))
    assert krippendorff_alpha([[1, 1], [3, 3], [7]]) == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    noise = rng.integers(-4, 5, (500, 20)).tolist()
    assert krippendorff_alpha(noise) == pytest.approx(0.0, abs=0.02)


def test_split_is_by_text() -> None:
    train, heldout = split_reviews([*made(), *made()], heldout_share=0.3)
    assert not {r.text for r in train} & {r.text for r in heldout}
    assert len(train) + len(heldout) == 120


def test_pairs_prefer_the_better_rated() -> None:
    means = {r.text: r.mean for r in made()}
    for pair in review_pairs(made(), 100, np.random.default_rng(0), min_gap=0.2):
        gap = means[str(pair["chosen"])] - means[str(pair["rejected"])]
        assert gap > 0.2
        assert pair["margin"] == pytest.approx(gap)
        assert 0.3 < float(pair["certainty"]) <= 1.0


def test_rankings_take_each_review_once() -> None:
    rows = review_rankings(made(), 6, np.random.default_rng(0))
    means = {r.text: r.mean for r in made()}
    assert sorted(text for row in rows for text in row["completions"]) == sorted(means)
    for row in rows:
        order = sorted(zip(row["ranks"], (means[t] for t in row["completions"]), strict=True))
        assert [mean for _, mean in order] == sorted((m for _, m in order), reverse=True)


def test_offline_and_wrong_files_are_explained(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert fetch.cache_dir() == tmp_path / "cache" / "textrl"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(UserError, match="connect to the network once"):
        load_reviews()
    (tmp_path / "hutto_ICWSM_2014.tar.gz").write_bytes(b"something else")
    with pytest.raises(UserError, match="checksum"):
        load_reviews(tmp_path)


@pytest.mark.slow
def test_the_real_ratings_and_their_known_agreement() -> None:
    reviews = load_reviews()
    assert len(reviews) == 10_605
    assert sum(len(review.ratings) for review in reviews) == 198_810
    assert {min(len(r.ratings) for r in reviews), max(len(r.ratings) for r in reviews)} == {15, 29}
    assert krippendorff_alpha([r.ratings for r in reviews]) == pytest.approx(0.798, abs=0.0005)
    assert load_reviews()[0].mean == pytest.approx(2.26666666667)
