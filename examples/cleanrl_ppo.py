"""PPO on TextRLHF-v0 in one file of plain torch, in CleanRL's manner.

    python examples/cleanrl_ppo.py --autoreset_mode NextStep

No agent of textrl is used: Gymnasium's vector interface, a transformers model, a value head.
Where the three autoreset modes differ is marked MODE below. With NextStep a rollout of 16 steps
cuts episodes of 8 tokens and a reset in the middle, so it leans on the critic and learns slower.
"""

import argparse
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import nn

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.envs import tiny_model


@dataclass
class Args:
    """What can be set on the command line."""

    autoreset_mode: str = "NextStep"
    total_timesteps: int = 30_000
    num_envs: int = 32
    num_steps: int = 16
    learning_rate: float = 3e-3
    update_epochs: int = 4
    num_minibatches: int = 8
    gae_lambda: float = 1.0
    clip_coef: float = 0.2
    vf_coef: float = 0.5
    max_grad_norm: float = 1.0
    kl_coef: float = 0.005
    seed: int = 0


class Agent(nn.Module):
    """A language model with a value head."""

    def __init__(self) -> None:
        super().__init__()
        self.lm = tiny_model()
        self.value = nn.Linear(self.lm.config.hidden_size, 1)
        nn.init.zeros_(self.value.weight)

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor):
        """Return the distribution of the next token and the value of each text."""
        hidden = self.lm.model(input_ids=ids[:, : int(lengths.max())]).last_hidden_state
        state = hidden[torch.arange(len(ids)), lengths - 1]
        logits = self.lm.lm_head(state)
        return torch.distributions.Categorical(logits=logits), self.value(state).squeeze(-1)


def tensors(obs: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids and lengths of a batch of observations."""
    return torch.as_tensor(obs["input_ids"]).long(), torch.as_tensor(obs["attention_mask"].sum(1))


def train(args: Args) -> list[float]:
    """Train and return the score of every finished text, in order."""
    torch.manual_seed(args.seed)
    envs = gym.make_vec(
        "TextRLHF-v0",
        num_envs=args.num_envs,
        kl_coef=args.kl_coef,
        max_completion_tokens=8,
        autoreset_mode=args.autoreset_mode,
    )
    agent = Agent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    obs, _ = envs.reset(seed=args.seed)
    over = np.zeros(args.num_envs, dtype=bool)
    scores: list[float] = []
    batch = args.num_envs * args.num_steps
    for _ in range(args.total_timesteps // batch):
        rows = []
        for _ in range(args.num_steps):
            ids, lengths = tensors(obs)
            with torch.no_grad():
                distribution, value = agent(ids, lengths)
                action = distribution.sample()
                logprob = distribution.log_prob(action)
            counts = torch.ones(args.num_envs, dtype=torch.bool)
            if args.autoreset_mode == "NextStep":  # MODE: this step only resets the rows that ended
                counts = torch.as_tensor(~over)
            obs, reward, terminated, truncated, infos = envs.step(action.numpy())
            over = terminated | truncated
            if over.any():  # MODE: with SameStep the ended episode's infos lie deeper
                final = infos.get("final_info", infos)
                scores += final["score"][over].tolist()
            if args.autoreset_mode == "Disabled" and over.any():  # MODE: we reset
                obs, _ = envs.reset(options={"reset_mask": over})
            # the environment pays the reference's half of the KL, we pay the policy's
            shaped = torch.as_tensor(reward).float() - args.kl_coef * logprob
            done = torch.as_tensor(over)
            rows.append((ids, lengths, action, logprob, value, shaped, done, counts))
        learn(agent, optimizer, rows, obs, args)
    return scores


def learn(agent: Agent, optimizer: torch.optim.Optimizer, rows: list, obs: dict, args: Args):
    """Update the agent from a rollout; steps that only reset a row do not count."""
    with torch.no_grad():
        _, next_value = agent(*tensors(obs))
    advantages, advantage = [], torch.zeros(args.num_envs)
    for _, _, _, _, value, reward, done, counts in reversed(rows):
        going = (~done).float()
        delta = reward + next_value * going - value  # gamma is 1
        new = delta + args.gae_lambda * going * advantage
        # a step that only resets has no part in the episode before it, whose end is a step earlier
        advantage = torch.where(counts, new, torch.zeros_like(new))
        next_value = value
        advantages.append(advantage)
    ids, lengths, actions, old_logprobs, values, _, _, counts = (
        torch.cat(column) for column in zip(*rows, strict=True)
    )
    advantages = torch.cat(advantages[::-1])[counts]
    ids, lengths, actions = ids[counts], lengths[counts], actions[counts]
    old_logprobs, returns = old_logprobs[counts], advantages + values[counts]
    for _ in range(args.update_epochs):
        for index in torch.randperm(len(ids)).chunk(args.num_minibatches):
            distribution, value = agent(ids[index], lengths[index])
            ratio = (distribution.log_prob(actions[index]) - old_logprobs[index]).exp()
            a = advantages[index]
            a = (a - a.mean()) / (a.std() + 1e-8)
            clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
            loss = -torch.minimum(ratio * a, clipped * a).mean()
            loss = loss + args.vf_coef * 0.5 * (value - returns[index]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()


def main() -> tuple[float, float]:
    """Train from the command line; print and return the mean score at first and at last."""
    parser = argparse.ArgumentParser()
    for name, value in vars(Args()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    scores = train(Args(**vars(parser.parse_args())))
    before, after = float(np.mean(scores[:200])), float(np.mean(scores[-200:]))
    print(f"mean score {before:.2f} -> {after:.2f}")
    return before, after


if __name__ == "__main__":
    main()
