"""Reward models of all kinds give a text one score, whatever else is in the batch."""

import copy

import peft
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    CTRLConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    XLNetConfig,
)

from textrl.classifiers import encode_for_scoring
from textrl.envs import tiny_tokenizer
from textrl.rewards import RewardModel
from textrl.trainers import RewardConfig, RewardTrainer

SIZES = dict(
    **dict(vocab_size=29, hidden_size=32, intermediate_size=64, num_hidden_layers=2),
    **dict(num_attention_heads=2, num_labels=1, bos_token_id=1, eos_token_id=2),
)
KINDS = {
    "llama": LlamaConfig(**SIZES, pad_token_id=28),
    "llama, seeing both ways": LlamaConfig(**SIZES, pad_token_id=28, is_causal=False),
    "qwen2, seeing both ways": Qwen2Config(
        **SIZES, num_key_value_heads=2, pad_token_id=28, is_causal=False
    ),
    "bert": BertConfig(**SIZES, pad_token_id=0),
    "ctrl": CTRLConfig(
        **dict(vocab_size=29, n_embd=32, dff=64, n_layer=2, n_head=2, n_positions=64),
        **dict(num_labels=1, pad_token_id=28),
    ),
    "xlnet": XLNetConfig(
        **dict(vocab_size=29, d_model=32, n_layer=2, n_head=2, d_inner=64),
        **dict(num_labels=1, pad_token_id=5),
    ),
}
TEXTS = ["abcdefghijk", "xy", "mnop"]


def make(config: PretrainedConfig) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def adapted(model: PreTrainedModel) -> PreTrainedModel:
    settings = dict(r=2, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS")
    return peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**settings))


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_is_of_its_text_alone(kind: str) -> None:
    model, tokenizer = make(KINDS[kind]), tiny_tokenizer()
    reward = RewardModel(copy.deepcopy(model), tokenizer)
    expected = []
    for text in TEXTS:
        ids = torch.tensor([encode_for_scoring(tokenizer, text, 99)])
        with torch.no_grad():
            expected.append(float(model(input_ids=ids).logits[0, 0]))
    assert reward.raw_scores(TEXTS) == pytest.approx(expected, abs=1e-3)
    alone = [reward.raw_scores([text])[0] for text in TEXTS]
    assert alone == pytest.approx(expected, abs=1e-3)


def test_an_adapted_one_scores_and_learns_as_what_it_wraps() -> None:
    model, tokenizer = make(KINDS["llama"]), tiny_tokenizer()
    plain = RewardModel(copy.deepcopy(model), tokenizer)
    assert RewardModel(adapted(model), tokenizer).raw_scores(TEXTS) == plain.raw_scores(TEXTS)
    rows = [{"prompt": "a", "chosen": "bcdefg", "rejected": "x"}, {"chosen": "y", "rejected": "zw"}]
    losses = []
    for trained in (adapted(model), copy.deepcopy(model)):
        trainer = RewardTrainer(trained, tokenizer, rows, RewardConfig(), shown=False)
        losses.append(trainer._loss(trainer.train_rankings).loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
