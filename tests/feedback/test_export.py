"""From labels to trainers: what each kind of row holds, the filters, and equal training."""

import json
import math
import random
from pathlib import Path

import pytest
from labels import task
from transformers import PreTrainedTokenizerFast

from textrl.cli import main
from textrl.config import DPOConfig, RewardConfig, SFTConfig
from textrl.data import load_records
from textrl.envs import tiny_model
from textrl.errors import UserError
from textrl.feedback.task_files import read_tasks
from textrl.labels import lead
from textrl.labels.answers import Submission
from textrl.labels.export import Filters, rows
from textrl.labels.store import Store
from textrl.labels.tasks import NewTask
from textrl.trainers import DPOTrainer, RewardTrainer, SFTTrainer, reward_model_from


def answer(store: Store, name: str, ranks: list[int], **fields: object) -> None:
    """Answer the labeler's next task with ranks in stored order."""
    known = {person.name: person.id for person in lead.labelers(store)}
    if name not in known:
        lead.add_labeler(store, name)
        known = {person.name: person.id for person in lead.labelers(store)}
    given = store.claim(known[name])
    assert given is not None
    shown = Submission(ranks=ranks, **fields).shuffled(given.shown_order)
    store.submit(known[name], given.task_id, shown)


@pytest.fixture
def labelled(tmp_path: Path) -> Store:
    store = Store(f"sqlite:///{tmp_path}/labels.db", create=True)
    columns = {"topic": "sea"}
    first = NewTask(
        prompt="The sea is", outputs=[" b", " a", " c"], source={"model": "m"}, columns=columns
    )
    store.add_tasks([first, task("two", outputs=2)], overlap=2)
    answer(store, "ann", [1, 0, 1], demonstration="calm", rating=6)
    answer(store, "bob", [2, 0, 1])
    answer(store, "ann", [0, 1], flags=["harmful"])
    answer(store, "bob", [0, 1])
    return store


def test_rankings_are_lossless(labelled: Store) -> None:
    found = rows(labelled, "rankings")
    assert [row["ranks"] for row in found] == [[1, 0, 1], [2, 0, 1], [0, 1], [0, 1]]
    assert found[0]["completions"] == [" b", " a", " c"]
    assert found[0]["labeler"] == "ann"
    assert found[0]["rating"] == 6
    assert found[0]["source"] == {"model": "m"}
    assert sorted(found[0]["shown_order"]) == [0, 1, 2]
    assert found[0]["agreement"] == pytest.approx(2 / 3)  # (b, a) and (a, c) alike, (b, c) tied
    assert found[2]["agreement"] == 1


def test_pairs_leave_ties_out(labelled: Store) -> None:
    found = [(row["labeler"], row["chosen"], row["rejected"]) for row in rows(labelled, "pairs")]
    assert found[:5] == [
        ("ann", " a", " b"),
        ("ann", " a", " c"),
        ("bob", " a", " b"),
        ("bob", " c", " b"),
        ("bob", " a", " c"),
    ]
    assert len(found) == 7


def test_demonstrations_continue_the_prompt(labelled: Store) -> None:
    (row,) = rows(labelled, "demonstrations")
    assert row["prompt"] + row["completion"] == "The sea is calm"  # people do not type the space
    assert rows(labelled, "prompts")[0] == {"prompt": "The sea is", "topic": "sea"}


def test_filters(labelled: Store) -> None:
    assert len(rows(labelled, "rankings", Filters(min_agreement=0.9))) == 2
    assert len(rows(labelled, "rankings", Filters(drop_flagged=True))) == 2
    assert len(rows(labelled, "pairs", Filters(labelers=("ann",)))) == 3
    assert rows(labelled, "rankings", Filters(min_agreement=1.0, drop_flagged=True)) == []
    with pytest.raises(UserError, match="'eve'"):
        rows(labelled, "pairs", Filters(labelers=("eve",)))
    with pytest.raises(UserError, match="share"):
        Filters(min_agreement=70)


def test_reading_by_url(labelled: Store) -> None:
    url = labelled.url
    assert load_records(url, "rankings").rows == rows(labelled, "rankings")
    filtered = load_records(f"{url}?min_agreement=0.9&labelers=bob", "rankings")
    assert [row["labeler"] for row in filtered.rows] == ["bob"]
    for query, words in (
        ("agreement=1", "'agreement'"),
        ("min_agreement=x", "'x'"),
        ("drop_flagged=1", "true or false"),
        ("min_agreement=1&drop_flagged=true", "no rankings"),
    ):
        with pytest.raises(UserError, match=words):
            load_records(f"{url}?{query}", "rankings")
    with pytest.raises(UserError, match="no such label database"):
        load_records("sqlite:///none.db", "pairs")


def test_the_command_writes_the_same_rows(labelled: Store, tmp_path: Path) -> None:
    for kind in ("rankings", "pairs", "demonstrations", "prompts"):
        path = tmp_path / f"{kind}.jsonl"
        main(["export", f"--database={labelled.url}", f"--rows={kind}", f"--output={path}"])
        assert load_records(str(path)).rows == rows(labelled, kind)
    with pytest.raises(SystemExit):
        main(["export", f"--database={labelled.url}", f"--output={path}"])


def test_chat_rows(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/labels.db", create=True)
    chat = [{"role": "user", "content": "hi"}]
    columns = {"tools": [{"name": "add"}], "chat_template_kwargs": {"thinking": True}}
    store.add_tasks(
        [NewTask(prompt=chat, outputs=["yo", "hello"], source={}, columns=columns | {"topic": "t"})]
    )
    answer(store, "ann", [1, 0], demonstration="Hello!")
    for kind in ("pairs", "demonstrations", "rankings"):  # trainers write chats with them
        (row,) = rows(store, kind)
        assert columns.items() <= row.items()
        assert "topic" not in row
    (pair,) = rows(store, "pairs")
    assert pair["chosen"] == [{"role": "assistant", "content": "hello"}]
    (written,) = rows(store, "demonstrations")
    assert written["completion"] == [{"role": "assistant", "content": "Hello!"}]


def test_training_from_the_database_is_training_from_the_file(
    tmp_path: Path, checkpoint: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    store = Store(f"sqlite:///{tmp_path}/labels.db", create=True)
    letters = "abcdefghijkl"
    store.add_tasks(
        [
            NewTask(prompt=c, outputs=["x" + c, "y" + c, "z" + c], source={}, columns={})
            for c in letters
        ]
    )
    for index in range(len(letters)):
        answer(store, "ann", [index % 3, 1, 0], demonstration="q" + letters[index])
    sources: dict[str, dict[str, str]] = {}
    for kind in ("rankings", "pairs", "demonstrations"):
        path = tmp_path / f"{kind}.jsonl"
        main(["export", f"--database={store.url}", f"--rows={kind}", f"--output={path}"])
        sources[kind] = {"url": store.url, "file": str(path)}
    scores, losses = [], []
    for way in ("url", "file"):
        model = reward_model_from(checkpoint)
        config = RewardConfig(heldout_share=0.3, learning_rate=1e-3, num_epochs=2)
        trained = RewardTrainer(model, tokenizer, sources["rankings"][way], config, shown=False)
        scores.append(trained.train())
        policy = tiny_model().requires_grad_(True)
        SFTTrainer(
            policy, tokenizer, sources["demonstrations"][way], SFTConfig(), shown=False
        ).train()
        DPOTrainer(policy, tokenizer, sources["pairs"][way], DPOConfig(), shown=False).train()
        losses.append([p.sum().item() for p in policy.parameters()])
    assert scores[0] == scores[1]
    assert losses[0] == losses[1]
    assert math.isfinite(sum(losses[0]))


@pytest.mark.proof
def test_rankings_teach_what_their_pairs_in_a_file_teach(
    tmp_path: Path,
    checkpoint: str,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Accuracy on held-out synthetic preferences: close, and far above chance."""
    rng = random.Random(0)

    def text() -> str:
        return "".join(rng.choice("abcdefghij") for _ in range(8))

    def worth(completion: str) -> int:
        return sum(ord(letter) - ord("a") for letter in completion)

    store = Store(f"sqlite:///{tmp_path}/labels.db", create=True)
    tasks = [
        NewTask(prompt=text()[:3], outputs=[text() for _ in range(4)], source={}, columns={})
        for _ in range(1000)
    ]
    store.add_tasks(tasks)
    for made in tasks:
        felt = [worth(output) + rng.gauss(0, 4) for output in made.outputs]  # people waver
        answer(store, "ann", [sum(other > mine for other in felt) for mine in felt])
    pairs = tmp_path / "pairs.jsonl"
    main(["export", f"--database={store.url}", "--rows=pairs", f"--output={pairs}"])
    heldout = [(text(), text()) for _ in range(2000)]
    decided = [pair for pair in heldout if worth(pair[0]) != worth(pair[1])]
    means = []
    for source, minibatch in ((store.url, 8), (str(pairs), 48)):  # the same pairs in an update
        accuracies = []
        for seed in range(3):
            config = RewardConfig(learning_rate=2e-3, minibatch_size=minibatch, seed=seed)
            base = reward_model_from(checkpoint, seed)
            trainer = RewardTrainer(base, tokenizer, source, config, shown=False)
            trainer.train()
            model = trainer.reward_model()
            first, second = (
                model([""] * len(decided), [pair[side] for pair in decided]) for side in (0, 1)
            )
            right = [
                (one > other) == (worth(a) > worth(b))
                for one, other, (a, b) in zip(first, second, decided, strict=True)
            ]
            accuracies.append(sum(right) / len(right))
        means.append(sum(accuracies) / len(accuracies))
    print(f"accuracy from rankings {means[0]:.3f}, from their pairs {means[1]:.3f}")
    assert min(means) > 0.9
    assert abs(means[0] - means[1]) <= 0.01


def test_tasks_from_files(tmp_path: Path) -> None:
    def read(*lines: object) -> list[NewTask]:
        path = tmp_path / "tasks.jsonl"
        path.write_text("\n".join(json.dumps(line) for line in lines))
        return read_tasks(str(path))

    assert read({"prompt": "p", "topic": "t"})[0].columns == {"topic": "t"}
    assert read({"prompt": "p", "completions": ["a", "b"]})[0].outputs == ["a", "b"]
    assert read({"prompt": "p", "outputs": ["a", "b"]})[0].outputs == ["a", "b"]
    gathered = read(*({"prompt": p, "completion": c} for p, c in ("pa", "pb", "qa")))
    assert [made.outputs for made in gathered] == [["a", "b"], ["a"]]
    doubled = read(*({"prompt": "p", "completion": c} for c in ("a", "", "a", "b")))
    assert doubled[0].outputs == ["a", "b"]  # as `textrl generate` may write them
    chat = {"prompt": [{"role": "user", "content": "p"}]}
    for first, second in (
        ({"tools": [{"name": "a"}]}, {"tools": [{"name": "b"}]}),
        ({"chat_template_kwargs": {"thinking": True}}, {}),
    ):  # the template writes two different prompts
        apart = [
            {**chat, **beside, "completion": text} for beside, text in ((first, "a"), (second, "b"))
        ]
        assert [made.outputs for made in read(*apart)] == [["a"], ["b"]]
        one, other = read(*({**chat, **beside} for beside in (first, second)))
        assert one.digest != other.digest
    none, empty = read(chat, {**chat, "tools": [], "topic": "t"})
    assert none.digest == empty.digest
    for row, words in (
        ({"text": "p"}, "expected a 'prompt'"),
        ({"prompt": "p", "completions": ["a", "a"]}, "same text"),
        ({"prompt": "p", "completions": ["a", " "]}, "expected a text"),
        ({"prompt": "p", "completions": "ab"}, "expected a list"),
        ({"prompt": "p\x00"}, "expected a 'prompt'"),
        ({"prompt": "half \ud83d"}, "half a character"),
        ({"prompt": [{"role": "user", "content": [{"type": "text"}]}]}, "expected a 'prompt'"),
        ({"prompt": [{"role": "user", "content": "x\x00"}]}, "expected a 'prompt'"),
        ({"prompt": "p", "completions": ["a", "half \udc00"]}, "half a character"),
        ({"prompt": "p", "completions": [str(i) for i in range(10)]}, "at most 9"),
    ):
        with pytest.raises(UserError, match=f"jsonl:1: .*{words}"):
            read(row)
