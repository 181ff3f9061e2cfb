"""A game of two turns that is small enough to enumerate, with its optimum by backward induction.

The world shows one of four prompts, and the policy says up to two tokens. The world answers with
one of two letters, by the toss of a coin, and the policy says up to two tokens again. Both turns
are paid. With all turns listed, the optimum of E[rewards] - kl_coef * KL is a soft maximum over the
second turns inside an expectation over the coin inside a soft maximum over the first turns:

    V2(x, y1, z) = kl_coef * log sum_y2 pi_ref(y2 | x, y1, z) exp(r2 / kl_coef)
    J*(x)        = kl_coef * log sum_y1 pi_ref(y1 | x) exp((r1 + E_z V2(x, y1, z)) / kl_coef)

The world's letters are nobody's choice: they cost no KL. Float64 throughout.
"""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from exact import Value, regret_of
from gymnasium import spaces
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS = ["ab", "bd", "ce", "fa"]
LETTERS = "abcdef"
TURN_TOKENS = 2
WORTH = {"a": 0.0, "b": 0.4, "c": -0.6, "d": 0.2, "e": -0.2, "f": 0.1}
SCALE = 1.08
"""Makes the spread of the return on the reference about that of the other tasks' scores."""


def replies(prompt: str, first: str) -> tuple[str, str]:
    """Return the two answers to a first turn, of which a coin decides."""
    return ("a", "d") if first[:1] in tuple(prompt) else ("c", "f")


def first_reward(prompt: str, first: str) -> float:
    """Return what a first turn is paid: the worth of its letters."""
    return SCALE * sum(WORTH.get(letter, 0.0) for letter in first)


def second_reward(prompt: str, first: str, reply: str, second: str) -> float:
    """Return what a second turn is paid.

    It is 1 if it begins with the world's letter, 1 if its last letter is the first one of the first
    turn, and 0.5 more where the world has answered "a" or "d".
    """
    found = float(second[:1] == reply) + float(bool(first) and second[-1:] == first[:1])
    return SCALE * (found + 0.5 * (reply in "ad"))


class TwoTurns(gym.Env[str, str]):
    """The game as a world; `reset(options={"prompt": text})` chooses the prompt."""

    def __init__(self) -> None:
        """Make the spaces."""
        self.observation_space = spaces.Text(4, min_length=0, charset=LETTERS)
        self.action_space = spaces.Text(4, min_length=0, charset=LETTERS)
        self._said: list[str] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Show a prompt."""
        super().reset(seed=seed)
        drawn = PROMPTS[int(self.np_random.integers(len(PROMPTS)))]
        self._said = [str((options or {}).get("prompt", drawn))]
        return self._said[0], {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Answer a first turn with a letter; end the game at the second."""
        prompt = self._said[0]
        if len(self._said) == 1:
            reply = replies(prompt, action)[int(self.np_random.integers(2))]
            self._said += [action, reply]
            return reply, first_reward(prompt, action), False, False, {}
        _, first, reply = self._said
        return "", second_reward(prompt, first, reply, action), True, False, {}


@dataclass(frozen=True, kw_only=True)
class TurnLogprobs:
    """The log-probs of all turns under a policy, in nats."""

    first: Tensor
    """Of the first turns. [P N]."""
    second: Tensor
    """Of the second turns after each first turn and reply. [P N 2 N]."""


class TurnEnumeration:
    """All games: what they pay, and their probability under any policy."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, reference: PreTrainedModel) -> None:
        """List the turns, pay each and weigh it under the reference."""
        self.tokenizer, self.eos = tokenizer, int(tokenizer.convert_tokens_to_ids("<eos>"))
        self.vocab_size = int(reference.config.vocab_size)
        going = [t for t in range(self.vocab_size) if t != self.eos]
        self.turns = [[self.eos]] + [[a, b] for a in going for b in range(self.vocab_size)]
        texts = [str(tokenizer.decode(turn, skip_special_tokens=True)) for turn in self.turns]
        self.texts = texts
        self.first_rewards = torch.tensor(
            [[first_reward(p, text) for text in texts] for p in PROMPTS], dtype=torch.float64
        )
        """[P N]."""
        self.second_rewards = torch.tensor(
            [
                [
                    [[second_reward(p, y1, z, y2) for y2 in texts] for z in replies(p, y1)]
                    for y1 in texts
                ]
                for p in PROMPTS
            ],
            dtype=torch.float64,
        )
        """[P N 2 N]."""
        self.ref_logprobs = self.logprobs(reference)

    @torch.no_grad()
    def logprobs(self, policy: PreTrainedModel) -> TurnLogprobs:
        """Return the log-prob of every turn; in each state they sum to probability 1."""
        first, second = [], []
        for prompt in PROMPTS:
            ids = self.tokenizer(prompt).input_ids
            first.append(self._turns_after(policy, [ids])[0])
            contexts = [
                [*ids, *turn, *([] if turn[-1] == self.eos else [self.eos]), *self._letters(reply)]
                for turn, text in zip(self.turns, self.texts, strict=True)
                for reply in replies(prompt, text)
            ]
            found = self._turns_after(policy, contexts)
            second.append(found.view(len(self.turns), 2, len(self.turns)))
        return TurnLogprobs(first=torch.stack(first), second=torch.stack(second))

    def value(self, logprobs: TurnLogprobs) -> Value:
        """Return what a policy is worth, exactly: the expected return and KL."""
        ref = self.ref_logprobs
        p1, p2 = logprobs.first.exp(), logprobs.second.exp()
        later = (p2 * self.second_rewards).sum(-1).mean(-1)
        later_kl = (p2 * (logprobs.second - ref.second)).nan_to_num(nan=0.0).sum(-1).mean(-1)
        kl = (p1 * (logprobs.first - ref.first)).nan_to_num(nan=0.0) + p1 * later_kl
        score = (p1 * (self.first_rewards + later)).sum(1).mean()
        return Value(score=float(score), kl=float(kl.sum(1).mean()))

    def optimum(self, kl_coef: float) -> TurnLogprobs:
        """Return the log-probs of the best policy at this kl_coef."""
        second = self.ref_logprobs.second + self.second_rewards / kl_coef
        later = kl_coef * second.logsumexp(-1).mean(-1)
        first = self.ref_logprobs.first + (self.first_rewards + later) / kl_coef
        return TurnLogprobs(first=first.log_softmax(-1), second=second.log_softmax(-1))

    def best_objective(self, kl_coef: float) -> float:
        """Return J*, mean over prompts."""
        second = self.ref_logprobs.second + self.second_rewards / kl_coef
        later = kl_coef * second.logsumexp(-1).mean(-1)
        first = self.ref_logprobs.first + (self.first_rewards + later) / kl_coef
        return float(kl_coef * first.logsumexp(-1).mean())

    def regret(self, value: Value, kl_coef: float) -> float:
        """Return (J* - J(policy)) / (J* - J(reference)); see `exact.regret_of`."""
        return regret_of(value, self.value(self.ref_logprobs), self.best_objective, kl_coef)

    def _letters(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _turns_after(self, policy: PreTrainedModel, contexts: list[list[int]]) -> Tensor:
        """Return the log-prob of every turn after each context, [C N]; the EOS turn is first."""
        rows = []
        for length in {len(context) for context in contexts}:
            places = [i for i, context in enumerate(contexts) if len(context) == length]
            ids = torch.tensor([contexts[i] for i in places])
            begin = policy(input_ids=ids).logits[:, -1].double().log_softmax(-1)  # [c V]
            going = torch.tensor([t for t in range(self.vocab_size) if t != self.eos])
            longer = torch.cat(
                [
                    ids.repeat_interleave(len(going), 0),
                    going.repeat(len(ids)).unsqueeze(1),
                ],
                dim=1,
            )
            after = policy(input_ids=longer).logits[:, -1].double().log_softmax(-1)
            joint = begin[:, going].reshape(-1, 1) + after
            found = torch.cat([begin[:, self.eos : self.eos + 1], joint.view(len(ids), -1)], dim=1)
            rows += list(zip(places, found, strict=True))
        return torch.stack([row for _, row in sorted(rows, key=lambda pair: pair[0])])


def make_two_turns(
    tokenizer: PreTrainedTokenizerBase, reference: PreTrainedModel, **options: Any
) -> Any:
    """Return the game as a vector environment."""
    return gym.make_vec(
        "TextTurns-v0",
        world=TwoTurns,
        prompts=PROMPTS,
        reference=reference,
        tokenizer=tokenizer,
        max_prompt_tokens=4,
        max_turn_tokens=TURN_TOKENS,
        max_completion_tokens=8,
        **options,
    )
