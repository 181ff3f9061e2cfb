"""The active choice of pairs: what is shown with and without a reward model, and all of it."""

import time
from pathlib import Path

import pytest
from labels import Served
from sqlalchemy import select
from sqlalchemy.orm import Session

from textrl.envs import tiny_model, tiny_tokenizer
from textrl.errors import UserError
from textrl.feedback.active import Candidate, Chooser
from textrl.feedback.config import CollectConfig
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


def test_with_a_model_the_widest_pairs_come_first_and_none_twice(
    tmp_path: Path, start: Path
) -> None:
    (tmp_path / "models").mkdir()
    model = keep_model(start, tmp_path / "models/20")
    store = Store(f"sqlite:///{tmp_path}/l.db", create=True)
    chooser = Chooser(tmp_path / "models", store, load_tokenizer(start))
    found = chooser.choose(POOL, 3)
    assert sorted(number for number, _ in found) == [0, 1, 2]  # one pair a prompt
    assert ["dcba", "dcba"] not in [outputs for _, outputs in found]  # no difference, no news
    number, outputs = found[0]
    states = model.classifier.states(
        model.encoded([POOL[number].row["prompt"] + text for text in outputs])
    )
    # What is asked already, here the first choice itself and what is like it, tells no more.
    for _ in range(3):
        task = NewTask(prompt=POOL[number].row["prompt"], outputs=outputs, source={}, columns={})
        store.add_tasks([task])
    assert chooser.choose(POOL, 1)[0] != (number, outputs) or len(states) == 0
    keep_model(start, tmp_path / "models/100")  # a newer one, by number and not by name
    chooser.choose(POOL, 1)
    assert chooser._path == tmp_path / "models/100"


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
