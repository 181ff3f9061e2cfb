"""What a stop, a kill or a failure leaves of an agent's run: one iteration's state, whole."""

import itertools
import json
import os
import shlex
import shutil
import signal
import sys
from pathlib import Path

import peft
import pytest
import torch
from crash import killed_at
from stable_baselines3.common.logger import KVWriter, Logger
from test_critic_free import AGENTS, make, make_venv, weights

from textrl import cli
from textrl.agents import PPO, RLOO, PPOConfig, RLOOConfig
from textrl.agents.runs import saved_agent, train_in
from textrl.agents.saving import OtherEnvironment
from textrl.checkpoint import Checkpoints, logged_by
from textrl.config import SFTConfig
from textrl.durable import save_files
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.errors import UserError
from textrl.generation import ModelConversation
from textrl.models import load_causal_lm
from textrl.run_folder import held
from textrl.trainers import SFTTrainer
from textrl.updater import OutOfMemory, Updater

REWARD = """
calls = 0

def letters(prompts, completions):
    global calls
    calls += 1
    if calls == {fails_at}:
        {failure}
    return [float(len(text)) for text in completions]
"""


def ppo(critic: str = "value_head", policy=None, **options) -> PPO:
    config = PPOConfig(
        episodes_per_iteration=16, minibatch_size=8, learning_rate=1e-3, critic=critic, **options
    )
    return PPO(policy or tiny_model(), make_venv(), config)


def all_weights(agent) -> torch.Tensor:
    found = weights(agent.policy)
    return found if not isinstance(agent, PPO) else torch.cat([found, weights(agent.critic)])


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("value_head", "rloo", "online_dpo")]


@pytest.mark.parametrize("name", ["separate", *SLOW])
def test_a_kill_inside_a_save_never_mixes_two_iterations(name: str, tmp_path: Path) -> None:
    """Loaded and trained on, the folder gives what one of the two saves alone would give."""
    agent = ppo(name) if name in ("value_head", "separate") else make(name)
    kind, expected = type(agent), []
    for iteration in (1, 2):
        agent.iterate()
        agent.save(tmp_path / str(iteration))
        expected.append(all_weights(agent))
    earlier = kind.load(tmp_path / "1", make_venv())
    found = []
    for operation in itertools.count():
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "1", folder)
        if not killed_at(lambda f=folder: agent.save(f), folder, operation):
            break
        loaded = kind.load(folder, make_venv())
        found.append(loaded.iteration)
        assert torch.equal(all_weights(loaded), expected[loaded.iteration - 1])
        assert loaded.env_steps == (earlier, agent)[loaded.iteration - 1].env_steps
    assert set(found) == {1, 2}
    assert len(found) >= 20


@pytest.mark.parametrize("name", ["ppo", *AGENTS])
@pytest.mark.parametrize("where", ["reward", "sampling"])
def test_an_iteration_that_fails_in_collecting_has_not_been(name, where, monkeypatch) -> None:
    """The agent goes on as if nobody had pressed Ctrl+C: its prompts and draws are the same."""

    def trained(stop: bool) -> torch.Tensor:
        agent = ppo() if name == "ppo" else make(name)
        agent.iterate()
        if stop:
            core = agent.env.venv.unwrapped.core
            target, method = {
                "reward": (type(core.judge), "scores"),
                "sampling": (ModelConversation, "sample"),
            }[where]
            real, calls = getattr(target, method), itertools.count()

            def stopped(self, *arguments, **options):
                found = real(self, *arguments, **options)
                if next(calls) == 1:  # after one batch of two
                    raise KeyboardInterrupt
                return found

            if agent.config.episodes_per_iteration == agent.env.num_envs:
                calls = itertools.count(1)
            with monkeypatch.context() as patch:
                patch.setattr(target, method, stopped)
                with pytest.raises(KeyboardInterrupt):
                    agent.iterate()
            assert agent.whole
            assert agent.iteration == 1
        agent.iterate()
        return all_weights(agent)

    assert torch.equal(trained(stop=True), trained(stop=False))


def test_a_stop_inside_an_update_waits_for_its_end() -> None:
    agent, straight = make("rloo"), make("rloo")
    real = agent.train_on

    def stopped(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    agent.train_on = stopped
    with pytest.raises(SystemExit) as caught:
        agent.learn(1)
    assert caught.value.code == 143
    assert agent.whole
    assert agent.iteration == 1
    straight.iterate()
    assert torch.equal(all_weights(agent), all_weights(straight))


def test_memory_that_ends_a_run_loses_no_iteration(tmp_path: Path, monkeypatch) -> None:
    """Before the first step of an iteration nothing has changed, and the run is saved."""
    agent, straight = make("rloo"), make("rloo")
    straight.iterate()
    straight.iterate()
    real, calls = Updater._add_gradients, itertools.count()

    def without_room(self, losses) -> None:
        if next(calls) >= 8:  # eight steps an iteration
            raise MemoryError
        real(self, losses)

    monkeypatch.setattr(Updater, "_add_gradients", without_room)
    with pytest.raises(OutOfMemory) as caught:
        train_in(tmp_path / "run", agent, 1000, Checkpoints(tmp_path / "run"))
    assert caught.value.__notes__ == ["the run is saved after iteration 1"]
    monkeypatch.undo()
    saved = saved_agent(tmp_path / "run")
    assert saved is not None
    resumed = RLOO.load(saved, make_venv())
    resumed.iterate()
    assert torch.equal(all_weights(resumed), all_weights(straight))


def test_the_folder_of_an_adapter_is_the_same_in_every_process(tmp_path: Path) -> None:
    """PEFT lists a set in the order of its hashes, and writes a card that names a folder."""
    targets = ["v_proj", "q_proj", "o_proj", "k_proj"]
    settings = peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")
    make("rloo", policy=peft.get_peft_model(tiny_model(), settings)).save(tmp_path)
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["target_modules"] == sorted(targets)
    assert not (tmp_path / "adapter" / "README.md").exists()


class ByHand(RLOO):
    """An agent that changes a weight itself, and fails or is stopped then."""

    what = staticmethod(lambda: None)

    def train_on(self, rollout, steps):
        with torch.no_grad():
            next(self.policy.parameters()).add_(0.01)
        self.what()
        return {}


def by_hand(what) -> ByHand:
    config = RLOOConfig(episodes_per_iteration=32)
    agent = ByHand(tiny_model(), make_venv(), config)
    agent.what = what
    return agent


def test_weights_that_changed_without_a_step_are_not_whole() -> None:
    def fail() -> None:
        raise ValueError("half way")

    agent = by_hand(fail)
    drawn = agent._generator.get_state()
    with pytest.raises(ValueError, match="half way"):
        agent.iterate()
    assert not agent.whole
    assert not torch.equal(agent._generator.get_state(), drawn)  # the prompts were used


def test_a_stop_in_an_iteration_without_a_step_does_not_undo_it() -> None:
    stopped = by_hand(lambda: signal.raise_signal(signal.SIGINT))
    straight = by_hand(lambda: None)
    straight.iterate()
    with pytest.raises(KeyboardInterrupt):
        stopped.iterate()
    assert stopped.whole
    assert stopped.iteration == 1
    assert torch.equal(stopped._generator.get_state(), straight._generator.get_state())
    assert stopped.env.prompt_state() == straight.env.prompt_state()


def test_an_agent_whose_update_fails_half_way_is_not_whole(monkeypatch) -> None:
    agent = make("rloo")
    real, calls = Updater._add_gradients, itertools.count()

    def without_room(self, losses) -> None:
        if next(calls) >= 1:
            raise MemoryError
        real(self, losses)

    monkeypatch.setattr(Updater, "_add_gradients", without_room)
    with pytest.raises(OutOfMemory):
        agent.iterate()
    assert not agent.whole


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("prompts.jsonl").write_text("\n".join(json.dumps({"prompt": p}) for p in "abcdefg"))
    return tmp_path


def rloo_command(model: str, reward: str, *more: str) -> list[str]:
    """Return a command line that trains in the folder run, eight episodes an iteration."""
    command = ["rloo", f"--model={model}", "--prompts=prompts.jsonl", "--output_dir=run"]
    command += [f"--reward={reward}", "--num_envs=8", "--group_size=4"]
    return [*command, "--episodes_per_iteration=8", "--max_completion_tokens=4", *more]


def rows_of(run: str) -> list[dict[str, float]]:
    """Return the logged rows without what the clock says in them."""
    rows = [json.loads(line) for line in Path(run, "progress.json").read_text().splitlines()]
    clock = ("time/collect_seconds", "time/update_seconds", "time/reward_seconds")
    clock += ("time/tokens_per_second",)
    return [{name: v for name, v in row.items() if name not in clock} for row in rows]


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        ("raise ConnectionError('reset by peer')", 2),
        ("return [float('nan')] * len(completions)", 2),
        ("import signal; signal.raise_signal(signal.SIGTERM)", 143),
        ("raise KeyboardInterrupt", 130),
    ],
)
def test_a_run_that_is_stopped_goes_on_with_the_command_that_it_prints(
    failure: str, status: int, folder: Path, checkpoint: str, capsys
) -> None:
    def command(name: str) -> list[str]:
        options = ["--prompts=prompts.jsonl", f"--reward={name}:letters", f"--output_dir={name}"]
        options += ["--num_envs=8", "--group_size=4", "--episodes_per_iteration=8"]
        options += ["--max_completion_tokens=4", "--total_timesteps=160", "--save_every=3"]
        return ["rloo", f"--model={checkpoint}", *options]

    for name, fails_at in (("straight", 0), ("stopped", 5)):
        Path(f"{name}.py").write_text(REWARD.format(fails_at=fails_at, failure=failure))
        sys.modules.pop(name, None)  # another test's
    cli.main(command("straight"))
    with pytest.raises(SystemExit) as caught:
        cli.main(command("stopped"))
    assert caught.value.code == status
    *_, saved, then = capsys.readouterr().err.splitlines()
    assert saved == "textrl: the run is saved after iteration 4"
    assert Checkpoints(folder / "stopped").newest().name == "000000004"
    cli.main(shlex.split(then.removeprefix("textrl: continue with: textrl ")))
    same = ["model.safetensors", "trainer_state/state.pt"]
    for file in same:
        assert (folder / "stopped" / file).read_bytes() == (folder / "straight" / file).read_bytes()
    assert rows_of("stopped") == rows_of("straight")
    assert not (folder / "stopped" / "checkpoints").exists()


def test_a_run_folder_is_one_processs_at_a_time(folder: Path, checkpoint: str, capsys) -> None:
    Path("plain.py").write_text(REWARD.format(fails_at=0, failure="pass"))
    command = rloo_command(checkpoint, "plain:letters", "--total_timesteps=20")
    cli.main(command)
    before = (folder / "run" / "model.safetensors").read_bytes()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        with held(folder / "run"):
            os.write(writing, b"1")
            signal.pause()
        os._exit(0)
    assert os.read(reading, 1) == b"1"
    for mode in ("--overwrite", "--resume"):
        with pytest.raises(SystemExit) as caught:
            cli.main([*command, mode])
        assert caught.value.code == 2
        assert f"run is in use by process {child} on " in capsys.readouterr().err
    assert (folder / "run" / "model.safetensors").read_bytes() == before
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    cli.main([*command, "--overwrite"])  # a killed process holds nothing


def test_altered_weights_are_named_by_whoever_loads_them(tmp_path: Path) -> None:
    make("rloo").save(tmp_path)
    file = tmp_path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load_causal_lm(tmp_path)


def test_a_model_that_was_changed_on_purpose(tmp_path: Path) -> None:
    make("rloo").save(tmp_path)
    file = tmp_path / "generation_config.json"
    file.write_text(file.read_text().replace("{", '{"max_length": 99,', 1))
    with pytest.raises(UserError, match=r"generation_config.*take its line out of .*checksums"):
        load_causal_lm(tmp_path)
    sums = json.loads((tmp_path / "checksums.json").read_text())
    del sums[file.name]
    (tmp_path / "checksums.json").write_text(json.dumps(sums))
    load_causal_lm(tmp_path)
    RLOO.load(tmp_path, make_venv())


def shortest(prompts: list[str], completions: list[str]) -> list[float]:
    return [-float(len(text)) for text in completions]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"temperature": 0.7}, r"another temperature than .*: 0\.7, not 1\.0"),
        ({"kl_coef": 0.3}, r"another kl_coef than .*: 0\.3, not 0\.1"),
        ({"missing_eos_penalty": 0.5}, "another missing_eos_penalty"),
        ({"reward": shortest}, "another reward than"),
        ({"reference": tiny_model(seed=7)}, "another reference than"),
    ],
)
def test_an_agent_says_that_its_environment_is_another(other, named, tmp_path, recwarn) -> None:
    given = {"tokenizer": tiny_tokenizer(), "prompts": list("abcdefgh"), "reward": longest}
    given["reference"] = tiny_model()
    agent = RLOO(tiny_model(), make_venv(**given), RLOOConfig(episodes_per_iteration=16))
    agent.save(tmp_path)
    RLOO.load(tmp_path, make_venv(**given))
    assert not recwarn.list
    with pytest.warns(OtherEnvironment, match=named):
        RLOO.load(tmp_path, make_venv(**(given | other)))


def longest(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


def test_a_resumed_run_notices_another_start_model_or_reward(
    folder: Path, checkpoint: str, capsys
) -> None:
    shutil.copytree(checkpoint, "start")
    Path("twice.py").write_text(REWARD.format(fails_at=2, failure="raise ValueError('once')"))
    command = rloo_command("start", "twice:letters", "--total_timesteps=60")

    def fails(*more: str) -> str:
        with pytest.raises(SystemExit):
            cli.main([*command, *more])
        return capsys.readouterr().err.splitlines()[0]

    assert "ValueError: once" in fails()
    tiny_model(seed=7).save_pretrained("start")
    assert "--resume: the environment has another reference" in fails("--resume")


def test_a_trainer_notices_another_start_model(tmp_path, monkeypatch) -> None:
    def trainer(seed: int) -> SFTTrainer:
        texts = [{"text": "abcdef"}] * 8
        config = SFTConfig(minibatch_size=2, save_every=1)
        model = tiny_model(seed=seed)
        return SFTTrainer(model, tiny_tokenizer(), texts, config, output_dir=tmp_path, shown=False)

    with monkeypatch.context() as patch:
        patch.setattr(
            "textrl.loop.check_finite", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            trainer(0).train()
    with pytest.raises(UserError, match="resume with another model: the weights are not those"):
        trainer(1).train(resume=True)
    trainer(0).train(resume=True)


@pytest.mark.parametrize("moment", ["after collecting", "while it is undone"])
def test_a_stop_between_collecting_and_updating_loses_nothing(moment: str, monkeypatch) -> None:
    def trained(stop: bool) -> torch.Tensor:
        agent = make("rloo")
        agent.iterate()
        if stop:
            with monkeypatch.context() as patch:
                if moment == "after collecting":
                    patch.setattr("textrl.agents.text_agent.rollout_report", interrupt)
                else:
                    real = agent.env.load_prompt_state

                    def twice(state: str) -> None:
                        signal.raise_signal(signal.SIGINT)  # a second one, in the midst of it
                        real(state)

                    patch.setattr(agent, "collect_batch", interrupt)
                    patch.setattr(agent.env, "load_prompt_state", twice)
                with pytest.raises(KeyboardInterrupt):
                    agent.iterate()
            assert agent.whole
        agent.iterate()
        return all_weights(agent)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert torch.equal(trained(stop=True), trained(stop=False))
    finally:
        signal.signal(signal.SIGINT, before)


def interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_the_row_of_an_iteration_that_a_stop_waited_for_is_logged(tmp_path) -> None:
    agent = make("rloo")
    real, rows = agent.train_on, []

    class Rows(KVWriter):
        def write(self, key_values, key_excluded, step=0) -> None:
            rows.append(step)

        def close(self) -> None:
            pass

    agent.set_logger(Logger(folder=None, output_formats=[Rows()]))

    def stopped(*arguments):
        if agent.iteration == 1:
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    agent.train_on = stopped
    with pytest.raises(SystemExit):
        agent.learn(10_000)
    assert agent.iteration == len(rows) == 2


def test_a_finished_run_that_is_extended_has_each_row_once(
    folder: Path, checkpoint: str, capsys
) -> None:
    Path("lengths_of.py").write_text(REWARD.format(fails_at=5, failure="raise ValueError('once')"))
    command = rloo_command(checkpoint, "lengths_of:letters", "--save_every=0")
    cli.main([*command, "--total_timesteps=60"])
    assert len(rows_of("run")) == 2
    for _ in range(2):
        with pytest.raises(SystemExit):
            cli.main([*command, "--total_timesteps=200", "--resume"])
        shutil.rmtree("run/checkpoints", ignore_errors=True)  # as if it were killed without a save
        sys.modules.pop("lengths_of")
    Path("lengths_of.py").write_text(REWARD.format(fails_at=0, failure="pass"))
    cli.main([*command, "--total_timesteps=200", "--resume"])
    steps = [row["time/step"] for row in rows_of("run")]
    assert steps == sorted(set(steps))


def test_a_kill_while_the_saves_of_a_finished_run_are_removed(tmp_path: Path) -> None:
    def trainer(run: Path) -> SFTTrainer:
        config = SFTConfig(minibatch_size=2, save_every=1)
        texts = [{"text": "abcdef"}] * 4
        return SFTTrainer(
            tiny_model(), tiny_tokenizer(), texts, config, output_dir=run, shown=False
        )

    for operation in itertools.count():
        run = tmp_path / str(operation)
        saves = Checkpoints(run)
        saves.save(1, lambda folder: (folder / "state.pt").write_text("x"))
        if not killed_at(saves.clear, run, operation):
            break
        saves = Checkpoints(run)
        assert not saves.exist() or saves.newest() is not None
    assert operation >= 1


def test_demonstrations_are_part_of_what_a_run_is(tmp_path, recwarn) -> None:
    texts = [{"text": "abcdef"}, {"text": "bcd"}]
    config = PPOConfig(episodes_per_iteration=16, minibatch_size=8, ptx_coef=0.1)
    PPO(tiny_model(), make_venv(), config, demonstrations=texts).save(tmp_path)
    PPO.load(tmp_path, make_venv(), demonstrations=texts)
    assert not recwarn.list
    with pytest.warns(OtherEnvironment, match="another demonstrations than"):
        PPO.load(tmp_path, make_venv(), demonstrations=texts[:1])


def test_an_old_runs_saves_are_not_recommended(folder: Path, checkpoint: str, capsys) -> None:
    """A stop before the run has begun leaves the run that lies there, and says nothing of it."""
    Path("plain2.py").write_text(REWARD.format(fails_at=4, failure="raise KeyboardInterrupt"))
    command = rloo_command(checkpoint, "plain2:letters", "--save_every=1", "--total_timesteps=400")
    with pytest.raises(SystemExit):
        cli.main(command)
    assert "continue with" in capsys.readouterr().err
    os.utime("run/config.yaml", (1, 1))
    Path("bad.py").write_text("raise KeyboardInterrupt")
    with pytest.raises(SystemExit):
        cli.main([*command[:4], "--reward=bad:letters", *command[5:], "--overwrite"])
    assert capsys.readouterr().err == "textrl: stopped\n"
    Path("o.yaml").write_text("overwrite: true\n")
    cli.main([*command, "--config=o.yaml", "--resume"])


def test_a_save_from_python_keeps_the_rows_that_lie_beside_it(
    folder: Path, checkpoint: str, capsys
) -> None:
    """`agent.save` knows of no run, and says nothing of how many rows belong to it."""
    Path("plain3.py").write_text(REWARD.format(fails_at=0, failure="pass"))
    command = rloo_command(checkpoint, "plain3:letters")
    cli.main([*command, "--total_timesteps=60"])
    rows = rows_of("run")
    assert logged_by(folder / "run") == (folder / "run" / "progress.json").read_bytes()
    save_files(folder / "run", lambda fresh: copied(folder / "run", fresh))
    assert logged_by(folder / "run") is None
    cli.main([*command, "--total_timesteps=100", "--resume"])
    assert rows_of("run")[: len(rows)] == rows


def test_a_finished_run_does_not_go_on_behind_damaged_metrics(
    folder: Path, checkpoint: str, capsys
) -> None:
    Path("plain4.py").write_text(REWARD.format(fails_at=0, failure="pass"))
    command = rloo_command(checkpoint, "plain4:letters")
    cli.main([*command, "--total_timesteps=60"])
    file = folder / "run" / "progress.json"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"rollout", b"rollaut", 1))
    with pytest.raises(SystemExit):
        cli.main([*command, "--total_timesteps=100", "--resume"])
    assert "progress.json is damaged" in capsys.readouterr().err
    file.unlink()
    cli.main([*command, "--total_timesteps=100", "--resume"])
    assert rows_of("run")[0]["time/iteration"] > 1


def test_the_best_save_is_kept(folder: Path, checkpoint: str, capsys) -> None:
    """A reward that falls from iteration to iteration: the best save is the first."""
    Path("falling.py").write_text(
        "n = 0\ndef reward(prompts, completions):\n    global n\n    n += 1\n"
        "    return [(5.0, 3.0, 9.0, 1.0)[min(n, 4) - 1]] * len(completions)\n"
    )
    command = rloo_command(checkpoint, "falling:reward", "--keep_saves=1", "--save_every=2")
    cli.main([*command, "--total_timesteps=190", "--keep_best=rollout/score"])
    rows = rows_of("run")
    # the saves are after iterations 2 (mean 4), 4 (mean 5), 6 (mean 1) and so on
    assert [row["rollout/score"] for row in rows[:5]] == [5, 3, 9, 1, 1]
    assert json.loads((folder / "run" / "best" / "value.json").read_text()) == {"rollout/score": 5}
    assert len((folder / "run" / "best" / "logged.jsonl").read_text().splitlines()) == 4
    load_causal_lm(folder / "run" / "best")
    assert not (folder / "run" / "checkpoints").exists()
    cli.main([*command, "--total_timesteps=250", "--keep_best=rollout/score", "--resume"])
    assert len((folder / "run" / "best" / "logged.jsonl").read_text().splitlines()) == 4
    (folder / "run" / "best" / "value.json").write_text("{")
    cli.main([*command, "--total_timesteps=300", "--keep_best=rollout/score", "--resume"])
    with pytest.raises(SystemExit):
        cli.main([*command, "--total_timesteps=99", "--keep_best=score", "--overwrite"])
    assert "'score', which is not logged; logged are " in capsys.readouterr().err


def copied(source: Path, fresh: Path) -> None:
    """Copy what `agent.save` writes."""
    for name in json.loads((source / "checksums.json").read_text()):
        if name != "run.json":
            (fresh / name).parent.mkdir(exist_ok=True)
            shutil.copy(source / name, fresh / name)


def test_a_run_whose_reward_failed_goes_on_with_more_patience(
    folder: Path, checkpoint: str, capsys
) -> None:
    Path("flaky.py").write_text(REWARD.format(fails_at=3, failure="raise ValueError('once')"))
    command = rloo_command(checkpoint, "flaky:letters", "--total_timesteps=90")
    with pytest.raises(SystemExit):
        cli.main(command)
    assert "ValueError: once" in capsys.readouterr().err
    cli.main([*command, "--resume", "--reward_retries=2", "--reward_timeout=60"])
    assert (folder / "run" / "model.safetensors").exists()
