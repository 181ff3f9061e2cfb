"""What the tests of feedback share."""

import os

import pytest

from textrl.feedback.store import NewTask


def or_fail(reason: str) -> None:
    """Skip with a reason; in CI, where everything must be there, fail."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def task(name: str, outputs: int = 4) -> NewTask:
    texts = [f"{name} output {index}" for index in range(outputs)]
    return NewTask(prompt=f"{name} prompt", outputs=texts, source={"file": "t"}, columns={})
