"""An agent of one's own: REINFORCE with a running mean as its baseline (docs/own_agent.md)."""

import torch

from textrl.agents.collect import collect
from textrl.agents.predict import next_tokens
from textrl.agents.text_env import TextEnv
from textrl.checkpoint import save_model
from textrl.generation import ModelSampler
from textrl.models import split_lm


class MyAgent:
    """Anything that has learn, predict and save is an agent."""

    def __init__(self, policy, venv, learning_rate=3e-3, seed=0):
        """Take the policy to train and a vector environment of TextRLHF-v0."""
        self.policy, self.lm, self.env = policy, split_lm(policy), TextEnv(venv)
        self.optimizer = torch.optim.AdamW(policy.parameters(), learning_rate, weight_decay=0.0)
        self.generator = torch.Generator().manual_seed(seed)
        self.baseline, self.env_steps = None, 0

    def learn(self, total_timesteps, progress_bar=False):
        """Train for at least so many tokens more."""
        end = self.env_steps + total_timesteps
        while self.env_steps < end:
            rollout = collect(ModelSampler(self.lm), self.env, self.generator)  # one episode a row
            # what the environment paid, and the agent's half of the KL
            rewards = rollout.rewards - self.env.kl_coef * rollout.logprobs
            returns = (rewards * rollout.mask).sum(1)
            mean = float(returns.mean())
            self.baseline = mean if self.baseline is None else 0.9 * self.baseline + 0.1 * mean
            self.step(rollout, returns - self.baseline)
            self.env_steps += int(rollout.mask.sum())
        return self

    def step(self, rollout, advantages):
        """Make the tokens of better completions likelier."""
        logits = self.policy(input_ids=rollout.input_ids).logits / self.env.temperature
        rows = torch.arange(len(logits))[:, None]
        before = (rollout.positions - 1).clamp_min(0)  # the state that chose an action
        logprobs = logits.log_softmax(-1)[rows, before, rollout.completion_ids]
        loss = -(advantages[:, None] * logprobs * rollout.mask).sum() / rollout.mask.sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def predict(self, observation, deterministic=False):
        """Return the next token for an observation, or one a row."""
        settings = self.env.temperature, self.generator, deterministic
        return next_tokens(self.lm, observation, *settings), None

    def save(self, path):
        """Write the policy as a plain transformers checkpoint."""
        save_model(self.policy, self.env.tokenizer, path)
