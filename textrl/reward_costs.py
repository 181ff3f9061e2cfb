"""`Cost`: the time and the failures of a reward function, or of the worlds, since the beginning."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping


class Cost:
    """What the calls of a reward function, or of all worlds, have cost since the beginning."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.seconds, self.failures, self._lock = 0.0, 0, threading.Lock()

    def add(self, *, seconds: float = 0.0, failures: int = 0) -> None:
        """Add wall-clock seconds or failed calls."""
        with self._lock:
            self.seconds += seconds
            self.failures += failures

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Add the seconds that a block takes."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(seconds=time.perf_counter() - began)


Spent = dict[str, tuple[float, int]]
"""Seconds and failed calls so far, by the name of a reward function."""


def spent(costs: Mapping[str, Cost]) -> Spent:
    """Return the costs so far."""
    return {name: (cost.seconds, cost.failures) for name, cost in costs.items()}


def cost_report(before: Spent, now: Spent) -> dict[str, float]:
    """Return what is logged of the costs between two moments.

    `time/reward_seconds` is the wall-clock time in reward functions and worlds, of several
    functions for each; those that run at the same time count each. `rollout/reward_failures` is the
    number of calls that failed, further tries among them.
    """
    if not now:
        return {}
    seconds = {name: now[name][0] - before[name][0] for name in now}
    report = {"time/reward_seconds": sum(seconds.values())}
    report["rollout/reward_failures"] = float(sum(now[name][1] - before[name][1] for name in now))
    if len(seconds) > 1:
        report |= {f"time/reward_seconds/{name}": value for name, value in seconds.items()}
    return report
