"""What is asked of a trunk: the answers for architectures as transformers builds them."""

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
)

from textrl.decoding import Decoder
from textrl.models import split_lm
from textrl.trunks import cache_argument, plain_attention_length


class Renamed(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask=None, position_ids=None, cache=None):
        return input_ids


class Before(nn.Module):
    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None):
        return input_ids


class Recurrent(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask=None):
        return input_ids


@pytest.fixture
def body() -> PreTrainedModel:
    sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1)
    return LlamaModel(LlamaConfig(**sizes, num_attention_heads=1))


def test_the_cache_goes_by_the_trunks_own_word(body: PreTrainedModel) -> None:
    # transformers 5.24 renamed past_key_values; the oldest release that is supported has not
    assert cache_argument(Renamed()) == "cache"
    assert cache_argument(Before()) == "past_key_values"
    for trunk in (Renamed(), Before()):
        assert plain_attention_length(trunk, body) > 10**9
    assert plain_attention_length(Recurrent(), body) == 0


def test_layers_that_convolve_are_no_attention() -> None:
    sizes = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2)
    kinds = ["conv", "full_attention"]
    config = Lfm2Config(**sizes, num_attention_heads=1, num_key_value_heads=1, layer_types=kinds)
    model = Lfm2ForCausalLM(config).eval()
    with pytest.warns(UserWarning, match="without a KV cache"):
        lm = split_lm(model)
    assert lm.max_cached == 0
    decoder = Decoder(lm, 1, 4)
    decoder.prefill(torch.tensor([0]), torch.tensor([[1, 2]]), torch.tensor([2]))
    logits = model(torch.tensor([[1, 2, 3]])).logits[0, -1]
    assert torch.allclose(lm.head(decoder.step(torch.tensor([3])))[0], logits, atol=1e-5)


def test_a_window_bounds_what_is_plain_attention(body: PreTrainedModel) -> None:
    body.config.sliding_window = 16
    assert plain_attention_length(Renamed(), body) == 16


def test_the_installed_release_steps_with_a_cache(model: PreTrainedModel) -> None:
    lm = split_lm(model)
    assert lm.max_cached > 10**9
    cache = DynamicCache(config=model.config)
    lm.cached_hidden(torch.tensor([[1, 5]]), cache)
    states = lm.cached_hidden(torch.tensor([[6]]), cache)
    assert torch.allclose(states[0, -1], lm.hidden(torch.tensor([[1, 5, 6]]))[0, -1], atol=1e-5)
