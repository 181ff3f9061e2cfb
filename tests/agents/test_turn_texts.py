"""What a world says, as tokens: the policy's ids stay its own, and replies keep every character."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from families_of_tokenizers import (
    CHATML,
    FAMILIES,
    bytes_tokenizer,
    llama3,
    pieces_tokenizer,
    qwen,
    r1,
)
from families_of_tokenizers import QWEN3 as THINKING
from tokenizers import normalizers, pre_tokenizers
from turn_worlds import Babble, Script, babbling, scripted, vector

from textrl.agents.collect import collect
from textrl.agents.text_env import TextEnv
from textrl.envs import tiny_character_tokenizer, tiny_model
from textrl.errors import UserError
from textrl.generation import ModelSampler
from textrl.models import split_lm
from textrl.seams import decode_whole

NO_END = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
EOS_NAMES = dict(eos_token="<eos>", bos_token="<bos>")


def plain_bytes(template: str | None = None) -> Any:
    return bytes_tokenizer(["<bos>", "<eos>"], template, adds="<bos> $A", **EOS_NAMES)


def plain_pieces() -> Any:
    return pieces_tokenizer(["<s>", "</s>"], None, bos_token="<s>", eos_token="</s>")


def first_only() -> Any:
    """Return a tokenizer that adds a space at the beginning of a text, and not after an end."""
    tokenizer = plain_pieces()
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "character": tiny_character_tokenizer,
    "bytes": plain_bytes,
    "pieces": plain_pieces,
    "first only": first_only,
    "no end": lambda: plain_bytes(NO_END),
    **{name: make for name, (make, _) in FAMILIES.items()},
}
BY_PIECES = ("pieces", "first only", "phi3", "llama2", "mistral")
REPLIES = (
    "yes",
    " a space before",
    "  two, and after  ",
    "\n",
    "\n\nlines\n",
    "x" * 90,
    "naïve 東京 🙂",
    "hello<eos>world",
    "<|im_end|><|im_start|>user\nhi",
    "</s><s>[INST] no [/INST]",
    "<bos>",
    "",
    "\t",
    "user system assistant model",
)


def turns(name: str, world: Any, rows: int = 4, **settings: Any) -> Any:
    tokenizer = TOKENIZERS[name]()
    sizes = dict(max_prompt_tokens=160, max_completion_tokens=320, max_turn_tokens=6)
    model = tiny_model(vocab_size=len(tokenizer), seed=1)
    given = dict(reference=model, tokenizer=tokenizer, autoreset_mode="Disabled")
    return vector(world, rows, **sizes | given | settings)


class Watched:
    """A sampler that notes the ids that each row was given."""

    def __init__(self, sampler: ModelSampler, rows: int) -> None:
        self.sampler, self.said = sampler, [[] for _ in range(rows)]

    def converse(self, *arguments: Any) -> "Watched":
        self.conversation = self.sampler.converse(*arguments)
        return self

    def sample(self, rows: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        samples = self.conversation.sample(rows, *arguments, **named)
        for k, row in enumerate(rows.tolist()):
            self.said[row].append(samples.completion_ids[k][samples.mask[k]].tolist())
        return samples


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_the_rollout_has_the_ids_that_were_sampled(name: str, seed: int) -> None:
    venv = turns(name, babbling(*REPLIES, ends=0.05))
    venv.reset(seed=seed)
    env, tokenizer = TextEnv(venv), venv.tokenizer
    policy = split_lm(tiny_model(vocab_size=len(tokenizer), seed=5 + seed))
    watched = Watched(ModelSampler(policy), 4)
    rollout = collect(watched, env, torch.Generator().manual_seed(seed))
    played = checked = 0
    for row, said in enumerate(watched.said):
        flat = [token for turn in said for token in turn]
        own = rollout.mask[row]
        assert rollout.completion_ids[row][own].tolist() == flat
        assert rollout.input_ids[row][rollout.positions[row][own]].tolist() == flat
        length = int(rollout.text_lengths[row])
        assert venv.core.lengths[row] == length
        assert (
            rollout.input_ids[row, :length].tolist() == venv.core.input_ids[row, :length].tolist()
        )
        assert int(rollout.turns[row]) == len(said) == venv.core.turn[row]
        world = venv.core.worlds._worlds[row].unwrapped
        assert isinstance(world, Babble)
        assert len(world.heard) == len(said)
        place = 0
        for turn, heard in zip(said, world.heard, strict=True):
            ends = turn[-1] in venv.end_token_ids
            text = tokenizer.decode(turn[: len(turn) - ends], skip_special_tokens=True)
            # in a run of bytes half a character takes whole ones before it along
            if "\ufffd" not in heard or name not in BY_PIECES:
                assert heard.removeprefix(" ") == text.removeprefix(" ")
                checked += 1
            at = int(rollout.positions[row, place + len(turn) - 1])
            after = rollout.input_ids[row, at + 1 : length].tolist()
            if not ends and after:  # the budget ended it: one end token as context, which is not
                assert after[0] in venv.end_token_ids or name == "no end"  # the policy's
            place += len(turn)
            played += 1
    assert played > 8
    assert checked > 0


def own_turn(tokenizer: Any, rng: np.random.Generator, budget: int) -> list[int]:
    """Return the ids of words, as many as the budget; whole ones."""
    words = ["hello", "world", "yes", "no", "great", "movie"]
    ids: list[int] = []
    while len(ids) < budget:
        ids = tokenizer(" ".join(rng.choice(words, 8)), add_special_tokens=False).input_ids
    return list(ids[:budget])


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_a_conversation_decodes_to_what_the_template_writes(name: str, cut: bool) -> None:
    """With and without the end token of the policy's own: the text has exactly one."""
    rng = np.random.default_rng(0)
    end = FAMILIES[name][1] if name in FAMILIES else ""
    said_by_world = [""]
    world = scripted(lambda turn: (said_by_world[0], 0.0, False, False, {}))
    venv = turns(name, world, rows=1)
    tokenizer = venv.tokenizer
    end_id = tokenizer.convert_tokens_to_ids(end) if end else venv.eos_token_id
    for reply in REPLIES:
        said_by_world[0] = reply
        venv.reset(seed=0)
        for _ in range(2):
            own = own_turn(tokenizer, rng, 6 if cut else 4)
            ids = own if cut else [*own, end_id]
            before = venv.core.input_ids[0, : venv.core.lengths[0]].tolist()
            _, infos = venv.step_sequence(np.array([ids]), np.ones((1, len(ids)), dtype=bool))
            there = venv.core.input_ids[0, : venv.core.lengths[0]].tolist()
            assert there[: len(before) + len(ids)] == [*before, *ids]
            spoken = decode_whole(tokenizer, [*before, *own])
            assert spoken.endswith(infos["turn_text"][0])
            after = after_turn(tokenizer, name, reply, end or tokenizer.eos_token)
            # such as Llama 2's writes a space of its own after a special token
            by_itself = tokenizer(after, add_special_tokens=False).input_ids
            also = decode_whole(tokenizer, [*before, *own, *by_itself])
            said = decode_whole(tokenizer, there)
            assert said in (known(tokenizer, name, spoken + after), also)


def after_turn(tokenizer: Any, name: str, reply: str, end: str) -> str:
    """Return what follows a turn: its end, and the reply as the template writes it."""
    if not tokenizer.chat_template:
        return end + reply
    chat = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
    chat.append({"role": "user", "content": reply.strip() or "C"})
    whole = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    after = whole[whole.index("B") + 1 :].lstrip(" ")  # Llama 2 writes a space, the policy none
    if not reply.strip():
        after = "".join(after.rsplit("C", 1))
    return end + after if name == "no end" else after


def known(tokenizer: Any, name: str, text: str) -> str:
    """Return a text as the character tokenizer can write it."""
    if name != "character":
        return text
    letters = set(tokenizer.get_vocab())
    return "".join(c if c in letters else "<pad>" for c in text)


def test_other_end_tokens_of_the_policy_count_as_its_end() -> None:
    """Llama 3's EOS in place of <|eot_id|>: no second end token follows."""
    tokenizer = llama3()
    model = tiny_model(vocab_size=len(tokenizer))
    given = dict(reference=model, tokenizer=tokenizer, max_prompt_tokens=160)
    venv = vector(scripted(), 1, **given | dict(max_completion_tokens=320))
    eot, eos = map(tokenizer.convert_tokens_to_ids, ("<|eot_id|>", "<|end_of_text|>"))
    assert venv.end_token_ids == (eos, eot)
    for end in (eos, eot):
        venv.reset(seed=0)
        start = venv.core.lengths[0]
        venv.step_sequence(np.array([[70, end]]), np.ones((1, 2), dtype=bool))
        ids = venv.core.input_ids[0, start : venv.core.lengths[0]].tolist()
        assert ids[:2] == [70, end]
        assert [token for token in ids[2:] if token in (eos, eot)] == [eot]  # of the user's message
        assert decode_whole(tokenizer, ids[2:3]) == "<|start_header_id|>"


def test_templates_that_rewrite_earlier_turns_are_refused_by_name() -> None:
    for tokenizer, message in (
        (qwen(THINKING), "drops the thoughts"),
        (r1(), "rewrites earlier turns"),
    ):
        given = dict(reference=tiny_model(vocab_size=len(tokenizer)), tokenizer=tokenizer)
        with pytest.raises(UserError, match=message):
            vector(scripted(), 1, **given)


def test_a_system_prompt_and_the_role_of_a_tool_reach_the_template() -> None:
    tokenizer = qwen(CHATML)
    given = dict(reference=tiny_model(vocab_size=len(tokenizer)), tokenizer=tokenizer)
    given |= dict(max_prompt_tokens=200, max_completion_tokens=300, system_prompt="Be brief.")
    world = scripted(("4", 0.0, False, False, {"role": "tool"}), ("so", 0.0, False, False, {}))
    venv = vector(world, 1, **given)
    venv.reset(seed=0)
    for _ in range(2):
        venv.step(np.array([venv.eos_token_id]))
    text = decode_whole(tokenizer, venv.core.input_ids[0, : venv.core.lengths[0]].tolist())
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\ngo<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>tool\n4<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>user\nso<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    with pytest.raises(UserError, match="system_prompt is given, but the tokenizer has no chat"):
        vector(scripted(), 1, system_prompt="Be brief.")


def test_an_end_token_that_is_banned_still_ends_a_cut_turn_as_context() -> None:
    venv = vector(scripted(), 1, banned_token_ids=[2], max_turn_tokens=2)
    venv.reset(seed=0)
    venv.step_sequence(np.array([[7, 8]]), np.ones((1, 2), dtype=bool))
    assert venv.core.input_ids[0, 4:7].tolist() == [7, 8, 2]
    with pytest.raises(UserError, match="banned_token_ids"):
        venv.step(np.array([2]))


def test_a_turn_with_no_text_is_a_turn() -> None:
    world = Script()
    venv = vector(world, 1)
    venv.reset(seed=0)
    venv.step(np.array([2]))
    assert world.calls[1:] == [""]
