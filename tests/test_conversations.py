"""The decoder's `read` and `step` and the sampler's conversation, against whole re-encoding."""

from typing import Any

import numpy as np
import pytest
import torch
from families import VOCAB
from families import make as family

from textrl.decoding import Decoder
from textrl.generation import ModelSampler, draw
from textrl.logprobs import AllowedTokens, token_logprobs
from textrl.models import split_lm

NAMES = [
    "Llama",
    "GPT-2",
    "GPT-Neo",
    "OPT, with projections",
    "Mistral, sliding window",
    "Gemma 2",
    "Falcon, ALiBi",
    "Mamba",
]
ROWS = 5
pytestmark = pytest.mark.filterwarnings("ignore:.*stepped without a KV cache.*:UserWarning")


def whole_logits(lm: Any, text: list[int]) -> torch.Tensor:
    """Return the logits after each token of a text that is read alone, by the model itself."""
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([text]), use_cache=False).logits[0]


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("length", [24, 60])
@pytest.mark.parametrize("name", NAMES)
def test_any_order_of_reads_and_steps_gives_the_states_of_the_whole_texts(
    name: str, length: int, seed: int
) -> None:
    """Random subsets of rows, in any order, restarts among them; each state of each new token."""
    lm, rng = split_lm(family(name)), np.random.default_rng(seed)
    decoder = Decoder(lm, ROWS, length)
    texts: list[list[int]] = [[] for _ in range(ROWS)]
    done = dict.fromkeys(("read", "step", "prefill"), 0)
    for _ in range(40):
        chosen = rng.permutation(ROWS)[: rng.integers(1, ROWS + 1)].tolist()
        what = str(rng.choice(list(done)))
        if what == "prefill":
            for row in chosen:
                texts[row] = []
        if what == "step":
            chosen = [row for row in chosen if texts[row]]
        most = 1 if what == "step" else 9
        chosen = [row for row in chosen if len(texts[row]) + most <= length]
        if not chosen:
            continue
        done[what] += 1
        counts = [int(rng.integers(1, most + 1)) for _ in chosen]
        new = [rng.integers(3, VOCAB, count).tolist() for count in counts]
        rows = torch.tensor(chosen)
        for row, ids in zip(chosen, new, strict=True):
            texts[row] += ids
        if what == "step":
            states = decoder.step(torch.tensor([ids[0] for ids in new]), rows).unsqueeze(1)
        else:
            padded = torch.tensor([ids + [7] * (max(counts) - len(ids)) for ids in new])
            given = (rows, padded, torch.tensor(counts))
            if what == "prefill":
                last = decoder.prefill(*given)
                states = last.new_zeros(len(chosen), max(counts), last.shape[-1])
                states[torch.arange(len(chosen)), torch.tensor(counts) - 1] = last
            else:
                states = decoder.read(*given)
        for k, row in enumerate(chosen):
            expected = whole_logits(lm, texts[row])[-counts[k] :]
            found = lm.head(states[k, : counts[k]])
            first = counts[k] - 1 if what == "prefill" else 0
            assert close(found[first:], expected[first:]), (what, row)
        assert decoder.lengths.tolist() == [len(text) for text in texts]
    assert min(done.values()) >= 5


@pytest.mark.parametrize("name", NAMES)
def test_a_group_that_shares_a_prompt_goes_its_own_ways(name: str) -> None:
    """After `select`, rows that were read once go on apart, waiting ones among them."""
    lm = split_lm(family(name))
    decoder = Decoder(lm, 2, 20)
    decoder.prefill(torch.arange(2), torch.tensor([[1, 5, 6], [1, 7, 0]]), torch.tensor([3, 2]))
    decoder.select(torch.tensor([1, 0, 1, 0]))
    texts = [[1, 7], [1, 5, 6], [1, 7], [1, 5, 6]]
    for rows, tokens in (([3, 0], [9, 10]), ([2], [11]), ([1, 2, 3], [12, 13, 14]), ([0], [15])):
        states = decoder.step(torch.tensor(tokens), torch.tensor(rows))
        for row, token, state in zip(rows, tokens, states, strict=True):
            texts[row].append(token)
            assert close(lm.head(state), whole_logits(lm, texts[row])[-1])


def test_a_step_of_all_rows_copies_no_cache_and_one_of_some_moves_them_forward() -> None:
    lm = split_lm(family("Llama"))
    decoder = Decoder(lm, 4, 12)
    decoder.prefill(torch.arange(4), torch.tensor([[1, 5]] * 4), torch.tensor([2] * 4))
    moved: list[list[int]] = []
    move = decoder._cache.move

    def watched(sources: torch.Tensor, targets: torch.Tensor, used: int) -> None:
        moved.append(sources.tolist())
        move(sources, targets, used)

    decoder._cache.move = watched
    decoder.step(torch.tensor([6, 7, 8, 9]))
    assert moved == []
    decoder.step(torch.tensor([6, 7]), torch.tensor([3, 1]))  # 3 takes the slot of 0
    assert [sorted(one) for one in moved] == [[0, 3]]
    assert sorted(decoder._slot_of[torch.tensor([1, 3])].tolist()) == [0, 1]
    decoder.step(torch.tensor([6, 7]), torch.tensor([1, 3]))
    assert len(moved) == 1  # they stand there already


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_samples_as_one_that_reads_everything_anew(name: str) -> None:
    """Rows whose turns end apart, replies of other lengths, temperature, banned tokens."""
    lm = split_lm(family(name))
    allowed = AllowedTokens(width=lm.vocab_size, banned=[5, 9], end_ids=(2,), min_tokens=0)
    rng, generator = np.random.default_rng(1), torch.Generator().manual_seed(0)
    conversation = ModelSampler(lm).converse(4, 60, generator)
    texts = [[1, 6], [1, 6], [1, 7, 8], [1, 10, 11, 12]]
    going = list(range(4))
    for turn in range(4):
        width = max(len(texts[row]) for row in going)
        ids = torch.tensor([texts[row] + [0] * (width - len(texts[row])) for row in going])
        lengths = torch.tensor([len(texts[row]) for row in going])
        budget = torch.tensor([int(rng.integers(1, 6)) for _ in going])
        given = dict(max_new_tokens=budget, end_ids=(2,), temperature=0.7, allowed=allowed)
        samples = conversation.sample(torch.tensor(going), ids, lengths, **given)
        for k, row in enumerate(going):
            said = samples.completion_ids[k][samples.mask[k]].tolist()
            assert 1 <= len(said) <= budget[k]
            assert len(said) == budget[k] or said[-1] == 2
            assert not {5, 9} & set(said)
            before = len(texts[row])
            texts[row] = texts[row] + said
            logits = whole_logits(lm, texts[row])[before - 1 : -1]
            logits = allowed.restrict(logits, torch.arange(len(said)))
            expected = token_logprobs(logits, torch.tensor(said), temperature=0.7)
            assert torch.allclose(samples.logprobs[k][: len(said)], expected, atol=1e-4)
            texts[row] += rng.integers(3, VOCAB, rng.integers(1, 5)).tolist()  # the reply
        going = [row for row in going if row != 3 - turn]  # a row leaves each time


def test_what_a_row_draws_does_not_depend_on_when_other_turns_end() -> None:
    """One turn of six tokens, and six turns of one token while another row takes longer ones."""
    lm = split_lm(family("Llama"))

    def said(pieces: list[int]) -> list[int]:
        conversation = ModelSampler(lm).converse(2, 40, torch.Generator().manual_seed(3))
        texts = [[1, 6], [1, 7]]
        for piece in pieces:
            width = max(map(len, texts))
            ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
            samples = conversation.sample(
                torch.arange(2),
                ids,
                torch.tensor([len(text) for text in texts]),
                max_new_tokens=torch.tensor([piece, 3]),
                end_ids=(),
            )
            for row in range(2):
                texts[row] += samples.completion_ids[row][samples.mask[row]].tolist()
        return texts[0][2:]

    assert said([6]) == said([1] * 6) == said([2, 3, 1])


def test_each_token_of_a_row_takes_the_next_number_of_that_row() -> None:
    """Turns of different lengths: the k-th own token of row r is drawn by the k-th number of r."""
    lm = split_lm(family("Llama"))
    numbers = torch.rand(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    conversation = ModelSampler(lm).converse(2, 20, torch.Generator().manual_seed(5))
    texts, drawn = [[3, 4], [5, 6, 7]], [0, 0]
    for budgets in ([3, 1], [2, 4]):
        lengths = torch.tensor([len(text) for text in texts])
        ids = torch.zeros(2, 20, dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
        samples = conversation.sample(
            torch.arange(2), ids, lengths, max_new_tokens=torch.tensor(budgets), end_ids=()
        )
        for row, text in enumerate(texts):
            for token in samples.completion_ids[row][samples.mask[row]].tolist():
                log_p = whole_logits(lm, text)[-1:].log_softmax(-1)
                assert token == draw(log_p, numbers[drawn[row], row : row + 1]).item()
                drawn[row] += 1
                text.append(token)
            text.append(8)  # what another said
    assert drawn == [5, 5]
