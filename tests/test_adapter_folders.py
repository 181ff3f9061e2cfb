"""The folder of a PEFT adapter as a model: its tokenizer."""

from pathlib import Path

import pytest

from textrl.envs import tiny_model, tiny_tokenizer
from textrl.models import load_tokenizer

peft = pytest.importorskip("peft", reason="needs the extra peft")


def test_an_adapter_without_a_tokenizer_has_that_of_its_base(tmp_path: Path) -> None:
    base, tokenizer = tmp_path / "base", tiny_tokenizer()
    tiny_model().save_pretrained(base)
    tokenizer.save_pretrained(base)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    lora = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "lora")
    assert load_tokenizer(tmp_path / "lora").get_vocab() == tokenizer.get_vocab()
    tokenizer.add_tokens(["<own>"])
    tokenizer.save_pretrained(tmp_path / "lora")  # one of its own goes first
    assert "<own>" in load_tokenizer(tmp_path / "lora").get_vocab()
