"""The profiles of hypothesis, and a summary of the inputs of each subject."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import core, settings
from inputs import COUNT, LONG

settings.register_profile(LONG)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Give a long run a seed of its own, unless --hypothesis-seed names one."""
    if settings.get_current_profile_name() == LONG and core.global_force_seed is None:
        core.global_force_seed = random.SystemRandom().randrange(2**32)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Note how many inputs a test has tried."""
    before = COUNT.total()
    try:
        return (yield)
    finally:
        item.user_properties.append(("inputs", COUNT.total() - before))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the number of inputs by subject, and what failed."""
    total: dict[str, int] = {}
    failed: dict[str, list[str]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            found = dict(getattr(report, "user_properties", [])).get("inputs")
            if found is None or report.when != "call":
                continue
            file, _, test = report.nodeid.rpartition("::")
            subject = file.rpartition("test_fuzz_")[2].removesuffix(".py")
            total[subject] = total.get(subject, 0) + found
            failed.setdefault(subject, []).extend([test] if outcome == "failed" else [])
    seed = core.global_force_seed
    terminalreporter.section("inputs by subject" + ("" if seed is None else f", seed {seed}"))
    for subject, count in total.items():
        terminalreporter.write_line(
            f"{subject}: {count:,} inputs, failed: {', '.join(failed[subject]) or 'none'}"
        )
    wrong = sum(map(len, failed.values()))
    terminalreporter.write_line(f"all: {sum(total.values()):,} inputs, {wrong} tests failed")
