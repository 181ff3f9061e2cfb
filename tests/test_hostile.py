"""What fuzzing found, each kind once: one line where a traceback or a wrong number was."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from textrl.chat import Chat, chat_of, render
from textrl.cli import main, parse
from textrl.config import DPOConfig, PPOConfig, SFTConfig
from textrl.data import load_records, prompt_key
from textrl.durable import check_files
from textrl.encoding import encode_prompt, ranked_texts, sft_sequence
from textrl.envs import TextRLHFEnv, TextRLHFVectorEnv, tiny_tokenizer
from textrl.errors import UserError, shown
from textrl.metrics import log, open_logger
from textrl.rewards import make_scorer

GIVEN = ["sft", "--model=m", "--data=d", "--output_dir=o"]


def deep(depth: int) -> Any:
    inside: Any = "x"
    for _ in range(depth):
        inside = [inside]
    return inside


def ends_with_e(prompts: list[str], completions: list[str]) -> list[float]:
    if any(text.startswith("e") for text in completions):
        raise ConnectionError("no answer")
    return [float(len(text)) for text in completions]


def environment(**changes: Any) -> TextRLHFVectorEnv:
    common = {"prompts": ["a", "bc", "xyz"], "max_completion_tokens": 3, "reward": ends_with_e}
    return TextRLHFVectorEnv(2, **(common | changes))


@pytest.mark.parametrize("depth", [100, 700, 10_000])
def test_rows_that_are_deep(depth: int) -> None:
    for row in ({"prompt": deep(depth)}, {"prompt": "a", "tools": deep(depth)}):
        with pytest.raises(UserError, match="record 0: lists or objects lie in each other 100"):
            load_records([row])
    load_records([{"prompt": "a", "other": deep(90)}])
    cell = "[" * depth + "]" * depth
    with pytest.raises(UserError, match=r"row: (tools are|lists or objects)"):
        chat_of([{"role": "user", "content": "a"}], {"tools": f'{{"a": {cell}}}'}, "row")
    with pytest.raises(UserError, match="row: "):
        ranked_texts({"completions": cell, "ranks": "[0, 1]"}, "row")


def test_rows_of_a_file_that_are_deep(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "b", "other": ' + "[" * 120 + "]" * 120 + "}\n")
    with pytest.raises(UserError, match="rows.jsonl:2: lists or objects lie in each other 100"):
        load_records(file)


def test_half_an_emoji_in_a_reset_and_in_names() -> None:
    for half in ("a\ud800", [{"role": "user", "content": "\ud800"}]):
        with pytest.raises(UserError, match="half a character"):
            environment().reset(options={"prompt": half})
        with pytest.raises(UserError, match="half a character"):
            encode_prompt(tiny_tokenizer(), half)
    with pytest.raises(UserError, match="half a character"):
        load_records([{"prompt": "a", "tools": [{"\ud800": 1}]}])


def test_names_of_two_types_in_one_row() -> None:
    records = load_records([{"prompt": "a", 3: "b"}, {"prompt": "c", "d": 1}])
    assert set(records.columns_but("prompt")) == {3, "d"}
    assert prompt_key({"text": "a", 3: {"a": 1, 2: 2}})
    with pytest.raises(UserError, match="found"):
        sft_sequence(tiny_tokenizer(), {3: "a", "b": "c"}, "row", 9)


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "x" * 5000, "~nobody/x", "a\nb.jsonl"])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(UserError) as caught:
        load_records(name)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) <= 2000


def test_no_name_is_looked_up_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing error once read every JSON file below the working directory, or asked the hub."""
    datasets = pytest.importorskip("datasets", reason="needs the extra hub")
    asked = []

    def load(*what: str, **options: Any) -> list[dict[str, str]]:
        asked.append(what)
        return [{"prompt": "a"}]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load)
    Path("prompts.jsonl").write_text('{"prompt": "b"}')
    for name in ("json", "text", "owner/name", "imdb", "prompts", "none.parquet", "a/b/c"):
        with pytest.raises(UserError, match="no such file.*is asked for as hub:OWNER/NAME"):
            load_records(name)
    for name in ("hub:json", "hub:", "hub:../x", "hub:a/b/c"):
        with pytest.raises(UserError, match="write hub:OWNER/NAME"):
            load_records(name)
    Path("owner/name").mkdir(parents=True)
    with pytest.raises(UserError, match="is a folder here"):
        load_records("hub:owner/name")
    with pytest.raises(UserError, match="is a folder; give the file"):
        load_records("owner")
    assert asked == []
    assert load_records("hub:stanfordnlp/imdb").rows == [{"prompt": "a"}]
    assert asked == [("stanfordnlp/imdb",)]


def test_a_parquet_file_is_one_file(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra hub")
    for name in ("d[1].parquet", "d1.parquet"):
        datasets.Dataset.from_list([{"prompt": name}]).to_parquet(tmp_path / name)
        assert load_records(tmp_path / name).rows == [{"prompt": name}]


@pytest.mark.parametrize("kind", [SFTConfig, PPOConfig])
def test_numbers_beyond_all_floats(kind: type) -> None:
    for name in ("learning_rate", "seed"):
        with pytest.raises(UserError, match=f"{name} is 1000"):
            kind(**{name: 10**400})
    with pytest.raises(UserError, match="learning_rate is "):
        kind(learning_rate=deep(10_000))
    with pytest.raises(UserError, match="precision is array"):
        kind(precision=np.array(["auto", "float32"]))
    assert shown(int("9" * 4000) ** 2) == "a int"


def test_mixes_of_losses_that_are_none() -> None:
    for mix in ({3: 1.0}, {None: 1.0}, {"sigmoid": True}, {"sigmoid": 10**400}):
        with pytest.raises(UserError, match="loss_type is "):
            DPOConfig(loss_type=mix)


@pytest.mark.parametrize(
    "text",
    ["[" * 10_000, "{a: " * 5000, "- " * 3000, "a: &a [*a]", "x: 2001-99-99", "seed: !!int x"]
    + ["learning_rate: 1" + "0" * 400, "seed: " + "9" * 5000],
    ids=lambda text: text[:12],
)
def test_files_of_options_that_trap_their_reader(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError):
        parse([*GIVEN, f"--config={file}"])


def test_what_a_terminal_would_obey_is_escaped(capsys: Any) -> None:
    name = os.fsdecode(b"a\xff\x1b[2J\n")  # as the shell passes bytes that are no UTF-8
    with pytest.raises(SystemExit):
        main([*GIVEN[:2], f"--data={name}", "--output_dir=o", name])
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert len(error.splitlines()) == 1


def test_a_refused_step_changes_nothing() -> None:
    """The rows that a step would have begun anew had begun, and took the next action at once."""
    for wrong in ([4, 99], [99, 99], [4.5, 4.5]):
        tried, fresh = environment(), environment()
        for env in (tried, fresh):
            env.reset(seed=3)
            env.step([2, 4])  # row 0 is over
        with pytest.raises(UserError):
            tried.step(wrong)
        for actions in ([4, 4], [5, 5], [6, 6]):
            one, other = tried.step(actions), fresh.step(actions)
            assert np.array_equal(one[0]["input_ids"], other[0]["input_ids"])
            assert np.array_equal(one[1], other[1])


def test_a_reward_that_fails_beside_a_row_that_begins_anew() -> None:
    tried, fresh = environment(), environment()
    for env in (tried, fresh):
        env.reset(seed=3)
        env.step([2, 7])  # row 0 is over; the completion of row 1 begins with e
    with pytest.raises(UserError, match="no answer"):
        tried.step([4, 2])
    for env in (tried, fresh):
        env.step([4, 4])
    assert np.array_equal(tried.core.input_ids, fresh.core.input_ids)


def test_a_refused_reset_changes_nothing() -> None:
    single = (TextRLHFEnv(prompts=["a", "bc", "x"]), TextRLHFEnv(prompts=["a", "bc", "x"]))
    for pair in ((environment(), environment()), single):
        pair[0].reset(seed=3)
        pair[1].reset(seed=3)
        for options in (
            {"index": 9},
            {"prompt": ""},
            {"index": [9, 9]},
            3,
            {"index": [[1], [2, 3]]},
        ):
            with pytest.raises(UserError):
                pair[0].reset(seed=5, options=options)
        for _ in range(3):
            one, other = pair[0].reset()[0], pair[1].reset()[0]
            assert np.array_equal(one["input_ids"], other["input_ids"])


def test_a_step_of_rows_that_are_all_over() -> None:
    env = environment()
    env.reset(seed=0)
    env.step_sequence([[2], [2]], [[True], [True]])
    _, rewards, terminated, _, infos = env.step([4, 4])
    assert rewards.tolist() == [0, 0]
    assert not terminated.any()
    assert infos["_prompt"].all()


def test_flags_and_actions_that_are_none() -> None:
    env = environment()
    env.reset(seed=0)
    for mask in ([[np.nan], [np.nan]], [["a"], ["b"]], [[2], [2]], [[True], []]):
        with pytest.raises(UserError, match="mask"):
            env.step_sequence([[4], [4]], mask)
    for actions in ([1, [2]], torch.ones(2, requires_grad=True), deep(10_000), None):
        with pytest.raises(UserError, match="action"):
            env.step(actions)
    env.step_sequence([[4], [4]], [[1], [0]])


def test_scores_in_columns_with_labels_of_their_own() -> None:
    class Column(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            raise KeyError(index)

    class Odd:
        def __float__(self) -> float:
            raise RuntimeError("no number")

    for values in (Column([1.0, None]), [Odd(), 1.0]):
        scorer = make_scorer(lambda prompts, completions, values=values: values)
        with pytest.raises(UserError, match="expected a finite number"):
            scorer(["a", "a"], ["b", "b"], {})
    good = make_scorer(lambda prompts, completions: Column([1.0, 2.0]))
    assert good(["a", "a"], ["b", "b"], {}).tolist() == [1, 2]


def test_a_chat_that_the_assistant_begins() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    row = {"messages": [{"role": "assistant", "content": "abc"}]}
    sequence = sft_sequence(tokenizer, row, "row", 9)
    assert sequence.counts == [False, True, True, True]
    with pytest.raises(UserError, match="a string or a list of role/content"):
        encode_prompt(tokenizer, [{"role": None, "content": "a"}])
    assert render(tokenizer, Chat(messages=row["messages"]), "row") == "abc<eos>"


def test_progress_starts_no_formulas(tmp_path: Path) -> None:
    with open_logger(tmp_path) as logger:
        logger.record("name", "=HYPERLINK(1)")
        logger.record("@x", "-1+1")
        log(logger, 1, {"loss": -0.5})
        log(logger, 2, {"loss": -0.25, "new": 1.0})
    with (tmp_path / "progress.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["name"] == "'=HYPERLINK(1)"
    assert rows[0]["'@x"] == "'-1+1"
    assert [row["loss"] for row in rows] == ["-0.5", "-0.25"]
    assert json.loads((tmp_path / "progress.json").read_text().split("\n")[0])["@x"] == "-1+1"


@pytest.mark.parametrize("content", [None, "[" * 100_000, '{"a": ' * 5000])
def test_a_folder_or_a_trap_in_place_of_checksums(content: str | None, tmp_path: Path) -> None:
    (tmp_path / "agent.json").write_text("{}")
    file = tmp_path / "checksums.json"
    file.mkdir() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=r"checksums.json is damaged"):
        check_files(tmp_path)
