"""The command line, in this process where it is quick and as a command where that matters."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from textrl import cli
from textrl.agents import RLOO, registered
from textrl.agents.base import factory_of
from textrl.cli.agent_options import AGENTS
from textrl.config import PPOConfig, SFTConfig
from textrl.errors import UserError

REWARD = "my_reward.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    texts = "\n".join(json.dumps({"text": t}) for t in ("abc", "bcd", "cdefg", "xyz"))
    Path("texts.jsonl").write_text(texts)
    Path("prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    pair = {"prompt": "a", "chosen": "bcd", "rejected": "zz"}
    Path("pairs.jsonl").write_text(json.dumps(pair) + "\n" + json.dumps(pair | {"prompt": "b"}))
    Path(REWARD).write_text(
        "def letters(prompts, completions):\n    return [float(len(c)) for c in completions]\n"
    )
    return tmp_path


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line of a command that must fail with status 2."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("textrl: error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


def test_yaml_with_overrides(folder: Path) -> None:
    Path("c.yaml").write_text(
        "model: m\ndata: d.jsonl\noutput_dir: out\nlearning_rate: 1e-5\nnum_epochs: 3\n"
    )
    command, (model, run, config) = cli.parse(
        ["sft", "--config", "c.yaml", "--num-epochs", "4", "--resume"]
    )
    assert command == "sft"
    assert (model.model, run.resume, run.overwrite) == ("m", True, False)
    assert config == SFTConfig(learning_rate=1e-5, num_epochs=4)
    assert isinstance(config.learning_rate, float)


def test_print_config_can_be_read_back(folder: Path, capsys) -> None:
    arguments = ["ppo", "--model=m", "--prompts=p", "--reward=r", "--total_timesteps=9"]
    arguments += ["--output_dir=o", "--critic=separate", "--target_kl=0.1"]
    with pytest.raises(SystemExit) as caught:
        cli.main([*arguments, "--print_config"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["clip_range"] == 0.2
    Path("c.yaml").write_text(printed)
    _, configs = cli.parse(["ppo", "--config", "c.yaml"])
    assert PPOConfig(critic="separate", target_kl=0.1) in configs


GIVEN = ["--model=m", "--data=d", "--output_dir=o"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sft", "--learnin_rate", "1"], "did you mean 'learning_rate'"),
        (["sft", "--lr", "1"], "unknown option 'lr' (did you mean 'learning_rate'?)"),
        (["stf"], "unknown command 'stf' (did you mean 'sft'?); known: sft, reward"),
        (["list"], "unknown command 'list'; known: sft, reward, ppo"),
        (["sft", *GIVEN, "--num_epochs=2.5"], "num_epochs is '2.5'; expected a whole number\n"),
        (["sft", *GIVEN, "--num_epochs=25e-1"], "num_epochs is '2.5'; expected a whole number\n"),
        (["sft", *GIVEN, "--resume=maybe"], "resume"),
        (
            ["sft", *GIVEN, "--precision=bfloat"],
            "precision is 'bfloat'; expected one of 'float32', 'bfloat16', 'auto' (did you mean "
            "'bfloat16'?)",
        ),
        (["dpo", *GIVEN, "--loss_type=simppo"], "'sft' or a mapping (did you mean 'simpo'?)"),
        (["sft", "--model", "m"], "data"),
        (["sft", "--model=m", "--data=d", "--output_dir=o", "--num_epochs=many"], "num_epochs"),
        (["sft", "--model=m", "--data=d", "--output_dir=o", "--num_epochs=0"], "a positive number"),
        (["ppo", "--critic", "best"], "critic"),
        (["sft", "-data", "d"], "data needs two dashes before it: --data VALUE"),
        (["sft", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["sft", "--model=nowhere", "--data=texts.jsonl", "--output_dir=o"], "nowhere"),
        (["dpo", "--model=MODEL", "--data=gone.jsonl", "--output_dir=o"], "gone.jsonl"),
        (["reward", "--model=MODEL", "--data=texts.jsonl", "--output_dir=o"], "texts.jsonl:1"),
        (["dpo", "--model=MODEL", "--data=texts.jsonl", "--output_dir=o"], "'prompt' is missing"),
        (
            ["ppo", "--model=MODEL", "--prompts=prompts.jsonl", "--reward=MODEL"]
            + ["--total_timesteps=1", "--output_dir=o"],
            "no trained reward head",
        ),
        (
            ["ppo", "--model=MODEL", "--prompts=prompts.jsonl", "--reward=my_reward:lettres"]
            + ["--total_timesteps=1", "--output_dir=o"],
            "no 'lettres'",
        ),
        (
            ["ppo", "--model=MODEL", "--prompts=prompts.jsonl", "--reward=my_reward:letters"]
            + ["--total_timesteps=1", "--output_dir=o", "--agent=ppp"],
            "ppp",
        ),
        (
            ["ppo", "--model=MODEL", "--prompts=prompts.jsonl", "--reward=my_reward:letters"]
            + ["--total_timesteps=1", "--output_dir=o", "--agent=onlin_dpo"],
            "did you mean 'online_dpo'",
        ),
        (
            ["dpo", "--model=m", "--data=d", "--output_dir=o", "--label_smoothing=0.6"],
            "a share in [0, 0.5)",
        ),
        (
            ["evaluate", "--model=m", "--reference=m", "--reward=r", "--prompts=p"]
            + ["--temperature=0"],
            "EvaluateConfig.temperature is 0.0; expected a positive number",
        ),
        (["demo", "--preset", "huge"], "preset"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    arguments, message: str, folder: Path, checkpoint: str, capsys
) -> None:
    given = [argument.replace("MODEL", checkpoint) for argument in arguments]
    assert message in fails(given, capsys)
    assert not (folder / "o").exists() or not any((folder / "o").iterdir())


@pytest.mark.parametrize("key", ["learnin_rate", "learning-rat", "lr"])
def test_unknown_key_in_yaml(key: str, folder: Path, capsys) -> None:
    Path("c.yaml").write_text(f"model: m\n{key}: 1e-5\n")
    assert "did you mean 'learning_rate'" in fails(["sft", "--config", "c.yaml"], capsys)


def test_whole_numbers_may_be_written_with_an_exponent(folder: Path) -> None:
    given = ["--model=m", "--prompts=p", "--reward=r", "--output_dir=1e3"]
    for written in (["--total_timesteps", "1e6"], ["--total-timesteps=1.0E+6"]):
        _, (config, _, run, *_) = cli.parse(["rloo", *given, *written])
        assert config.total_timesteps == 1_000_000
        assert isinstance(config.total_timesteps, int)
        assert run.output_dir == "1e3"
    Path("c.yaml").write_text("total_timesteps: 2e6\nkl_coef: 1e1\nlearning_rate: 1.0\n")
    _, configs = cli.parse(["rloo", *given, "--config=c.yaml"])
    assert configs[0].total_timesteps == 2_000_000
    assert configs[1].kl_coef == 10.0


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 0
    assert "train a reward model on rankings" in capsys.readouterr().out


def test_an_existing_run_is_never_overwritten_by_accident(
    folder: Path, checkpoint: str, capsys
) -> None:
    Path("out").mkdir()
    Path("out/precious.txt").write_text("mine")
    arguments = ["sft", f"--model={checkpoint}", "--data=texts.jsonl", "--output_dir=out"]
    error = fails(arguments, capsys)
    assert "--resume" in error
    assert "--overwrite" in error
    assert Path("out/precious.txt").read_text() == "mine"
    assert "exclude each other" in fails([*arguments, "--resume", "--overwrite"], capsys)
    bad = [*arguments[:2], "--data=gone.jsonl", "--output_dir=out", "--overwrite"]
    fails(bad, capsys)
    assert Path("out/precious.txt").exists()  # the data are read before anything is deleted
    assert "holds no run of textrl" in fails([*arguments, "--overwrite"], capsys)
    Path("out/config.yaml").write_text("{}")  # a run of ours may be replaced
    inside = [*arguments[:2], "--data=out/texts.jsonl", "--output_dir=out", "--overwrite"]
    Path("out/texts.jsonl").write_text(Path("texts.jsonl").read_text())
    assert "--overwrite would delete" in fails(inside, capsys)
    cli.main([*arguments, "--overwrite"])
    assert not Path("out/precious.txt").exists()
    assert Path("out/model.safetensors").exists()
    cli.main([*arguments, "--resume"])
    assert "nothing to resume" in capsys.readouterr().out
    other = fails([*arguments, "--resume", "--learning_rate=0.5"], capsys)
    assert "--resume with another learning_rate" in other


def test_the_whole_pipeline_from_the_command_line(folder: Path, checkpoint: str, capsys) -> None:
    cli.main(["sft", f"--model={checkpoint}", "--data=texts.jsonl", "--output_dir=sft", "--seed=1"])
    resolved = yaml.safe_load(Path("sft/config.yaml").read_text())
    assert resolved["seed"] == 1
    assert resolved["max_grad_norm"] == 1.0
    cli.main(["reward", "--model=sft", "--data=pairs.jsonl", "--output_dir=rm"])
    short = ["--max_completion_tokens=5"]
    cli.main(
        ["ppo", "--model=sft", "--prompts=prompts.jsonl", "--reward=rm", "--output_dir=ppo"]
        + ["--total_timesteps=100", "--num_envs=8", "--episodes_per_iteration=16", *short]
    )
    cli.main(["dpo", "--model=sft", "--data=pairs.jsonl", "--output_dir=dpo"])
    for name in ("sft", "ppo", "dpo"):
        AutoModelForCausalLM.from_pretrained(name)
    assert Path("ppo/critic.safetensors").exists()
    capsys.readouterr()
    cli.main(["generate", "--model=ppo", "--prompts=prompts.jsonl", *short])
    lines = capsys.readouterr().out.strip().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["a", "b"]
    cli.main(["generate", "--model=ppo", "--prompts=prompts.jsonl", "--output=g.jsonl", *short])
    assert "exists" in fails(
        ["generate", "--model=ppo", "--prompts=prompts.jsonl", "--output=g.jsonl"], capsys
    )
    cli.main(
        ["evaluate", "--model=ppo", "--reference=sft", "--reward=my_reward:letters"]
        + ["--prompts=prompts.jsonl", *short]
    )
    assert set(json.loads(capsys.readouterr().out)) == {"score", "score_std", "kl", "length"}


def test_generated_rows_keep_what_the_template_reads(folder: Path, checkpoint: str, capsys) -> None:
    shutil.copytree(checkpoint, "chatty")
    tokenizer = AutoTokenizer.from_pretrained("chatty")
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}{% endfor %}{{ more }}"
    tokenizer.save_pretrained("chatty")
    chat = {"prompt": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"more": "b"}}
    Path("chats.jsonl").write_text(json.dumps(chat | {"topic": "left out"}) + "\n")
    cli.main(["generate", "--model=chatty", "--prompts=chats.jsonl", "--max_completion_tokens=2"])
    (row,) = map(json.loads, capsys.readouterr().out.strip().splitlines())
    assert row == chat | {"completion": row["completion"]}


def test_best_of_n_writes_the_best_sample(folder: Path, checkpoint: str, capsys) -> None:
    """The samples are those of `generate` with this seed, of which each prompt's best is kept."""
    shared = [f"--model={checkpoint}", "--prompts=prompts.jsonl", "--max_completion_tokens=4"]
    cli.main(["generate", *shared, "--samples_per_prompt=6"])
    samples = [json.loads(line) for line in capsys.readouterr().out.strip().splitlines()]
    cli.main(["best-of-n", *shared, "--reward=my_reward:letters", "--n=6"])
    printed = capsys.readouterr()
    best = [json.loads(line) for line in printed.out.strip().splitlines()]
    from my_reward import letters

    scores = letters([row["prompt"] for row in samples], [row["completion"] for row in samples])
    assert [row["prompt"] for row in best] == ["a", "b"]
    for number, row in enumerate(best):
        mine = scores[6 * number : 6 * number + 6]
        assert row["score"] == pytest.approx(max(mine))
        assert row["completion"] == samples[6 * number + mine.index(max(mine))]["completion"]
    mean = sum(scores) / len(scores)
    assert f"score {mean:.3f} of one completion" in printed.err
    assert "at most 0.96 nats" in printed.err  # log 6 - 5 / 6


@pytest.mark.parametrize("agent", ["ppo", "grpo"])
def test_agents_resume_to_the_same_weights(agent: str, folder: Path, checkpoint: str) -> None:
    def run(output: str, tokens: int, *more: str) -> torch.Tensor:
        cli.main(
            [agent, f"--model={checkpoint}", "--prompts=prompts.jsonl", f"--output_dir={output}"]
            + ["--reward=my_reward:letters", f"--total_timesteps={tokens}", "--num_envs=8"]
            + ["--group_size=4"]
            + ["--episodes_per_iteration=8", "--max_completion_tokens=4", "--save_every=1", *more]
        )
        model = AutoModelForCausalLM.from_pretrained(output)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    straight = run("straight", 100)
    run("parts", 40)
    assert torch.equal(run("parts", 100, "--resume"), straight)
    rows = Path("parts/progress.json").read_text().splitlines()
    assert len(rows) == len(Path("straight/progress.json").read_text().splitlines())


RUN = ["--prompts=prompts.jsonl", "--reward=my_reward:letters", "--num_envs=8", "--group_size=4"]
RUN += ["--max_completion_tokens=4", "--total_timesteps=60", "--output_dir=run"]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("agent", list(AGENTS))
def test_each_agents_own_options_are_obeyed_and_recorded(
    agent: str, named: bool, folder: Path, checkpoint: str, capsys
) -> None:
    given = {"learning_rate": 3e-6, "episodes_per_iteration": 16, "seed": 11}
    options = [f"--{name}={value}" for name, value in given.items()]
    command = ["ppo", "--agent", agent] if named else [agent]
    cli.main([*command, f"--model={checkpoint}", *RUN, *options])
    asked = yaml.safe_load(Path("run/config.yaml").read_text())
    saved = json.loads(Path("run/agent.json").read_text())
    assert saved["agent"] == agent
    assert {name: asked[name] for name in given} == given
    assert {name: saved["config"][name] for name in given} == given
    assert all(asked[name] == value for name, value in saved["config"].items())
    assert "saved to run" in capsys.readouterr().out
    if agent != "ppo":
        error = fails([*command, f"--model={checkpoint}", *RUN, "--gae_lambda=0.9"], capsys)
        assert "unknown option 'gae_lambda'" in error


def test_every_agent_that_trains_is_a_command_with_its_own_configuration() -> None:
    trained = {name for name in registered() if hasattr(factory_of(name), "config_class")}
    assert trained == set(AGENTS)
    for name, (_, kinds) in AGENTS.items():
        assert factory_of(name).config_class is kinds[0]


def test_an_outside_agent_gets_no_options_that_it_would_ignore(
    folder: Path, checkpoint: str, capsys
) -> None:
    Path("mine.py").write_text(
        "class Mine:\n"
        "    def __init__(self, policy, venv): self.policy = policy\n"
        "    def learn(self, total_timesteps, progress_bar=False): raise KeyboardInterrupt\n"
    )
    command = ["ppo", "--agent=mine:Mine", f"--model={checkpoint}", *RUN]
    assert "unknown option 'clip_range'" in fails([*command, "--clip_range=0.2"], capsys)
    assert "unknown option 'seed'" in fails([*command, "--seed=0"], capsys)
    assert "starts anew" in fails([*command, "--resume"], capsys)
    with pytest.raises(SystemExit) as caught:
        cli.main(command)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "textrl: stopped\n"  # there is nothing to resume
    asked = yaml.safe_load(Path("run/config.yaml").read_text())
    assert asked["agent"] == "mine:Mine"
    assert "learning_rate" not in asked


def test_a_stop_speaks_of_resume_where_there_is_something_to_resume(
    folder: Path, checkpoint: str, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped_in(iteration: int) -> str:
        counted = iter(range(1, iteration + 1))
        real = RLOO._iteration

        def iterate(agent: RLOO, *arguments: object) -> dict[str, float]:
            if next(counted) == iteration:
                raise KeyboardInterrupt
            return real(agent, *arguments)

        monkeypatch.setattr(RLOO, "_iteration", iterate)
        options = ["--episodes_per_iteration=8", "--save_every=1", "--overwrite"]
        with pytest.raises(SystemExit):
            cli.main(["rloo", f"--model={checkpoint}", *RUN, *options])
        monkeypatch.setattr(RLOO, "_iteration", real)
        return capsys.readouterr().err

    assert stopped_in(1) == "textrl: stopped\n"
    lines = stopped_in(2).splitlines()
    assert lines[:2] == ["textrl: stopped", "textrl: the run is saved after iteration 1"]
    assert lines[2].startswith("textrl: continue with: textrl rloo --model=")
    assert lines[2].endswith(" --resume")
    assert "--overwrite" not in lines[2]
    cli.main(shlex.split(lines[2].partition("textrl: continue with: textrl ")[2]))
    assert (folder / "run" / "model.safetensors").exists()


def test_importing_and_asking_for_help_is_light() -> None:
    """Neither `import textrl` nor --help loads torch or transformers; and this test can fail."""
    script = (
        "import sys; {code}; "
        "print(sorted({{'torch', 'transformers', 'stable_baselines3'}} & set(sys.modules)))"
    )
    helps = "from textrl.cli import main\ntry:\n main(['ppo', '--help'])\nexcept SystemExit: pass\n"
    for code, expected in [
        ("import textrl", "[]"),
        (f"exec({helps!r})", "[]"),
        ("import textrl.models", "['torch', 'transformers']"),
    ]:
        done = subprocess.run(
            [sys.executable, "-c", script.format(code=code)], capture_output=True, text=True
        )
        assert done.stdout.strip().splitlines()[-1] == expected, done.stderr


def test_help_explains_each_field() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "textrl", "ppo", "--help"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert "--clip_range CLIP_RANGE" in done.stdout
    assert "The probability ratio is clipped to 1 +- this value." in done.stdout
    assert "(type: float, a positive number, default: 0.2)" in done.stdout


def test_resolve() -> None:
    from textrl.resolve import resolve, resolve_reward

    assert resolve("math:sqrt")(4) == 2
    assert resolve_reward("some/folder") == "some/folder"
    with pytest.raises(UserError, match="cannot be imported"):
        resolve("no_such_module:f")
    for name in (":f", "math:", ".math:sqrt"):
        with pytest.raises(UserError, match="is no package.module:name"):
            resolve(name)


def test_a_configuration_in_another_encoding_is_one_line(tmp_path: Path, capsys) -> None:
    (tmp_path / "x.yaml").write_bytes("model: caf\u00e9\n".encode("latin1"))
    assert "is not UTF-8" in fails(["sft", "--config", str(tmp_path / "x.yaml")], capsys)


def test_what_is_needed_is_named_as_it_is_typed(capsys) -> None:
    assert (
        fails(["evaluate", "--model", "x"], capsys)
        .strip()
        .endswith("needed: --reference, --reward, --prompts")
    )
