"""The tasks of reasoning-gym (`pip install reasoning-gym`, Apache-2.0) as worlds of one turn."""

import inspect
from typing import Any

from textrl.envs.worlds.foreign import ForeignWorld, making
from textrl.errors import UserError, did_you_mean, needing, shown


class ReasoningGymWorld(ForeignWorld):
    """One question and one answer: `ReasoningGymWorld("letter_counting", max_words=1)`.

    An episode's item is drawn by `reset(seed=...)`, or chosen by `options={"index": i}`; `info`
    holds the index, and after the answer the task's own answer. The reward is the task's
    `score_answer` of the stripped text. A text that the task's parser cannot read (three of the 104
    tasks raise for some) is worth 0 and `info["error"]` says why. The reply to the answer is empty.
    Equal arguments and seeds give equal questions, as the data set depends on its own seed alone.

    Args:
        task: A name of reasoning-gym's, "letter_counting" say.
        size: Number of items.
        seed: Seed of the data set; `reset(seed=...)` only chooses among its items.
        config: Fields of the task's configuration; a field that it does not have is refused.
    """

    def __init__(self, task: str, *, size: int = 500, seed: int = 0, **config: Any) -> None:
        super().__init__(f"reasoning-gym's {task}")
        with self.isolated():
            with needing("reasoning"):
                import reasoning_gym
                from reasoning_gym.factory import DATASETS
            if task not in DATASETS:
                hint = did_you_mean(task, DATASETS)
                raise UserError(f"reasoning-gym has no task {task!r}{hint}")
            fields = set(inspect.signature(DATASETS[task][1]).parameters)
            for name in config:
                if name not in fields:
                    hint = did_you_mean(name, fields)
                    raise UserError(f"{self.who} has no setting {name!r}{hint}")
            with making(self.who):  # a configuration checks itself, by assertions mostly
                self._items = reasoning_gym.create_dataset(task, size=size, seed=seed, **config)
        self._size = size

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Return the question of a drawn item, or of `options={"index": i}`."""
        chosen = dict(options or {})
        index = chosen.pop("index", None)
        if chosen:
            found = ", ".join(map(str, chosen))
            raise UserError(f"{self.who} takes the option 'index' alone; found {found}")
        self.begin(seed)
        if index is None:
            index = int(self.np_random.integers(self._size))
        elif isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < self._size:
            last = self._size - 1
            raise UserError(
                f"{self.who}: index {shown(index)}; expected a whole number 0 to {last}"
            )
        self._index = index
        with self.isolated(index):
            self._entry = self._items[index]
        return self.started(self._entry["question"], {"index": index})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Return the score of the answer, which ends the episode."""
        answer = self.taken(action).strip()
        info: dict[str, Any] = {"index": self._index, "answer": self._entry["answer"]}
        with self.isolated():
            try:
                score = self._items.score_answer(answer=answer, entry=self._entry)
            except Exception as error:
                score = 0.0
                info["error"] = f"{type(error).__name__}: {error}"
                self._must_know_its_own_answer(error)
        return self.replied("", score, True, False, info)

    def _must_know_its_own_answer(self, error: Exception) -> None:
        """Raise unless the task can score its own answer: a broken task must not pass for zeros."""
        try:
            self._items.score_answer(answer=self._entry["answer"], entry=self._entry)
        except Exception as second:
            raise UserError(
                f"{self.who}: item {self._index} cannot be scored: {type(error).__name__}: {error}"
            ) from second
