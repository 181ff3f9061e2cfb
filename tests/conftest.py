"""Every test runs on one thread: a pool larger than the free cores is far slower."""

import os
import statistics
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from textrl.envs import tiny_model, tiny_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture
def model() -> PreTrainedModel:
    """A fresh tiny policy with its gradients on."""
    return tiny_model().requires_grad_(True)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the tiny model and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


Learning = Callable[..., None]
SEEDS = (0, 1, 2)


@pytest.fixture
def learning(record_property: Callable[[str, object], None]) -> Learning:
    """Hold the median of three seeds against a bar, and report how far it lies from it.

    `learning(measure, above=bar)` or `below=bar`; `measure(seed)` trains and returns a number. A
    bar leaves room: another processor, thread count or load moves the median by a tenth of the
    distance, not by all of it.
    """

    def judge(
        measure: Callable[[int], float], *, above: float | None = None, below: float | None = None
    ) -> None:
        given = [bar for bar in (above, below) if bar is not None]
        assert len(given) == 1
        values = [float(measure(seed)) for seed in SEEDS]
        median = statistics.median(values)
        bar = given[0]
        sign, word = (1, "above") if below is None else (-1, "below")
        distance = sign * (median - bar) / abs(bar)
        seeds = ", ".join(f"{value:.3f}" for value in values)
        line = f"{median:.3f} ({seeds}), {word} {bar:g} by {100 * distance:.0f}% of the bar"
        record_property("learning", line)
        assert distance > 0, line

    return judge


def reported_learning(reports: list[pytest.TestReport]) -> Iterator[str]:
    """Yield the lines that the tests with a `learning` fixture left, each behind its test."""
    for report in reports:
        for name, line in getattr(report, "user_properties", []):
            if name == "learning" and report.when == "call":
                yield f"{report.nodeid}: {line}"


def pytest_terminal_summary(terminalreporter: Any) -> None:  # pytest 8.0 does not export its class
    """Print every learning test's value and bar, whether it passed or failed."""
    stats = terminalreporter.stats
    lines = sorted(reported_learning([*stats.get("passed", []), *stats.get("failed", [])]))
    if lines:
        terminalreporter.section("learning: median of three seeds against the bar")
        for line in lines:
            terminalreporter.write_line(line)
