"""The active choice of pairs: what is shown with and without a reward model, and all of it."""

import itertools
import time
from pathlib import Path

import pytest
import torch
from labels import Served
from sqlalchemy import select
from sqlalchemy.orm import Session
from torch import Tensor

from textrl.envs import tiny_model, tiny_tokenizer
from textrl.errors import UserError
from textrl.feedback.active import Candidate, Chooser
from textrl.feedback.config import CollectConfig
from textrl.informative import most_informative
from textrl.labels.store import Store
from textrl.labels.tables import Task
from textrl.labels.tasks import NewTask
from textrl.models import load_tokenizer
from textrl.rewards import RewardModel
from textrl.trainers import reward_model_from


def candidate(prompt: str, *outputs: str) -> Candidate:
    return Candidate(row={"prompt": prompt}, place="p.jsonl:1", outputs=list(outputs))


POOL = [
    candidate("a", "b", "bb", "bbb"),
    candidate("c", "dcba", "dcba", "cccccccc"),
    candidate("b", "a", "a b", "d d d"),
]


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """Return a folder with a language model, from which reward models start."""
    tiny_model().save_pretrained(tmp_path / "start")
    tiny_tokenizer().save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def keep_model(start: Path, folder: Path) -> RewardModel:
    model = reward_model_from(start)
    model.save_pretrained(folder)
    load_tokenizer(start).save_pretrained(folder)
    return RewardModel.from_pretrained(folder)


def test_without_a_model_candidates_come_in_order(tmp_path: Path, start: Path) -> None:
    (tmp_path / "models").mkdir()
    store = Store(f"sqlite:///{tmp_path}/l.db", create=True)
    chooser = Chooser(tmp_path / "models", store, load_tokenizer(start))
    assert chooser.choose(POOL, 2) == [(0, ["b", "bb"]), (1, ["dcba", "dcba"])]


Pair = tuple[str, str, str]
"""A prompt and two outputs."""


def differences(model: RewardModel, pairs: list[Pair]) -> tuple[Tensor, Tensor]:
    """Return the difference of states and of scores of each pair."""
    both = [[pair[0] + pair[side] for pair in pairs] for side in (1, 2)]
    first, second = (model.classifier.states(model.encoded(texts)) for texts in both)
    scores = [torch.tensor(model.raw_scores(texts)) for texts in both]
    return first - second, scores[0] - scores[1]


def test_with_a_model_the_most_informative_pairs_come_first(tmp_path: Path, start: Path) -> None:
    """As by hand, with what was asked before, whatever number of outputs it had."""
    (tmp_path / "models").mkdir()
    model = keep_model(start, tmp_path / "models/20")
    store = Store(f"sqlite:///{tmp_path}/l.db", create=True)
    chooser = Chooser(tmp_path / "models", store, load_tokenizer(start))
    open_pairs = [
        (number, (one.row["prompt"], *pair))
        for number, one in enumerate(POOL)
        for pair in itertools.combinations(one.outputs, 2)
    ]
    numbers = [number for number, _ in open_pairs]
    wanted = differences(model, [pair for _, pair in open_pairs])
    firsts = []
    for known in ([], [("b", "a", "a b"), ("b", "a", "d d d"), ("b", "a b", "d d d")]):
        told = differences(model, known) if known else (wanted[0][:0], torch.zeros(0))
        best = most_informative(*wanted, *told, 3, numbers)
        expected = [(numbers[index], list(open_pairs[index][1][1:])) for index in best]
        assert chooser.choose(POOL, 3) == expected
        firsts.append(expected[0])
        outputs = ["a", "a b", "d d d"]
        store.add_tasks([NewTask(prompt="b", outputs=outputs, source={}, columns={})])
    assert firsts[0] != firsts[1]  # what was asked is no news
    keep_model(start, tmp_path / "models/100")  # a newer one, by number and not by name
    chooser.choose(POOL, 1)
    assert chooser.rankings == 100


def test_what_the_reward_model_cannot_read_is_shown_last(tmp_path: Path, start: Path) -> None:
    """Neither a long output that waits nor one that was asked about ends the sampler."""
    (tmp_path / "models").mkdir()
    keep_model(start, tmp_path / "models/20")
    tokenizer = load_tokenizer(tmp_path / "models/20")
    tokenizer.model_max_length = 8
    tokenizer.save_pretrained(tmp_path / "models/20")
    store = Store(f"sqlite:///{tmp_path}/l.db", create=True)
    long = "dcba" * 5
    store.add_tasks([NewTask(prompt="a", outputs=[long, "b"], source={}, columns={})])
    chooser = Chooser(tmp_path / "models", store, load_tokenizer(start))
    pool = [candidate("a", long, long + "a"), *POOL]
    found = chooser.choose(pool, 4)
    assert found[-1] == (0, [long, long + "a"])
    assert sorted(number for number, _ in found) == [0, 1, 2, 3]
    assert chooser.choose(pool[:1], 1) == [(0, [long, long + "a"])]


def test_the_state_is_what_the_last_layer_reads(start: Path, tmp_path: Path) -> None:
    model = keep_model(start, tmp_path / "rm")
    texts = ["a", "dcba b", "c" * 9]
    states = model.classifier.states(model.encoded(texts))
    assert model.classifier.head is not None
    scores = model.classifier.head(states).squeeze(1)
    assert scores.tolist() == pytest.approx(model.raw_scores(texts), abs=1e-5)


def test_a_choice_needs_something_to_choose_by() -> None:
    with pytest.raises(UserError, match="choose is 'informative'; expected in_order; informative"):
        CollectConfig(choose="informative", prompts="p.jsonl", model="m")


def reward_model_there(served: Served) -> bool:
    with served.client("lead") as lead:
        return bool(lead.get("/api/lead/overview").json()["reward_checks"])


@pytest.mark.slow
def test_the_page_shows_chosen_pairs(tmp_path: Path, start: Path) -> None:
    """The real server, sampler and `textrl reward`: pairs in order, then pairs by a model."""
    letters = "abcd"
    rows = [f'{{"prompt": "{x}{y}{z}"}}' for x in letters for y in letters for z in letters]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    options = ["--prompts=prompts.jsonl", f"--model={start}", f"--reward_model={start}"]
    options += ["--choose=informative", "--max_completion_tokens=6", "--labelers=ann"]
    served = Served(tmp_path, *options)
    store = Store(f"sqlite:///{tmp_path}/labels.db")
    try:
        answered, chosen_after = 0, [0]
        deadline = time.monotonic() + 120
        with served.client("ann") as ann:
            while not any(chosen_after):
                assert time.monotonic() < deadline
                task = ann.post("/api/claim", json={}).json()["task"]
                if task is None or (answered >= 24 and not reward_model_there(served)):
                    time.sleep(0.1)
                    continue
                assert len(task["outputs"]) == 2
                lengths = [len(text) for text in task["outputs"]]
                answer = {"ranks": [0, 1] if lengths[0] >= lengths[1] else [1, 0]}
                ann.post(f"/api/tasks/{task['task_id']}/answer", json=answer)
                answered += 1
                with Session(store.engine) as session:
                    found = session.scalars(select(Task.source).order_by(Task.id))
                    chosen_after = [source["chosen_after"] for source in found]
        assert chosen_after[:8] == [0] * 8
        assert max(chosen_after) >= 20
    finally:
        served.stop()
        store.close()
