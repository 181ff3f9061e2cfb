"""`PeopleReward`: the reward of a running environment is what people say of its outputs.

`reward="collect:labels.db"` shows the samples of each prompt to the labelers of that database, who
rank them on the page of `textrl collect`, and waits. A sample's score is the share of the others
that it beats. Next to read: `labels/asking.py` (the tasks) and `feedback/` (the page).
"""

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from textrl.errors import UserError, hide_password, needing
from textrl.reward_calls import RewardFailure
from textrl.reward_kinds import Remote, RewardKind

if TYPE_CHECKING:
    from textrl.labels.asking import Asked

PREFIX = "collect:"
LOOKS = 1.0
"""Seconds between two looks into the database."""
TELLS = 60.0
"""Seconds between two lines about how many rankings are still missing."""
MOST_AT_ONCE = 4096
"""Number of groups that may wait at the same time."""


def share_beaten(rankings: list[list[int]]) -> list[float]:
    """Return each output's share of the others that it beats, a tie counting half; 0.5 if alone.

    Args:
        rankings: The ranks of the outputs by each labeler (0 is best); their shares are averaged.

    >>> share_beaten([[0, 1, 2], [0, 1, 1]])
    [1.0, 0.375, 0.125]
    """
    number = len(rankings[0])
    if number == 1:
        return [0.5]
    beaten = [0.0] * number
    for ranks in rankings:
        for place, mine in enumerate(ranks):
            lower = sum(mine < other for other in ranks)
            equal = ranks.count(mine) - 1
            beaten[place] += lower + 0.5 * equal
    return [found / (len(rankings) * (number - 1)) for found in beaten]


class PeopleReward:
    """A reward function that compares the samples of a prompt by asking people.

    The groups of a batch are asked at the same time. Samples of the same text are shown once and
    get one score; a blank one is not shown, and every text beats it. What nobody has ranked
    after `wait` seconds is a failure of this group alone: it stops the run, or, with
    `on_reward_error="mask"`, its episodes are left out of the update and its task is shown no more.
    """

    __name__ = "people"
    textrl_reward_kind = RewardKind(
        group=True, remote=Remote(timeout=0.0, retries=0, at_once=MOST_AT_ONCE)
    )

    def __init__(self, database: str, *, wait: float = 0.0, overlap: int | None = None) -> None:
        """Open the label database, which is made if there is none.

        Args:
            database: A file, or a URL such as postgresql://USER@HOST/NAME.
            wait: Seconds to wait for the labelers; 0 is no limit.
            overlap: Number of labelers who rank each group; None is the lead's setting, 1 at first.

        Raises:
            UserError: the database cannot be used, or a number is out of range.
        """
        if wait < 0 or (overlap is not None and not 1 <= overlap <= 100):
            raise UserError(
                f"{PREFIX} wait={wait:g}, overlap={overlap}; expected wait of 0 or more seconds, "
                f"overlap from 1 to 100"
            )
        with needing("collect"):
            from textrl.labels.store import Store
        self.url = database if "://" in database else f"sqlite:///{database}"
        self.wait, self.overlap = wait, overlap
        self._store = Store(self.url, create=True)
        self._lock, self._looked = threading.Lock(), 0.0
        self._waiting: set[int] = set()
        self._found: dict[int, Asked] = {}
        self._told, self._total = 0.0, 0

    @classmethod
    def from_name(cls, name: str) -> "PeopleReward":
        """Return the reward that `collect:DATABASE[?wait=SECONDS&overlap=NUMBER]` names.

        Raises:
            UserError: a setting is unknown or is no number, or the database cannot be used.
        """
        database, _, query = name.removeprefix(PREFIX).partition("?")
        given: dict[str, float] = {}
        rest = []
        for part in filter(None, query.split("&")):
            key, _, value = part.partition("=")
            if key not in ("wait", "overlap"):
                rest.append(part)  # of a PostgreSQL URL
                continue
            try:
                given[key] = float(value) if key == "wait" else int(value)
            except ValueError:
                raise UserError(f"{hide_password(name)}: {key} is {value!r}, no number") from None
        if rest and "://" not in database:
            raise UserError(
                f"{hide_password(name)}: unknown setting {rest[0]!r}; known: wait, overlap"
            )
        if not database:
            raise UserError(f"{name!r} names no database; write collect:labels.db")
        overlap = given.get("overlap")
        return cls(
            "?".join(filter(None, (database, "&".join(rest)))),
            wait=given.get("wait", 0.0),
            overlap=None if overlap is None else int(overlap),
        )

    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        messages: list[Any] | None = None,
    ) -> list[float]:
        """Return the share of the other outputs that each of one prompt's completions beats.

        Raises:
            UserError: there are too many to rank.
            RewardFailure: nobody has ranked them in time.
        """
        from textrl.labels.answers import MAX_OUTPUTS

        shown = list(dict.fromkeys(text for text in completions if text.strip()))
        blank = len(shown) if any(not text.strip() for text in completions) else None
        if len(shown) > MAX_OUTPUTS:
            raise UserError(
                f"people rank at most {MAX_OUTPUTS} outputs at once, and a group has {len(shown)}; "
                f"make the environment with group_size={MAX_OUTPUTS} or less"
            )
        rankings = [[0] * len(shown)]  # of one text or none there is nothing to say
        if len(shown) > 1:
            prompt = prompts[0] if messages is None or messages[0] is None else messages[0]
            said = self._answers(prompt, shown)
            shown, rankings = said.outputs, said.rankings
        if blank is not None:
            rankings = [[*ranks, blank + 1] for ranks in rankings]
        scores = dict(zip([*shown, ""], share_beaten(rankings), strict=False))
        return [scores[text if text.strip() else ""] for text in completions]

    def _answers(self, prompt: Any, outputs: list[str]) -> "Asked":
        """Return what labelers say of some outputs, once enough have, or the time is over.

        Raises:
            RewardFailure: the time is over, and nobody has ranked them.
        """
        from textrl.labels.asking import ask, give_up
        from textrl.labels.tasks import NewTask

        task = NewTask(prompt=prompt, outputs=outputs, source={"asked_by": "reward"}, columns={})
        with self._lock:
            task_id = ask(self._store, task, self.overlap)
            self._waiting.add(task_id)
            self._total += 1
        ends = time.monotonic() + self.wait if self.wait else float("inf")
        try:
            while True:
                late = time.monotonic() >= ends
                said = self._look(task_id, now=late)
                if said is not None and said.rankings and (said.complete or late):
                    return said
                if late:
                    give_up(self._store, task_id)
                    raise RewardFailure(
                        f"nobody has ranked task {task_id} of {hide_password(self.url)} within "
                        f'wait={self.wait:g} seconds; wait longer, or on_reward_error="mask" goes '
                        f"on with what is ranked"
                    )
                time.sleep(min(LOOKS, max(ends - time.monotonic(), 0.0)))
        finally:
            with self._lock:
                self._waiting.discard(task_id)
                self._total *= bool(self._waiting)

    def _look(self, task_id: int, *, now: bool) -> "Asked | None":
        """Return what is known of a task; all that wait share one look into the database."""
        from textrl.labels.asking import asked

        with self._lock:
            moment = time.monotonic()
            if now or moment >= self._looked + LOOKS:
                self._looked = moment
                try:
                    self._found = asked(self._store, self._waiting)
                except OSError as error:  # the database restarts; people's time is worth waiting
                    print(f"{error}; trying again", file=sys.stderr, flush=True)
            if moment >= self._told + TELLS:
                ranked = self._total - sum(
                    not (one.complete and one.rankings) for one in self._found.values()
                )
                print(
                    f"waiting for people: {ranked} of {self._total} groups are ranked; "
                    f"textrl collect --database {hide_password(self.url)} serves their page",
                    file=sys.stderr,
                    flush=True,
                )
                self._told = moment
            return self._found.get(task_id)
