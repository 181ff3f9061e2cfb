"""What an agent would get wrong in silence is refused; SB3's helpers take our agents."""

import hashlib
import json
import re
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from test_critic_free import AGENTS, make, make_venv

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.agents import PPO, BestOfN, BestOfNConfig, PPOConfig, text_agent
from textrl.agents.critic import make_critic
from textrl.envs import PolicyKL, VectorCandidateActions, tiny_model, tiny_tokenizer
from textrl.envs.sb3 import TextVecEnv
from textrl.errors import UserError

NAMES = ["ppo", "best_of_n", *AGENTS]


def agent_of(name: str, policy, venv):
    if name == "ppo":
        return PPO(policy, venv, PPOConfig(episodes_per_iteration=32))
    if name == "best_of_n":
        return BestOfN(policy, venv, BestOfNConfig(n=2))
    return make(name, policy, venv)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_that_are_no_live_model_or_vector_environment(name: str) -> None:
    with pytest.raises(UserError, match=r'gym.make_vec\("TextRLHF-v0", num_envs=64'):
        agent_of(name, tiny_model(), gym.make("TextRLHF-v0"))
    with pytest.raises(UserError, match=r"policy is 'runs/sft'.*load_causal_lm\('runs/sft'"):
        agent_of(name, "runs/sft", make_venv())


@pytest.mark.parametrize("name", ["ppo", "reinforce"])
def test_a_half_of_the_kl_that_is_paid_already_is_refused(name: str) -> None:
    def paid() -> gym.Env:
        env = PolicyKL(gym.make("TextRLHF-v0", max_completion_tokens=4), lambda obs, action: -1.0)
        return gym.wrappers.RecordEpisodeStatistics(env)

    with pytest.raises(UserError, match="PolicyKL pays the agent's half"):
        agent_of(name, tiny_model(), gym.vector.SyncVectorEnv([paid, paid]))


@pytest.mark.parametrize("name", NAMES)
def test_candidates_are_for_agents_of_others(name: str) -> None:
    with pytest.raises(UserError, match="read and choose tokens and pay their half of the KL"):
        agent_of(name, tiny_model(), VectorCandidateActions(make_venv(), k=4))


def test_who_resets_an_environment_decides_what_its_tokens_earn() -> None:
    """A candidate wrapper and an agent of ours on one environment, each in its turn."""
    venv = make_venv()
    wrapped = VectorCandidateActions(venv, k=4, shaping="none")
    agent = agent_of("ppo", tiny_model(), venv)
    for _ in range(2):
        wrapped.reset(seed=0)
        _, rewards, over, _, _ = wrapped.step(np.zeros(venv.num_envs, dtype=np.int64))
        assert venv.unwrapped.shaping == "none"
        assert (rewards[~over] == 0).all()
        rollout = agent.collect()
        assert venv.unwrapped.shaping == "exact"
        paid = rollout.rewards - agent.env.kl_coef * rollout.ref_logprobs
        assert torch.allclose(paid.sum(1), rollout.scores, atol=1e-5)


@pytest.mark.parametrize("name", ["ppo", *AGENTS])
def test_several_processes_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = text_agent.make_accelerator

    class Two:
        num_processes = 2

    monkeypatch.setattr(text_agent, "make_accelerator", lambda device: Two())
    with pytest.raises(UserError, match="trains in one process, got 2"):
        agent_of(name, tiny_model(), make_venv())
    assert real(torch.device("cpu")).num_processes == 1


@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_sb3_evaluates_our_agents(name: str, vectorised: bool) -> None:
    agent = agent_of(name, tiny_model(), make_venv())
    settings = dict(max_completion_tokens=6, kl_coef=0.0)
    env = Monitor(gym.make("TextRLHF-v0", **settings))
    if vectorised:
        rows = gym.make_vec("TextRLHF-v0", num_envs=4, autoreset_mode="SameStep", **settings)
        env = TextVecEnv(rows)
    returns, lengths = evaluate_policy(agent, env, 8, return_episode_rewards=True)
    assert len(returns) == 8
    assert all(1 <= length <= 6 for length in lengths)
    observation, _ = gym.make("TextRLHF-v0", **settings).reset(seed=0)
    action, state = agent.predict(observation, None, None, True)
    assert (np.ndim(action), state) == (0, None)


@pytest.mark.parametrize("make_one", [gym.make, gym.make_vec])
def test_a_misspelt_argument_of_the_environment_is_met_with_the_nearest(make_one) -> None:
    with pytest.raises(UserError, match=r"no argument 'kl_coeff' \(did you mean 'kl_coef'\?\)"):
        make_one("TextRLHF-v0", kl_coeff=0.1)
    with pytest.raises(UserError, match=r"did you mean 'max_completion_tokens'"):
        make_one("TextRLHF-v0", max_completion_token=8)


def test_human_rendering_prints_the_text_as_it_grows(capsys: pytest.CaptureFixture[str]) -> None:
    env = gym.make("TextRLHF-v0", render_mode="human")
    _, info = env.reset(seed=0)
    letters = tiny_tokenizer()("ab").input_ids[1:]
    env.step(letters[0])
    assert capsys.readouterr().out == f"\n{info['prompt']}|a"
    env.step(letters[1])
    env.step(2)
    assert capsys.readouterr().out.startswith("b  [score ")


def test_the_seed_reaches_an_mlp_head() -> None:
    heads = [
        PPO(
            tiny_model(),
            make_venv(),
            PPOConfig(episodes_per_iteration=32, critic_head="mlp", seed=seed),
        )
        .critic[0]
        .weight
        for seed in (0, 1, 1)
    ]
    assert torch.equal(heads[1], heads[2])
    assert not torch.equal(heads[0], heads[1])
    default = make_critic("value_head", "mlp", tiny_model(), tiny_tokenizer(), None)
    assert torch.equal(default[0].weight, heads[0])


def test_micro_batches_of_demonstrations_never_change_the_result() -> None:
    texts = [{"text": "abcdefghij"[: 2 + i]} for i in range(8)]
    found, passes = [], []
    for tokens in (8, 100_000):
        config = PPOConfig(
            episodes_per_iteration=32, minibatch_size=8, ptx_coef=2.0, micro_batch_tokens=tokens
        )
        agent = PPO(tiny_model(), make_venv(), config, demonstrations=texts)
        agent.policy.zero_grad()
        losses = list(agent._ptx_losses(8)(tokens))
        sum(losses).backward()
        passes.append(len(losses))
        found.append(torch.cat([p.grad.flatten() for p in agent.policy.parameters()]))
    assert passes[0] > passes[1] == 1
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert found[0].abs().max() > 1e-2


def test_best_of_n_plans_every_episode_anew() -> None:
    """A row that meets the same prompt again would act as before, deterministic or not."""
    venv = gym.make_vec("TextRLHF-v0", num_envs=8, prompts=["ab"], max_completion_tokens=4)
    agent = BestOfN(tiny_model(), venv, BestOfNConfig(n=1))
    observation, _ = venv.reset(seed=0)
    first, again = agent.predict(observation)[0], agent.predict(observation)[0]
    assert (first != again).any()
    same = agent.predict(observation, deterministic=True)[0]
    assert len(set(same.tolist())) == 1
    after, *_ = venv.step(same)
    agent.predict(after)
    assert len({tuple(plan) for plan in agent._plans.values()}) > 1  # no longer the one plan


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_of_another_class(name: str) -> None:
    for config in ({"learning_rate": 1e-3}, object()):
        with pytest.raises(UserError, match="takes .*Config, got (dict|object)"):
            type(agent_of(name, tiny_model(), make_venv()))(tiny_model(), make_venv(), config)


@pytest.mark.parametrize("tokens", [-5, float("nan"), "100", None, float("inf")])
def test_tokens_to_train_for(tokens: object) -> None:
    with pytest.raises(UserError, match="total_timesteps is .*; expected a number of tokens"):
        make("reinforce", tiny_model(), make_venv()).learn(tokens)


def test_demonstrations_that_no_loss_would_use() -> None:
    with pytest.raises(UserError, match="demonstrations are given but ptx_coef is 0"):
        PPO(
            tiny_model(),
            make_venv(),
            PPOConfig(episodes_per_iteration=32),
            demonstrations=[{"text": "abc"}],
        )


def test_a_damaged_folder_of_an_agent(tmp_path) -> None:
    """Every file of a save: cut off, empty, one bit turned, or gone."""
    agent_of("ppo", tiny_model(), make_venv()).save(tmp_path / "whole")
    files = [p for p in (tmp_path / "whole").rglob("*") if p.is_file()]
    assert len(files) >= 8
    for number, file in enumerate(files):
        content = file.read_bytes()
        turned = content[:-1] + bytes([content[-1] ^ 1])
        damages = (content[: len(content) // 2], b"", turned, None)
        for kind, damage in enumerate(damages):
            folder = tmp_path / f"{number}_{kind}"
            shutil.copytree(tmp_path / "whole", folder)
            place = folder / file.relative_to(tmp_path / "whole")
            place.unlink() if damage is None else place.write_bytes(damage)
            with pytest.raises(UserError, match=re.escape(file.name)) as caught:
                PPO.load(folder, make_venv())
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("agent.json", "", "agent.json is damaged"),
        ("agent.json", "[]", "agent.json is damaged"),
        ("agent.json", '{"agent": "ppo"}', "agent.json is damaged"),
        ("agent.json", '{"agent": "ppo", "config": {"seeed": 1}}', "no option 'seeed'.*'seed'"),
        ("critic.safetensors", "x", "critic.safetensors cannot be read"),
        ("model.safetensors", "x", "no language model at"),
    ],
)
def test_a_save_of_another_version(tmp_path, file: str, content: str, message: str) -> None:
    """Files that are whole, but say what this version cannot read."""
    agent_of("ppo", tiny_model(), make_venv()).save(tmp_path)
    (tmp_path / file).write_text(content)
    sums = json.loads((tmp_path / "checksums.json").read_text())
    sums[file] = hashlib.sha256(content.encode()).hexdigest()
    (tmp_path / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(UserError, match=message):
        PPO.load(tmp_path, make_venv())


@pytest.mark.parametrize("name", ["ppo", "best_of_n"])
def test_an_agent_is_saved_to_the_home_folder(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    agent = agent_of(name, tiny_model(), make_venv())
    agent.save("~/agent")
    assert (tmp_path / "agent" / "agent.json").exists()
    assert not (tmp_path / "~").exists()
    type(agent).load("~/agent", make_venv())
