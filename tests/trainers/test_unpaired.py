"""Rows with one completion and a label each (TRL's unpaired preferences), and saved adapters."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

from textrl.envs import tiny_model, tiny_tokenizer
from textrl.errors import UserError
from textrl.models import load_causal_lm, load_tokenizer
from textrl.rewards import RewardModel
from textrl.trainers import (
    DPOConfig,
    DPOTrainer,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
    reward_model_from,
)

ROWS = [
    {"prompt": "a", "completion": "bc", "label": True},
    {"prompt": "b", "completion": "za", "label": False},
    {"prompt": "c", "completion": "de", "label": True},
    {"prompt": "d", "completion": "ef", "label": True},
]


def trainer(rows: Any, loss: str = "kto", **more: Any) -> DPOTrainer:
    config = DPOConfig(loss_type=loss, **more)
    return DPOTrainer(tiny_model(), tiny_tokenizer(), rows, config, shown=False)


def test_good_and_bad_completions_are_paired() -> None:
    found = trainer(ROWS).train_pairs
    assert [(p.chosen.ids, p.rejected.ids) for p in found] == [
        ([1, 3, 4, 5, 2], [1, 4, 28, 3, 2]),
        ([1, 5, 6, 7, 2], [1, 4, 28, 3, 2]),  # the one that is bad again
        ([1, 6, 7, 8, 2], [1, 4, 28, 3, 2]),
    ]
    assert all(p.chosen.counts == [False, False, True, True, True] for p in found)


@pytest.mark.parametrize("loss", ["kto", "apo_zero"])
def test_its_loss_and_gradient_are_those_of_the_terms(loss: str) -> None:
    """Four rows, two of each kind: the gradient is that of each completion alone, summed."""
    rows = [*ROWS[:2], ROWS[2], ROWS[3] | {"label": False}]
    ours = trainer(rows, loss)
    ours._task().loss([0, 1]).loss.backward()
    model, beta = tiny_model().requires_grad_(True), 0.1
    total = torch.zeros(())
    for row in rows:
        text = f"{row['prompt']}{row['completion']}<eos>"
        ids = tiny_tokenizer()(text, return_tensors="pt").input_ids
        logprobs = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[1:]
        h = logprobs.sum() - logprobs.sum().detach()
        total = total + 1 - torch.sigmoid(beta * h if row["label"] else -beta * h)
    total.backward()
    grads = zip(ours.model.parameters(), model.parameters(), strict=True)
    assert all(torch.allclose(a.grad, b.grad, atol=1e-6) for a, b in grads)


def test_it_learns_the_labels() -> None:
    ours = trainer(ROWS * 4, num_epochs=20, learning_rate=1e-2, minibatch_size=4)
    before = ours._task().loss([0, 1, 2]).metrics["accuracy"]
    ours.train()
    assert ours._task().loss([0, 1, 2]).metrics["accuracy"] == 3 > before


@pytest.mark.parametrize(
    ("rows", "loss", "said"),
    [
        (
            ROWS,
            "sigmoid",
            "compares two completions, and the rows have one each with a label; take",
        ),
        (ROWS[2:], "kto", "all 2 labels are True; kto needs completions of both kinds"),
        ([ROWS[0], ROWS[1] | {"label": "bad"}], "kto", "record 1: label is 'bad'; expected true"),
        (
            [ROWS[0], {"completion": "a", "label": False}],
            "kto",
            "record 1: column 'prompt' is miss",
        ),
    ],
)
def test_what_is_refused(rows: Any, loss: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        trainer(rows, loss)


def adapted(model: Any, task: str, **more: Any) -> Any:
    return peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type=task, **more)
    )


def test_a_trainer_saves_the_adapter_beside_the_merged_model(
    checkpoint: str, tmp_path: Path
) -> None:
    model = adapted(load_causal_lm(checkpoint), "CAUSAL_LM")
    config = SFTConfig(learning_rate=0.1)
    rows = [{"text": "abc"}] * 4
    ours = SFTTrainer(model, tiny_tokenizer(), rows, config, output_dir=tmp_path, shown=False)
    ours.train()
    ids = torch.tensor([[1, 3, 4]])
    live = model(ids).logits
    assert (load_causal_lm(tmp_path)(ids).logits - live).abs().max() < 1e-4  # merged
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == checkpoint
    assert torch.equal(load_causal_lm(tmp_path / "adapter")(ids).logits, live)
    assert torch.equal(
        load_causal_lm(tmp_path / "adapter/base")(ids).logits,
        load_causal_lm(checkpoint)(ids).logits,
    )
    (tmp_path / "adapter/adapter_config.json").write_text("changed")
    load_causal_lm(tmp_path)  # the merged model needs none of it


def test_a_reward_trainer_saves_its_adapter_with_the_head(checkpoint: str, tmp_path: Path) -> None:
    model = adapted(reward_model_from(checkpoint), "SEQ_CLS", modules_to_save=["score"])
    rows = [{"prompt": "a", "chosen": "b", "rejected": "z"}] * 2 + [
        {"chosen": "bc", "rejected": "y"}
    ]
    ours = RewardTrainer(model, load_tokenizer(checkpoint), rows, output_dir=tmp_path, shown=False)
    ours.train()
    names = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert any("score" in name for name in names)
    raw = RewardModel.from_pretrained(tmp_path).raw_scores(["ab", "az"])
    again = RewardModel.from_pretrained(tmp_path / "adapter").raw_scores(["ab", "az"])
    assert again == pytest.approx(raw, abs=1e-5)
