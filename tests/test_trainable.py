"""What cannot be trained, or not be saved, is refused before the work."""

import copy

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from textrl.checkpoint import save_model
from textrl.classifiers import split_classifier
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.errors import UserError
from textrl.models import load_causal_lm, load_classifier
from textrl.trainable import check_live, check_trainable
from textrl.trainers import SFTConfig, SFTTrainer

TEXTS = [{"text": text} for text in ("abc", "bcd", "cdefg", "xyz")]


def small(*, tied: bool) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=29,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=tied,
        )
    )


def adapted(model, *targets: str, **more):
    settings = dict(r=2, target_modules=list(targets), task_type="CAUSAL_LM")
    return peft.get_peft_model(model, peft.LoraConfig(**settings | more))


def test_half_precision_loses_small_updates() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(UserError, match=f"weights are {dtype} .*float"):
            SFTTrainer(tiny_model().to(dtype), tiny_tokenizer(), TEXTS)
    check_trainable(adapted(tiny_model().to(torch.bfloat16), "q_proj"))  # adapters are float32


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*:UserWarning")  # peft says so too
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_adapter_on_tied_embeddings_cannot_be_merged(target: str) -> None:
    with pytest.raises(UserError, match="embedding, which is tied"):
        check_trainable(adapted(small(tied=True), "q_proj", target))
    check_trainable(adapted(small(tied=True), "q_proj"))
    check_trainable(adapted(small(tied=False), "q_proj", target))


def test_frozen_ones_are_told_apart() -> None:
    frozen = tiny_model().requires_grad_(False)
    with pytest.raises(UserError, match="call requires_grad_"):
        check_trainable(frozen)
    with pytest.raises(UserError, match="is_trainable=True"):
        check_trainable(adapted(tiny_model(), "q_proj").requires_grad_(False))


def test_an_adapter_within_the_model_is_refused() -> None:
    model = tiny_model()
    model._hf_peft_config_loaded = True  # as transformers' add_adapter leaves it
    with pytest.raises(UserError, match="holds an adapter within itself"):
        check_trainable(model)


def test_a_generation_config_that_cannot_be_saved_is_refused_first() -> None:
    model = tiny_model()
    model.generation_config.temperature = 0.9  # without do_sample
    with pytest.raises(UserError, match="generation_config cannot be saved"):
        SFTTrainer(model, tiny_tokenizer(), TEXTS)


def test_names_and_wrapped_models_are_refused() -> None:
    with pytest.raises(UserError, match="the policy is 'gpt2'; expected a live model"):
        SFTTrainer("gpt2", tiny_tokenizer(), TEXTS)
    with pytest.raises(UserError, match="the tokenizer is 'gpt2'; expected a live one"):
        SFTTrainer(tiny_model(), "gpt2", TEXTS)
    with pytest.raises(UserError, match="SFTTrainer takes SFTConfig, got dict"):
        SFTTrainer(tiny_model(), tiny_tokenizer(), TEXTS, {"num_epochs": 2})
    with pytest.raises(UserError, match="is a DataParallel; expected a transformers model"):
        check_live(torch.nn.DataParallel(tiny_model()))
    with pytest.raises(UserError, match="a reward model is a sequence classifier"):
        split_classifier(tiny_model())


def test_an_adapters_folder_is_its_model_with_the_adapter_in_training(tmp_path) -> None:
    base, tokenizer = tiny_model(), tiny_tokenizer()
    save_model(base, tokenizer, tmp_path / "base")
    model = adapted(load_causal_lm(tmp_path / "base"), "q_proj", "v_proj")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    found = load_causal_lm(tmp_path / "adapter")
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        assert torch.allclose(found(ids).logits, model(ids).logits, atol=1e-6)
        assert not torch.allclose(found(ids).logits, base(ids).logits, atol=1e-3)
    trained = [name for name, p in found.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)
    trainer = SFTTrainer(found, tokenizer, TEXTS, SFTConfig(), output_dir=tmp_path / "run")
    trainer.train()
    with torch.no_grad():
        saved = load_causal_lm(tmp_path / "run")
        assert torch.allclose(saved(ids).logits, found(ids).logits, atol=1e-5)


def test_an_adapters_folder_as_a_reward_model(tmp_path) -> None:
    model = LlamaForSequenceClassification(tiny_model().config.__class__(**_one_label()))
    save_model(model, tiny_tokenizer(), tmp_path / "base")
    wrapped = adapted(copy.deepcopy(model), "q_proj", task_type="SEQ_CLS")
    wrapped.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    wrapped.save_pretrained(tmp_path / "adapter")
    found = load_classifier(tmp_path / "adapter")
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        assert torch.allclose(found(ids).logits, wrapped(ids).logits, atol=1e-6)


def _one_label() -> dict:
    return tiny_model().config.to_dict() | {"num_labels": 1, "pad_token_id": 0}
