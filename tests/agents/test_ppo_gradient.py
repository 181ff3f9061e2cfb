"""What PPO minimises, term by term: its gradient against a slow float64 one, an episode a time."""

import copy

import gymnasium as gym
import pytest
import torch
from reference_agents import Episode, Nets, ppo_objective, ppo_targets

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.agents import PPO, PPOConfig
from textrl.agents.critic import Critic
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.policy import ValueHead
from textrl.trainers import reward_model_from
from textrl.updater import Numbers, Step

SETTINGS = dict(
    ent_coef=0.3,
    vf_coef=0.7,
    gae_lambda=0.8,
    clip_range=0.1,
    clip_range_vf=0.05,
    ptx_coef=0.4,
    max_grad_norm=1e9,
)
KL_COEF, TEMPERATURE, PENALTY = 0.2, 0.8, 0.3


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("reward")
    tiny_model().save_pretrained(folder / "lm")
    model = reward_model_from(folder / "lm", seed=5)
    model.config.score_mean, model.config.score_std = 0.1, 0.5
    model.save_pretrained(folder / "rm")
    tiny_tokenizer().save_pretrained(folder / "rm")
    return str(folder / "rm")


def make(reward: str, on_length: str = "score", rows: int = 8, **kwargs) -> PPO:
    """Return an agent that is not the reference, with a critic that knows something."""
    venv = gym.make_vec(
        "TextRLHF-v0",
        num_envs=rows,
        reward=reward,
        prompts=["ab", "c", "defg"],
        max_completion_tokens=5,
        kl_coef=KL_COEF,
        temperature=TEMPERATURE,
        on_length=on_length,
        missing_eos_penalty=PENALTY if on_length == "score" else 0.0,
    )
    settings = dict(episodes_per_iteration=rows, minibatch_size=rows // 2, learning_rate=2e-2)
    config = PPOConfig(**SETTINGS | settings | dict(num_epochs=1) | kwargs)
    demonstrations = [{"prompt": "a", "completion": "bcd"}] if config.ptx_coef else None
    policy = tiny_model(seed=3)
    with torch.no_grad():  # sharper than fresh weights, EOS among its choices
        policy.lm_head.weight.mul_(3.0)
        policy.lm_head.weight[2].mul_(4.0)
    agent = PPO(policy, venv, config, demonstrations=demonstrations)
    generator = torch.Generator().manual_seed(1)
    last = head_of(agent.critic)[-1]
    torch.nn.init.normal_(last.weight, std=0.1, generator=generator)
    torch.nn.init.constant_(last.bias, 0.2)
    return agent


def copies(agent: PPO) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return float64 copies of the agent's policy and critic."""
    return copy.deepcopy(agent.policy).double(), copy.deepcopy(agent.critic).double()


def nets_of(policy: torch.nn.Module, critic: torch.nn.Module) -> Nets:
    layers = torch.nn.Sequential(*head_of(critic))  # its own forward is float32
    return Nets(policy=policy, head=layers, trunk=getattr(critic, "trunk", None))


def head_of(critic: ValueHead | Critic) -> ValueHead:
    return critic if isinstance(critic, ValueHead) else critic.head


def episodes_of(rollout, penalty: float) -> list[Episode]:
    episodes = []
    for row in range(len(rollout.scores)):
        start, score = int(rollout.prompt_lengths[row]), float(rollout.scores[row])
        ids = rollout.input_ids[row, : start + int(rollout.mask[row].sum())]
        fine = penalty if int(ids[-1]) != 2 else 0.0
        paid = None if score != score else score - fine
        episodes.append(Episode(ids=ids, start=start, score=paid))
    return episodes


def gradients(*modules: torch.nn.Module) -> list[torch.Tensor]:
    parameters = [p for module in modules for p in module.parameters()]
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


def run_recorded(agent: PPO, rollout) -> list:
    """Train on the episodes; return (rows, policy, critic, gradient) of each step."""
    generator = torch.Generator()
    generator.set_state(agent._generator.get_state())
    order = torch.randperm(len(rollout.scores), generator=generator)
    steps = []

    def record(*_) -> None:
        found = gradients(agent.policy, agent.critic)
        steps.append((*copies(agent), found))

    agent._updater.optimizer.register_step_pre_hook(record)
    agent.train_on(rollout, agent.steps())
    chosen = [rows.tolist() for rows in order.split(agent.config.minibatch_size)]
    return [(rows, *step) for rows, step in zip(chosen, steps, strict=True)]


def check(agent: PPO, on_length: str = "score") -> set[str]:
    """Hold the gradients of two steps against the slow ones; return the corners met."""
    old, rollout = nets_of(*copies(agent)), agent.collect()
    settings = vars(agent.config) | dict(kl_coef=KL_COEF, temperature=TEMPERATURE)
    frozen = copy.deepcopy(agent.env.reference).double()
    demonstrations = [
        (torch.tensor(s.ids), len(s.ids) - sum(s.counts)) for s in agent._demonstrations
    ]
    episodes = episodes_of(rollout, PENALTY if on_length == "score" else 0.0)
    assert len({len(e.ids) - e.start for e in episodes}) > 1
    corners, targets = set(), ppo_targets(episodes, old, frozen, settings)
    steps = run_recorded(agent, rollout)
    assert len(steps) == 2
    for rows, policy, critic, found in steps:
        for module in (policy, critic):
            module.zero_grad()
        loss, met = ppo_objective(
            episodes, rows, nets_of(policy, critic), old, frozen, targets, settings, demonstrations
        )
        loss.backward()
        for ours, slow in zip(found, gradients(policy, critic), strict=True):
            assert torch.allclose(ours.double(), slow, atol=3e-5, rtol=1e-3)
        assert max(float(g.abs().max()) for g in found) > 1e-2
        corners |= met
    return corners


@pytest.mark.parametrize(
    ("critic", "kl_loss", "on_length"),
    [
        ("value_head", "sampled", "score"),
        ("value_head", "exact", "score"),
        ("separate", "sampled", "truncate"),
        ("separate", "exact", "truncate"),
        ("reward_model", "sampled", "score"),
        ("reward_model", "exact", "truncate"),
    ],
)
def test_the_gradient_is_that_of_the_whole_objective(
    critic: str, kl_loss: str, on_length: str, reward_folder: str
) -> None:
    """At the first step (ratio 1) and at the second, where ratios and values are clipped."""
    agent = make(reward_folder, on_length, critic=critic, kl_loss=kl_loss, micro_batch_tokens=20)
    assert check(agent, on_length) == {"above", "below", "value"}


@pytest.mark.parametrize(
    "changed",
    [
        {"ent_coef": 0.0},
        {"ptx_coef": 0.0},
        {"clip_range_vf": None},
        {"vf_coef": 5.0, "critic": "separate"},
        {"critic_head": "mlp"},
        {"gae_lambda": 1.0},
        {"clip_range": 0.5},
    ],
)
def test_each_option_changes_its_term_alone(changed: dict, reward_folder: str) -> None:
    check(make(reward_folder, **changed))


def test_the_critics_learning_rate_is_the_critics(reward_folder: str) -> None:
    """Adam's first step moves every parameter with a gradient by the learning rate."""
    for rate in (None, 0.05):
        agent = make(reward_folder, minibatch_size=8, critic_learning_rate=rate)
        head, before = head_of(agent.critic)[-1].bias, agent.policy.lm_head.weight.clone()
        start = head.item()
        agent.train_on(agent.collect(), agent.steps())
        assert abs(head.item() - start) == pytest.approx(rate or 2e-2, rel=1e-3)
        moved = (agent.policy.lm_head.weight - before).abs().max().item()
        assert moved == pytest.approx(2e-2, rel=1e-2)


def test_target_kl_stops_behind_the_first_step_that_exceeds_it(
    reward_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = Step.take

    def steps(target: float | None) -> list[float]:
        agent, found = make(reward_folder, num_epochs=4, target_kl=target), []

        def recorded(step: Step, *losses, **more) -> Numbers:
            found.append(take(step, *losses, **more))
            return found[-1]

        monkeypatch.setattr(Step, "take", recorded)
        agent.train_on(agent.collect(), agent.steps())
        return [numbers["approx_kl"] for numbers in found]

    whole = steps(None)
    assert len(whole) == 8
    limit = sorted(whole[1:4])[0] * 0.99
    first = next(i for i, kl in enumerate(whole) if kl > limit)
    assert 0 < first < 7
    assert steps(limit) == pytest.approx(whole[: first + 1])
    assert len(steps(max(whole) * 1.01)) == 8


def test_the_gradient_is_clipped_to_its_norm(reward_folder: str) -> None:
    agent, norms = make(reward_folder, max_grad_norm=0.01, critic="separate"), []

    def record(*_) -> None:
        norms.append(torch.stack([p.grad.norm() for p in agent._updater.parameters]).norm().item())

    agent._updater.optimizer.register_step_pre_hook(record)
    agent.train_on(agent.collect(), agent.steps())
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)
