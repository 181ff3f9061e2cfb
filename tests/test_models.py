from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
)

from textrl.classifiers import encode_for_scoring, split_classifier
from textrl.decoding import Decoder
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.errors import UserError
from textrl.generation import ModelSampler, draw
from textrl.logprobs import chunked_token_logprobs, completion_positions, token_logprobs
from textrl.models import (
    ensure_pad,
    eos_id,
    load_causal_lm,
    load_classifier,
    load_tokenizer,
    split_lm,
)
from textrl.precision import autocast
from textrl.rewards import RewardModel
from textrl.trainers import reward_model_from

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CONFIGS = {
    "llama": LlamaConfig(**SMALL, **IDS, intermediate_size=32),
    "qwen2": Qwen2Config(**SMALL, **IDS, intermediate_size=32, num_key_value_heads=1),
    "gpt2": GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, **IDS),
    "mistral window": MistralConfig(
        **SMALL, **IDS, intermediate_size=32, num_key_value_heads=1, sliding_window=4
    ),
}


def make(name: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[name])
        for parameter in model.parameters():  # the default init is nearly uniform: make it matter
            if parameter.dim() >= 2:
                torch.nn.init.normal_(parameter, std=0.3)
        return model.eval()


def full_logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_stepping_with_the_cache_equals_the_full_pass(name: str) -> None:
    model = make(name)
    lm = split_lm(model)
    rows = [[1, 5, 6], [1, 7], [1, 8, 9, 10]]
    decoder = Decoder(lm, 3, max_length=12)
    padded = torch.tensor([row + [0] * (4 - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    states = decoder.prefill(torch.arange(3), padded, lengths)
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        for row, state in zip(rows, states, strict=True):
            expected = full_logits(model, row)[-1]
            assert torch.allclose(lm.head(state), expected, atol=1e-4)
        tokens = torch.randint(3, 40, (3,), generator=generator)
        if step == 3:  # one row starts again while the others go on
            rows[1] = [1, 11, 12]
            decoder.prefill(torch.tensor([1]), torch.tensor([rows[1]]), torch.tensor([3]))
        rows = [[*row, int(token)] for row, token in zip(rows, tokens, strict=True)]
        states = decoder.step(tokens)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_sampled_logprobs_are_those_of_the_training_pass(name: str) -> None:
    lm = split_lm(make(name))
    prompts = torch.tensor([[1, 5, 6], [1, 7, 0], [1, 8, 9]]).repeat(8, 1)
    lengths = torch.tensor([3, 2, 3]).repeat(8)
    samples = ModelSampler(lm).sample(
        prompts,
        lengths,
        max_new_tokens=8,
        end_ids=(2,),
        generator=torch.Generator().manual_seed(0),
        temperature=0.8,
    )
    assert samples.mask.sum() < samples.mask.numel()  # a row left the batch early
    for row in range(24):
        count, length = int(samples.mask[row].sum()), int(lengths[row])
        ids = torch.cat([prompts[row, :length], samples.completion_ids[row, :count]])[None]
        mask = torch.ones(1, count, dtype=torch.bool)
        hidden = lm.action_states(ids, completion_positions(lengths[row : row + 1], mask), mask)
        chosen = samples.completion_ids[row : row + 1, :count]
        expected = chunked_token_logprobs(hidden, lm.head, chosen, mask, temperature=0.8)
        assert torch.allclose(samples.logprobs[row, :count], expected[0], atol=1e-5)
        assert (chosen[0, :-1] != 2).all()


def test_a_row_keeps_its_own_uniforms_when_its_neighbours_leave() -> None:
    model = make("llama")
    prompts, lengths = torch.tensor([[1, 5], [1, 6]]).repeat(8, 1), torch.tensor([2] * 16)
    samples = ModelSampler(split_lm(model)).sample(
        prompts,
        lengths,
        max_new_tokens=8,
        end_ids=(2,),
        generator=torch.Generator().manual_seed(0),
    )
    assert not samples.mask[0:15].all()  # somebody left before the last row was done
    generator = torch.Generator().manual_seed(0)
    for t in range(samples.mask.shape[1]):
        uniforms = torch.rand(16, dtype=torch.float64, generator=generator)
        for row in samples.mask[:, t].nonzero().squeeze(1).tolist():
            ids = prompts[row].tolist() + samples.completion_ids[row, :t].tolist()
            log_p = full_logits(model, ids)[-1:].log_softmax(-1)
            expected = draw(log_p, uniforms[row : row + 1]).item()
            assert samples.completion_ids[row, t].item() == expected


@pytest.mark.parametrize("name", list(CONFIGS))
def test_rows_of_one_length_need_no_mask(name: str) -> None:
    model = make(name)
    lm = split_lm(model)
    rows = [[1, 5, 6], [1, 7, 8]]
    decoder = Decoder(lm, 2, max_length=9)
    states = decoder.prefill(torch.arange(2), torch.tensor(rows), torch.tensor([3, 3]))
    for token in range(10, 16):
        for row, state in zip(rows, states, strict=True):
            assert torch.allclose(lm.head(state), full_logits(model, row)[-1], atol=1e-4)
        rows = [[*row, token + i] for i, row in enumerate(rows)]
        states = decoder.step(torch.tensor([row[-1] for row in rows]))


@pytest.mark.parametrize("first", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_cache_goes_on_in_another_precision(name: str, first: str) -> None:
    model = make(name)
    lm, second = split_lm(model), {"float32": "bfloat16", "bfloat16": "float32"}[first]
    decoder, cpu = Decoder(lm, 1, max_length=4), torch.device("cpu")
    with autocast(first, cpu):
        decoder.prefill(torch.arange(1), torch.tensor([[1, 5]]), torch.tensor([2]))
    with autocast(second, cpu):
        logits = lm.head(decoder.step(torch.tensor([6])))
        decoder.prefill(torch.arange(1), torch.tensor([[1, 7]]), torch.tensor([2]))
        restarted = lm.head(decoder.step(torch.tensor([8])))
    assert torch.allclose(logits[0].float(), full_logits(model, [1, 5, 6])[-1], atol=0.1)
    assert torch.allclose(restarted[0].float(), full_logits(model, [1, 7, 8])[-1], atol=0.1)


def test_the_cache_is_read_as_it_lies_under_autocast() -> None:
    """Rotated keys are float32 there and values bfloat16: neither is copied at every step."""
    lm = split_lm(make("llama"))
    decoder = Decoder(lm, 1, max_length=4)
    with autocast("bfloat16", torch.device("cpu")):
        decoder.prefill(torch.arange(1), torch.tensor([[1, 5]]), torch.tensor([2]))
        layer = decoder._cache.layers[0]
        update, shared = layer.update, []

        def watched(*args: object, **kwargs: object) -> object:
            read = update(*args, **kwargs)
            shared.extend(
                ours.untyped_storage().data_ptr() == theirs.untyped_storage().data_ptr()
                for ours, theirs in zip(read, (layer.keys, layer.values), strict=True)
            )
            return read

        layer.update = watched
        decoder.step(torch.tensor([6]))
    assert shared == [True, True]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_prompts_of_like_lengths_are_read_together(name: str, monkeypatch) -> None:
    model = make(name)
    lm = split_lm(model)
    cheap = replace(lm, packing=replace(lm.packing, pass_cost=2))
    rows = [[1], [1, 5, 6, 7, 8, 9], [1, 4, 3, 2, 6], [1, 9]]
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.tensor([row + [11] * (6 - len(row)) for row in rows])
    widths: list[tuple[int, ...]] = []
    forward = lm.trunk.forward

    def watched(input_ids: torch.Tensor, **options: object) -> object:
        widths.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **options)

    decoder = Decoder(cheap, 4, max_length=9)
    monkeypatch.setattr(lm.trunk, "forward", watched)
    states = decoder.prefill(torch.arange(4), padded, lengths)
    assert widths == [(2, 2), (2, 6)]  # 16 tokens and 2 passes, not 24 in one
    monkeypatch.undo()
    for token in (3, 4):
        for row, state in zip(rows, states, strict=True):
            assert torch.allclose(lm.head(state), full_logits(model, row)[-1], atol=1e-4)
        rows = [[*row, token + i] for i, row in enumerate(rows)]
        states = decoder.step(torch.tensor([row[-1] for row in rows]))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_equal_prompts_are_read_once(name: str, monkeypatch) -> None:
    lm = split_lm(make(name))
    prompts = torch.tensor([[1, 5, 6], [1, 7, 9], [1, 5, 6], [1, 7, 4]])
    lengths = torch.tensor([3, 2, 3, 2])  # what lies behind a prompt's end is no part of it
    read: list[int] = []
    prefill = Decoder.prefill

    def counted(self: Decoder, rows: torch.Tensor, *arguments: torch.Tensor) -> torch.Tensor:
        read.append(len(rows))
        return prefill(self, rows, *arguments)

    monkeypatch.setattr(Decoder, "prefill", counted)
    arguments = dict(max_new_tokens=6, end_ids=(), generator=torch.Generator().manual_seed(0))
    samples = ModelSampler(lm).sample(prompts, lengths, **arguments)
    assert read == [2]
    for row in range(4):
        length = int(lengths[row])
        ids = torch.cat([prompts[row, :length], samples.completion_ids[row]])[None]
        mask = torch.ones(1, 6, dtype=torch.bool)
        positions = completion_positions(lengths[row : row + 1], mask)
        logits = lm.head(lm.action_states(ids, positions, mask))
        expected = token_logprobs(logits, samples.completion_ids[row : row + 1])
        assert torch.allclose(samples.logprobs[row], expected[0], atol=1e-5)


def test_generation_settings_of_the_model_do_not_leak_in() -> None:
    model = make("llama")
    plain = split_lm(model)
    arguments = dict(max_new_tokens=8, end_ids=(2,))
    prompts, lengths = torch.tensor([[1, 5]] * 4), torch.tensor([2] * 4)
    first = ModelSampler(plain).sample(
        prompts, lengths, generator=torch.Generator().manual_seed(0), **arguments
    )
    model.generation_config.top_k = 1
    model.generation_config.repetition_penalty = 9.0
    again = ModelSampler(plain).sample(
        prompts, lengths, generator=torch.Generator().manual_seed(0), **arguments
    )
    assert torch.equal(first.completion_ids, again.completion_ids)


def test_draw_follows_the_distribution() -> None:
    logprobs = torch.tensor([[0.1, 0.2, 0.7]]).log().expand(10_000, 3)
    uniforms = torch.rand(10_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(draw(logprobs, uniforms)) / 10_000
    assert shares.tolist() == pytest.approx([0.1, 0.2, 0.7], abs=0.015)
    edges = torch.tensor([0.0, 1.0 - 1e-16], dtype=torch.float64)
    assert draw(logprobs[:2], edges).tolist() == [0, 2]


def test_a_head_that_does_more_is_found_out() -> None:
    class Scaled(type(tiny_model())):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 0.5
            return output

    model = tiny_model()
    model.__class__ = Scaled
    lm = split_lm(model)
    ids = torch.tensor([[1, 5, 6]])
    assert torch.equal(lm.head(lm.hidden(ids)), model(input_ids=ids).logits)
    assert lm.state_size == model.config.hidden_size
    assert lm.max_cached > 10**9


def test_padding_never_changes_a_logprob() -> None:
    lm = split_lm(make("llama"))
    ids = torch.tensor([[1, 5, 6, 7]])
    wide = torch.nn.functional.pad(ids, (0, 9), value=31)
    assert torch.allclose(lm.hidden(ids), lm.hidden(wide)[:, :4], atol=1e-6)


def test_unknown_model_paths_are_explained(tmp_path) -> None:
    for load in (load_causal_lm, load_classifier, load_tokenizer):
        with pytest.raises(UserError, match="nowhere: no such file or folder"):
            load(str(tmp_path / "nowhere"))


def test_a_language_model_is_no_reward_model(checkpoint: str) -> None:
    with pytest.raises(UserError, match=r"no trained reward head.*score\.weight"):
        load_classifier(checkpoint)


def test_tokenizer_without_eos(tokenizer) -> None:
    bare = tiny_tokenizer()
    bare.eos_token = None
    with pytest.raises(UserError, match="no EOS"):
        eos_id(bare)


@pytest.mark.parametrize("pad", [None, "<eos>"])
def test_a_distinct_pad_is_made(pad: str | None, checkpoint: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = pad
    model = reward_model_from(checkpoint)
    found = ensure_pad(tokenizer, model)
    assert found not in (None, tokenizer.eos_token_id)
    assert model.config.pad_token_id == found
    assert model.get_input_embeddings().weight.shape[0] > found


def test_scores_do_not_change_with_padding_nor_with_pad_equal_to_eos(checkpoint: str) -> None:
    tokenizer, model = tiny_tokenizer(), reward_model_from(checkpoint).eval()
    texts = ["abc", "abcdefgh", "d"]
    encoded = [encode_for_scoring(tokenizer, text, 100) for text in texts]
    assert [ids[-1] for ids in encoded] == [2, 2, 2]  # scored at EOS
    scores = split_classifier(model).scores
    together = scores(encoded)
    alone = torch.cat([scores([ids]) for ids in encoded])
    assert torch.allclose(together, alone, atol=1e-6)
    model.config.pad_token_id = 2  # pad == eos: our pooling does not look at it
    assert torch.equal(scores(encoded), together)
    # transformers' own pooling agrees once the pad is distinct
    ensure_pad(tokenizer, model)
    padded = tokenizer([t + "<eos>" for t in texts], padding=True, return_tensors="pt")
    theirs = model(input_ids=padded.input_ids, attention_mask=padded.attention_mask).logits[:, 0]
    assert torch.allclose(theirs, together, atol=1e-6)


def test_reward_models_with_other_numbers_of_labels(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=2)
    scorer = RewardModel(two, tiny_tokenizer())
    text = encode_for_scoring(tiny_tokenizer(), "abc", 100)
    logits = two(input_ids=torch.tensor([text])).logits[0]
    assert scorer([""], ["abc"]) == pytest.approx([float(logits[1] - logits[0])], abs=1e-6)
    monkeypatch.setattr("textrl.rewards.encode_for_scoring", lambda _, text, most: [1] * len(text))
    with pytest.raises(UserError, match="text 1 of the batch is empty"):
        scorer(["", ""], ["abc", ""])
    monkeypatch.undo()
    three = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=3)
    with pytest.raises(UserError, match="3"):
        RewardModel(three, tiny_tokenizer())
