"""What goes to other libraries and comes from them, with the real packages.

`make test-peers` runs this in the examples' environment with TEXTRL_PEERS=1; else it is skipped.
The models are tiny and ours. What is not here, because the packages are too large: vLLM and
llama.cpp; `test_the_files_that_engines_read` checks the files that they ask for, not the engines.
"""

import importlib
import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    pipeline,
)

from textrl.agents import PPO, PPOConfig
from textrl.chat import PLAIN_TEMPLATE, Chat
from textrl.cli import main
from textrl.demo.models import train_tokenizer
from textrl.envs.tasks import tiny_character_model, tiny_character_tokenizer, tiny_model
from textrl.models import load_causal_lm, load_tokenizer, split_lm
from textrl.policy import PolicyModule
from textrl.rewards import RewardModel
from textrl.trainers import (
    DPOConfig,
    DPOTrainer,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
    reward_model_from,
)
from textrl.trainers.dpo import dpo_loss_sum, pair_logprobs, reference_logprobs

pytestmark = [
    pytest.mark.skipif(not os.environ.get("TEXTRL_PEERS"), reason="make test-peers"),
    pytest.mark.filterwarnings("ignore"),  # those of other libraries
]

SUMS = [(f"{a}+{b}=", f"{a + b}", f"{a + b + 1}") for a, b in ((1, 2), (2, 2), (3, 4), (5, 3))]


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


Rows = list[dict[str, Any]]
Triples = list[tuple[str, str, str]]
WORDS = [
    ("The sky is", " blue", " made of green cheese"),
    ("Grass is", " green, mostly", " blue"),
    ("Say hello!", " Hello there", " No"),
    ("One and one", " are two", " are one hundred and eleven"),
]


def demonstrations(triples: Triples) -> dict[str, Rows]:
    return {
        "text": [{"text": q + good} for q, good, _ in triples],
        "messages": [{"messages": asked(q) + said(good)} for q, good, _ in triples],
        "prompt-completion": [{"prompt": q, "completion": good} for q, good, _ in triples],
        "conversational prompt-completion": [
            {"prompt": asked(q), "completion": said(good)} for q, good, _ in triples
        ],
    }


def preferences(triples: Triples) -> dict[str, Rows]:
    return {
        "explicit": [{"prompt": q, "chosen": g, "rejected": b} for q, g, b in triples],
        "implicit": [{"chosen": f"{q} {g}", "rejected": f"{q} {b}"} for q, g, b in triples],
        "conversational explicit": [
            {"prompt": asked(q), "chosen": said(g), "rejected": said(b)} for q, g, b in triples
        ],
        "conversational implicit": [
            {"chosen": asked(q) + said(g), "rejected": asked(q) + said(b)} for q, g, b in triples
        ],
    }


FORMS, PAIRS = demonstrations(SUMS), preferences(SUMS)
MODELS = {"letters": SUMS, "words": WORDS}
"""Of the two models, one reads letters, and the other has a byte-pair tokenizer of ours."""


def peer(name: str) -> ModuleType:
    """Import a package that must be there, whatever it warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def dataset(rows: list[dict[str, Any]]) -> Any:
    return peer("datasets").Dataset.from_list(rows)


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    """Return TRL's settings for one step on the CPU; its defaults want a GPU."""
    return {
        **{"output_dir": str(folder), "max_steps": 1, "per_device_train_batch_size": 4},
        **{"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"},
        **{"logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-3},
        **more,
    }


def trained(trainer: Any, folder: Path) -> dict[str, float]:
    """Train one step, save, and return what was logged of it, measured before the step."""
    trainer.train()
    trainer.save_model(str(folder))
    return dict(trainer.state.log_history[0])


def a_tokenizer() -> Any:
    tokenizer = tiny_character_tokenizer()
    tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our outputs: a base, SFT, DPO and PPO policies, and two reward models, by our commands."""
    folder = tmp_path_factory.mktemp("peers")
    tiny_character_model().save_pretrained(folder / "base")
    a_tokenizer().save_pretrained(folder / "base")
    words = train_tokenizer([" ".join(triple) for triple in WORDS] * 4, vocab_size=320)
    words.chat_template = PLAIN_TEMPLATE
    for seed, name in ((0, "words-base"), (1, "words-sft")):
        tiny_model(vocab_size=len(words), seed=seed).save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    for name, rows in (
        ("sft", FORMS["prompt-completion"] * 8),
        ("pairs", PAIRS["explicit"] * 2),
        ("chats", PAIRS["conversational explicit"] * 2),
        ("prompts", [{"prompt": q} for q, _, _ in SUMS]),
    ):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for command in (
            "sft --model=base --data=sft.jsonl --num_epochs=20 --learning_rate=3e-3",
            "dpo --model=sft --data=pairs.jsonl",
            "reward --model=base --data=pairs.jsonl --num_epochs=4 --learning_rate=1e-3",
            "ppo --model=sft --prompts=prompts.jsonl --reward=reward --total_timesteps=16 "
            "--num_envs=4 --episodes_per_iteration=4 --minibatch_size=4 --max_completion_tokens=4",
        ):
            name, *options = command.split()
            paths = [o.replace("=", f"={folder}/", 1) if _is_path(o) else o for o in options]
            main([name, *paths, f"--output_dir={folder / name}"])
    return folder


def _is_path(option: str) -> bool:
    return option.partition("=")[0] in ("--model", "--data", "--prompts", "--reward")


@pytest.mark.parametrize("name", ["sft", "dpo", "ppo"])
def test_a_policy_in_the_text_generation_pipeline(place: Path, name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    main(
        ["generate", f"--model={place / name}", f"--prompts={place}/prompts.jsonl"]
        + ["--temperature=1e-6", "--max_completion_tokens=6", f"--output={out}"]
    )
    ours = [json.loads(line)["completion"] for line in out.read_text().splitlines()]
    pipe = pipeline("text-generation", model=str(place / name), device="cpu")
    theirs = [
        pipe(q, do_sample=False, max_new_tokens=6, return_full_text=False)[0]["generated_text"]
        for q, _, _ in SUMS
    ]
    assert ours == theirs
    assert len(set(ours)) > 1


def test_a_reward_model_in_the_text_classification_pipeline(place: Path) -> None:
    """The pipeline gives the raw score of a text with EOS; ours is that, normalised."""
    ours = RewardModel.from_pretrained(place / "reward")
    config = ours.model.config
    pipe = pipeline("text-classification", model=str(place / "reward"), device="cpu")
    prompts, good, _ = zip(*SUMS, strict=True)
    texts = [q + g + pipe.tokenizer.eos_token for q, g, _ in SUMS]
    raw = [row["score"] for row in pipe(texts, function_to_apply="none", batch_size=4)]
    expected = [(score - config.score_mean) / config.score_std for score in raw]
    assert ours(list(prompts), list(good)) == pytest.approx(expected, abs=1e-4)


# TRL trains from our folders, and we from its.


def test_trl_sft_from_our_policy_and_back(place: Path, tmp_path: Path) -> None:
    trl = peer("trl")
    trainer = trl.SFTTrainer(
        str(place / "sft"),
        trl.SFTConfig(**settings(tmp_path)),
        train_dataset=dataset(FORMS["text"]),
    )
    trained(trainer, tmp_path / "out")
    back(tmp_path / "out")


def back(folder: Path) -> None:
    """Train a policy that TRL saved with our DPO and our PPO, and check that its weights move."""
    model, tokenizer = load_causal_lm(folder, dtype="float32"), load_tokenizer(folder)
    before = model.get_input_embeddings().weight.clone()
    DPOTrainer(model, tokenizer, PAIRS["explicit"], shown=False).train()
    assert not torch.equal(before, model.get_input_embeddings().weight)
    venv = gym.make_vec(
        "TextRLHF-v0",
        num_envs=4,
        reference=str(folder),
        tokenizer=tokenizer,
        reward=lambda prompts, completions: [float(len(text)) for text in completions],
        prompts=[q for q, _, _ in SUMS],
        max_completion_tokens=4,
        autoreset_mode="Disabled",
    )
    before = model.get_input_embeddings().weight.clone()
    PPO(model, venv, PPOConfig(episodes_per_iteration=4, minibatch_size=4)).learn(4)
    assert not torch.equal(before, model.get_input_embeddings().weight)


def test_trl_dpo_from_our_policy_and_back(place: Path, tmp_path: Path) -> None:
    trl = peer("trl")
    rows = dataset(PAIRS["conversational explicit"])
    config = trl.DPOConfig(**settings(tmp_path))
    trained(trl.DPOTrainer(str(place / "dpo"), args=config, train_dataset=rows), tmp_path / "out")
    back(tmp_path / "out")


@pytest.mark.parametrize("kind", ["RLOO", "GRPO"])
def test_trl_agents_from_our_policy_with_our_reward(place: Path, tmp_path: Path, kind: str) -> None:
    """As a folder, TRL reads a text without BOS and EOS; as a function, ours are the scores."""
    trl = peer("trl")
    ours, seen = RewardModel.from_pretrained(place / "reward"), []

    def score(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        seen.extend(ours(prompts, completions, **columns))
        return seen[-len(prompts) :]

    config = getattr(trl, f"{kind}Config")(
        **settings(tmp_path), num_generations=4, max_completion_length=4
    )
    trainer = getattr(trl, f"{kind}Trainer")(
        str(place / "ppo"),
        reward_funcs=[str(place / "reward"), score, ours],
        args=config,
        train_dataset=dataset([{"prompt": q} for q, _, _ in SUMS]),
    )
    logged = trained(trainer, tmp_path / "out")
    means = [value for key, value in logged.items() if key.startswith("rewards/") and "mean" in key]
    assert len(means) == 3
    assert means[1] == pytest.approx(means[2]) == pytest.approx(sum(seen) / len(seen), abs=1e-4)
    back(tmp_path / "out")


def test_trl_reward_from_our_reward_model_and_back(place: Path, tmp_path: Path) -> None:
    trl = peer("trl")
    rows = dataset(PAIRS["explicit"])
    trainer = trl.RewardTrainer(
        str(place / "reward"), args=trl.RewardConfig(**settings(tmp_path)), train_dataset=rows
    )
    logged = trained(trainer, tmp_path / "out")
    raw = RewardModel.from_pretrained(place / "reward").raw_scores
    good, bad = raw([q + g for q, g, _ in SUMS]), raw([q + b for q, _, b in SUMS])
    margin = sum(good) / 4 - sum(bad) / 4
    assert logged["margin"] == pytest.approx(margin, abs=1e-4)
    loss = -torch.nn.functional.logsigmoid(torch.tensor(good) - torch.tensor(bad)).mean()
    assert logged["loss"] == pytest.approx(float(loss), abs=1e-4)
    assert len(RewardModel.from_pretrained(tmp_path / "out")(["1+1="], ["2"])) == 1
    model = reward_model_from(tmp_path / "out")
    RewardTrainer(model, load_tokenizer(tmp_path / "out"), PAIRS["explicit"], shown=False).train()


# TRL's data, unchanged, and its losses.


def as_given(rows: list[dict[str, Any]], form: str, folder: Path) -> Any:
    if form == "Dataset":
        return dataset(rows)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def folders(place: Path, reads: str) -> tuple[Path, Path]:
    """Return the folders of a policy and a reference."""
    prefix = "" if reads == "letters" else "words-"
    return place / f"{prefix}sft", place / f"{prefix}base"


@pytest.mark.parametrize(
    ("reads", "form"), [("letters", "Dataset"), ("letters", "JSONL"), ("words", "Dataset")]
)
@pytest.mark.parametrize("kind", FORMS)
def test_sft_data_and_loss(place: Path, tmp_path: Path, kind: str, form: str, reads: str) -> None:
    rows, (_, base) = demonstrations(MODELS[reads])[kind], folders(place, reads)
    ours = SFTTrainer(
        load_causal_lm(base),
        load_tokenizer(base),
        as_given(rows, form, tmp_path),
        SFTConfig(minibatch_size=4),
        output_dir=tmp_path / "run",
        shown=False,
    )
    ours.train()
    logged = json.loads((tmp_path / "run/progress.json").read_text().splitlines()[0])
    if form == "JSONL":
        return
    trl = peer("trl")
    # ours counts the assistant's turns of a chat; TRL can be asked to, if its template is marked
    more = {"assistant_only_loss": True} if kind == "messages" else {}
    tokenizer = load_tokenizer(base)
    if more:
        tokenizer.chat_template = PLAIN_TEMPLATE.replace(
            "{{ message.content ~ eos_token }}",
            "{% generation %}{{ message.content ~ eos_token }}{% endgeneration %}",
        )
    theirs = trl.SFTTrainer(
        str(base),
        trl.SFTConfig(**settings(tmp_path), **more),
        train_dataset=dataset(rows),
        processing_class=tokenizer,
    )
    batch = next(iter(theirs.get_train_dataloader()))
    counted = [int(i) for row in batch["labels"][:, 1:].tolist() for i in row if i != -100]
    own = [i for s in ours.train_sequences for i, c in zip(s.ids, s.counts, strict=True) if c]
    assert sorted(counted) == sorted(own)
    loss = trained(theirs, tmp_path / "out")["loss"]
    assert logged["sft/loss"] == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize(
    ("reads", "form"), [("letters", "Dataset"), ("letters", "JSONL"), ("words", "Dataset")]
)
@pytest.mark.parametrize("kind", PAIRS)
def test_preference_data_and_dpo_loss(
    place: Path, tmp_path: Path, kind: str, form: str, reads: str
) -> None:
    rows, (sft, base) = preferences(MODELS[reads])[kind], folders(place, reads)
    policy, reference = load_causal_lm(sft), load_causal_lm(base)
    tokenizer = load_tokenizer(sft)
    given = as_given(rows, form, tmp_path)
    pairs = DPOTrainer(policy, tokenizer, given, shown=False).train_pairs
    RewardTrainer(reward_model_from(base), tokenizer, given, shown=False).train()
    if form == "JSONL":
        return
    lm, other = PolicyModule(split_lm(policy)), PolicyModule(split_lm(reference))
    config = DPOConfig(beta=0.1)
    before = reference_logprobs(other, pairs, 4096)
    loss = dpo_loss_sum(lm, pairs, before, config, torch.zeros(())).loss / len(pairs)
    logps = pair_logprobs(lm, pairs).mean(1).tolist()
    trl = peer("trl")
    theirs = trl.DPOTrainer(
        str(sft),
        AutoModelForCausalLM.from_pretrained(base),
        trl.DPOConfig(**settings(tmp_path), beta=0.1),
        train_dataset=dataset(rows),
    )
    logged = trained(theirs, tmp_path / "out")
    assert logged["loss"] == pytest.approx(float(loss), abs=1e-4)
    assert [logged["logps/chosen"], logged["logps/rejected"]] == pytest.approx(logps, abs=1e-4)


LABELLED: dict[str, list[dict[str, Any]]] = {
    "plain": [
        {"prompt": q, "completion": g if good else b, "label": good}
        for (q, g, b), good in zip(SUMS, (True, False, True, False), strict=True)
    ],
    "conversational": [
        {"prompt": asked(q), "completion": said(g if good else b), "label": good}
        for (q, g, b), good in zip(SUMS, (True, False, True, False), strict=True)
    ],
}


@pytest.mark.parametrize("form", ["Dataset", "JSONL"])
@pytest.mark.parametrize("kind", LABELLED)
def test_unpaired_preferences(place: Path, tmp_path: Path, kind: str, form: str) -> None:
    """Both estimate KTO's KL from other texts, each in its own way; log-probs are compared."""
    policy, tokenizer = load_causal_lm(place / "sft"), load_tokenizer(place / "sft")
    given = as_given(LABELLED[kind], form, tmp_path)
    ours = DPOTrainer(policy, tokenizer, given, DPOConfig(loss_type="kto"), shown=False)
    lm = PolicyModule(split_lm(policy))
    logps = pair_logprobs(lm, ours.train_pairs).mean(1).tolist()
    ours.train()
    if form == "JSONL":
        return
    trl = peer("trl")
    theirs = trl.KTOTrainer(
        str(place / "sft"),
        args=trl.KTOConfig(**settings(tmp_path)),
        train_dataset=dataset(LABELLED[kind]),
    )
    logged = trained(theirs, tmp_path / "out")
    assert [logged["logps/chosen"], logged["logps/rejected"]] == pytest.approx(logps, abs=1e-4)


@pytest.mark.parametrize("form", ["Dataset", "JSONL"])
@pytest.mark.parametrize("chat", [False, True])
def test_prompts(place: Path, tmp_path: Path, chat: bool, form: str) -> None:
    rows = [{"prompt": asked(q) if chat else q, "answer": g} for q, g, _ in SUMS]
    asked_for = []

    def score(prompts: Any, completions: Any, answer: Any, **columns: Any) -> list[float]:
        asked_for.extend(answer)
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    venv = gym.make_vec(
        "TextRLHF-v0",
        num_envs=4,
        reference=str(place / "sft"),
        tokenizer=load_tokenizer(place / "sft"),
        reward=score,
        prompts=as_given(rows, form, tmp_path),
        max_completion_tokens=4,
        autoreset_mode="Disabled",
    )
    config = PPOConfig(episodes_per_iteration=4, minibatch_size=4)
    PPO(load_causal_lm(place / "sft", dtype="float32"), venv, config).learn(4)
    assert set(asked_for) <= {g for _, g, _ in SUMS}
    assert asked_for


# Adapters.


def test_our_adapter_is_loaded_merged_and_trained_on(place: Path, tmp_path: Path) -> None:
    peft, trl = peer("peft"), peer("trl")
    base = AutoModelForCausalLM.from_pretrained(place / "base")
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4)
    model = peft.get_peft_model(base, lora)
    ours = SFTTrainer(
        model,
        a_tokenizer(),
        FORMS["text"] * 8,
        SFTConfig(learning_rate=1e-2, num_epochs=4),
        output_dir=tmp_path / "run",
        shown=False,
    )
    ours.train()
    ids = torch.tensor([a_tokenizer()("1+2=3").input_ids])
    with torch.no_grad():
        live = model(ids).logits
        merged = load_causal_lm(tmp_path / "run")(ids).logits
    assert (live - merged).abs().max() < 1e-4
    own = next((tmp_path / "run").rglob("adapter_config.json")).parent
    named = json.loads((own / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(place / "base")
    again = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(named), own, is_trainable=True
    )
    with torch.no_grad():
        assert (again(ids).logits - live).abs().max() < 1e-4
        assert (again.merge_and_unload()(ids).logits - live).abs().max() < 1e-4
    again = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(named), own, is_trainable=True
    )
    theirs = trl.SFTTrainer(
        again,
        trl.SFTConfig(**settings(tmp_path)),
        train_dataset=dataset(FORMS["text"]),
        processing_class=a_tokenizer(),
    )
    trained(theirs, tmp_path / "out")
    with torch.no_grad():
        assert not torch.equal(load_causal_lm(tmp_path / "out")(ids).logits, live)


# Engines.


@pytest.mark.parametrize("name", ["sft", "dpo", "ppo"])
def test_the_files_that_engines_read(place: Path, name: str) -> None:
    """What vLLM and llama.cpp's converter ask a folder for; neither package is here."""
    from safetensors import safe_open

    folder = place / name
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert config["dtype"] == "float32"
    fresh = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    expected = {k: (v.shape, v.dtype) for k, v in fresh.state_dict().items()}
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        assert weights.metadata() == {"format": "pt"}
        names = weights.keys()
        held = {k: (weights.get_tensor(k).shape, weights.get_tensor(k).dtype) for k in names}
    assert held == expected
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) <= config["vocab_size"] == held["model.embed_tokens.weight"][0][0]
    assert json.loads((folder / "tokenizer.json").read_text())["model"]["type"]
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<eos>"
    assert (folder / "chat_template.jinja").read_text() == PLAIN_TEMPLATE
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == config["eos_token_id"] == tokenizer.eos_token_id
    named = {"bos": 1, "eos": 2, "pad": 0}
    special = peer("gguf").SpecialVocab(folder, load_merges=False)  # as llama.cpp's converter does
    assert special.special_token_ids == named
    assert special.chat_template == PLAIN_TEMPLATE


# RewardBench.


def without_its_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let modules of RewardBench 0.1.4 be imported without the package's own imports.

    Those are model classes of transformers 4.51, which it pins; a sequence classifier's dialogues
    and pipeline need none of them.
    """
    where = importlib.util.find_spec("rewardbench")
    assert where is not None, "rewardbench is missing: make test-peers"
    (root,) = where.submodule_search_locations or ()
    for package, folder in (("rewardbench", root), ("rewardbench.models", f"{root}/models")):
        bare = ModuleType(package)
        bare.__path__ = [folder]
        bare.REWARD_MODEL_CONFIG = {}  # type: ignore[attr-defined]  # a module of no file
        monkeypatch.setitem(sys.modules, package, bare)


def test_our_reward_model_in_rewardbench(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its dialogues and its pipeline give the raw scores of ours; it has no CPU, so we give one."""
    without_its_models(monkeypatch)
    utils = peer("rewardbench.utils")
    piped = peer("rewardbench.models.pipeline").RewardBenchPipeline
    to = BatchEncoding.to
    monkeypatch.setattr(BatchEncoding, "to", lambda self, device: to(self, "cpu"))
    tokenizer = AutoTokenizer.from_pretrained(place / "reward")
    model = AutoModelForSequenceClassification.from_pretrained(place / "reward")
    tokenizer.padding_side = "left"  # as its command does
    pipe = piped("text-classification", model=model, tokenizer=tokenizer)
    assert utils.check_tokenizer_chat_template(tokenizer)
    rows = [
        utils.prepare_dialogue_from_tokenizer(
            {"prompt": q, "chosen": g, "rejected": b}, tokenizer=tokenizer
        )
        for q, g, b in SUMS
    ]
    ours = RewardModel.from_pretrained(place / "reward")
    chats = [Chat(messages=asked(q)) for q, _, _ in SUMS]
    mean, std = ours.model.config.score_mean, ours.model.config.score_std
    for side, column in (("chosen", 1), ("rejected", 2)):
        texts = [row[f"text_{side}"] for row in rows]
        theirs = pipe(texts, truncation=False, padding=True, max_length=2048)[:, 0].tolist()
        own = ours([""] * 4, [row[column] for row in SUMS], chats=chats)
        assert [s * std + mean for s in own] == pytest.approx(theirs, abs=1e-4)
