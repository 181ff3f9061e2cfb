import csv
import json

import numpy as np
import pytest

from textrl.data import load_records, split_by_prompt
from textrl.encoding import (
    continuation,
    encode_prompt,
    ranked_texts,
    sft_sequence,
)
from textrl.envs import tiny_tokenizer
from textrl.errors import UserError
from textrl.shared_prompts import with_shared_prompts

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<eos>z{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)
REWRITING = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"


def chat(template: str = TEMPLATE):
    tokenizer = tiny_tokenizer("abcdefghijklmnopqrstuvwxyz0123456789")
    tokenizer.chat_template = template
    return tokenizer


def test_jsonl_csv_and_lists_are_the_same(tmp_path) -> None:
    rows = [{"prompt": "a", "completion": "b, c"}, {"prompt": "ä", "completion": '"d"'}]
    jsonl = tmp_path / "x.jsonl"
    jsonl.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    table = tmp_path / "x.csv"
    table.write_text('prompt,completion\r\na,"b, c"\r\nä,"""d"""\r\n', encoding="utf-8")
    assert load_records(jsonl).rows == load_records(str(table)).rows == load_records(rows).rows
    assert load_records(jsonl).places[1].endswith("x.jsonl:2")
    assert load_records(table).places[1].endswith("x.csv:3")


def test_parquet_and_dataset_objects(tmp_path) -> None:
    datasets = pytest.importorskip("datasets", reason="the optional reader of Parquet")
    rows = [{"prompt": "a"}, {"prompt": "b"}]
    data = datasets.Dataset.from_list(rows)
    data.to_parquet(str(tmp_path / "x.parquet"))
    assert load_records(data).rows == load_records(tmp_path / "x.parquet").rows == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", "", "no records"),
        ("x.jsonl", "\n\n", "no records"),
        ("x.jsonl", '{"a": 1}\n{"a": \n', r"x\.jsonl:2: not JSON"),
        ("x.jsonl", '{"a": 1}\n[1]\n', r"x\.jsonl:2: expected an object"),
        ("x.csv", "a,b\n1,2\n3\n", r"x\.csv:3: expected 2 fields"),
        ("x.csv", "a,b\n1,2,3\n", r"x\.csv:2: expected 2 fields"),
        ("x.csv", "a,b\n", "no records"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path, name, content, message) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_records(path)


def test_missing_files_columns_and_bytes(tmp_path) -> None:
    with pytest.raises(UserError, match=r"nothing\.jsonl: no such file"):
        load_records(tmp_path / "nothing.jsonl")
    (tmp_path / "x.jsonl").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match="not UTF-8 at byte 7"):
        load_records(tmp_path / "x.jsonl")
    records = load_records([{"promt": "a"}])
    with pytest.raises(
        UserError, match="record 0: column 'prompt' is missing.*did you mean 'promt'"
    ):
        records.require("prompt")
    with pytest.raises(UserError, match="record 1: expected a dict"):
        load_records([{"a": 1}, "b"])


def test_split_is_by_prompt_and_stable() -> None:
    rows = [{"prompt": f"p{i % 50}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(200)]
    train, heldout = split_by_prompt(load_records(rows), 0.3)
    sides = [{row["prompt"] for row in part.rows} for part in (train, heldout)]
    assert not sides[0] & sides[1]
    assert len(train) + len(heldout) == 200
    assert 20 < len(heldout) < 100
    more, _ = split_by_prompt(load_records([*rows, {"prompt": "new"}]), 0.3)
    assert {row["prompt"] for row in more.rows} - {"new"} == sides[0]
    implicit = [{"chosen": f"q{i % 20}: good", "rejected": f"q{i % 20}: bad"} for i in range(100)]
    train, heldout = split_by_prompt(load_records(implicit), 0.3)
    sides = [{row["chosen"] for row in part.rows} for part in (train, heldout)]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_sft_sequences_by_hand() -> None:
    tokenizer = tiny_tokenizer()  # <bos> 1, <eos> 2, a 3, b 4, ...
    text = sft_sequence(tokenizer, {"text": "ab"}, "here", 100)
    assert (text.ids, text.counts) == ([1, 3, 4, 2], [False, True, True, True])
    pair = sft_sequence(tokenizer, {"prompt": "ab", "completion": "c"}, "here", 100)
    assert (pair.ids, pair.counts) == ([1, 3, 4, 5, 2], [False, False, False, True, True])
    cut = sft_sequence(tokenizer, {"prompt": "ab", "completion": "cdef"}, "here", 4)
    assert (cut.ids, cut.num_counted) == ([1, 3, 4, 5], 1)


def test_chat_counts_the_assistant_alone_and_stops_at_eos() -> None:
    tokenizer = chat()
    messages = [
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "cd"},
        {"role": "user", "content": "e"},
        {"role": "assistant", "content": "f"},
    ]
    found = sft_sequence(tokenizer, {"messages": messages}, "here", 100)
    counted = [i for i, flag in zip(found.ids, found.counts, strict=True) if flag]
    expected = tokenizer("cd<eos>f<eos>", add_special_tokens=False).input_ids
    assert counted == expected  # neither the header "a" nor the "z" behind EOS
    assert found.ids[-1] == tokenizer.eos_token_id
    pair = continuation(tokenizer, messages[:1], messages[1:2], "here", 100)
    assert pair.ids[: len(pair.ids)] == found.ids[: len(pair.ids)]
    assert pair.num_counted == 3


def test_pad_equal_to_eos_does_not_hide_the_end() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<eos>"
    found = sft_sequence(tokenizer, {"text": "ab"}, "here", 100)
    assert found.counts[-1]
    assert found.ids[-1] == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"txt": "a"}, "no 'text'"),
        ({"text": " "}, "the text is empty"),
        ({"prompt": "", "completion": "a"}, "the prompt is empty"),
        ({"prompt": "a", "completion": ""}, "the completion is empty"),
        ({"prompt": "abcdefghij", "completion": "a"}, "11 tokens and max_length is 8"),
        ({"prompt": 3, "completion": "a"}, "string or a list"),
        (
            {"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]},
            "give both as one",
        ),
        ({"messages": [{"role": "user", "content": "a"}]}, "end with the assistant"),
        (
            {
                "messages": [
                    {"role": "user", "content": "abcdefgh"},
                    {"role": "assistant", "content": "a"},
                ]
            },
            "no token of the assistant",
        ),
    ],
)
def test_bad_rows_name_their_place(row, message: str) -> None:
    with pytest.raises(UserError, match=f"f.jsonl:7: .*{message}"):
        sft_sequence(chat(), row, "f.jsonl:7", 8)


def test_templates_that_cannot_serve_are_refused() -> None:
    messages = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    with pytest.raises(UserError, match="no chat template"):
        sft_sequence(tiny_tokenizer(), {"messages": messages}, "here", 100)
    with pytest.raises(UserError, match="rewrites"):
        sft_sequence(chat(REWRITING), {"messages": messages}, "here", 100)


def test_a_tokenizer_that_appends_eos_does_not_end_prompts() -> None:
    tokenizer = tiny_tokenizer()
    ids = encode_prompt(tokenizer, "ab<eos>")
    assert ids == [1, 3, 4]


def test_ranked_texts() -> None:
    pair = {"chosen": "a", "rejected": "b", "margin": "0.5"}
    assert ranked_texts(pair, "here") == (["a", "b"], [0, 1], 0.5)
    ranking = {"completions": ["a", "b", "c"], "ranks": [1, 0, 1]}
    assert ranked_texts(ranking, "here") == (["a", "b", "c"], [1, 0, 1], None)
    in_csv = {"completions": '["a", "b"]', "ranks": "[1, 0]"}
    assert ranked_texts(in_csv, "here") == (["a", "b"], [1, 0], None)
    for row, message in [
        ({"completions": ["a"], "ranks": [0]}, "at least 2"),
        ({"completions": ["a", "b"], "ranks": [0]}, "as many"),
        ({"chosen": "a"}, "no 'chosen' and 'rejected'"),
        ({"chosen": "a", "rejected": "b", "margin": "x"}, "margin is 'x'"),
    ]:
        with pytest.raises(UserError, match=message):
            ranked_texts(row, "here")


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"instruction": "a", "input": "b", "output": "c"}, '"completion": row["output"]'),
        ({"conversations": [{"from": "human", "value": "a"}]}, '"content": turn["value"]'),
        ({"prompt": "a", "chosen": {"from": "gpt", "value": "b"}}, "column 'chosen' holds from"),
    ],
)
def test_forms_of_other_projects_are_refused_with_the_conversion(row: dict, hint: str) -> None:
    with pytest.raises(UserError, match="record 1: ") as caught:
        load_records([{"prompt": "fine", "tags": []}, row])
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)
    load_records([row | {"messages": [], "conversations": []}] if "output" in row else [{"a": 1}])


def test_a_pair_of_whole_chats_shares_its_prompt() -> None:
    ask, good, bad = (
        {"role": role, "content": text}
        for role, text in (("user", "a"), ("assistant", "b"), ("assistant", "c"))
    )
    whole = {"chosen": [ask, good], "rejected": [ask, bad]}
    split = {"prompt": [ask], "chosen": [good], "rejected": [bad]}
    rows = [whole, whole | {"prompt": "a"}, whole | {"prompt": None}, split]
    other = [whole | {"prompt": "x"}, {"prompt": "a", "chosen": "ab", "rejected": "ac"}]
    alone = {"chosen": [good], "rejected": [bad]}
    found = with_shared_prompts(load_records([*rows, *other, alone])).rows
    assert found == [split] * 4 + other + [alone]
    same = with_shared_prompts(load_records([{"chosen": [ask, good], "rejected": [ask, good]}]))
    assert same.rows == [{"prompt": [ask], "chosen": [good], "rejected": [good]}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"prompt,prompt\na,b\n", "x.csv:1: two columns are called 'prompt'"),
        ("x.csv", "prompt\ncaf\u00e9\n".encode("utf-16-le"), "not UTF-8"),
        ("x.csv", "prompt\na\n".encode("utf-32"), "not UTF-8"),
        ("x.jsonl", b'{"a": 1}\n' + b"[" * 100_000, "x.jsonl:2: cannot be read"),
        ("x.jsonl", b'{"a": ' + b"1" * 5000 + b"}", "x.jsonl:1: cannot be read"),
    ],
)
def test_files_that_would_be_read_wrongly(tmp_path, name: str, content: bytes, message) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_records(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (5, "the data are 5; expected a file"),
        (None, "the data are None"),
        ("https://example.org/x.jsonl", "is an address; download it"),
        ("~nobody-of-this-name/x.jsonl", "home folder is not known"),
    ],
)
def test_sources_that_are_none(source, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_records(source)


def test_columns_whose_names_are_no_texts() -> None:
    with pytest.raises(UserError, match="column 'prompt' is missing.*'promt'"):
        load_records([{1: "a", "promt": "b"}]).require("prompt")


def test_messages_in_a_csv_cell_are_messages(tmp_path) -> None:
    """They stand there as JSON, like lists and tools; as texts the braces would be trained on."""
    messages = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
    table = tmp_path / "x.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["messages", "note"])
        writer.writerow([json.dumps(messages), "[1] see below"])
    (row,) = load_records(table).rows
    assert row == {"messages": messages, "note": "[1] see below"}


def test_columns_of_other_rows_are_none_where_rows_differ() -> None:
    """`datasets.Dataset` gives every row the columns of all rows."""
    tokenizer = chat()
    none = {"messages": None, "prompt": None, "completion": None}
    found = sft_sequence(tokenizer, none | {"text": "abc"}, "row", 9)
    assert found.ids == sft_sequence(tokenizer, {"text": "abc"}, "row", 9).ids
    ranking = {"completions": ("a", "b"), "ranks": np.array([1, 0])}
    assert ranked_texts({"chosen": None, "rejected": None} | ranking, "row") == (
        ["a", "b"],
        [1, 0],
        None,
    )


def test_a_rankings_margin_and_lists_that_are_none() -> None:
    with pytest.raises(UserError, match="row: a margin is of chosen and rejected"):
        ranked_texts({"completions": ["a", "b"], "ranks": [0, 1], "margin": 2}, "row")
    with pytest.raises(UserError, match="ranks are .*; expected two lists"):
        ranked_texts({"completions": '["a", "b"]', "ranks": "0,1"}, "row")
