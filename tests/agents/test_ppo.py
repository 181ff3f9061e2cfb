import copy
import dataclasses
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from transformers import AutoModelForCausalLM, AutoTokenizer

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.agents import PPO, PPOConfig
from textrl.agents.collect import collect
from textrl.agents.critic import make_critic, values_at
from textrl.agents.ppo import adapted_kl_coef
from textrl.agents.rollout import concatenate
from textrl.agents.saving import OtherEnvironment
from textrl.agents.text_env import TextEnv
from textrl.envs import tiny_model, tiny_score, tiny_tokenizer
from textrl.errors import UserError
from textrl.generation import ModelSampler
from textrl.models import split_lm
from textrl.trainers import reward_model_from


def make_venv(rows: int = 16, **kwargs):
    settings = dict(max_completion_tokens=6, kl_coef=0.1, autoreset_mode="Disabled") | kwargs
    return gym.make_vec("TextRLHF-v0", num_envs=rows, **settings)


def config(**kwargs) -> PPOConfig:
    settings = dict(episodes_per_iteration=32, minibatch_size=16, learning_rate=1e-3) | kwargs
    return PPOConfig(**settings)


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture
def reward_folder(checkpoint: str, tmp_path) -> str:
    model = reward_model_from(checkpoint)
    model.config.score_mean, model.config.score_std = 0.1, 0.5
    model.save_pretrained(tmp_path / "rm")
    tiny_tokenizer().save_pretrained(tmp_path / "rm")
    return str(tmp_path / "rm")


@pytest.mark.parametrize("kl_loss", ["sampled", "exact"])
@pytest.mark.parametrize("critic", ["value_head", "separate", "reward_model"])
def test_first_minibatch_identities(critic: str, kl_loss: str, reward_folder: str) -> None:
    """Before the first update the policy is the sampler and the reference: ratio 1, KL 0."""
    venv = make_venv(reward=reward_folder, temperature=0.7)
    agent = PPO(
        tiny_model(), venv, config(critic=critic, kl_loss=kl_loss, num_epochs=1, minibatch_size=32)
    )
    numbers = agent.iterate()
    assert numbers["train/first_ratio_error"] < 1e-5
    assert abs(numbers["train/first_approx_kl"]) < 1e-5
    assert numbers["train/clip_fraction"] == 0.0
    assert abs(numbers["rollout/kl"]) < 1e-5
    assert numbers["train/explained_variance"] == 0.0  # a zero head knows nothing
    agent.iterate()
    assert weights(agent.critic).abs().sum() > 0


def test_logprobs_that_the_update_disputes_are_computed_anew(monkeypatch) -> None:
    agent = PPO(tiny_model(), make_venv(), config(num_epochs=1, minibatch_size=32))
    rollout = agent.collect()
    assert agent._with_agreeing_logprobs(rollout) is rollout
    shifted = dataclasses.replace(rollout, logprobs=rollout.logprobs + 1e-4 * rollout.mask)
    monkeypatch.setattr(agent, "collect", lambda show: shifted)
    assert agent.iterate()["train/first_ratio_error"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_bfloat16_learns_what_float32_learns(precision: str, learning) -> None:
    settings = dict(precision=precision, learning_rate=1e-2, minibatch_size=32)

    def says_m(prompts: list[str], completions: list[str]) -> list[float]:
        return [float("m" in completion) for completion in completions]

    def gain(seed: int) -> float:
        venv = make_venv(32, kl_coef=0.01, max_completion_tokens=3, reward=says_m)
        agent = PPO(tiny_model(), venv, config(**settings, episodes_per_iteration=64, seed=seed))
        numbers = [agent.iterate() for _ in range(12)]
        assert numbers[0]["train/first_ratio_error"] < 1e-5
        assert abs(numbers[0]["rollout/kl"]) < 1e-2  # the reference runs in the same precision
        assert all(p.dtype == torch.float32 for p in agent.policy.parameters())
        scores = [row["rollout/score"] for row in numbers]
        return float(np.mean(scores[-2:]) - np.mean(scores[:2]))

    learning(gain, above=0.2)


@pytest.mark.parametrize("kl_loss", ["sampled", "exact"])
@pytest.mark.parametrize("critic", ["value_head", "separate"])
def test_bfloat16_keeps_the_identities(critic: str, kl_loss: str) -> None:
    settings = dict(critic=critic, kl_loss=kl_loss, precision="bfloat16", num_epochs=1)
    numbers = PPO(tiny_model(), make_venv(), config(**settings, minibatch_size=32)).iterate()
    assert numbers["train/first_ratio_error"] < 1e-5
    assert numbers["train/clip_fraction"] == 0.0
    assert abs(numbers["rollout/kl"]) < 1e-2


def test_auto_acts_in_the_precision_that_it_picks(monkeypatch) -> None:
    monkeypatch.setattr("textrl.precision.LEAST_PARAMETERS", 1)
    found = {}
    for units in (True, False):
        monkeypatch.setattr(
            "textrl.precision.has_bfloat16_units", lambda device, units=units: units
        )
        for asked in ("auto", "bfloat16" if units else "float32"):
            policy = tiny_model()
            PPO(policy, make_venv(), config(precision=asked)).iterate()
            found[units, asked] = weights(policy)
    assert torch.equal(found[True, "auto"], found[True, "bfloat16"])
    assert torch.equal(found[False, "auto"], found[False, "float32"])
    assert not torch.equal(found[True, "auto"], found[False, "auto"])


def test_dropout_is_off(model) -> None:
    model.config.attention_dropout = 0.5
    model.train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    numbers = PPO(model, make_venv(), config()).iterate()
    assert numbers["train/first_ratio_error"] < 1e-5


@pytest.mark.parametrize("critic", ["value_head", "separate"])
def test_micro_batches_never_change_the_result(critic: str) -> None:
    found = []
    for tokens in (8, 40, 100_000):
        policy = tiny_model()
        PPO(policy, make_venv(), config(critic=critic, micro_batch_tokens=tokens)).iterate()
        found.append(weights(policy))
    assert torch.allclose(found[0], found[2], atol=2e-5)
    assert torch.allclose(found[1], found[2], atol=2e-5)
    assert not torch.allclose(found[2], weights(tiny_model()), atol=2e-4)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("on_length", ["score", "truncate"])
def test_step_and_step_sequence_give_equal_episodes(mode: AutoresetMode, on_length: str) -> None:
    settings = dict(on_length=on_length, missing_eos_penalty=0.3)
    whole = make_venv(8, **settings)
    if mode is AutoresetMode.SAME_STEP:  # ours behind a wrapper; Gymnasium's own vector otherwise
        steps = gym.wrappers.vector.RecordEpisodeStatistics(
            make_venv(8, **settings, autoreset_mode=mode)
        )
    else:
        steps = gym.make_vec(
            "TextRLHF-v0",
            num_envs=8,
            vectorization_mode="sync",
            max_completion_tokens=6,
            kl_coef=0.1,
            vector_kwargs={"autoreset_mode": mode},
            **settings,
        )
    rollouts = []
    for venv in (whole, steps):
        venv.reset(seed=0)
        agent = PPO(tiny_model(seed=1), venv, config(episodes_per_iteration=8))
        rollouts.append(
            collect(
                agent.sampler,
                agent.env,
                torch.Generator().manual_seed(0),
                values_at=partial(values_at, agent.critic, agent.lm),
            )
        )
    one, other = rollouts
    assert torch.equal(one.completion_ids, other.completion_ids)
    assert torch.allclose(one.rewards, other.rewards, atol=1e-5)
    assert torch.allclose(one.ref_logprobs, other.ref_logprobs, atol=1e-5)
    assert torch.equal(one.scores.isnan(), other.scores.isnan())
    assert torch.equal(one.scores.nan_to_num(), other.scores.nan_to_num())
    assert one.scores.isnan().any() == (on_length == "truncate")


def test_plain_steps_train_the_same_policy() -> None:
    found = []
    for venv in (
        make_venv(8),
        gym.make_vec(
            "TextRLHF-v0",
            num_envs=8,
            vectorization_mode="sync",
            max_completion_tokens=6,
            kl_coef=0.1,
            vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
        ),
    ):
        policy = tiny_model()
        PPO(policy, venv, config(episodes_per_iteration=16)).learn(150)
        found.append(weights(policy))
    assert torch.allclose(found[0], found[1], atol=1e-4)


def test_bootstrap_values_of_truncated_rows_only() -> None:
    venv = make_venv(16, on_length="truncate")
    agent = PPO(tiny_model(), venv, config())
    torch.nn.init.constant_(agent.critic[-1].bias, 3.0)
    rollout = agent.collect()
    truncated = rollout.scores.isnan()
    assert truncated.any()
    assert not truncated.all()
    assert (rollout.bootstrap_values[truncated] - 3.0).abs().max() < 1e-6
    assert (rollout.bootstrap_values[~truncated] == 0).all()


def test_collected_values_are_those_before_each_token() -> None:
    agent = PPO(tiny_model(), make_venv(4), config(episodes_per_iteration=4))
    torch.nn.init.normal_(agent.critic[-1].weight)
    rollout = agent.collect()
    lm, critic = agent.lm, agent.critic
    for row in range(4):
        start = int(rollout.prompt_lengths[row])
        for t in range(int(rollout.mask[row].sum())):
            with torch.no_grad():
                state = lm.hidden(rollout.input_ids[row : row + 1, : start + t])[0, -1]
                expected = critic(state).item()
                assert rollout.values[row, t].item() == pytest.approx(expected, abs=1e-4)


def test_rewards_of_both_halves_sum_to_the_objective() -> None:
    """Sum of the shaped rewards = score - kl_coef * (log pi - log pi_ref), sampled."""
    venv = make_venv(16, kl_coef=0.3)
    agent = PPO(tiny_model(seed=4), venv, config(gae_lambda=1.0))
    rollout = agent.collect()
    targets, _ = agent._targets(rollout, 0.3, None)
    expected = rollout.scores - 0.3 * rollout.sequence_kl
    assert rollout.sequence_kl.abs().min() > 0
    assert torch.allclose(targets.returns[:, 0], expected, atol=1e-4)


def test_exact_kl_targets_carry_the_kl_of_later_states() -> None:
    venv = make_venv(16, kl_coef=0.3)
    agent = PPO(tiny_model(seed=4), venv, config(gae_lambda=1.0, kl_loss="exact"))
    rollout = agent.collect()
    states = agent._reference_states(rollout)
    state_kl = agent._state_kl(rollout, states)
    policy, reference = agent.policy, venv.reference
    ids = rollout.input_ids[:1, : int(rollout.prompt_lengths[0])]
    with torch.no_grad():
        p = policy(input_ids=ids).logits[0, -1].log_softmax(-1)
        q = reference(input_ids=ids).logits[0, -1].log_softmax(-1)
    assert state_kl[0, 0].item() == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-5)
    targets, _ = agent._targets(rollout, 0.3, states)
    expected = rollout.scores - 0.3 * state_kl[:, 1:].sum(1)
    assert torch.allclose(targets.returns[:, 0], expected, atol=1e-4)


def test_save_load_and_resume_bit_for_bit(tmp_path) -> None:
    def agent_in(venv) -> PPO:
        return PPO(tiny_model(), venv, config(critic="separate", kl_target=0.5))

    straight = agent_in(make_venv())
    for _ in range(4):
        straight.iterate()
    halfway = agent_in(make_venv())
    for _ in range(2):
        halfway.iterate()
    halfway.save(tmp_path / "run")
    resumed = PPO.load(tmp_path / "run", make_venv())
    for _ in range(2):
        resumed.iterate()
    assert torch.equal(weights(resumed.policy), weights(straight.policy))
    assert torch.equal(weights(resumed.critic), weights(straight.critic))
    assert resumed.env_steps == straight.env_steps
    assert resumed.env.kl_coef == straight.env.kl_coef != 0.1


def test_a_fixed_kl_coef_is_the_environments_own_after_loading(tmp_path) -> None:
    PPO(tiny_model(), make_venv(kl_coef=0.1), config()).save(tmp_path)
    venv = make_venv(kl_coef=0.7)
    with pytest.warns(OtherEnvironment, match=r"another kl_coef .*: 0\.7, not 0\.1"):
        PPO.load(tmp_path, venv)
    assert venv.kl_coef == 0.7


def test_output_is_a_plain_checkpoint_with_the_critic_beside_it(tmp_path) -> None:
    agent = PPO(tiny_model(), make_venv(), config())
    agent.iterate()
    agent.save(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(weights(loaded), weights(agent.policy))
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == "<eos>"
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model.safetensors", "critic.safetensors", "generation_config.json"} <= names
    assert not any(name.endswith(".bin") for name in names)


def test_predict() -> None:
    venv = make_venv(4)
    agent = PPO(tiny_model(), venv, config(episodes_per_iteration=4))
    observations, _ = venv.reset(seed=0)
    greedy, _ = agent.predict(observations, deterministic=True)
    assert greedy.shape == (4,)
    single = {name: array[1] for name, array in observations.items()}
    assert agent.predict(single, deterministic=True)[0] == greedy[1]
    seen = {int(agent.predict(single)[0]) for _ in range(30)}
    assert len(seen) > 5
    assert all(venv.single_action_space.contains(np.int64(token)) for token in seen)


def test_two_runs_with_one_seed_are_equal_and_seeds_differ() -> None:
    def final(seed: int) -> torch.Tensor:
        policy = tiny_model()
        PPO(policy, make_venv(), config(seed=seed)).iterate()
        return weights(policy)

    assert torch.equal(final(0), final(0))
    assert not torch.equal(final(0), final(1))


def test_adaptive_kl_by_hand() -> None:
    steered = config(kl_target=6.0, kl_horizon=1000)
    # error clipped at .2, 100 of 1000 episodes: times 1.02; half the target: times 0.98
    assert adapted_kl_coef(0.1, 60.0, 100, steered) == pytest.approx(0.102)
    assert adapted_kl_coef(0.1, 3.0, 100, steered) == pytest.approx(0.098)
    assert adapted_kl_coef(0.1, 6.0, 100, steered) == pytest.approx(0.1)


def test_options_that_change_the_update() -> None:
    base = tiny_model()
    PPO(base, make_venv(), config()).iterate()
    demonstrations = [{"prompt": "a", "completion": "bcd"}]
    for options, extra in [
        ({"ent_coef": 0.5}, {}),
        ({"ptx_coef": 1.0}, {"demonstrations": demonstrations}),
        ({"vf_coef": 5.0}, {}),
        ({"critic_head": "mlp"}, {}),
        ({"kl_loss": "exact"}, {}),
    ]:
        policy = tiny_model()
        PPO(policy, make_venv(), config(**options), **extra).iterate()
        assert not torch.equal(weights(policy), weights(base)), options
    stopped = PPO(tiny_model(), make_venv(), config(target_kl=1e-9, num_epochs=4)).iterate()
    assert stopped["train/updates"] < 8


def test_mistakes_are_explained(reward_folder: str) -> None:
    venv = make_venv()
    with pytest.raises(UserError, match="multiple of the environment's 16 rows"):
        PPO(tiny_model(), venv, config(episodes_per_iteration=24))
    with pytest.raises(UserError, match="frozen reference itself"):
        PPO(venv.reference, venv, config())
    with pytest.raises(UserError, match="critic='reward_model' needs a reward model"):
        PPO(tiny_model(), venv, config(critic="reward_model"))
    with pytest.raises(UserError, match="no demonstrations"):
        PPO(tiny_model(), venv, config(ptx_coef=1.0))
    with pytest.raises(UserError, match=r"PPOConfig.clip_range is -1; expected a positive"):
        config(clip_range=-1)
    with pytest.raises(UserError, match="text agents act in TextRLHF-v0"):
        PPO(tiny_model(), gym.make_vec("CartPole-v1", num_envs=4), config())
    other = make_venv(reward=reward_folder)
    stranger = copy.deepcopy(tiny_tokenizer("zyx"))
    with pytest.raises(UserError, match="reads other tokens"):
        make_critic("reward_model", "linear", tiny_model(), stranger, TextEnv(other).reward_model)


def test_a_gradient_that_is_not_finite_skips_and_then_stops() -> None:
    policy = tiny_model()
    agent = PPO(policy, make_venv(reward=tiny_score), config(num_epochs=4, minibatch_size=8))
    agent.iterate()
    before = weights(policy)
    agent._actor_loss = lambda *rest: (
        agent.policy.lm_head.weight.sum() * float("nan"),
        {"approx_kl": torch.tensor(0.0), "ratio_error": torch.tensor(0.0)},
    )
    with pytest.raises(UserError, match="not finite in 5 updates"):
        agent.iterate()
    assert torch.equal(weights(policy), before)


def test_concatenate_pads_to_the_widest() -> None:
    env = TextEnv(make_venv(4))
    lm = split_lm(tiny_model())
    generator = torch.Generator().manual_seed(0)
    parts = [collect(ModelSampler(lm), env, generator) for _ in range(3)]
    whole = concatenate(parts)
    assert whole.mask.sum() == sum(part.mask.sum() for part in parts)
    assert whole.lengths.tolist() == [n for part in parts for n in part.lengths.tolist()]
