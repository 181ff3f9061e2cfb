"""People as the reward of a running environment: what is asked, waited for, paid and left out."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from labels import Served
from sqlalchemy import event

from textrl import people
from textrl.agents import RLOO, RLOOConfig
from textrl.agents.collect import collect
from textrl.agents.text_env import TextEnv
from textrl.cli import main
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.errors import UserError
from textrl.generation import ModelSampler
from textrl.labels import asking, lead
from textrl.labels.answers import Submission
from textrl.labels.asking import ask, asked
from textrl.labels.store import Store
from textrl.labels.tasks import NewTask
from textrl.models import split_lm
from textrl.people import PeopleReward, share_beaten
from textrl.rewards import make_scorer

Rank = Callable[[list[str]], list[int]]
LETTER_C = int(tiny_tokenizer().convert_tokens_to_ids("c"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "LOOKS", 0.01)


def by(value: Callable[[str], float]) -> Rank:
    """Return a labeler's rule: the higher the value, the better."""

    def rank(outputs: list[str]) -> list[int]:
        values = [value(text) for text in outputs]
        return [sum(other > mine for other in values) for mine in values]

    return rank


class Worker(threading.Thread):
    """A labeler who ranks whatever comes, until stopped; some tasks may be left alone."""

    def __init__(
        self,
        url: str,
        name: str,
        rank: Rank | None,
        takes: Callable[[list[str]], bool] = lambda o: True,
    ) -> None:
        super().__init__(daemon=True)
        self.store, self.rank, self.takes = Store(url, create=True), rank, takes
        lead.add_labeler(self.store, name)
        self.labeler = next(one.id for one in lead.labelers(self.store) if one.name == name)
        self.stopped, self.ranked = threading.Event(), 0

    def run(self) -> None:
        while not self.stopped.wait(0.005):
            task = self.store.claim(self.labeler)
            if task is None or not self.takes(task.outputs):
                continue
            said = Submission(skip_reason="cannot tell", seconds=1.0)
            if self.rank is not None:
                said = Submission(ranks=self.rank(task.outputs), seconds=1.0)
            self.store.submit(self.labeler, task.task_id, said)
            self.ranked += 1

    def __enter__(self) -> "Worker":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self.join()
        self.store.close()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/labels.db"


def of_groups(scorer: Any, completions: list[str], size: int = 4) -> list[float]:
    from textrl.reward_calls import Texts

    texts = Texts(prompts=["say"] * len(completions), completions=completions, columns={})
    return list(scorer.scores(texts, group_size=size).total)


def test_shares_by_hand() -> None:
    assert share_beaten([[0, 1, 2]]) == [1.0, 0.5, 0.0]
    assert share_beaten([[0, 0, 1]]) == [0.75, 0.75, 0.0]
    assert share_beaten([[0, 1], [1, 0]]) == [0.5, 0.5]
    assert share_beaten([[2, 0, 1], [2, 1, 0], [0, 1, 2]]) == [1 / 3, 2 / 3, 0.5]


def test_a_sample_earns_the_share_that_it_beats(url: str) -> None:
    scorer = make_scorer(f"collect:{url}")
    assert scorer.names == ("people",)
    with Worker(url, "ann", by(len)) as ann:
        found = of_groups(scorer, ["a", "aaa", "aa", "aaaa", "bb", "b", "bbbb", "bbb"])
    assert found == pytest.approx([0, 2 / 3, 1 / 3, 1, 1 / 3, 0, 1, 2 / 3])
    assert ann.ranked == 2  # one task a group


def test_two_labelers_are_averaged(url: str) -> None:
    scorer = make_scorer(f"collect:{url}?overlap=2")
    with Worker(url, "ann", by(len)), Worker(url, "bob", by(lambda text: -len(text))):
        assert of_groups(scorer, ["a", "aaa", "aa", "aaaa"]) == [0.5] * 4


def test_the_same_text_is_shown_once_and_a_blank_one_is_never_shown(url: str) -> None:
    scorer = make_scorer(f"collect:{url}")
    seen: list[list[str]] = []

    def rank(outputs: list[str]) -> list[int]:
        seen.append(sorted(outputs))
        return by(len)(outputs)

    with Worker(url, "ann", rank):
        assert of_groups(scorer, ["a", "aa", "a", " "]) == [0.5, 1.0, 0.5, 0.0]
        assert of_groups(scorer, ["b", "b", "b", "b"]) == [0.5] * 4  # nothing to ask
        assert of_groups(scorer, ["", " ", "\n", ""]) == [0.5] * 4
        assert of_groups(scorer, ["c", "", "c", "c"]) == pytest.approx([2 / 3, 0, 2 / 3, 2 / 3])
    assert seen == [["a", "aa"]]


def test_an_answer_is_never_asked_for_twice(url: str) -> None:
    """So that a run that was killed while it waited, and samples the same again, goes on."""
    with Worker(url, "ann", by(len)):
        first = of_groups(make_scorer(f"collect:{url}"), ["a", "aaa", "aa", "aaaa"])
    again = of_groups(make_scorer(f"collect:{url}"), ["a", "aaa", "aa", "aaaa"])
    assert again == first  # nobody is there any more


def test_what_nobody_ranks_in_time_is_left_out_and_shown_no_more(tmp_path: Path, url: str) -> None:
    venv = gym.make_vec(
        "TextRLHF-v0",
        num_envs=16,
        group_size=4,
        max_completion_tokens=6,
        reward=f"collect:{url}?wait=1.5",
        on_reward_error="mask",
    )
    env, generator = TextEnv(venv), torch.Generator().manual_seed(0)
    lazy = iter([True, False, True, False])  # takes every second task
    decided: dict[str, bool] = {}

    def takes(outputs: list[str]) -> bool:
        return decided.setdefault(min(outputs), next(lazy, False))

    with Worker(url, "ann", by(len), takes) as ann:
        rollout = collect(ModelSampler(split_lm(tiny_model())), env, generator)
        time.sleep(0.2)
    assert ann.ranked >= 1
    per_group = torch.isnan(rollout.scores).reshape(4, 4)
    assert (per_group.all(1) | ~per_group.any(1)).all()  # whole groups
    assert per_group.all(1).sum() == 4 - ann.ranked
    assert ann.store.open_tasks() == 0  # nobody is asked for what no longer counts


def test_without_masks_the_run_stops_with_the_remedy(url: str) -> None:
    scorer = make_scorer(f"collect:{url}?wait=0.05")
    with pytest.raises(
        UserError, match=r"within wait=0.05 seconds; wait longer, ask others, or on_reward_error"
    ):
        of_groups(scorer, ["a", "aaa", "aa", "aaaa"])


def test_one_of_two_labelers_is_enough_when_the_time_is_over(url: str) -> None:
    scorer = make_scorer(f"collect:{url}?wait=1&overlap=2")
    with Worker(url, "ann", by(len)) as ann:
        lead.add_labeler(ann.store, "bob")  # who never comes
        assert of_groups(scorer, ["a", "aaa", "aa", "aaaa"]) == pytest.approx([0, 2 / 3, 1 / 3, 1])


def test_a_group_that_was_given_up_is_asked_again(url: str) -> None:
    with pytest.raises(UserError):
        of_groups(make_scorer(f"collect:{url}?wait=0.05"), ["a", "aaa", "aa", "aaaa"])
    with Worker(url, "ann", by(len)):
        found = of_groups(make_scorer(f"collect:{url}"), ["a", "aaa", "aa", "aaaa"])
    assert found == pytest.approx([0, 2 / 3, 1 / 3, 1])


def test_many_groups_of_the_same_texts_share_one_task(url: str) -> None:
    """The first that is answered must not stop the others from looking."""
    scorer = make_scorer(f"collect:{url}")
    with Worker(url, "ann", by(len)) as ann:
        found = of_groups(scorer, ["a", "aa", "b", "bbb"] * 64, 2)
    assert found == [0.0, 1.0] * 128
    assert ann.ranked == 2


def test_a_group_that_looks_later_than_its_twin_is_not_forgotten(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both wait for one task, and the other has gone on when this one looks."""
    reward, found = PeopleReward.from_name(f"collect:{url}"), dict[str, list[float]]()

    def wait() -> None:
        found[threading.current_thread().name] = reward(["p", "p"], ["a", "aa"])

    def sleep(seconds: float, real: Callable[[float], None] = time.sleep) -> None:
        real(seconds * (20 if threading.current_thread().name == "late" else 1))

    monkeypatch.setattr(people.time, "sleep", sleep)
    threads = [threading.Thread(target=wait, name=name, daemon=True) for name in ("early", "late")]
    for thread in threads:
        thread.start()
    while reward._waiting.total() < 2:
        time.sleep(0.005)
    with Worker(url, "ann", by(len)):
        for thread in threads:
            thread.join(timeout=20)
    assert found == {"early": [0.0, 1.0], "late": [0.0, 1.0]}


def test_what_everybody_has_skipped_is_a_failure_and_not_an_endless_wait(url: str) -> None:
    scorer = make_scorer(f"collect:{url}")
    with Worker(url, "ann", None), pytest.raises(UserError, match="all have seen it"):
        of_groups(scorer, ["a", "aaa", "aa", "aaaa"])


def test_two_of_three_labelers_are_enough_when_the_third_has_skipped(url: str) -> None:
    scorer = make_scorer(f"collect:{url}?overlap=3")
    with Worker(url, "ann", by(len)), Worker(url, "bob", by(len)), Worker(url, "cat", None):
        assert of_groups(scorer, ["a", "aaa"], 2) == [0.0, 1.0]


def test_one_run_may_give_up_what_another_waits_for(url: str) -> None:
    patient, hasty = make_scorer(f"collect:{url}"), make_scorer(f"collect:{url}?wait=0.3")
    found: list[list[float]] = []
    waits = threading.Thread(target=lambda: found.append(of_groups(patient, ["a", "aa"], 2)))
    waits.start()
    with pytest.raises(UserError, match="nobody has ranked"):
        of_groups(hasty, ["a", "aa"], 2)
    with Worker(url, "ann", by(len)):
        waits.join(timeout=20)
    assert found == [[0.0, 1.0]]


def test_what_the_lead_has_paused_stays_paused(url: str) -> None:
    """Asking again shows what a run had given up, and nothing that the lead has taken out."""
    with pytest.raises(UserError):
        of_groups(make_scorer(f"collect:{url}?wait=0.05"), ["a", "aa"], 2)
    with Worker(url, "ann", None) as ann:
        of_run = ask(ann.store, NewTask(prompt="p", outputs=["x", "y"], source={}, columns={}))
        lead.change_tasks(ann.store, task_id=of_run, paused=True)
        assert (
            ask(ann.store, NewTask(prompt="p", outputs=["x", "y"], source={}, columns={})) == of_run
        )
        assert ann.store.open_tasks() == 0


def test_more_labelers_may_be_asked_for_later(url: str) -> None:
    with Worker(url, "ann", by(len)):
        assert of_groups(make_scorer(f"collect:{url}"), ["a", "aa"], 2) == [0.0, 1.0]
        with Worker(url, "bob", by(lambda text: -len(text))):
            assert of_groups(make_scorer(f"collect:{url}?overlap=2"), ["a", "aa"], 2) == [0.5, 0.5]


def test_what_cannot_be_stored_is_shown_in_another_way(url: str) -> None:
    """A byte-level tokenizer can sample a NUL, which no database takes."""
    reward = PeopleReward.from_name(f"collect:{url}")
    with Worker(url, "ann", by(len)) as ann:
        assert reward(["a", "a"], ["x\x00", "y"]) == [1.0, 0.0]
        _, task = ann.store.history(ann.labeler)[0]
    assert sorted(task.outputs) == ["x\u2400", "y"]


def test_tools_make_another_question(url: str) -> None:
    reward = PeopleReward.from_name(f"collect:{url}")
    chat = [{"role": "user", "content": "hello"}]
    with Worker(url, "ann", by(len)) as ann:
        for name in ("add", "subtract"):
            tools = [[{"name": name}]] * 2
            reward(["hello"] * 2, ["a", "bb"], messages=[chat, chat], tools=tools)
    assert ann.ranked == 2


@pytest.mark.parametrize("name", ["asked", "ask"])
def test_a_database_that_restarts_loses_nothing(
    name: str, url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    scorer = make_scorer(f"collect:{url}")
    real, failures = getattr(asking, name), iter([True] * 3)

    def sometimes(*arguments: Any) -> Any:
        if next(failures, False):
            raise OSError("the labels cannot be read: restarting")
        return real(*arguments)

    monkeypatch.setattr(asking, name, sometimes)
    with Worker(url, "ann", by(len)):
        assert of_groups(scorer, ["a", "aaa", "aa", "aaaa"]) == pytest.approx([0, 2 / 3, 1 / 3, 1])
    assert capfd.readouterr().err.count("cannot be read: restarting; trying again") == 3


def test_a_metric_beside_people_pays_nothing(url: str) -> None:
    def length(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(len(text)) for text in completions]

    scorer = make_scorer([f"collect:{url}", (length, 0.0)])
    with Worker(url, "ann", by(len)):
        assert of_groups(scorer, ["a", "aaa"], 2) == [0.0, 1.0]
    assert scorer.names == ("people", "length")


def test_asking_does_not_read_all_tasks(url: str) -> None:
    """A run asks for each group, whatever number of tasks is there already."""
    store, said = Store(url, create=True), list[str]()
    event.listen(
        store.engine,
        "before_cursor_execute",
        lambda c, cursor, statement, *rest: said.append(statement),
    )
    ask(store, NewTask(prompt="p", outputs=["x", "y"], source={}, columns={}))
    digests = [text for text in said if text.startswith("SELECT task.digest")]
    assert digests
    assert all("WHERE" in text for text in digests)


def test_chats_are_shown_as_chats(url: str) -> None:
    reward = PeopleReward.from_name(f"collect:{url}")
    chat = [{"role": "user", "content": "hello"}]
    with Worker(url, "ann", by(len)) as ann:
        assert reward(["<user>hello"] * 2, ["a", "bb"], messages=[chat, chat]) == [0.0, 1.0]
        _, task = ann.store.history(ann.labeler)[0]
    assert task.prompt == chat
    assert asked(ann.store, {task.id})[task.id].complete


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("collect:", "names no database"),
        ("collect:labels.db?wait=soon", "wait is 'soon', no number"),
        ("collect:labels.db?paitence=3", "unknown setting 'paitence=3'"),
        ("collect:labels.db?overlap=0", "overlap from 1 to 100"),
        ("collect:no/such/folder/labels.db", "no such folder"),
        ("collect:mysql://host/labels", "expected sqlite:///FILE"),
    ],
)
def test_a_wrong_name_is_refused(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        make_scorer(name)


def test_groups_that_cannot_be_ranked_are_refused(url: str) -> None:
    with pytest.raises(UserError, match="at most 9 outputs"):
        of_groups(make_scorer(f"collect:{url}"), list("abcdefghij"), 10)
    with pytest.raises(UserError, match="group_size=4"):
        of_groups(make_scorer(f"collect:{url}"), ["a"], 1)


@pytest.mark.slow
def test_an_agent_learns_what_people_like(url: str, learning: Any) -> None:
    """Labelers who like the letter c, against the same agent with labelers who roll dice."""

    def share_of_c(rank: Rank, seed: int) -> float:
        mine = url.replace("labels", f"labels{seed}{rank.__name__}")
        venv = gym.make_vec(
            "TextRLHF-v0",
            num_envs=32,
            group_size=4,
            max_completion_tokens=6,
            kl_coef=0.0,
            reward=f"collect:{mine}",
        )
        config = RLOOConfig(episodes_per_iteration=32, learning_rate=1e-2, seed=seed)
        agent = RLOO(tiny_model(seed=seed), venv, config)
        with Worker(mine, "ann", rank):
            agent.learn(12 * 32 * 5)
            rollout = collect(agent.sampler, agent.env, torch.Generator().manual_seed(1))
        said = (rollout.completion_ids == LETTER_C) & rollout.mask
        return float(said.any(1).float().mean())

    dice = np.random.default_rng(0)

    def likes(outputs: list[str]) -> list[int]:
        return by(lambda text: float("c" in text))(outputs)

    def rolls(outputs: list[str]) -> list[int]:
        return by(lambda text: float(dice.random()))(outputs)

    learning(lambda seed: share_of_c(likes, seed) - share_of_c(rolls, seed), above=0.2)


@pytest.mark.slow
def test_a_command_asks_through_the_page(tmp_path: Path, monkeypatch, capfd) -> None:
    """`textrl rloo --reward collect:labels.db` beside `textrl collect`, ranked by HTTP."""
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("start")
    tiny_tokenizer().save_pretrained("start")
    Path("prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    served = Served(tmp_path, "--labelers=ann")
    ended = threading.Event()

    def work() -> None:
        with served.client("ann") as page:
            while not ended.wait(0.02):
                task = page.post("/api/claim", json={}).json()["task"]
                if task is not None:
                    ranks = by(len)(task["outputs"])
                    answer = {"ranks": ranks, "seconds": 1.0}
                    page.post(f"/api/tasks/{task['task_id']}/answer", json=answer)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        options = "--model start --reward collect:labels.db --prompts prompts.jsonl --num_envs 8"
        options += " --group_size 2 --episodes_per_iteration 8 --max_completion_tokens 4"
        options += " --total_timesteps 60 --output_dir run"
        main(["rloo", *options.split()])
    finally:
        ended.set()
        worker.join()
        served.stop()
    assert "groups are ranked; textrl collect --database" in capfd.readouterr().err
