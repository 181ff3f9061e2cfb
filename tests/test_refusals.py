"""Files, numbers and options that would be misread, dropped or deleted are refused in one line."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from textrl.agents import PPO, register
from textrl.cli import main, parse
from textrl.config import DPOConfig, OnlineDPOConfig, PPOConfig, RewardConfig, SFTConfig
from textrl.data import load_records, split_by_prompt
from textrl.encoding import sft_sequence
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.errors import UserError
from textrl.evaluation import sample_completions
from textrl.labels.export import Filters, read, rows
from textrl.labels.store import Store
from textrl.losses import dpo_loss, ppo_policy_loss
from textrl.models import load_classifier, pick_device
from textrl.paths import local_or_hub
from textrl.resolve import resolve
from textrl.shared_prompts import with_shared_prompts
from textrl.trainers import DPOTrainer, RewardTrainer, reward_model_from

PAIR = {"prompt": "a", "chosen": "bcd", "rejected": "zz"}
USER = [{"role": "user", "content": "hello"}]
REPLIES = [[{"role": "assistant", "content": text}] for text in ("yes", "no")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    Path("my_reward.py").write_text(
        "def letters(prompts, completions):\n    return [float(len(c)) for c in completions]\n"
    )
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2
    return capsys.readouterr().err


def train(checkpoint: str, output: str, tokens: int, *more: str) -> list[str]:
    return [
        *("rloo", f"--model={checkpoint}", "--prompts=prompts.jsonl", f"--output_dir={output}"),
        *("--reward=my_reward:letters", f"--total_timesteps={tokens}", "--num_envs=8"),
        *("--group_size=4", "--episodes_per_iteration=8", "--max_completion_tokens=4", *more),
    ]


def test_a_resumed_run_is_the_one_that_was_saved(folder: Path, checkpoint: str, capsys) -> None:
    main(train(checkpoint, "run", 20, "--learning_rate=1e-3"))
    resume = ("--resume", "--learning_rate=1e-3")
    Path("run/config.yaml").write_text("")
    assert "holds no settings" in fails(capsys, *train(checkpoint, "run", 40, *resume))
    Path("run/config.yaml").unlink()
    error = fails(capsys, *train(checkpoint, "run", 40, "--resume", "--learning_rate=0.5"))
    assert "--resume with another learning_rate: the run has 0.001, not 0.5" in error
    Path("prompts.jsonl").write_text('{"prompt": "c"}\n{"prompt": "d"}\n')
    assert "other prompts or columns" in fails(capsys, *train(checkpoint, "run", 40, *resume))
    Path("run/trainer_state/state.pt").unlink()
    assert "state.pt is missing" in fails(capsys, *train(checkpoint, "run", 40, *resume))


def test_a_reference_that_reads_other_tokens(folder: Path, checkpoint: str, capsys) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["new"])
    tiny_model().save_pretrained("other")
    tokenizer.save_pretrained("other")
    error = fails(capsys, *train(checkpoint, "run", 20, "--reference=other"))
    assert "other reads other tokens than" in error
    arguments = ("--prompts=prompts.jsonl", "--reward=my_reward:letters", "--reference=other")
    assert "reads other tokens" in fails(capsys, "evaluate", f"--model={checkpoint}", *arguments)


def test_overwriting_deletes_no_input(folder: Path, checkpoint: str, monkeypatch, capsys) -> None:
    main(train(checkpoint, "run", 20))
    monkeypatch.setenv("HOME", str(folder))
    for more in ("--reference=run", "--model=~/run", "--prompts=run/p.jsonl"):
        Path("run/p.jsonl").write_text('{"prompt": "a"}\n')
        error = fails(capsys, *train(checkpoint, "run", 20, more, "--overwrite"))
        assert "which --overwrite would delete" in error, more
    Store(f"sqlite:///{folder}/run/labels.db", create=True).close()
    arguments = ["sft", f"--model={checkpoint}", "--output_dir=run", "--overwrite"]
    for url in ("sqlite:///run/labels.db", f"sqlite:///{folder}/run/labels.db"):
        assert Path("run/labels.db").exists()
        error = fails(capsys, *arguments, f"--data={url}")
        assert "would delete" in error or "no demonstrations" in error
        assert Path("run/labels.db").exists()
    error = fails(capsys, *train(checkpoint, "run", 20, "--over"))
    assert "unknown option 'over'" in error


def test_the_command_line_goes_before_the_file_wherever_it_stands(folder: Path) -> None:
    Path("c.yaml").write_text("learning_rate: 1e-3\nresume: false\n")
    given = ["--model=m", "--data=d", "--output_dir=o", "--learning_rate=0.5", "--resume"]
    for order in (["--config=c.yaml", *given], [*given, "--config", "c.yaml"]):
        _, (_, run, config) = parse(["sft", *order])
        assert config.learning_rate == 0.5
        assert run.resume is True


def test_words_of_the_parser_are_translated(checkpoint: str, tmp_path: Path, capsys) -> None:
    prompts, there = tmp_path / "p.jsonl", f"{checkpoint}/config.json"
    prompts.write_text('{"prompt": "a"}')
    command = ["rloo", f"--model={checkpoint}", f"--prompts={prompts}", "--total_timesteps=9"]
    command += [f"--output_dir={tmp_path}/run", "--reward=textrl.envs:tiny_score"]
    for arguments, message in (
        (["--config=nothing.yaml"], "the file given with --config is not there: .*nothing.yaml"),
        (["--banned_token_ids=9"], r"banned_token_ids is '9'; expected a list such as \[1, 2\]"),
        ([f"--model={there}"], "config.json is a file; give the folder of the model"),
    ):
        assert re.search(message, fails(capsys, *command, *arguments)), message


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    config = PPOConfig(learning_rate=np.logspace(-4, -3, 2)[1], seed=np.int64(3))
    assert type(config.learning_rate) is float
    assert type(config.seed) is int
    json.dumps(vars(config))
    assert type(SFTConfig(learning_rate=np.float32(1e-3)).learning_rate) is float
    for seed in (-1, 2**64):
        with pytest.raises(UserError, match="seed is .*; expected a whole number"):
            SFTConfig(seed=seed)


def test_a_temperature_and_a_device_that_there_are() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="temperature is .*; expected a positive number"):
            sample_completions(
                model, tokenizer, ["a"], max_new_tokens=2, seed=0, temperature=temperature
            )
    with pytest.raises(UserError, match="prompts are one text, 'abc'"):
        sample_completions(model, tokenizer, "abc", max_new_tokens=2, seed=0)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device here"):
            pick_device("cuda")


def test_data_frames_and_keys_that_stand_twice(tmp_path: Path) -> None:
    chat = np.array([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    row = {"messages": chat, "text": math.nan, "margin": math.nan}
    (found,) = load_records([row]).rows
    assert found["messages"] == chat.tolist()
    assert found["text"] is None
    assert math.isnan(found["margin"])  # a number that is none is refused where it is used
    (tmp_path / "d.jsonl").write_text('{"text": "a", "text": "b"}')
    with pytest.raises(UserError, match="d.jsonl:1: cannot be read .the key 'text' stands twice"):
        load_records(tmp_path / "d.jsonl")


def test_json_lines_go_into_files_of_json_lines(folder: Path, checkpoint: str, capsys) -> None:
    short = [f"--model={checkpoint}", "--prompts=prompts.jsonl", "--max_completion_tokens=2"]
    for name in ("x.csv", "x.jsonl.gz", "x.parquet"):
        assert "ends with .jsonl" in fails(capsys, "generate", *short, f"--output={name}")
    main(["generate", *short, "--output=x.jsonl"])


def test_a_held_out_part_holds_something() -> None:
    records = load_records([{"text": text} for text in "abc"])
    with pytest.raises(UserError, match="holds out none of"):
        split_by_prompt(records, 1e-9)


def test_labels_are_as_certain_as_their_loss_takes_them(checkpoint: str) -> None:
    unsure = [PAIR | {"certainty": 0.6}]
    with pytest.raises(UserError, match="record 0: a reward model takes every label for certain"):
        RewardTrainer(reward_model_from(checkpoint), tiny_tokenizer(), unsure, RewardConfig())
    for loss in ("ipo", "hinge", "kto", "robust"):
        rows = [*unsure, PAIR | {"prompt": "b"}]
        trainer = DPOTrainer(tiny_model(), tiny_tokenizer(), rows, DPOConfig(loss_type=loss))
        with pytest.raises(UserError, match="takes all labels for equally certain"):
            trainer.train()
    with pytest.raises(UserError, match="record 0: DPO has no margin"):
        DPOTrainer(tiny_model(), tiny_tokenizer(), [PAIR | {"margin": 1.0}])
    empty = PAIR | {"margin": "", "certainty": ""}  # as a CSV cell
    DPOTrainer(tiny_model(), tiny_tokenizer(), [empty])


def test_what_scores_are_normalised_on(checkpoint: str) -> None:
    model, tokenizer = reward_model_from(checkpoint), tiny_tokenizer()
    for texts, message in (
        ("samples", "is one text, 'samples'"),
        (["ab"], "holds one text"),
        (["ab", "a" * 5000], "text 1: the text has"),
    ):
        with pytest.raises(UserError, match=message):
            RewardTrainer(model, tokenizer, [PAIR], normalize_on=texts)
    before = len(tokenizer)
    RewardTrainer(model, tokenizer, [PAIR])
    assert len(tokenizer) == before  # the caller's is left alone


def test_a_prompt_stands_once() -> None:
    whole = {"prompt": USER, "chosen": USER + REPLIES[0], "rejected": USER + REPLIES[1]}
    apart = {"prompt": USER, "chosen": REPLIES[0], "rejected": REPLIES[1]}
    for row in (whole, apart):
        assert with_shared_prompts(load_records([row])).rows == [apart]
    text = "Human: what is the sea? Assistant:"
    twice = {"prompt": text, "chosen": text + " blue", "rejected": text + " red"}
    with pytest.raises(UserError, match="record 0: .* both begin with the prompt"):
        with_shared_prompts(load_records([twice]))
    bare = {name: twice[name] for name in ("chosen", "rejected")}
    (row,) = with_shared_prompts(load_records([bare]), texts=True).rows
    assert row == {"prompt": text, "chosen": " blue", "rejected": " red"}
    assert with_shared_prompts(load_records([bare])).rows == [bare]
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match="repeats the prompt's messages"):
        sft_sequence(tokenizer, {"prompt": USER, "completion": USER + REPLIES[0]}, "f:1", 90)
    same = [
        sft_sequence(tokenizer, {"prompt": USER, "completion": reply}, "f:1", 90)
        for reply in (REPLIES[0], "yes")  # as `textrl generate` writes it
    ]
    assert same[0] == same[1]


def test_filters_of_labels_have_values(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/labels.db"
    store = Store(url, create=True)
    for query in ("drop_flagged", "min_agreement=", "labelers=&drop_flagged=true"):
        with pytest.raises(UserError, match="has no value"):
            read(f"{url}?{query}", "rankings")
    with pytest.raises(UserError, match="prompts are not of a labeler"):
        rows(store, "prompts", Filters(labelers=("ann",)))


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": "two"}))
    with pytest.raises(UserError, match="no sequence classifier at"):
        load_classifier(tmp_path)


def test_what_is_not_there_cannot_be_evaluated() -> None:
    trainer = DPOTrainer(tiny_model(), tiny_tokenizer(), [PAIR])
    with pytest.raises(UserError, match="nothing is held out to evaluate on; set heldout_share"):
        trainer.evaluate()
    with pytest.raises(UserError, match="record 0: column 'prompt' is empty"):
        load_records([{"prompt": None}]).require("prompt")


def test_a_name_is_one_agents() -> None:
    with pytest.raises(UserError, match="the name 'ppo' is taken"):
        register("ppo", Path)
    register("ppo", PPO)


def test_numbers_that_turn_a_loss_around() -> None:
    ones, mask = torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)
    for clip_range in (0.0, -0.2, math.nan):
        with pytest.raises(ValueError, match="clip_range must be positive"):
            ppo_policy_loss(ones, ones, ones, mask, clip_range=clip_range)
    for weight in (-1.0, 0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="the weight of 'hinge' must be positive"):
            dpo_loss(*[torch.zeros(1)] * 4, loss_type={"sigmoid": 1.0, "hinge": weight})


@pytest.mark.parametrize(
    ("kind", "options", "needs"),
    [
        (DPOConfig, {"simpo_margin": 0.7}, "the loss simpo"),
        (OnlineDPOConfig, {"simpo_margin": 0.7, "loss_type": "ipo"}, "the loss simpo"),
        (PPOConfig, {"kl_horizon": 1000.0}, "kl_target"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(kind, options: dict, needs: str) -> None:
    with pytest.raises(UserError, match=f"no effect without {needs}"):
        kind(**options)
    kind(**(options | {"loss_type": {"simpo": 1.0}} if "simpo_margin" in options else {}))
    kind(**(options | {"kl_target": 5.0} if "kl_horizon" in options else {}))


def test_a_misspelt_column_is_named_before_one_that_is_only_missing() -> None:
    records = load_records([{"choosen": "a", "rejected": "b"}])
    with pytest.raises(UserError, match=r"column 'chosen' is missing \(did you mean 'choosen'\?\)"):
        records.require("prompt", "chosen", "rejected")


def test_a_path_to_a_file_is_no_module() -> None:
    with pytest.raises(UserError, match=r"named with dots, some\.scores:overlap"):
        resolve("some/scores.py:overlap")


def test_a_misspelt_folder_is_not_looked_for_on_a_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models/tinychat").mkdir(parents=True)
    with pytest.raises(UserError, match=r"did you mean 'models'\?"):
        local_or_hub("model/tinychat")
    assert local_or_hub("model/other") == "model/other"
    assert local_or_hub("openai/tinychat") == "openai/tinychat"
