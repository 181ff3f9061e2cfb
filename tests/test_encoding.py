"""How text becomes ids and back, with tokenizers of every habit."""

import pytest
from families_of_tokenizers import (
    FAMILIES,
    QWEN3,
    bytes_tokenizer,
    gemma,
    llama2,
    llama3,
    mistral,
    phi3,
    qwen,
    r1,
)
from jinja2 import TemplateError
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from textrl.chat import Chat, chat_of, end_ids, render
from textrl.classifiers import encode_for_scoring
from textrl.encoding import continuation, encode_prompt, encode_text, reward_text, sft_sequence
from textrl.errors import UserError
from textrl.rewards import RewardModel
from textrl.seams import decode, decode_completion

CALL = {"function": {"name": "add", "arguments": {"a": 1}}}
USER = [{"role": "user", "content": "hello"}]
REPLY = [{"role": "assistant", "content": "yes"}]
AGAIN = [{"role": "user", "content": "no"}, {"role": "assistant", "content": "world"}]


@pytest.fixture(params=FAMILIES)
def family(request):
    make, end = FAMILIES[request.param]
    tokenizer = make()
    return tokenizer, tokenizer.convert_tokens_to_ids(end)


def tiny(tokenizer, **config):
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            **config,
        )
    )


def counted(sequence) -> list[int]:
    return [i for i, flag in zip(sequence.ids, sequence.counts, strict=True) if flag]


def whole_ids(tokenizer, messages, **kwargs) -> list[int]:
    return list(tokenizer.apply_chat_template(messages, return_dict=True, **kwargs)["input_ids"])


def test_the_template_says_what_ends_a_turn(family) -> None:
    tokenizer, end = family
    assert end_ids(tokenizer)[0] == tokenizer.eos_token_id
    assert set(end_ids(tokenizer)) == {tokenizer.eos_token_id, end}


def test_the_generation_config_says_it_too_but_no_number_by_default() -> None:
    tokenizer = gemma()
    tokenizer.chat_template = None
    assert end_ids(llama3(), tiny(llama3())) == (1, 4)  # LlamaConfig's 2 is a header here
    model = tiny(tokenizer, eos_token_id=tokenizer.convert_tokens_to_ids("h"))
    assert end_ids(tokenizer, model) == (1,)  # a letter ends nothing, whatever a config says
    model.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    assert end_ids(tokenizer, model) == (1, 4)
    model.generation_config.eos_token_id = [2]  # <bos> ends nothing
    assert end_ids(tokenizer, model) == (1,)


def test_a_chat_ends_with_its_turns_token_once_and_begins_with_the_prompt(family) -> None:
    tokenizer, end = family
    found = sft_sequence(tokenizer, {"messages": USER + REPLY}, "here", 100)
    pair = continuation(tokenizer, USER, REPLY, "here", 100)
    assert found == pair
    prompt = encode_prompt(tokenizer, USER)
    assert prompt == whole_ids(tokenizer, USER, add_generation_prompt=True)
    assert found.ids[: len(prompt)] == prompt
    assert counted(found) == found.ids[len(prompt) :]
    assert found.ids[-1] == end
    assert sum(i in end_ids(tokenizer) for i in counted(found)) == 1
    reply = decode_completion(tokenizer, prompt, counted(found), end_ids(tokenizer))
    assert reply.strip() == "yes"
    assert found.ids == whole_ids(tokenizer, USER + REPLY)[: len(found.ids)]


def test_every_turn_of_a_longer_chat_counts(family) -> None:
    tokenizer, end = family
    messages = USER + REPLY + AGAIN
    found = sft_sequence(tokenizer, {"messages": messages}, "here", 200)
    assert found.ids == whole_ids(tokenizer, messages)[: len(found.ids)]
    assert counted(found).count(end) == 2
    assert decode(tokenizer, counted(found)).replace(" ", "") == "yesworld"
    last = continuation(tokenizer, USER + REPLY + AGAIN[:1], AGAIN[1:], "here", 200)
    assert last.ids == found.ids
    assert decode(tokenizer, counted(last)).strip() == "world"


def test_a_chat_rendered_by_its_user_is_the_same_prompt_and_text(family) -> None:
    tokenizer, end = family
    text = render(tokenizer, Chat(messages=USER), "here", for_reply=True)
    asked = encode_prompt(tokenizer, text)
    bos = tokenizer.bos_token_id
    assert sum(i == bos for i in asked) <= 1
    assert [i for i in asked if i != bos] == [i for i in encode_prompt(tokenizer, USER) if i != bos]
    whole = render(tokenizer, Chat(messages=USER + REPLY), "here")
    ids = encode_text(tokenizer, whole)
    assert ids[-1] == end
    assert ids[-2] not in end_ids(tokenizer)
    pair = continuation(tokenizer, text, whole[len(text) :], "here", 100)
    assert pair.ids[-1] == end
    assert pair.num_counted == continuation(tokenizer, USER, REPLY, "here", 100).num_counted


@pytest.mark.parametrize("adds", ["$A", "<bos> $A", "$A <eos>", "<bos> $A <eos>"])
@pytest.mark.parametrize("begin", ["", "<bos>"])
@pytest.mark.parametrize("end", ["", "<eos>", "<eos><eos>", "<end>", "<end>\n", "<end>\n<eos>"])
def test_one_bos_and_one_end_whatever_a_text_brings(adds: str, begin: str, end: str) -> None:
    template = "{% for m in messages %}{{ m['content'] + '<end>\n' }}{% endfor %}"
    names = dict(bos_token="<bos>", eos_token="<eos>")
    tokenizer = bytes_tokenizer(["<bos>", "<eos>", "<end>"], template, adds=adds, **names)
    has_bos = [0] if begin or adds.startswith("<bos>") else []
    last = [2] if "<end>" in end else [1]
    hello, world = (tokenizer(t, add_special_tokens=False).input_ids for t in ("hello", " world"))
    assert encode_text(tokenizer, f"{begin}hello{end}") == [*has_bos, *hello, *last]
    assert encode_prompt(tokenizer, f"{begin}hello") == [*has_bos, *hello]
    pair = continuation(tokenizer, f"{begin}hello", f" world{end}", "here", 100)
    assert pair.ids == [*has_bos, *hello, *world, *last]
    doubled = continuation(tokenizer, "hello", f"{begin} world", "here", 100)
    assert doubled.ids.count(0) == adds.startswith("<bos>")
    scored = encode_for_scoring(tokenizer, f"{begin}hello{end}", 100)
    assert scored[: len(has_bos) + len(hello)] == [*has_bos, *hello]
    assert scored.count(0) == len(has_bos)
    if "\n" not in end:
        assert scored == [*has_bos, *hello, *last]


@pytest.mark.parametrize("make", [llama2, mistral, phi3])
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("The movie was", " great"),
        ("The movie was ", "great"),
        ("The movie was", "great"),
        ("The", " movie was great"),
        ("hello\n", "world"),
        ("hello", "\nworld"),
        ("hello", "  world"),
    ],
)
def test_no_space_is_lost_or_added_at_a_seam(make, prompt: str, completion: str) -> None:
    tokenizer = make()
    pair = continuation(tokenizer, prompt, completion, "here", 100)
    prompt_ids = encode_prompt(tokenizer, prompt)
    assert pair.ids[: len(prompt_ids)] == prompt_ids
    own = counted(pair)
    assert decode_completion(tokenizer, prompt_ids, own, end_ids(tokenizer)) == completion
    assert decode(tokenizer, pair.ids) == prompt + completion
    assert reward_text(tokenizer, prompt, completion, {}, "here") == prompt + completion


def test_a_character_cut_in_two_is_decoded_with_its_other_half() -> None:
    tokenizer = qwen()
    ids = tokenizer("é").input_ids
    assert len(ids) == 2
    assert decode_completion(tokenizer, ids[:1], ids[1:], ()) == "é"


def test_tools_and_variables_reach_the_template() -> None:
    tokenizer = qwen(QWEN3)
    tool = {"name": "add"}
    row = {"messages": USER + REPLY, "tools": [tool]}
    text = tokenizer.decode(sft_sequence(tokenizer, row, "here", 200).ids)
    assert text.startswith("<|im_start|>tools add<|im_end|>\n")
    in_csv = row | {"tools": '[{"name": "add"}]', "chat_template_kwargs": ""}
    assert tokenizer.decode(sft_sequence(tokenizer, in_csv, "here", 200).ids) == text
    quiet = {
        "prompt": USER,
        "completion": REPLY,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    found = sft_sequence(tokenizer, quiet, "here", 200)
    assert tokenizer.decode(counted(found)) == "yes<|im_end|>"
    loud = sft_sequence(tokenizer, {"prompt": USER, "completion": REPLY}, "here", 200)
    assert tokenizer.decode(counted(loud)) == "<think>\n\n</think>\n\nyes<|im_end|>"
    for columns, message in [
        ({"tools": "add"}, "tools are 'add'"),
        ({"chat_template_kwargs": [1]}, "expected a mapping"),
        ({"chat_template_kwargs": {"tokenize": True}}, "may not set 'tokenize'"),
    ]:
        with pytest.raises(UserError, match=f"f:1: .*{message}"):
            sft_sequence(tokenizer, {"messages": USER + REPLY} | columns, "f:1", 200)


@pytest.mark.parametrize(
    "columns", [{"tools": [{"name": "add"}]}, {"chat_template_kwargs": {"enable_thinking": True}}]
)
def test_what_a_template_does_not_read_is_refused_and_a_reward_model_leaves_it_out(columns) -> None:
    name = "tools" if "tools" in columns else "enable_thinking"
    row = {"messages": USER + REPLY} | columns
    with pytest.raises(UserError, match=f"f:1: the chat template does not read '{name}'; leave"):
        sft_sequence(phi3(), row, "f:1", 200)
    chat = chat_of(USER, columns, "f:1")
    with pytest.raises(UserError, match=f"f:1: the chat template does not read '{name}'"):
        encode_prompt(phi3(), chat, "f:1")
    body = tiny(phi3()).config
    body.num_labels, body.pad_token_id = 1, 0
    scorer = RewardModel(LlamaForSequenceClassification(body), phi3())
    plain = scorer.text_of("", "yes", Chat(messages=USER), "f:1")
    assert scorer.text_of("", "yes", chat, "f:1") == plain
    assert reward_text(phi3(), chat, REPLY, row, "f:1") == plain
    assert "hello" in plain


def test_empty_columns_ask_a_template_for_nothing_and_a_comment_reads_nothing() -> None:
    row = {"messages": USER + REPLY, "tools": []}
    row["chat_template_kwargs"] = {"custom_instructions": "", "xml_tools": [], "more": {}}
    assert sft_sequence(phi3(), row, "f:1", 200) == sft_sequence(
        phi3(), {"messages": USER + REPLY}, "f:1", 200
    )
    mute = phi3()
    mute.chat_template += "{# thinking #}{% if messages[0].thinking %}{% endif %}"
    row["chat_template_kwargs"] = {"thinking": True}
    with pytest.raises(UserError, match="does not read 'thinking'"):
        sft_sequence(mute, row, "f:1", 200)


@pytest.mark.parametrize("role", ["developer", "human", "User"])
def test_a_message_that_the_template_leaves_out_is_refused(role: str) -> None:
    template = (
        "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}"
        "{{ m.role + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    row = {"messages": [{"role": role, "content": "be kind"}, *USER, *REPLY]}
    with pytest.raises(UserError, match=f"f:1: .* leaves out message 0 .*{role}"):
        sft_sequence(qwen(template), row, "f:1", 200)
    row["messages"][0] = {"role": role, "content": " "}  # nothing is lost
    sft_sequence(qwen(template), row, "f:1", 200)


@pytest.mark.parametrize("part", ["tool_calls", "reasoning_content"])
def test_calls_and_thoughts_that_a_template_does_not_read_are_refused(part: str) -> None:
    given = {"tool_calls": [CALL], "reasoning_content": "hm"}
    row = {"messages": USER + [{**REPLY[0], part: given[part]}]}
    with pytest.raises(UserError, match=f"f:1: the chat template does not read '{part}'"):
        sft_sequence(phi3(), row, "f:1", 200)
    row["messages"][-1][part] = None
    plain = sft_sequence(phi3(), {"messages": USER + REPLY}, "f:1", 200)
    assert sft_sequence(phi3(), row, "f:1", 200) == plain


def test_a_word_in_a_text_of_the_template_reads_no_variable() -> None:
    tokenizer = phi3()
    tokenizer.chat_template += "Use tools.{{ 'tools' }}"
    row = {"messages": USER + REPLY, "tools": [{"name": "add"}]}
    with pytest.raises(UserError, match="does not read 'tools'"):
        sft_sequence(tokenizer, row, "f:1", 200)


@pytest.mark.parametrize("content", [None, "", "sure"])
def test_calls_of_a_template_that_opens_the_last_turn_with_a_thought(content: str | None) -> None:
    """As Qwen3's own: an empty thought stands in the last turn alone, calls behind the content."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
        "{% if not loop.first or m.content %}{{ '\n' }}{% endif %}{{ c.function | tojson }}"
        "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer = qwen(template)
    call = {"role": "assistant", "content": content, "tool_calls": [CALL]}
    messages = [*USER, call, {"role": "tool", "content": "3"}, *REPLY]
    found = sft_sequence(tokenizer, {"messages": messages}, "f:1", 400)
    said = f"{content}\n" if content else ""
    assert tokenizer.decode(counted(found)) == (
        said + '{"name": "add", "arguments": {"a": 1}}<|im_end|>'
        "<think>\n\n</think>\n\nyes<|im_end|>"
    )


def test_what_arrow_fills_in_does_not_reach_the_template() -> None:
    """A table gives each dict the keys of all, None where it had none."""
    template = (
        "{{ tools | tojson }}{% for m in messages %}{{ m.content or '' }}"
        "{{ (m.tool_calls or []) | tojson }}<|im_end|>{% endfor %}"
    )
    tokenizer, tools = qwen(template), [{"name": "a", "x": {"y": 1}}, {"name": "b"}]
    filled = [{"name": "a", "x": {"y": 1, "z": None}}, {"name": "b", "x": None}]
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    other = {**call, "tool_calls": [{"function": {**CALL["function"], "more": None}, "id": None}]}
    one, two = (
        sft_sequence(tokenizer, {"messages": [*USER, turn], "tools": given}, "f:1", 400)
        for turn, given in ((call, tools), (other, filled))
    )
    assert one == two


def test_earlier_turns_that_the_template_shortens_count_as_it_shows_them() -> None:
    tokenizer = qwen(QWEN3)
    thought = [{"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"}]
    found = sft_sequence(tokenizer, {"messages": USER + thought + AGAIN}, "here", 200)
    assert tokenizer.decode(counted(found)) == (
        "yes<|im_end|><think>\n\n</think>\n\nworld<|im_end|>"
    )
    alone = sft_sequence(tokenizer, {"messages": USER + thought}, "here", 200)
    assert tokenizer.decode(counted(alone)) == "<think>\nhm\n</think>\n\nyes<|im_end|>"


def test_a_generation_prompt_that_opens_more_than_the_turn_shows() -> None:
    tokenizer = r1()
    found = sft_sequence(tokenizer, {"messages": USER + REPLY + AGAIN}, "here", 200)
    assert tokenizer.decode(counted(found)) == "yes<eos>world<eos>"
    assert found.ids == whole_ids(tokenizer, USER + REPLY + AGAIN)


def test_a_template_that_changes_the_prompt_is_refused() -> None:
    template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="f:3: .*rewrites"):
        sft_sequence(qwen(template), {"messages": USER + REPLY}, "f:3", 100)


def test_a_beginning_of_the_reply_is_gone_on_with(family) -> None:
    tokenizer, end = family
    begun = [*USER, {"role": "assistant", "content": "yes no"}]
    prompt = encode_prompt(tokenizer, begun)
    assert tokenizer.decode(prompt).endswith("yes no")
    more = [{"role": "assistant", "content": " world"}]
    pair = continuation(tokenizer, begun, more, "here", 100)
    assert pair.ids[: len(prompt)] == prompt
    assert decode(tokenizer, pair.ids).rstrip().endswith("yes no world")
    assert counted(pair)[-1] == end
    assert (
        decode_completion(tokenizer, prompt, counted(pair), end_ids(tokenizer)).strip() == "world"
    )


def test_unusual_chats() -> None:
    tokenizer = qwen(QWEN3)
    empty = sft_sequence(tokenizer, {"messages": [*USER, REPLY[0] | {"content": ""}]}, "here", 100)
    assert tokenizer.decode(counted(empty)) == "<think>\n\n</think>\n\n<|im_end|>"
    short = sft_sequence(qwen(), {"messages": [*USER, REPLY[0] | {"content": ""}]}, "here", 100)
    assert tokenizer.decode(counted(short)) == "<|im_end|>"
    system = [{"role": "system", "content": "hello"}]
    assert tokenizer.decode(encode_prompt(tokenizer, system)).endswith("<|im_start|>assistant\n")
    assert counted(sft_sequence(qwen(), {"messages": system + REPLY}, "here", 100))
    assert counted(sft_sequence(qwen(), {"messages": REPLY}, "here", 100))
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
    answer = {"role": "tool", "content": "no"}
    for spoken in (call, {k: v for k, v in call.items() if k != "content"}):
        found = sft_sequence(tokenizer, {"messages": [*USER, spoken, answer, *REPLY]}, "here", 200)
        said = tokenizer.decode(counted(found))
        assert said.count("<tool_call>add</tool_call><|im_end|>") == 1
        assert said.endswith("yes<|im_end|>")
        assert "no" not in said  # what the tool answered was not the model's choice
        pair = continuation(tokenizer, USER, [spoken, answer, *REPLY], "here", 200)
        assert tokenizer.decode(counted(pair)) == said


def test_a_template_that_cannot_be_asked_adds_no_end() -> None:
    template = (  # wants a list of parts as content
        "{% for m in messages %}{{ '<|im_start|>' }}{% for part in m['content'] %}"
        "{{ part.text }}{% endfor %}{% endfor %}"
    )
    tokenizer = qwen(template)
    assert end_ids(tokenizer) == (tokenizer.eos_token_id,)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert end_ids(tokenizer) == (tokenizer.eos_token_id,)


def test_a_template_without_an_end_token_is_taught_eos() -> None:
    template = "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] + ' ' }}{% endfor %}"
    tokenizer = qwen(template + "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}")
    found = sft_sequence(tokenizer, {"messages": USER + REPLY}, "here", 100)
    assert tokenizer.decode(found.ids) == "u:hello a:yes <|im_end|>"


def test_texts_of_no_tokens_are_kept_or_refused_by_place() -> None:
    gpt2 = bytes_tokenizer(["<|endoftext|>"], None, eos_token="<|endoftext|>")
    assert encode_prompt(gpt2, "<|endoftext|>") == [0]
    tokenizer = gemma()
    assert encode_prompt(tokenizer, "<eos>") == [2, 1]
    for text in ("<eos>", "<bos><eos>", "<eos><end_of_turn>", "<bos>"):
        with pytest.raises(UserError, match="f:3: the text .*no tokens but"):
            sft_sequence(tokenizer, {"text": text}, "f:3", 64)
    with pytest.raises(UserError, match="f:3: the completion '<eos>' is empty"):
        sft_sequence(tokenizer, {"prompt": "a", "completion": "<eos>"}, "f:3", 64)


def test_a_text_beyond_the_reward_models_limit_is_refused() -> None:
    tokenizer = llama3()
    assert len(encode_for_scoring(tokenizer, "no", 9)) <= 9
    with pytest.raises(UserError, match="tokens and the limit is 9"):
        encode_for_scoring(tokenizer, "no " * 20, 9)


def test_a_rendered_chat_is_scored_as_its_template_writes_it(family) -> None:
    tokenizer, _ = family
    text = reward_text(tokenizer, Chat(messages=USER), REPLY, {}, "here")
    scored = encode_for_scoring(tokenizer, text, 100)
    assert scored == whole_ids(tokenizer, USER + REPLY)
    assert reward_text(tokenizer, None, USER + REPLY, {}, "here") == text


def test_a_plain_completions_end_is_no_text_for_the_reward_model(family) -> None:
    tokenizer, end = family
    name = tokenizer.convert_ids_to_tokens(end)
    for completion in (" yes", f" yes{name}", f" yes{name}\n", f" yes{tokenizer.eos_token}"):
        assert reward_text(tokenizer, "hello", completion, {}, "here") == "hello yes"


def test_a_turn_after_the_assistants_own_begins_anew(family) -> None:
    """Two replies in a row are two turns: each ends once, and no header is learnt."""
    tokenizer, end = family
    chat = [*USER, *REPLY, {"role": "assistant", "content": "world"}]
    try:
        whole = whole_ids(tokenizer, chat)
    except TemplateError:  # roles must alternate
        return
    sequence = sft_sequence(tokenizer, {"messages": chat}, "row", 200)
    assert sequence.ids == whole[: len(sequence.ids)]
    assert counted(sequence).count(end) == 2
    assert "".join(decode(tokenizer, counted(sequence)).split()) == "yesworld"


@pytest.mark.parametrize(
    ("content", "message"),
    [([{"type": "text", "text": "yes"}], "list of parts"), (float("nan"), "expected text")],
)
def test_contents_that_a_template_would_write_as_python_are_refused(content, message) -> None:
    row = {"messages": [{"role": "user", "content": content}, *REPLY]}
    tokenizer = qwen()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    with pytest.raises(UserError, match=f"row: the content of message 0 is .*{message}"):
        sft_sequence(tokenizer, row, "row", 200)
