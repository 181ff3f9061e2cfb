"""Random chat templates and messages: rendered as Jinja renders them, or refused in one line."""

import json
from typing import Any

import pytest
from hypothesis import strategies as st
from inputs import ROLES, attempt, fuzz, json_values, letters, messages, scalars, texts

from textrl import chat as chats
from textrl.chat import Chat, chat_of, end_ids, render, render_reply
from textrl.encoding import encode_prompt, encode_text, sft_sequence
from textrl.envs import tiny_tokenizer
from textrl.errors import UserError
from textrl.rows import is_conversation

pytestmark = pytest.mark.filterwarnings("ignore")
LOOP = "{% for m in messages %}%s{% endfor %}"
PIECES = (
    *("{{ m.role }}", "{{ m['content'] }}", "{{ m.content }}", "{{ m.content | trim }}", "{{ m }}"),
    *("{{ m.content | upper }}", "{{ m.content[0] }}", "{{ m.content.text }}", "{{ eos_token }}"),
    *(
        "{{ bos_token }}",
        "\n",
        "user",
        "<eos>",
        "<|im_end|>",
        "{{ loop.index }}",
        "{{ m.tool_calls }}",
    ),
    *("{% if m.role == 'user' %}U{{ m.content }}{% else %}A{{ m.content }}{% endif %}",),
    *("{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no\nway') }}{% endif %}",),
    *("{% if loop.last %}{{ m.content }}{% endif %}", "{{ m.content + 1 }}", "{{ undefined.x }}"),
    *("{% for c in m.content %}{{ c }}{% endfor %}", "{{ m.content | tojson }}", "{{ 'a' * 10 }}"),
    *(
        "{% set m = messages[0] %}",
        "{{ 1 / 0 }}",
        "{{ m.name }}",
        "{% generation %}{% endgeneration %}",
    ),
)
OUTSIDE = (
    *("", "{{ bos_token }}", "{{ tools | tojson }}", "{{ messages[0].content }}", "{{ enable }}"),
    *("{% if add_generation_prompt %}assistant{% endif %}", "{{ messages[-1]['role'] }}", "sys"),
    *("{{ strftime_now('%Y') }}", "{% set ns = namespace(x=1) %}", "{# {{ tools }} #}", "{% if %}"),
    *(
        "{{ raise_exception('never') }}",
        "{{ raise_exception() }}",
        "{% endfor %}",
        "{{",
        "{% raw %}",
    ),
    *("{{ cycler.__init__.__globals__ }}", "{{ ''.__class__.__mro__ }}", "{{ self }}"),
)
templates = st.one_of(
    st.builds(
        lambda before, pieces, after: before + LOOP.replace("%s", "".join(pieces)) + after,
        st.sampled_from(OUTSIDE),
        st.lists(st.sampled_from(PIECES), min_size=1, max_size=4),
        st.sampled_from(OUTSIDE),
    ),
    st.lists(st.sampled_from(OUTSIDE + PIECES), max_size=4).map("".join),
    texts,
)
usual = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(ROLES[:3]), "content": letters}),
    min_size=1,
    max_size=4,
)
some_messages = st.one_of(usual, usual, messages)
variables = st.one_of(
    st.just({}), st.dictionaries(st.sampled_from(["enable", "tools", "x"]), scalars)
)


def with_template(template: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@fuzz(
    fast=50,
    long=5000,
    template=templates,
    said=some_messages,
    tools=st.one_of(st.none(), st.none(), json_values),
    given=variables,
    for_reply=st.booleans(),
)
def test_a_chat_is_rendered_as_jinja_does(
    template: str, said: Any, tools: Any, given: Any, for_reply: bool
) -> None:
    if not is_conversation(said):
        return
    tokenizer = with_template(template)
    row = {"tools": tools, "chat_template_kwargs": given}
    taken, chat = attempt(lambda: chat_of(said, row, "row"))
    if not taken:
        return
    taken, text = attempt(lambda: render(tokenizer, chat, "row", for_reply=for_reply))
    if taken:
        continued = for_reply and chat.awaits_more
        assert text == tokenizer.apply_chat_template(
            chat.messages,
            tools=chat.tools,
            tokenize=False,
            add_generation_prompt=for_reply and not continued,
            continue_final_message=continued,
            **chat.variables,
        )
    attempt(lambda: render_reply(tokenizer, chat, "yes", "row"))


@fuzz(fast=30, long=3000, template=templates, said=some_messages, column=st.booleans())
def test_a_chat_is_encoded_as_it_is_rendered(template: str, said: Any, column: bool) -> None:
    tokenizer = with_template(template)
    row = {"messages": said}
    if column and isinstance(said, list) and said:
        row = {"prompt": said[:-1], "completion": said[-1:]}
    taken, sequence = attempt(lambda: sft_sequence(tokenizer, row, "row", 200))
    attempt(lambda: encode_prompt(tokenizer, said, "row"))
    attempt(lambda: end_ids(tokenizer))
    if taken:
        assert any(sequence.counts)
        assert len(sequence.ids) == len(sequence.counts)
        counted = [i for i, counts in zip(sequence.ids, sequence.counts, strict=True) if counts]
        last = said[-1]["content"]
        if isinstance(last, str) and last.isascii() and last.islower() and last.isalpha():
            known = tokenizer.decode(counted)
            assert last.strip() in known or "upper" in template or "content[0]" in template


@fuzz(fast=30, long=2000, text=texts)
def test_a_text_has_one_beginning_and_one_end(text: str) -> None:
    tokenizer = tiny_tokenizer()
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    ids = encode_text(tokenizer, text)
    assert ids.count(1) <= 1 + text.count("<bos>")
    assert ids[-1] == 2
    assert ids[-2:-1] != [2]


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 10 ** 11 }}",
        "{% for a in range(10 ** 9) %}{{ a }}{% endfor %}",
        "{% if x %}" * 300 + "{% endif %}" * 300,
        "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
        "{{ [" * 200 + "]" * 200 + " }}",
    ],
    ids=lambda template: template[:20],
)
def test_templates_without_an_end(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chats, "TEMPLATE_SECONDS", 0.5)
    chat = Chat(messages=[{"role": "user", "content": "abc"}])
    with pytest.raises(UserError, match="chat template"):
        render(with_template(template), chat, "row")
    assert json.dumps(chat.messages)
