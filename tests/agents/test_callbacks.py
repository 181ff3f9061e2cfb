"""Callbacks of SB3 and of ours on our agents."""

import json
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.logger import configure
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from textrl.agents import (
    GRPO,
    PPO,
    RLOO,
    BestOfN,
    GRPOConfig,
    HeldoutEvaluation,
    OnlineDPO,
    OnlineDPOConfig,
    PPOConfig,
    Reinforce,
    ReinforceConfig,
    RLOOConfig,
)
from textrl.cli import main
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.envs.sb3 import TextVecEnv
from textrl.errors import UserError
from textrl.metrics import open_logger, read_progress
from textrl.seams import token_texts

AGENTS = {
    "ppo": (PPO, PPOConfig, {}),
    "rloo": (RLOO, RLOOConfig, {}),
    "grpo": (GRPO, GRPOConfig, {}),
    "reinforce": (Reinforce, ReinforceConfig, {}),
    "online_dpo": (OnlineDPO, OnlineDPOConfig, {"minibatch_size": 2}),
}


def make_venv(rows: int = 8, **settings: Any) -> Any:
    return gym.make_vec("TextRLHF-v0", num_envs=rows, max_completion_tokens=6, **settings)


def make_agent(name: str = "ppo", **changes: Any) -> Any:
    kind, config, options = AGENTS[name]
    settings = dict(episodes_per_iteration=16, minibatch_size=8, learning_rate=3e-3) | options
    known = config.__dataclass_fields__
    settings = {name: value for name, value in (settings | changes).items() if name in known}
    return kind(tiny_model(seed=3), make_venv(group_size=4), config(**settings))


class Seen(BaseCallback):
    """Notes what it is told."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.events: list[str] = []
        self.steps: list[int] = []
        self.dones = 0
        self.returns: list[float] = []
        self.stop_after = stop_after

    def _on_training_start(self) -> None:
        self.events.append("start")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout")

    def _on_step(self) -> bool:
        self.steps.append(self.num_timesteps)
        self.dones += int(np.sum(self.locals["dones"]))
        for info in self.locals["infos"]:
            self.returns += [info["episode"]["r"]] if "episode" in info else []
        return self.stop_after is None or self.n_calls < self.stop_after

    def _on_rollout_end(self) -> None:
        self.events.append("collected")

    def _on_training_end(self) -> None:
        self.events.append("end")


@pytest.mark.parametrize("name", AGENTS)
def test_a_callback_is_told_of_every_step_and_changes_nothing(name: str) -> None:
    plain, told = make_agent(name), make_agent(name)
    plain.learn(120)
    seen = Seen()
    told.learn(120, seen)
    iterations = told.iteration
    assert seen.events == ["start", *["rollout", "collected"] * iterations, "end"]
    assert seen.steps == sorted(seen.steps)
    assert seen.steps[-1] == told.env_steps == told.num_timesteps
    assert seen.dones == 16 * iterations
    assert len(seen.returns) == 16 * iterations
    assert 2 * iterations <= seen.n_calls <= 12 * iterations  # at most 6 a batch, 2 batches
    for one, other in zip(plain.policy.parameters(), told.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_returns_are_those_of_the_environment() -> None:
    agent, seen = make_agent(), Seen()
    episodes = []
    agent.learn(1, [seen, Keep(episodes)])
    expected = sorted(float(x) for part in episodes for x in part.rewards.double().sum(1))
    assert sorted(seen.returns) == pytest.approx(expected, abs=1e-5)


class Keep(BaseCallback):
    def __init__(self, episodes: list) -> None:
        super().__init__()
        self.episodes = episodes

    def _on_step(self) -> bool:
        if not any(self.locals["rollout"] is one for one in self.episodes):
            self.episodes.append(self.locals["rollout"])
        return True


def test_a_callback_that_says_no_ends_the_training_before_the_update() -> None:
    agent, twin = make_agent(), make_agent()
    agent.learn(10_000, Seen(stop_after=40))
    finished = agent.iteration
    assert 0 < finished < 20
    while twin.iteration < finished:
        twin.iterate()
    assert twin.env_steps == agent.env_steps == agent.num_timesteps
    agent.iterate(), twin.iterate()  # the prompts and random numbers too are those of before
    for one, other in zip(agent.policy.parameters(), twin.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_functions_and_lists_are_callbacks_and_other_things_are_refused() -> None:
    calls = []

    def note(known: dict, _: dict) -> bool:
        calls.append(known["self"].num_timesteps)
        return len(calls) < 3

    agent = make_agent()
    agent.learn(10_000, note)
    assert len(calls) == 3
    assert agent.iteration == 0
    first, second = Seen(), Seen()
    make_agent().learn(1, [first, CallbackList([second])])
    assert first.steps == second.steps != []
    for wrong in (True, 3, "EvalCallback", [3], [note]):
        with pytest.raises(UserError, match=r"callback is .*; expected a callback of Stable"):
            make_agent().learn(1, wrong)
    with pytest.raises(UserError, match="best of n trains nothing"):
        BestOfN(tiny_model(), make_venv()).learn(1, first)


@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type")
@pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped")
@pytest.mark.parametrize("kind", ["vec env", "single"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_evaluation_by_sb3(tmp_path: Path, kind: str, deterministic: bool) -> None:
    """It comes as often as with SB3's agents, keeps the best agent, and changes nothing."""
    eval_env: Any = gym.make("TextRLHF-v0", max_completion_tokens=6)
    if kind == "vec env":
        eval_env = TextVecEnv(make_venv(4, autoreset_mode="SameStep"))
    agent, plain = make_agent(), make_agent()
    evaluation = EvalCallback(
        eval_env,
        n_eval_episodes=4,
        eval_freq=20,
        best_model_save_path=str(tmp_path / "best"),
        log_path=str(tmp_path / "log"),
        deterministic=deterministic,
        verbose=0,
    )
    with open_logger(tmp_path / "run") as agent.logger:
        agent.learn(500, evaluation)
    plain.learn(500)
    with np.load(tmp_path / "log/evaluations.npz") as file:
        found = dict(file)
    assert len(found["timesteps"]) == evaluation.n_calls // 20 > 1
    assert evaluation.best_mean_reward == pytest.approx(found["results"].mean(1).max())
    best = PPO.load(tmp_path / "best/best_model", make_venv(group_size=4))
    assert best.config == agent.config
    rows = read_progress(tmp_path / "run")
    assert sum("eval/mean_reward" in row for row in rows) == len(found["timesteps"])
    assert [row["rollout/score"] for row in rows if "rollout/score" in row] != []
    for one, other in zip(plain.policy.parameters(), agent.policy.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type")
@pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped")
@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_other_callbacks_of_sb3(tmp_path: Path) -> None:
    agent = make_agent()
    saves = CheckpointCallback(save_freq=20, save_path=str(tmp_path / "saves"))
    calls = Seen()
    agent.set_logger(configure(str(tmp_path / "logs"), ["csv"]))
    agent.learn(400, [saves, EveryNTimesteps(100, calls)])
    agent.logger.close()
    folders = sorted((tmp_path / "saves").iterdir())
    assert len(folders) == saves.n_calls // 20 > 0
    assert PPO.load(folders[0], make_venv(group_size=4)).config == agent.config
    assert 3 <= calls.n_calls <= 5
    agent = make_agent()
    agent.learn(10_000, StopTrainingOnMaxEpisodes(max_episodes=5))  # times 8 rows
    assert agent.iteration == 2  # 16 episodes each; the third iteration is stopped
    threshold = StopTrainingOnRewardThreshold(reward_threshold=-1e9)
    evaluation = EvalCallback(
        gym.make("TextRLHF-v0"), callback_on_new_best=threshold, eval_freq=7, verbose=0
    )
    agent = make_agent()
    agent.learn(10_000, evaluation)
    assert evaluation.n_calls == 7
    pytest.importorskip("rich")
    bar = ProgressBarCallback()
    make_agent().learn(50, bar)
    assert bar.n_calls > 0


def score(prompts: list[str], completions: list[str]) -> list[float]:
    return [text.count("a") - text.count("b") for text in completions]


def length(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


def heldout(rows: int = 16, **settings: Any) -> Any:
    task = dict(reference=tiny_model(), tokenizer=tiny_tokenizer(), prompts=["ab", "cde", "f|"])
    return make_venv(rows, reward=[score, (length, 0.0)], **task | settings)


def test_held_out_evaluation(tmp_path: Path) -> None:
    agent, plain = make_agent(), make_agent()
    measured = HeldoutEvaluation(
        heldout(),
        every=2,
        keep_best="heldout/score",
        best_folder=tmp_path / "best",
        samples_file=tmp_path / "run/samples.jsonl",
        num_samples=3,
    )
    with open_logger(tmp_path / "run") as agent.logger:
        agent.learn(300, measured)
        final = measured.measure()
    plain.learn(300)
    for one, other in zip(plain.policy.parameters(), agent.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    rows = [row for row in read_progress(tmp_path / "run") if "heldout/score" in row]
    iterations = [*range(0, agent.iteration, 2), agent.iteration]
    assert len(rows) == len(iterations)
    assert rows[-1]["heldout/score"] == final["heldout/score"]
    assert rows[-1]["heldout/scores/length"] == final["heldout/scores/length"] > 0
    assert rows[-1]["time/step"] == agent.env_steps
    names = {"score", "score_std", "kl", "kl_error", "length", "entropy", "eos_share", "objective"}
    assert {f"heldout/{name}" for name in names} <= set(rows[0])
    best = PPO.load(tmp_path / "best", make_venv(group_size=4))
    highest = max(range(len(rows)), key=lambda i: rows[i]["heldout/score"])
    assert best.iteration == iterations[highest]
    samples = [*map(json.loads, (tmp_path / "run/samples.jsonl").read_text().splitlines())]
    assert len(samples) == 3 * len(rows)
    assert [row["iteration"] for row in samples[::3]] == iterations
    assert {"prompt", "completion", "score", "scores", "kl", "tokens"} <= set(samples[0])
    for row in samples:
        assert row["score"] == score([""], [row["completion"]])[0]
        assert row["scores"] == {"score": row["score"], "length": len(row["completion"])}


def test_the_tokens_of_a_sample_add_up(tmp_path: Path) -> None:
    agent = make_agent(gae_lambda=1.0, critic="separate")
    file = tmp_path / "samples.jsonl"
    agent.learn(300, HeldoutEvaluation(heldout(), every=1, samples_file=file))
    samples = [*map(json.loads, file.read_text().splitlines())]
    kl_coef, values = agent.env.kl_coef, []
    for row in samples:
        tokens = row["by_token"]
        text = "".join(token["text"] for token in tokens)
        assert re.sub("<pad>|<bos>|<eos>", "", text) == row["completion"]
        kl, rewards = ([token[name] for token in tokens] for name in ("kl", "reward"))
        assert sum(kl) == pytest.approx(row["kl"], abs=1e-3)
        assert sum(rewards) == pytest.approx(row["score"] - kl_coef * row["kl"], abs=1e-3)
        for place, token in enumerate(tokens):  # with lambda 1 it is what comes, less the value
            comes = sum(rewards[place:])
            assert token["advantage"] == pytest.approx(comes - token["value"], abs=1e-3)
        values += [token["value"] for token in tokens if row["iteration"] > 1]
    assert max(map(abs, values)) > 0.01  # those of the critic that was trained


def test_token_texts_are_the_text() -> None:
    bytes_of = byte_tokenizer()
    ids = bytes_of("a b\u00e9\u4e2d c").input_ids
    texts = token_texts(bytes_of, ids)
    assert len(texts) == len(ids) > 6  # more tokens than letters: a letter of several bytes
    assert "".join(texts) == bytes_of.decode(ids)
    assert token_texts(bytes_of, ids, 2) == texts[2:]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def test_a_best_agent_goes_on_as_the_run_did(tmp_path: Path) -> None:
    agent = make_agent()
    measured = HeldoutEvaluation(
        heldout(), every=1, keep_best="heldout/length", best_folder=tmp_path / "best"
    )
    agent.learn(200, measured)
    best = PPO.load(tmp_path / "best", make_venv(group_size=4))
    plain = make_agent()
    while plain.iteration < best.iteration + 2:
        plain.iterate()
    best.iterate(), best.iterate()
    for one, other in zip(plain.policy.parameters(), best.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_best_agent_is_the_one_of_the_largest_number(tmp_path: Path) -> None:
    scripted = iter([1.0, 3.0, 2.0, 3.0, *[0.0] * 100])

    class Scripted(HeldoutEvaluation):
        def _report(self, episodes: Any) -> dict[str, float]:
            return {"heldout/score": next(scripted), "heldout/kl": 0.0}

    measured = Scripted(heldout(), every=1, keep_best="heldout/score", best_folder=tmp_path)
    agent = make_agent()
    agent.learn(400, measured)
    assert agent.iteration >= 3
    assert PPO.load(tmp_path, make_venv(group_size=4)).iteration == 1


def test_the_untrained_policy_that_is_the_reference_has_no_kl() -> None:
    config = PPOConfig(episodes_per_iteration=8, minibatch_size=8)
    agent = PPO(tiny_model(), make_venv(), config)
    measured = HeldoutEvaluation(heldout())
    measured.init_callback(agent)
    assert measured.measure()["heldout/kl"] == pytest.approx(0.0, abs=1e-5)
    assert measured.measure() == measured.measure()


def test_a_kl_that_is_too_large_ends_the_training() -> None:
    agent = make_agent(learning_rate=3e-2)
    agent.learn(50_000, HeldoutEvaluation(heldout(), every=1, stop_at_kl=1.0))
    assert 0 < agent.iteration < 60
    measured = HeldoutEvaluation(heldout())
    measured.init_callback(agent)
    assert measured.measure()["heldout/kl"] > 1.0


def test_what_is_wrong_with_a_held_out_evaluation() -> None:
    with pytest.raises(UserError, match="every is 0"):
        HeldoutEvaluation(heldout(), every=0)
    with pytest.raises(UserError, match="belong together"):
        HeldoutEvaluation(heldout(), keep_best="heldout/score")
    with pytest.raises(UserError, match="stop_at_kl is -1"):
        HeldoutEvaluation(heldout(), stop_at_kl=-1)
    with pytest.raises(UserError, match="EveryNTimesteps tells its callback of no iterations"):
        make_agent().learn(10, EveryNTimesteps(5, HeldoutEvaluation(heldout())))
    wrong = HeldoutEvaluation(heldout(), keep_best="score", best_folder="best")
    with pytest.raises(UserError, match="keep_best is 'score', which is not measured; measured ar"):
        make_agent().learn(10, wrong)


def test_held_out_prompts_on_the_command_line(tmp_path: Path, monkeypatch, capsys) -> None:
    """A run that is stopped and goes on has the rows and samples of one that was not."""
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    for name, texts in (("train", ["ab", "cd"]), ("kept", ["e", "fg", "b"])):
        Path(f"{name}.jsonl").write_text("".join(f'{{"prompt": "{text}"}}\n' for text in texts))
    arguments = ["rloo", "--model=model", "--prompts=train.jsonl", "--reward=test_callbacks:score"]
    arguments += ["--num_envs=8", "--group_size=4", "--episodes_per_iteration=8"]
    arguments += ["--minibatch_size=8", "--max_completion_tokens=6", "--heldout=kept.jsonl"]
    arguments += ["--eval_every=2", "--eval_episodes=8", "--keep_best=heldout/score"]
    whole = [*arguments, "--total_timesteps=200", "--save_every=1"]
    main([*whole, "--output_dir=whole"])
    main([*arguments, "--total_timesteps=90", "--save_every=1", "--output_dir=parts"])
    main([*whole, "--output_dir=parts", "--resume"])
    capsys.readouterr()
    rows = [[r for r in read_progress(Path(n)) if "heldout/kl" in r] for n in ("whole", "parts")]
    assert len(rows[0]) > 3
    # the shorter run has measured at its end too, which the longer one need not do there
    by_step = [{r["time/step"]: r["heldout/score"] for r in part} for part in rows]
    assert by_step[0].items() <= by_step[1].items()
    assert Path("whole/best/agent.json").exists()
    assert Path("whole/samples.jsonl").read_text() != ""
    settings = Path("whole/config.yaml").read_text()
    assert "heldout: kept.jsonl" in settings
    assert "eval_every: 2" in settings
    for wrong, message in (
        (["--heldout=no.jsonl"], "no.jsonl"),
        (["--keep_best=heldout/scor"], "heldout/scor"),
        (["--stop_at_kl=-1"], "stop_at_kl is -1"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([*whole, *wrong, "--output_dir=wrong", "--overwrite"])
        assert message in capsys.readouterr().err
    without = [argument for argument in whole if "heldout" not in argument]
    with pytest.raises(SystemExit, match="2"):
        main([*without, "--output_dir=other"])
    assert "eval_every is 2; expected nothing without heldout" in capsys.readouterr().err
