"""`PeopleReward`: the reward of a running environment is what people say of its outputs.

`reward="collect:labels.db"` shows the samples of each prompt to the labelers of that database, who
rank them on the page of `textrl collect`, and waits. A sample's score is the share of the others
that it beats. Next to read: `labels/asking.py` (the tasks) and `feedback/` (the page).
"""

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from textrl.errors import UserError, hide_password, needing
from textrl.paths import expanded
from textrl.resolve import PEOPLE
from textrl.reward_calls import RewardFailure
from textrl.reward_kinds import Remote, RewardKind

if TYPE_CHECKING:
    from textrl.labels.asking import Asked
    from textrl.labels.tasks import NewTask

Result = TypeVar("Result")
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

    The groups of a batch are asked at the same time. Samples of the same text are shown once, and
    tie with one another; a blank one is not shown, and every text beats it. What nobody has ranked
    after `wait` seconds is a failure of this group alone: it stops the run, or, with
    `on_reward_error="mask"`, its episodes are left out of the update. When the time is over, the
    task is shown to nobody any more.
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
        if not 0 <= wait < float("inf") or (overlap is not None and not 1 <= overlap <= 100):
            raise UserError(
                f"{PEOPLE} wait={wait:g}, overlap={overlap}; expected wait of 0 or more seconds, "
                f"overlap from 1 to 100"
            )
        with needing("collect"):
            from textrl.labels.store import Store
        self.url = database if "://" in database else f"sqlite:///{expanded(database)}"
        self.wait, self.overlap = wait, overlap
        self._store = Store(self.url, create=True)
        self._lock, self._looked = threading.Lock(), 0.0
        self._waiting: Counter[int] = Counter()
        """The number of groups that wait for each task: two may be the same texts."""
        self._found: dict[int, Asked] = {}
        self._told, self._total = 0.0, 0

    def __deepcopy__(self, memo: object) -> "PeopleReward":
        """Return this object: copies of an environment ask the same people."""
        return self

    @classmethod
    def from_name(cls, name: str) -> "PeopleReward":
        """Return the reward that `collect:DATABASE[?wait=SECONDS&overlap=NUMBER]` names.

        Raises:
            UserError: a setting is unknown or is no number, or the database cannot be used.
        """
        database, _, query = name.removeprefix(PEOPLE).partition("?")
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
        tools: list[Any] | None = None,
        chat_template_kwargs: list[Any] | None = None,
    ) -> list[float]:
        """Return the share of the other samples that each of one prompt's completions beats.

        Raises:
            UserError: there are too many to rank.
            RewardFailure: nobody has ranked them in time, or they cannot be shown.
        """
        from textrl.labels.answers import MAX_OUTPUTS
        from textrl.labels.tasks import NewTask

        completions = [text.replace("\x00", "\u2400") for text in completions]  # can be stored
        shown = list(dict.fromkeys(text for text in completions if text.strip()))
        if len(shown) > MAX_OUTPUTS:
            raise UserError(
                f"people rank at most {MAX_OUTPUTS} outputs at once, and a group has {len(shown)}; "
                f"make the environment with group_size={MAX_OUTPUTS} or less"
            )
        rankings = [[0] * len(shown)]  # of one text or none there is nothing to say
        if len(shown) > 1:
            prompt = prompts[0] if messages is None or messages[0] is None else messages[0]
            beside = {"tools": tools, "chat_template_kwargs": chat_template_kwargs}
            columns = {name: found[0] for name, found in beside.items() if found and found[0]}
            source = {"asked_by": "reward"}
            try:
                task = NewTask(prompt=prompt, outputs=shown, source=source, columns=columns)
            except UserError as error:
                raise RewardFailure(f"people cannot be asked: {error}") from error
            said = self._answers(task)
            shown, rankings = said.outputs, said.rankings
        places = [shown.index(text) if text.strip() else -1 for text in completions]
        last = MAX_OUTPUTS  # the rank of a blank sample
        samples = [[last if at < 0 else ranks[at] for at in places] for ranks in rankings]
        return share_beaten(samples)

    def _answers(self, task: "NewTask") -> "Asked":
        """Return what labelers say of some outputs, once enough have, or the time is over.

        Raises:
            RewardFailure: nobody has ranked them, and the time is over or all have skipped them.
        """
        from textrl.labels.asking import ask, give_up

        ends = time.monotonic() + self.wait if self.wait else float("inf")
        task_id: int = _persistently(lambda: ask(self._store, task, self.overlap))
        with self._lock:
            self._waiting[task_id] += 1
            self._total += 1
        try:
            while True:
                late = time.monotonic() >= ends
                said = self._look(task_id, now=late)
                if said is not None and said.given_up and not late:  # by another run
                    _persistently(lambda: ask(self._store, task, self.overlap))
                if late:
                    _persistently(lambda: give_up(self._store, task_id))
                if said is not None and said.rankings and (said.complete or late):
                    return said
                if late or (said is not None and said.complete):
                    why = f"within wait={self.wait:g} seconds" if late else "and all have seen it"
                    raise RewardFailure(
                        f"nobody has ranked task {task_id} of {hide_password(self.url)} {why}; "
                        f'wait longer, ask others, or on_reward_error="mask" goes on with what is '
                        f"ranked"
                    )
                time.sleep(min(LOOKS, max(ends - time.monotonic(), 0.0)))
        finally:
            with self._lock:
                self._waiting -= Counter([task_id])
                self._total *= bool(self._waiting)

    def _look(self, task_id: int, *, now: bool) -> "Asked | None":
        """Return what is known of a task; all that wait share one look into the database."""
        from textrl.labels.asking import asked

        with self._lock:
            moment = time.monotonic()
            if now or moment >= self._looked + LOOKS:
                self._looked = moment
                self._found = _persistently(lambda: asked(self._store, set(self._waiting)))
            left = sum(
                number
                for waits, number in self._waiting.items()
                if waits not in self._found or not self._found[waits].complete
            )
            if left and moment >= self._told + TELLS:
                print(
                    f"waiting for people: {self._total - left} of {self._total} groups are ranked; "
                    f"textrl collect --database {hide_password(self.url)} serves their page",
                    file=sys.stderr,
                    flush=True,
                )
                self._told = moment
            return self._found.get(task_id)


def _persistently(call: Callable[[], Result]) -> Result:
    """Return what a call returns once the database can be reached; people's time is worth it."""
    while True:
        try:
            return call()
        except OSError as error:
            print(f"{error}; trying again", file=sys.stderr, flush=True)
            time.sleep(LOOKS)
