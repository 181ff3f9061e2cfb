"""Packing changes where texts are read, never what is read of them."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_models import CONFIGS, make
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    Lfm2Config,
    OPTConfig,
    PhiConfig,
    Qwen3Config,
)

from textrl.agents.critic import make_critic
from textrl.classifiers import split_classifier
from textrl.envs import tiny_tokenizer
from textrl.logprobs import completion_positions
from textrl.models import split_lm
from textrl.packing import Packing, even_rows, plan, read, share_beginnings, take
from textrl.policy import PolicyModule
from textrl.precision import autocast
from textrl.trainers.dpo import Pair, pair_logprobs
from textrl.trunks import examined, packing_of
from textrl.types import Sequence, stack_sequences

FREE = Packing(pass_cost=0, attention_cost=0.0, max_length=99)
TEXTS = [[1, 5, 6, 7, 8, 9], [1, 5, 6, 7, 3], [2, 3], [1, 5, 6, 7, 8, 9, 10, 11], [4], [1, 5, 6]]
SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
OTHERS = {
    "neox": GPTNeoXConfig(**SMALL, intermediate_size=32),
    "phi": PhiConfig(**SMALL, intermediate_size=32),
    "opt": OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=64),
    "qwen3": Qwen3Config(**SMALL, intermediate_size=32, num_key_value_heads=1, head_dim=8),
    "gemma2": Gemma2Config(**SMALL, intermediate_size=32, num_key_value_heads=1, head_dim=8),
    "bloom": BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2),
    "falcon alibi": FalconConfig(**SMALL, alibi=True, new_decoder_architecture=False),
    "gpt-neo": GPTNeoConfig(
        vocab_size=40,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=9,
    ),
    "lfm2": Lfm2Config(
        **SMALL,
        intermediate_size=32,
        num_key_value_heads=1,
        layer_types=["conv", "full_attention"],
        block_auto_adjust_ff_dim=False,
    ),
}
UNFIT = ("bloom", "falcon alibi", "mistral window", "gpt-neo", "lfm2")
CACHELESS = ("bloom", "falcon alibi", "lfm2")
"""Positions from the mask (ALiBi), windows by slot or shorter than the trial, convolution."""


def padded(texts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(text) for text in texts)
    rows = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    return rows, torch.tensor([len(text) for text in texts])


def packings(fit: Packing) -> list[Packing]:
    """Return ways to pack TEXTS that differ in their rows."""
    return [
        replace(fit, pass_cost=0, attention_cost=0.0),
        replace(fit, pass_cost=8, attention_cost=0.1),
        replace(fit, pass_cost=1 << 30),
    ]


def test_rows_by_hand() -> None:
    (one,), places = plan(FREE, *padded([[1, 5, 6, 7], [2, 3, 4], [1, 5, 8]]))
    # the family (1 5 | 6 7 | 8) and the text 2 3 4 in one row
    assert one.input_ids.tolist() == [[1, 5, 6, 7, 8, 2, 3, 4]]
    assert one.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1, 2]]
    assert places.tolist() == [[0, 1, 2, 3], [5, 6, 7, 0], [0, 1, 4, 0]]
    sees = [set(row.nonzero().squeeze(1).tolist()) for row in one.visible[0, 0]]
    assert sees == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 4}, {5}, {5, 6}, {5, 6, 7}]


def test_without_packing_there_are_passes_of_like_lengths() -> None:
    never = replace(FREE, max_length=0)
    passes, places = plan(never, *padded([[1, 5, 6, 7], [2], [1, 5, 8, 9]]))
    assert [one.input_ids.tolist() for one in passes] == [[[2]], [[1, 5, 6, 7], [1, 5, 8, 9]]]
    assert [one.visible for one in passes] == [None, None]
    assert places.tolist() == [[1, 2, 3, 4], [0, 0, 0, 0], [5, 6, 7, 8]]


@pytest.mark.parametrize("seed", range(60))
def test_every_token_has_its_place(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 10, size=rng.integers(1, 10))
    texts = [rng.integers(0, 3, size=length).tolist() for length in lengths]
    cost, pass_cost = rng.uniform(0.0, 0.2), int(rng.integers(0, 21))
    packing = Packing(pass_cost=pass_cost, attention_cost=cost, max_length=9)
    passes, places = plan(packing, *padded(texts))
    ids = torch.cat([one.input_ids.flatten() for one in passes])
    for text, row in zip(texts, places, strict=True):
        own = row[: len(text)]
        assert ids[own].tolist() == text
        assert all(a < b for a, b in pairwise(own.tolist()))
        if passes[0].visible is not None:
            width = passes[0].input_ids.shape[1]
            number, slots = int(own[0]) // width, own % width
            assert torch.equal(passes[0].position_ids[number, slots], torch.arange(len(text)))
            for slot, count in zip(slots, range(1, len(text) + 1), strict=True):
                seen = passes[0].visible[number, 0, slot].nonzero().squeeze(1)
                assert torch.equal(seen, slots[:count])


def test_families_and_rows() -> None:
    families = share_beginnings(TEXTS, FREE)
    assert sorted(i for f in families for i in f.members) == list(range(len(TEXTS)))
    assert {tuple(sorted(f.members)) for f in families} == {(0, 1, 3, 5), (2,), (4,)}
    dear = replace(FREE, attention_cost=10.0)  # a long row costs more than it saves
    pair = [[1, 5, 6], [1, 7, 8]]
    assert [len(share_beginnings(pair, packing)) for packing in (FREE, dear)] == [1, 2]
    rows = even_rows([5, 4, 3, 3, 3], replace(FREE, attention_cost=0.1))
    assert sorted(i for row in rows for i in row) == list(range(5))


@pytest.mark.parametrize("name", [*CONFIGS, *OTHERS])
def test_packed_states_and_gradients_are_those_of_each_text_alone(name: str) -> None:
    if name in CONFIGS:
        model = make(name)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(OTHERS[name]).eval()
    with pytest.warns(UserWarning, match="cache") if name in CACHELESS else torch.no_grad():
        lm = split_lm(model)
    unfit = name in UNFIT
    assert (lm.packing.max_length == 0) == unfit, lm.packing
    ids, lengths = padded(TEXTS)
    mask = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
    rows = [len(plan(packing, ids, lengths)[0][0].input_ids) for packing in packings(lm.packing)]
    assert unfit or rows == [1, 2, 6]  # all in one row, a few with padding, each in its own
    weights = torch.rand(model.config.hidden_size, generator=torch.Generator().manual_seed(0))

    def gradients(states: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        (states.tanh() @ weights).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    alone = torch.cat([lm.trunk(input_ids=torch.tensor([text]))[0][0] for text in TEXTS])
    expected = gradients(alone)
    for packing in packings(lm.packing):
        together = take(*read(lm.trunk, packing, ids, lengths))[mask]
        assert torch.allclose(together, alone, atol=1e-5)
        for found, wanted in zip(gradients(together), expected, strict=True):
            assert torch.allclose(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [n for n in [*CONFIGS, *OTHERS] if n != "lfm2"])
def test_scores_need_the_last_mlp_at_the_ends_only(name: str) -> None:
    config = (CONFIGS | OTHERS)[name]
    config.num_labels, config.pad_token_id = 1, 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval()
    whole = split_classifier(model)
    if name in ("llama", "qwen2", "gpt2", "gemma2"):
        assert whole.last_mlp is not None
    if name == "opt":  # it has no module that is the MLP
        assert whole.last_mlp is None
    free = replace(whole, packing=replace(whole.packing, pass_cost=0))
    plain = replace(whole, last_mlp=None, packing=replace(FREE, max_length=0))
    alone = torch.cat([plain.scores([text]) for text in TEXTS])
    gradients = []
    for classifier in (plain, free):
        model.zero_grad()
        scores = classifier.scores([*TEXTS, TEXTS[0]])  # equal texts share an end
        assert torch.allclose(scores[:-1], alone, atol=1e-5)
        (scores * torch.arange(1.0, 8.0)).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for found, wanted in zip(*gradients, strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


def test_a_pair_reads_its_prompt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = split_lm(make("llama"))
    lm = replace(lm, packing=replace(lm.packing, pass_cost=0, attention_cost=1e-4))
    prompt, ends = [1, *range(3, 15)], ([20, 21, 2], [22, 2])
    sides = [Sequence(ids=prompt + end, counts=[False] * 13 + [True] * len(end)) for end in ends]
    read_slots: list[int] = []
    forward = lm.trunk.forward

    def counted(*args: object, **options: object) -> object:
        read_slots.append(options["input_ids"].numel())
        return forward(*args, **options)

    monkeypatch.setattr(lm.trunk, "forward", counted)
    found = pair_logprobs(PolicyModule(lm), [Pair(chosen=sides[0], rejected=sides[1])]).squeeze(1)
    assert read_slots == [13 + 2 + 1]  # each one's last token predicts nothing
    for side, logprob in zip(sides, found, strict=True):
        logits = lm.model(input_ids=torch.tensor([side.ids])).logits[0].log_softmax(-1).detach()
        own = [float(logits[t - 1, side.ids[t]]) for t in range(13, len(side.ids))]
        assert logprob.item() == pytest.approx(sum(own), abs=1e-4)


def test_packing_of_a_model_by_hand() -> None:
    model = make("llama")
    size = sum(p.numel() for p in model.parameters())
    found = packing_of(model, examined(model.base_model, model))
    assert found.pass_cost == (1 << 28) // size
    assert found.attention_cost == pytest.approx(3 * 2 * 16 / size)
    assert found.row_cost(10) == pytest.approx(10 + 100 * found.attention_cost)


def test_packing_under_autocast_and_with_the_plain_attention() -> None:
    model = make("llama")
    lm = split_lm(model)
    ids, lengths = padded(TEXTS)
    mask = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
    with torch.no_grad():
        expected = take(*read(lm.trunk, lm.packing, ids, lengths))[mask]
        model.set_attn_implementation("eager")
        for packing in packings(split_lm(model).packing)[:2]:
            found = take(*read(lm.trunk, packing, ids, lengths))[mask]
            assert torch.allclose(found, expected, atol=1e-5)
        model.set_attn_implementation("sdpa")
        for weights in (torch.float32, torch.bfloat16):
            trunk = lm.trunk.to(weights)
            with autocast("bfloat16", model.device):
                for packing in packings(lm.packing)[:2]:
                    found = take(*read(trunk, packing, ids, lengths))[mask].float()
                    assert (found - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_texts_attend_in_float32_under_autocast() -> None:
    model = make("llama")
    lm = split_lm(model)
    ids, lengths = padded(TEXTS)
    seen: set[torch.dtype] = set()  # of what attention gives to the next layer
    model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(
        lambda module, inputs: seen.add(inputs[0].dtype)
    )
    with autocast("bfloat16", model.device):
        for packing in packings(lm.packing):  # packed with a mask, or in passes without one
            read(lm.trunk, packing, ids, lengths)
        assert seen == {torch.float32}
        lm.hidden(ids)  # a pass that nobody trains on
        assert seen == {torch.float32, torch.bfloat16}


def test_a_critic_of_its_own_is_packed_too() -> None:
    critic = make_critic("separate", "mlp", make("llama"), tiny_tokenizer(), None)
    torch.nn.init.normal_(critic.head[-1].weight)
    ids, lengths = padded([[1, 5, 6, 7, 8], [1, 5, 6, 3], [1, 9]])
    prompts = torch.tensor([2, 2, 1])
    mask = torch.arange(3) < (lengths - prompts).unsqueeze(1)
    alone = torch.zeros(3, 3)
    for row, length in enumerate(lengths):
        states = critic.trunk(input_ids=ids[row : row + 1, :length])[0][0]
        first = int(prompts[row]) - 1
        alone[row, : int(mask[row].sum())] = critic.head(states[first : int(length) - 1])
    for packing in packings(critic.packing):
        critic.packing = packing
        values = critic(ids, completion_positions(prompts, mask), mask)
        assert torch.allclose(values, alone, atol=1e-5)


def test_scores_from_two_threads_and_with_recomputation() -> None:
    config = CONFIGS["llama"]
    config.num_labels, config.pad_token_id = 1, 0
    model = AutoModelForSequenceClassification.from_config(config).eval()
    classifier = split_classifier(model)
    assert classifier.last_mlp is not None
    with torch.no_grad():
        expected = classifier.scores(TEXTS)

        def score(texts: list[list[int]]) -> torch.Tensor:
            with torch.no_grad():  # of this thread
                return classifier.scores(texts)

        with ThreadPoolExecutor(2) as pool:
            for _ in range(20):
                first, second = pool.map(score, (TEXTS, TEXTS[:3]))
                assert torch.equal(first, expected)
                assert torch.allclose(second, expected[:3], atol=1e-6)
    with warnings.catch_warnings():  # transformers 5 renames it
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable()
    model.train()  # Llama has no dropout
    scores = classifier.scores(TEXTS)
    scores.sum().backward()
    assert torch.allclose(scores, expected, atol=1e-5)


def test_ragged_texts_are_never_held_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = split_lm(make("llama"))
    held: list[int] = []

    def counted(states: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        held.append(places.numel())
        return take(states, places)

    monkeypatch.setattr("textrl.policy.take", counted)
    ragged = [Sequence(ids=[1, 5], counts=[False, True]) for _ in range(60)]
    ragged.append(Sequence(ids=[1] * 300, counts=[False] + [True] * 299))
    found = PolicyModule(lm).logprobs_of(stack_sequences(ragged, lm.device))
    assert held == [60 + 299]
    assert found.shape == (61, 300)
    assert torch.equal(
        found != 0,
        torch.tensor([[i < len(s.ids) for i in range(300)] for s in ragged])
        & (torch.arange(300) > 0),
    )
