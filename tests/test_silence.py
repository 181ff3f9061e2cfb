"""Values that would be ignored, or would train on nonsense, are refused in one line."""

import dataclasses
import gzip
import json
import math
import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import textrl.cli.agent_options
import textrl.cli.options
import textrl.config
from textrl import cli
from textrl.data import load_records
from textrl.encoding import ranked_texts
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.envs.core_config import CoreConfig
from textrl.errors import UserError
from textrl.evaluation import best_of, sample_and_score, summarize
from textrl.logprobs import token_kl
from textrl.models import load_causal_lm
from textrl.rewards import make_scorer

CLASSES = [
    found
    for module in (textrl.config, textrl.cli.options, textrl.cli.agent_options)
    for found in vars(module).values()
    if dataclasses.is_dataclass(found) and found.__module__ == module.__name__
] + [CoreConfig]
NUMBERS = {
    (found, field.name): field
    for found in CLASSES
    for field in dataclasses.fields(found)
    if field.type in (int, float, int | None, float | None)
}


def refused(found: type, name: str, value: object) -> bool:
    needed = {
        field.name: 1 if field.type is int else "x"
        for field in dataclasses.fields(found)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    try:
        found(**needed | {name: value})
    except UserError as error:
        return name in str(error)
    return False


@pytest.mark.parametrize("found", CLASSES, ids=lambda found: found.__name__)
def test_every_number_of_every_configuration_is_checked(found: type) -> None:
    for kind, name in NUMBERS:
        if kind is found:
            for value in (math.nan, math.inf, -1, -0.5, "x", "1", True, [1]):
                assert refused(found, name, value), f"{name} takes {value!r}"
            whole = NUMBERS[kind, name].type in (int, int | None)
            assert not whole or refused(found, name, 2.5), f"{name} takes 2.5"


@pytest.mark.parametrize("found", CLASSES, ids=lambda found: found.__name__)
def test_a_flag_is_true_or_false(found: type) -> None:
    for field in dataclasses.fields(found):
        if field.type is bool:
            for value in ("false", "no", "true", 1, None):
                assert refused(found, field.name, value), f"{field.name} takes {value!r}"


def test_a_flag_in_quotes_deletes_no_run(tmp_path: Path, capsys) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    options = {"model": "m", "data": "d", "output_dir": str(tmp_path / "run")}
    (tmp_path / "c.yaml").write_text(json.dumps(options | {"overwrite": "false"}))
    with pytest.raises(SystemExit):
        cli.main(["sft", "--config", str(tmp_path / "c.yaml")])
    assert "overwrite is 'false'; expected true or false" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    "values",
    [
        {0: 5.0, 1: 7.0},
        {5.0, 7.0},
        "57",
        b"57",
        (v for v in (5.0, 7.0)),
        5.0,
        np.array(5.0),
        np.ones((2, 1)),
        torch.ones(2, 1),
        {"a": 1, "b": 2}.keys(),
        [1e39, 0.0],
        [10**400, 0],
    ],
)
def test_scores_that_are_no_list_of_numbers(values: object) -> None:
    def score(prompts, completions):
        return values

    with pytest.raises(UserError, match="'score' returned"):
        make_scorer(score)(["a", "b"], ["x", "y"], {})


@pytest.mark.parametrize(
    "values", [[5, 7.0], (5.0, 7.0), np.array([5.0, 7.0]), torch.tensor([5.0, 7.0])]
)
def test_scores_of_every_list_form(values: object) -> None:
    score = make_scorer(lambda prompts, completions: values)
    assert score(["a", "b"], ["x", "y"], {}).tolist() == [5.0, 7.0]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, "nan", "many"])
def test_margins_and_ranks_that_are_no_numbers(number: object) -> None:
    pair = {"chosen": "a", "rejected": "b", "margin": number}
    with pytest.raises(UserError, match=r"x\.jsonl:3: margin is"):
        ranked_texts(pair, "x.jsonl:3")
    with pytest.raises(UserError, match=r"x\.jsonl:3: ranks are"):
        ranked_texts({"completions": ["a", "b"], "ranks": [0, number]}, "x.jsonl:3")


def test_kl_of_two_banned_tokens_is_finite_and_has_a_gradient() -> None:
    logits = torch.tensor([[[0.0, 0.0, -torch.inf]]], requires_grad=True)
    other = torch.tensor([[[0.0, math.log(3.0), -torch.inf]]])
    kl = token_kl(logits, other)
    # 1/2 log(1/2 / 1/4) + 1/2 log(1/2 / 3/4)
    assert kl.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    kl.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


LINES = '{"text": "a"}\n{"text": "ä"}\n'
ARRAY = '[\n {"text": "a"},\n {"text": "ä"}\n]\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((f"x.{end}", LINES.encode()) for end in ("jsonl", "json", "ndjson", "JSONL")),
        ("crlf.jsonl", LINES.replace("\n", "\r\n").encode()),
        ("bom.jsonl", LINES.encode("utf-8-sig")),
        ("wide.jsonl", LINES.encode("utf-16")),
        ("x.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("array.json", ARRAY.encode()),
        ("one.json", json.dumps([{"text": "a"}, {"text": "ä"}]).encode()),
        ("x.csv", "text\na\nä\n".encode()),
        ("x.TSV", "text\tn\na\t1\nä\t2\n".encode()),
    ],
)
def test_files_that_people_have(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert [row["text"] for row in load_records(tmp_path / name).rows] == ["a", "ä"]


def test_long_cells_and_other_endings(tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_text('text\n"' + "w" * 200_000 + '"\n')
    assert len(load_records(tmp_path / "long.csv").rows[0]["text"]) == 200_000
    (tmp_path / "x.txt").write_text(LINES)
    with pytest.raises(UserError, match=r"by their endings: \.jsonl"):
        load_records(tmp_path / "x.txt")


def test_half_a_character_is_named_by_line_and_place(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "abc"}\n{"text": ["d", "abc \\ud83d"]}\n')
    with pytest.raises(UserError, match=r"x\.jsonl:2: character 5 .*U\+D83D"):
        load_records(tmp_path / "x.jsonl")
    (tmp_path / "whole.jsonl").write_text('{"text": "abc \\ud83d\\ude00"}\n')
    assert load_records(tmp_path / "whole.jsonl").rows[0]["text"].endswith("\U0001f600")


def test_home_folder_and_paths_with_nothing_there(tmp_path: Path, monkeypatch) -> None:
    from textrl.checkpoint import save_model
    from textrl.run_folder import check_run_dir

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    save_model(tiny_model(), tiny_tokenizer(), tmp_path / "runs" / "sft")
    (tmp_path / "x.jsonl").write_text(LINES)
    assert len(load_records("~/x.jsonl")) == 2
    assert check_run_dir("~/new") == tmp_path / "new"
    load_causal_lm("~/runs/sft")
    with pytest.raises(UserError, match=r"runs/sfft: no such file or folder.*did you mean 'sft'"):
        load_causal_lm("runs/sfft")


def test_columns_are_those_of_all_rows() -> None:
    records = load_records([{"prompt": "a"}, {"prompt": "b", "answer": "x"}])
    assert records.columns_but("prompt") == {"answer": [None, "x"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: a\nseed: 1\ndata: b\n", "'data' in line 1 and in line 3; keep one"),
        ('{"data": "a",\n "data": "b"}', "'data' in line 1 and in line 2; keep one"),
        ("", "is no list of options; write `option: value`"),
        ("- data\n", "is no list of options; write `option: value`"),
        ("? [a]\n: b\n", "found unhashable key"),
        ("sft:\n  data: a\n", "'data' is in a section of the file; write it with no indentation"),
    ],
)
def test_a_configuration_file_says_each_thing_once(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        cli.parse(["sft", "--config", str(tmp_path / "c.yaml"), "--model=m", "--output_dir=o"])


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True, [0, -1], [0, 1.5], [0, "1"]])
def test_seeds_of_rows_are_whole_numbers(seed: object) -> None:
    venv = gym.make_vec("TextRLHF-v0", num_envs=2)
    with pytest.raises(UserError, match=r"seed is .*; expected a whole number, 0 or more"):
        venv.reset(seed=seed)
    first = venv.reset(seed=[3, None])[0]["input_ids"][0]
    assert (venv.reset(seed=(np.int64(3), 4))[0]["input_ids"][0] == first).all()
    assert (venv.reset(seed=range(3, 5))[0]["input_ids"][0] == first).all()
    narrow, wide = (venv.reset(seed=seed)[0]["input_ids"] for seed in (np.uint8(255), 255))
    assert (narrow == wide).all()


@pytest.mark.parametrize("scores", [[math.nan, 0.0], [0.0], {"a": 0.0, "b": 1.0}, "12", None])
def test_an_evaluation_takes_one_finite_number_a_text(scores: object) -> None:
    policy = tiny_model()
    found = sample_and_score(
        *(policy, policy, tiny_tokenizer(), ["a", "b"], lambda texts, completions: [1, 2]),
        max_new_tokens=2,
        seed=0,
    )
    assert found.scores == [1, 2]
    with pytest.raises(UserError, match="returned"):
        summarize(found, lambda texts, completions: scores)
    with pytest.raises(UserError, match="returned"):
        sample_and_score(
            *(policy, policy, tiny_tokenizer(), ["a", "b"], lambda prompts, texts: scores),
            max_new_tokens=2,
            seed=0,
        )


def test_best_of_takes_whole_groups() -> None:
    policy = tiny_model()
    found = sample_and_score(
        *(policy, policy, tiny_tokenizer(), ["a"] * 4, lambda prompts, texts: [0, 2, 3, 1]),
        max_new_tokens=2,
        seed=0,
    )
    assert best_of(found, 2).scores == [2, 3]
    for n in (3, 0, -2):
        with pytest.raises(UserError, match=f"4 samples are no multiple of n = {n}; draw n for"):
            best_of(found, n)
