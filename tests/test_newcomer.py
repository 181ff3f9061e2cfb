"""Five changes that people make, each in as few files as promised, and each works."""

from pathlib import Path

import pytest
from newcomer import CHANGES, Change, use


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=[change.name for change in CHANGES])
def test_a_newcomers_change(change: Change, tmp_path: Path) -> None:
    assert len({file for file, _, _ in change.edits}) <= change.files
    done = use(change, tmp_path)
    assert done.returncode == 0, done.stderr
