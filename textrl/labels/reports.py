"""The lead's reports over all answers: progress, agreement and disagreements.

Reading and comparing 50,000 rankings takes seconds, and the lead's page asks every few seconds.
`Reports` keeps their sums over blocks of tasks in memory. At a request it counts the answers and
their revisions in each block, and reads again only the blocks in which they have changed. Answers
are never deleted, and each edit is a revision, so that the figures always equal the database's.
"""

import bisect
import heapq
import itertools
import statistics
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from textrl.labels.agreement import Agreement, pair_rates, signs
from textrl.labels.store import Store, read_setting
from textrl.labels.tables import Answer, Labeler, RewardCheck, Task

SHOWN = 5_000
"""Maximum number of characters of an output on the lead's page."""
STEPS = 24
"""Number of moments at which the history of progress and agreement is given."""
BLOCK = 100
"""Number of tasks whose figures are summed together, and are read in one query."""


@dataclass(kw_only=True)
class _Share:
    """What a labeler has done in some tasks."""

    seconds: list[float] = field(default_factory=list)
    """Those of the answers, skipped tasks excepted."""
    times: list[float] = field(default_factory=list)
    """When these answers came, in seconds since 1970."""
    skipped: int = 0
    flagged: int = 0
    rate_sum: float = 0.0
    rates: int = 0
    """The number of comparisons with another labeler of the same task."""
    last_at: float = 0.0

    def add(self, other: "_Share") -> None:
        """Add what the labeler has done in other tasks."""
        self.seconds += other.seconds
        self.times += other.times
        self.skipped += other.skipped
        self.flagged += other.flagged
        self.rate_sum += other.rate_sum
        self.rates += other.rates
        self.last_at = max(self.last_at, other.last_at)


@dataclass(frozen=True, kw_only=True)
class _Figures:
    """The figures of one task, or the sums of those of a block of tasks."""

    shares: dict[int, _Share]
    """By labeler."""
    agreement: Agreement
    unequal: list[tuple[float, int]]
    """The tasks whose labelers do not all agree: agreement and number, sorted."""
    rated: list[tuple[float, float]]
    """When each task's last ranking came, and its agreement; of tasks with two rankings or more."""

    @staticmethod
    def total(parts: Sequence["_Figures"]) -> "_Figures":
        """Return the sums of some figures."""
        shares: dict[int, _Share] = defaultdict(_Share)
        for part in parts:
            for labeler, share in part.shares.items():
                shares[labeler].add(share)
        return _Figures(
            shares=shares,
            agreement=Agreement.total(part.agreement for part in parts),
            unequal=sorted(itertools.chain.from_iterable(part.unequal for part in parts)),
            rated=list(itertools.chain.from_iterable(part.rated for part in parts)),
        )


class Reports:
    """The reports on one label database; threads can share it."""

    def __init__(self, store: Store) -> None:
        """Read nothing yet; the first report reads everything."""
        self._engine = store.engine
        self._lock = threading.Lock()
        self._blocks: dict[int, _Figures] = {}
        self._counted: dict[int, tuple[int, int]] = {}
        """The answers and the sum of their revisions that the figures of each block contain."""

    def overview(self) -> dict[str, Any]:
        """Return progress per labeler and in total, agreement, and the reward model's checks."""
        with Session(self._engine) as session:
            figures = _Figures.total(self._up_to_date(session))
            people = list(session.scalars(select(Labeler).order_by(Labeler.id)))
            total = session.scalar(select(func.count()).select_from(Task)) or 0
            left = session.scalar(select(func.count()).where(Task.open)) or 0
            started = session.scalar(select(func.count()).where(Task.done > 0)) or 0
            full = session.scalar(select(func.count()).where(Task.done >= Task.overlap)) or 0
            overlap = session.scalar(select(func.max(Task.overlap)))
            needed = session.scalar(select(func.sum(Task.overlap - Task.done)).where(Task.open))
            checks = list(session.scalars(select(RewardCheck).order_by(RewardCheck.id)))
            paused = bool(read_setting(session, "paused", False))
        shares = figures.shares
        names = {person.id: person.name for person in people}
        times = {names[labeler]: share.times for labeler, share in shares.items()}
        seconds = [second for share in shares.values() for second in share.seconds]
        return {
            "tasks": {"total": total, "open": left, "started": started, "complete": full},
            "overlap": overlap or 1,
            "paused": paused,
            "agreement": figures.agreement.summary(),
            "labelers": [_progress(person, shares.get(person.id, _Share())) for person in people],
            "flags": sum(share.flagged for share in shares.values()),
            "answers_left": needed or 0,
            "seconds_left": (needed or 0) * statistics.median(seconds) if seconds else None,
            "history": history(times, figures.rated),
            "reward_checks": [
                {"rankings": check.rankings, "accuracy": check.accuracy} for check in checks
            ],
        }

    def disagreements(self, *, limit: int) -> list[dict[str, Any]]:
        """Return the tasks with the least agreement, the worst first, with each labeler's ranks."""
        with Session(self._engine) as session:
            blocks = self._up_to_date(session)
            worst = list(itertools.islice(heapq.merge(*(block.unequal for block in blocks)), limit))
            ids = [task_id for _, task_id in worst]
            names = {person.id: person.name for person in session.scalars(select(Labeler))}
            tasks = {t.id: t for t in session.scalars(select(Task).where(Task.id.in_(ids)))}
            query = select(Answer).where(Answer.task_id.in_(ids), Answer.ranks.is_not(None))
            rankings: dict[int, list[Answer]] = defaultdict(list)
            for answer in session.scalars(query.order_by(Answer.id)):
                rankings[answer.task_id].append(answer)
        return [
            {
                "id": task_id,
                "prompt": tasks[task_id].prompt,
                "outputs": [output[:SHOWN] for output in tasks[task_id].outputs],
                "agreement": rate,
                "rankings": [
                    {"labeler": names[answer.labeler_id], "ranks": answer.ranks}
                    for answer in rankings[task_id]
                ],
                "disputed_pairs": _disputed_pairs([a.ranks for a in rankings[task_id]]),
            }
            for rate, task_id in worst
        ]

    def _up_to_date(self, session: Session) -> list[_Figures]:
        """Read the blocks that have changed; return the figures of all blocks."""
        block = Answer.task_id // BLOCK
        counts = select(block, func.count(), func.sum(Answer.revision)).group_by(block)
        with self._lock:
            for number, answers, revisions in session.execute(counts).all():
                if self._counted.get(number) != (answers, revisions):
                    first = number * BLOCK
                    some = Answer.task_id.between(first, first + BLOCK - 1)
                    rows = session.execute(_columns().where(some).order_by(Answer.id))
                    self._blocks[number] = _Figures.total(list(_figures(rows)))
                    self._counted[number] = answers, revisions
            return list(self._blocks.values())


def _columns() -> Any:
    """Return the query for what the reports need of answers, as rows and not as objects."""
    return select(
        Answer.task_id,
        Answer.labeler_id,
        Answer.ranks,
        Answer.skip_reason,
        Answer.flags,
        Answer.seconds,
        Answer.updated_at,
        Answer.created_at,
    )


def _figures(rows: Iterable[Any]) -> Iterator[_Figures]:
    """Yield the figures of each task."""
    shares: dict[int, dict[int, _Share]] = defaultdict(dict)
    rankings: dict[int, dict[int, list[int]]] = defaultdict(dict)
    ranked_at: dict[int, float] = defaultdict(float)
    for task_id, labeler_id, ranks, skip_reason, flags, seconds, updated_at, created_at in rows:
        shares[task_id][labeler_id] = _Share(
            seconds=[seconds] if skip_reason is None else [],
            times=[created_at] if skip_reason is None else [],
            skipped=int(skip_reason is not None),
            flagged=int(bool(flags)),
            last_at=updated_at,
        )
        if ranks is not None:
            rankings[task_id][labeler_id] = ranks
            ranked_at[task_id] = max(ranked_at[task_id], created_at)
    for task_id, mine in shares.items():
        labelers, given = list(rankings[task_id]), list(rankings[task_id].values())
        rates = pair_rates(given)
        for i, j, rate in rates:
            for labeler in (labelers[i], labelers[j]):
                mine[labeler].rate_sum += rate
                mine[labeler].rates += 1
        mean = sum(rate for *_, rate in rates) / len(rates) if rates else 1.0
        yield _Figures(
            shares=mine,
            agreement=Agreement.of(given),
            unequal=[(mean, task_id)] if mean < 1 else [],
            rated=[(ranked_at[task_id], mean)] if rates else [],
        )


def history(times: dict[str, list[float]], rated: list[tuple[float, float]]) -> dict[str, Any]:
    """Return progress and agreement at `STEPS` moments from the first answer to the last.

    Args:
        times: When each labeler's answers came, in seconds since 1970.
        rated: When a task's last ranking came, and its agreement.

    Returns:
        `moments`, in seconds since 1970; `done`, the number of answers of each labeler until then;
        `agreement`, the mean over the tasks since the moment before, None if there are none.
    """
    everything = [moment for found in times.values() for moment in found]
    if len(set(everything)) < 2:
        return {"moments": [], "done": {}, "agreement": []}
    first, last = min(everything), max(everything)
    moments = [*(first + (last - first) * step / STEPS for step in range(1, STEPS)), last]
    steps: list[list[float]] = [[] for _ in moments]
    for moment, rate in rated:
        steps[min(bisect.bisect_left(moments, moment), STEPS - 1)].append(rate)
    return {
        "moments": moments,
        "done": {
            name: [bisect.bisect_right(known, moment) for moment in moments]
            for name, known in ((name, sorted(found)) for name, found in times.items())
        },
        "agreement": [statistics.fmean(rates) if rates else None for rates in steps],
    }


def _progress(person: Labeler, share: _Share) -> dict[str, Any]:
    """Return a line of the table of labelers."""
    return {
        "id": person.id,
        "name": person.name,
        "is_lead": person.is_lead,
        "active": person.active,
        "done": len(share.seconds),
        "skipped": share.skipped,
        "flagged": share.flagged,
        "median_seconds": statistics.median(share.seconds) if share.seconds else None,
        "agreement": share.rate_sum / share.rates if share.rates else None,
        "last_at": share.last_at or None,
    }


def _disputed_pairs(rankings: list[list[int]]) -> list[list[int]]:
    """Return the pairs of outputs that not all labelers order alike."""
    pairs = itertools.combinations(range(len(rankings[0])), 2)
    orders = zip(*map(signs, rankings), strict=True)
    return [list(pair) for pair, order in zip(pairs, orders, strict=True) if len(set(order)) > 1]
