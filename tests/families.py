"""Tiny models of many architectures, and what each must hold: the rows and columns of a table.

`python tests/families.py` writes docs/models.md; `test_families.py` holds that the page is true.
"""

import copy
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import textrl  # noqa: F401
from textrl.agents import PPO, PPOConfig
from textrl.checkpoint import save_model
from textrl.config import DPOConfig
from textrl.decoding import Decoder
from textrl.envs import tiny_score, tiny_tokenizer
from textrl.errors import UserError
from textrl.models import load_causal_lm, split_lm
from textrl.packing import read, take
from textrl.policy import PolicyModule
from textrl.trainers.dpo import Pair, dpo_loss_sum, reference_logprobs
from textrl.types import Sequence

PAGE = Path(__file__).parent.parent / "docs/models.md"
VOCAB = 29
COMMON: dict[str, Any] = dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2)
COMMON |= dict(num_attention_heads=4, intermediate_size=48, max_position_embeddings=64)
COMMON |= dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
FEW: dict[str, Any] = dict(num_key_value_heads=2)
LONG: dict[str, Any] = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0}
LONG |= dict(short_factor=[1.0] * 4, long_factor=[4.0] * 4, original_max_position_embeddings=32)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", FEW),
    "Mistral, sliding window": ("mistral", FEW | dict(sliding_window=6)),
    "Mixtral": ("mixtral", FEW | dict(num_local_experts=2)),
    "Qwen2": ("qwen2", FEW),
    "Qwen3": ("qwen3", FEW | dict(head_dim=8)),
    "Gemma": ("gemma", FEW | dict(head_dim=8)),
    "Gemma 2": ("gemma2", FEW | dict(head_dim=8)),
    "Gemma 3 (text)": ("gemma3_text", FEW | dict(head_dim=8, sliding_window=6)),
    "Phi": ("phi", {}),
    "Phi-3, longrope": (
        "phi3",
        FEW | dict(rope_parameters=LONG, original_max_position_embeddings=32),
    ),
    "GPT-2": ("gpt2", {}),
    "GPT-Neo": (
        "gpt_neo",
        dict(num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=6),
    ),
    "GPT-NeoX (Pythia)": ("gpt_neox", {}),
    "GPT-J": ("gptj", dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4)),
    "CodeGen": ("codegen", dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4)),
    "OPT, with projections": ("opt", dict(ffn_dim=48, word_embed_proj_dim=16)),
    "BLOOM": ("bloom", dict(n_layer=2, n_head=4)),
    "MPT": ("mpt", dict(d_model=32, n_heads=4, n_layers=2, max_seq_len=64)),
    "Falcon, ALiBi": ("falcon", dict(alibi=True, new_decoder_architecture=False)),
    "Falcon, rotary": ("falcon", dict(alibi=False, new_decoder_architecture=False)),
    "Cohere": ("cohere", FEW),
    "Granite": ("granite", FEW | dict(logits_scaling=4.0)),
    "OLMo": ("olmo", FEW),
    "OLMo 2": ("olmo2", FEW),
    "StableLM": ("stablelm", FEW),
    "StarCoder2": ("starcoder2", FEW),
    "Mamba": ("mamba", dict(state_size=4)),
    "Falcon-H1 (hybrid)": (
        "falcon_h1",
        FEW | dict(head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8),
    ),
    "LFM2 (hybrid)": (
        "lfm2",
        FEW | dict(layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    ),
    "BERT, is_decoder": ("bert", dict(is_decoder=True)),
    "BERT": ("bert", {}),
    "RoBERTa, is_decoder": ("roberta", dict(is_decoder=True)),
    "XGLM": ("xglm", dict(d_model=32, num_layers=2, attention_heads=4, ffn_dim=48)),
    "BioGPT": ("biogpt", {}),
}
PROMPTS = [[1, 5, 6], [1, 7], [1, 8, 9, 10, 11]]


def make(family: str, seed: int = 0) -> PreTrainedModel:
    """Return a family's tiny model with weights that matter."""
    kind, changes = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(COMMON | changes)))
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "A_log" not in name and "conv" not in name:
                torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def task(
    model: PreTrainedModel, make_env: Callable[..., Any] = gym.make_vec, **changes: Any
) -> Any:
    """Return the environment of a model as its reference."""
    common: dict[str, Any] = dict(reference=model, tokenizer=tiny_tokenizer(), reward=tiny_score)
    common |= dict(prompts=["a", "bc", "def"], max_completion_tokens=4, max_prompt_tokens=8)
    return make_env("TextRLHF-v0", **(common | changes))


def stepping(model: PreTrainedModel) -> bool:
    """Single steps, vector steps and one sequence pay the same log-probs."""
    rows = dict(num_envs=3, autoreset_mode="Disabled")
    actions = np.random.default_rng(0).integers(3, VOCAB, (3, 4))
    one, two = task(model, **rows), task(model, **rows)
    for venv in (one, two):
        venv.reset(options={"index": [0, 1, 2]})
    at_once = one.step_sequence(actions, np.ones((3, 4), bool))[1]["ref_logprobs"]
    stepped = np.stack([two.step(actions[:, t])[4]["ref_logprob"] for t in range(4)], 1)
    single = task(model, gym.make)
    for row in range(3):
        single.reset(options={"index": row})
        alone = [single.step(int(action))[4]["ref_logprob"] for action in actions[row]]
        if not np.allclose(alone, at_once[row], atol=1e-4):
            return False
    return bool(np.allclose(stepped, at_once, atol=1e-4))


def values_and_ratio(model: PreTrainedModel) -> bool:
    """Sampled log-probs are the update's, for both critics; values are of the model's states."""
    for critic in ("value_head", "separate"):
        venv = task(copy.deepcopy(model), num_envs=4, autoreset_mode="Disabled")
        config = PPOConfig(episodes_per_iteration=4, critic=critic, precision="float32")
        agent = PPO(copy.deepcopy(model).requires_grad_(True), venv, config)
        with torch.no_grad():
            rollout = agent.collect()
            distance = (agent.logprobs(rollout) - rollout.logprobs).abs().max()
        numbers = agent.iterate()
        if float(distance) > 1e-4 or numbers["train/first_ratio_error"] > 1e-4:
            return False
    return True


def dpo(model: PreTrainedModel) -> bool:
    """DPO's loss at the reference is log 2."""
    policy = PolicyModule(split_lm(model))
    pairs = [
        Pair(
            chosen=Sequence(ids=[*p, 12, 13, 2], counts=[False] * len(p) + [True] * 3),
            rejected=Sequence(ids=[*p, 14, 2], counts=[False] * len(p) + [True] * 2),
        )
        for p in PROMPTS
    ]
    reference = reference_logprobs(policy, pairs, 64)
    loss = dpo_loss_sum(policy, pairs, reference, DPOConfig(), torch.zeros(())).loss
    return abs(float(loss.detach()) / 3 - float(np.log(2))) < 1e-5


@torch.no_grad()
def packed(model: PreTrainedModel) -> bool:
    """Texts packed, beside others and stepped have the logits that each has alone."""
    lm = split_lm(model)
    texts = [
        [*p, *range(12, 12 + n)] for p, n in zip([*PROMPTS, PROMPTS[0]], (6, 4, 7, 2), strict=True)
    ]
    lengths = torch.tensor([len(text) for text in texts])
    width = int(lengths.max())
    ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
    cheap = copy.copy(lm.packing)
    object.__setattr__(cheap, "pass_cost", 4)
    decoder = Decoder(lm, len(texts), width + 1)
    rows = torch.arange(len(texts))
    last = ids[rows, lengths - 1]
    decoder.prefill(rows, ids, lengths - 1)
    stepped = decoder.step(last)
    for packing in (lm.packing, cheap):
        states = take(*read(lm.trunk, packing, ids, lengths))
        for text, own, state in zip(texts, states, stepped, strict=True):
            logits = model(input_ids=torch.tensor([text]), use_cache=False).logits[0]
            if not torch.allclose(lm.head(own[: len(text)]), logits, atol=1e-3, rtol=1e-4):
                return False
            if not torch.allclose(lm.head(state), logits[-1], atol=1e-3, rtol=1e-4):
                return False
    return True


@torch.no_grad()
def saved(model: PreTrainedModel) -> bool:
    """A saved model is loaded with the same logits."""
    ids = torch.tensor([PROMPTS[2]])
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, tiny_tokenizer(), folder)
        again = load_causal_lm(folder, device="cpu")
    return torch.allclose(again(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)


def lora(model: PreTrainedModel) -> bool:
    """A LoRA policy begins at the reference, trains, and is loaded as it was saved."""
    import peft

    modules = model.base_model.named_modules()
    names = {n.split(".")[-1] for n, m in modules if isinstance(m, torch.nn.Linear)}
    if not names:  # GPT-2's matrices are convolutions of width 1
        names = {"c_attn", "c_proj"}
    names -= {"out_proj", "x_proj", "dt_proj", "router", "gate"}
    config = peft.LoraConfig(r=2, target_modules=sorted(names), task_type="CAUSAL_LM")
    policy: Any = peft.get_peft_model(copy.deepcopy(model), config)
    settings = PPOConfig(episodes_per_iteration=4, learning_rate=1e-2, precision="float32")
    agent = PPO(policy, task(model, num_envs=4, autoreset_mode="Disabled"), settings)
    first = agent.iterate()
    with tempfile.TemporaryDirectory() as folder:
        agent.save(folder)
        again = PPO.load(folder, task(model, num_envs=4, autoreset_mode="Disabled"))
    one, two = agent.iterate(), again.iterate()
    same = abs(one["rollout/score"] - two["rollout/score"]) < 1e-4
    return abs(first["rollout/kl"]) < 1e-3 and same and again.env_steps == agent.env_steps


CHECKS: dict[str, Callable[[PreTrainedModel], bool]] = {
    "steps": stepping,
    "sampling, ratio, values": values_and_ratio,
    "DPO": dpo,
    "packed": packed,
    "saved": saved,
    "LoRA": lora,
}


def look(family: str, check: str) -> str:
    """Return what one cell of the table says: right, or the line of a refusal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return "right" if CHECKS[check](make(family)) else "WRONG"
        except UserError as error:
            return f"refused: {error}"


def cache_of(family: str) -> str:
    """Return up to which length a family is stepped with a KV cache."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            longest = split_lm(make(family)).max_cached
        except UserError:
            return "-"
    return {0: "re-reads", sys.maxsize: "yes"}.get(longest, f"to {longest}")


def page() -> str:
    """Return docs/models.md."""
    lines = [
        "# Models that were tried",
        "",
        "Written by `python tests/families.py`; a test holds each cell. What they mean:",
        "",
        "- steps: single steps, vector steps and one sequence pay the same log-probs",
        "- sampling, ratio, values: sampled log-probs are the update's and PPO's first ratio is 1,",
        "  with a value head and with a critic of its own",
        "- DPO: its loss at the reference is log 2",
        "- packed: texts read together, packed or stepped, have the logits of each alone",
        "- saved: a saved model is loaded with the same logits",
        "- LoRA: such a policy begins at the reference and is loaded as it was saved",
        "",
        "| Family | KV cache | " + " | ".join(CHECKS) + " |",
        "|---" * (len(CHECKS) + 2) + "|",
    ]
    refusals: list[str] = []
    for family in FAMILIES:
        cells = [look(family, check) for check in CHECKS]
        refusals += [f"- {family}: {cell[9:]}" for cell in cells if cell.startswith("refused")]
        short = ["refused" if cell.startswith("refused") else cell for cell in cells]
        lines.append(f"| {family} | {cache_of(family)} | " + " | ".join(short) + " |")
    return "\n".join([*lines, "", "## Refusals", "", *dict.fromkeys(refusals), ""])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
