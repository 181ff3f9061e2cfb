"""Rows of any shape, given as Python lists: each is encoded rightly, or refused in one line."""

import json
import math
from typing import Any

from hypothesis import strategies as st
from inputs import attempt, fuzz, json_values, letters, messages, numbers, python_values, scalars

from textrl.data import load_records, split_by_prompt
from textrl.encoding import ranked_texts, sft_sequence
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.envs.texts import load_prompts
from textrl.errors import UserError
from textrl.rows import Records
from textrl.trainers import DPOTrainer, RewardTrainer, SFTTrainer, reward_model_from

TOKENIZER = tiny_tokenizer()
TOKENIZER.chat_template = (
    "{% for m in messages %}{{ m.role }}{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)
columns = {
    "text": json_values,
    "messages": st.one_of(messages, json_values),
    "prompt": st.one_of(letters, messages, json_values),
    "completion": st.one_of(letters, messages, json_values),
    "chosen": st.one_of(letters, messages, json_values),
    "rejected": st.one_of(letters, messages, json_values),
    "margin": scalars,
    "certainty": scalars,
    "completions": st.one_of(st.lists(letters, max_size=4), json_values),
    "ranks": st.one_of(st.lists(numbers, max_size=4), json_values),
    "tools": json_values,
    "chat_template_kwargs": json_values,
    "other": json_values,
}
rows = st.lists(st.fixed_dictionaries({}, optional=columns), max_size=3)
texts_of = st.fixed_dictionaries({"text": st.one_of(letters, json_values)})
pairs_of = st.fixed_dictionaries(
    {name: st.one_of(letters, columns[name]) for name in ("prompt", "chosen", "rejected")},
    optional={"margin": scalars, "certainty": scalars},
)


@fuzz(fast=60, long=4_000, source=st.one_of(rows, json_values, python_values))
def test_whatever_is_given_as_data_is_rows_or_one_line(source: Any) -> None:
    taken, found = attempt(lambda: load_records(source))
    if taken:
        assert len(found.rows) == len(source) > 0
        assert all(isinstance(row, dict) for row in found.rows)
        attempt(lambda: split_by_prompt(found, 0.5))


@fuzz(fast=60, long=3_000, row=st.one_of(texts_of, st.fixed_dictionaries({}, optional=columns)))
def test_a_demonstration_is_encoded_or_refused(row: dict[str, Any]) -> None:
    taken, sequence = attempt(lambda: _encoded(row))
    if taken:
        assert len(sequence.ids) == len(sequence.counts) <= 64
        assert any(sequence.counts)
    text = str(row.get("text")) if taken else ""
    if taken and set(row) <= {"text", "other"} and set(text) <= set("abcxyz"):
        assert TOKENIZER.decode(sequence.ids) == f"<bos>{text}<eos>"[: 5 + 63]


def _encoded(row: dict[str, Any]) -> Any:
    records = load_records([row], "demonstrations")
    return sft_sequence(TOKENIZER, records.rows[0], records.places[0], 64)


@fuzz(fast=60, long=3_000, row=st.fixed_dictionaries({}, optional=columns))
def test_ranks_order_the_completions(row: dict[str, Any]) -> None:
    taken, found = attempt(lambda: ranked_texts(load_records([row]).rows[0], "row"))
    if not taken:
        return
    completions, ranks, margin = found
    assert len(completions) == len(ranks) >= 2
    given = row.get("ranks")
    if isinstance(given, str):
        given = json.loads(given)
    if given is not None and row.get("chosen") is row.get("rejected") is None:
        for i in range(len(ranks)):
            for j in range(len(ranks)):
                assert (ranks[i] < ranks[j]) == (float(given[i]) < float(given[j]))
    if margin is not None:
        assert math.isfinite(margin)
        assert margin == float(row["margin"])


@fuzz(
    fast=30, long=1_500, source=st.one_of(rows, st.lists(st.one_of(letters, messages), max_size=3))
)
def test_prompts_are_what_was_given_or_refused(source: Any) -> None:
    taken, prompts = attempt(lambda: load_prompts(source, TOKENIZER, 64))
    if taken:
        for given, prompt in zip(source, prompts.prompts, strict=True):
            text = given["prompt"] if isinstance(given, dict) else given
            assert prompt.chat is not None or prompt.text == text
            assert 0 < len(prompt.ids) <= 64


@fuzz(
    fast=6,
    long=500,
    source=st.lists(st.one_of(texts_of, st.fixed_dictionaries({}, optional=columns)), max_size=3),
)
def test_sft_trains_on_it_or_refuses_it(source: Any) -> None:
    _trains(lambda: SFTTrainer(tiny_model().requires_grad_(True), TOKENIZER, source, shown=False))


@fuzz(fast=6, long=500, source=st.lists(pairs_of, max_size=3))
def test_dpo_trains_on_it_or_refuses_it(source: Any) -> None:
    _trains(lambda: DPOTrainer(tiny_model().requires_grad_(True), TOKENIZER, source, shown=False))


@fuzz(
    fast=6,
    long=500,
    source=st.lists(st.one_of(pairs_of, st.fixed_dictionaries({}, optional=columns)), max_size=3),
)
def test_a_reward_model_trains_on_it_or_refuses_it(checkpoint: str, source: Any) -> None:
    model = reward_model_from(checkpoint)
    _trains(lambda: RewardTrainer(model, TOKENIZER, source, shown=False))


def _trains(make: Any) -> None:
    """Make a trainer and train it: the numbers are finite, or one line says what is wrong."""
    taken, trainer = attempt(make)
    if taken:
        done, metrics = attempt(trainer.train)
        assert not done or all(map(math.isfinite, metrics.values()))
        weights = trainer.model.state_dict().values()
        assert all(bool(weight.isfinite().all()) for weight in weights)


@fuzz(fast=40, long=1_500, prompts=st.lists(st.one_of(letters, json_values), min_size=2))
def test_a_prompt_is_on_one_side_of_a_split(prompts: list[Any]) -> None:
    try:
        records = load_records([{"prompt": prompt} for prompt in prompts * 2])
        train, heldout = split_by_prompt(records, 0.5)
    except UserError:
        return
    sides = [{repr(row["prompt"]) for row in part.rows} for part in (train, heldout)]
    assert not sides[0] & sides[1]
    assert isinstance(train, Records)
