"""The configuration of every trainer and agent: frozen, checked on construction, one unit a field.

Standard library only, so that the command line can show its help without loading torch. The text
under each field is its help there.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from textrl.bounds import NotNegative, Positive, Seed, Share, check_fields, require
from textrl.errors import did_you_mean
from textrl.loss_names import SMOOTHED_LOSSES, PreferenceLossName

Precision = Literal["float32", "bfloat16", "auto"]
"""Of matrix products, see textrl.precision."""


def _check_preference(config: object) -> None:
    """Check what dpo_loss would refuse later."""
    smoothing, kind = config.__dict__["label_smoothing"], config.__dict__["loss_type"]
    require(config, "label_smoothing", 0 <= smoothing < 0.5, "a share in [0, 0.5)")
    require(config, "loss_type", isinstance(kind, str | dict), "a name, or {name: weight, ...}")
    names = [kind] if isinstance(kind, str) else list(kind)
    require(config, "loss_type", bool(names), "a loss or a mix of at least one")
    weights = [] if isinstance(kind, str) else list(kind.values())
    numbers = all(isinstance(w, int | float) and math.isfinite(w) and w > 0 for w in weights)
    require(config, "loss_type", numbers, "positive weights")
    known = get_args(PreferenceLossName)
    for name in names:
        require(config, "loss_type", name in known, f"known losses{did_you_mean(name, known)}")
    meant = not smoothing or any(name in SMOOTHED_LOSSES for name in names)
    require(config, "label_smoothing", meant, f"0, as it has no meaning for loss_type {kind!r}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What all trainers on a fixed data set share."""

    learning_rate: Positive[float] = 1e-4
    """Peak learning rate of AdamW."""
    num_epochs: Positive[int] = 1
    """Passes over the data."""
    minibatch_size: Positive[int] = 32
    """Examples in one update (optimiser step), over all processes."""
    micro_batch_tokens: Positive[int] = 4096
    """Tokens of the texts that are held in memory together; never changes the result."""
    max_length: Positive[int] = 512
    """Longest sequence in tokens; texts and completions are cut here, prompts over it are
    refused."""
    warmup_share: Share[float] = 0.05
    """Share of the updates with a rising learning rate; a cosine falls to 0 after it."""
    weight_decay: NotNegative[float] = 0.0
    """AdamW's decay of the weight matrices, per unit of learning rate."""
    adam_beta1: Share[float] = 0.9
    """AdamW's decay rate of the gradients' mean, for each update."""
    adam_beta2: Share[float] = 0.99
    """AdamW's decay rate of the gradients' squares, for each update."""
    max_grad_norm: Positive[float] = 1.0
    """Gradients are scaled down to this norm."""
    heldout_share: Share[float] = 0.0
    """Share of the prompts kept out of training and evaluated at the end."""
    precision: Precision = "float32"
    """Of matrix products; weights and losses stay float32. auto: bfloat16 where it is faster (new
    GPUs; CPUs with AMX from 100M parameters on), else float32."""
    save_every: NotNegative[int] = 0
    """Updates between resumable states; 0 is once an epoch."""
    seed: Seed[int] = 0
    """Seed of the data order and of fresh weights."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_fields(self)
        require(self, "max_length", self.max_length >= 2, "at least 2 tokens")


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainingConfig):
    """Supervised fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig(TrainingConfig):
    """Reward modelling on pairs or rankings."""

    max_length: Positive[int] = 512
    """Longest prompt with a completion in tokens; longer ones are refused, as a cut text would be
    scored as another one."""
    loss_type: Literal["ranking", "plackett_luce"] = "ranking"
    """Loss of a ranking: mean over its pairs (InstructGPT), or of the whole order."""
    center_coef: NotNegative[float] = 0.01
    """Weight of the squared score, which keeps scores near 0; score units to the power -2."""


@dataclass(frozen=True, kw_only=True)
class DPOConfig(TrainingConfig):
    """Direct preference optimisation on a fixed set of pairs."""

    beta: Positive[float] = 0.1
    """Strength of the pull to the reference; simpo's scale of the margin (2 in its paper), orpo's
    weight of the odds ratio."""
    loss_type: PreferenceLossName | dict[str, float] = "sigmoid"
    """A key of textrl.losses.PREFERENCE_LOSSES, or a mix: {sigmoid: 1.0, sft: 0.2}."""
    label_smoothing: Share[float] = 0.0
    """Assumed share of flipped labels, for sigmoid, cdpo and robust."""
    simpo_margin: NotNegative[float] = 0.5
    """SimPO's target margin over beta, nats a token."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        super().__post_init__()
        _check_preference(self)


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """What all agents in a text environment share."""

    learning_rate: Positive[float] = 1e-4
    """Learning rate of AdamW."""
    decay_timesteps: Positive[int | None] = None
    """Tokens over which the learning rate falls linearly to 0; None keeps it."""
    episodes_per_iteration: Positive[int] = 256
    """Episodes collected before each round of updates; a multiple of the environment's rows."""
    micro_batch_tokens: Positive[int] = 4096
    """Tokens of the texts that are held in memory together; never changes the result."""
    adam_beta1: Share[float] = 0.9
    """AdamW's decay rate of the gradients' mean, for each update."""
    adam_beta2: Share[float] = 0.99
    """AdamW's decay rate of the gradients' squares, for each update."""
    max_grad_norm: Positive[float] = 1.0
    """Gradients are scaled down to this norm."""
    precision: Precision = "float32"
    """Of matrix products; weights and losses stay float32. auto: bfloat16 where it is faster (new
    GPUs; CPUs with AMX from 100M parameters on), else float32."""
    seed: Seed[int] = 0
    """Seed of sampling and of the minibatches."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class ClippedConfig(AgentConfig):
    """What the agents share that reuse their episodes with PPO's clipped ratio."""

    minibatch_size: Positive[int] = 64
    """Episodes in one update (optimiser step)."""
    num_epochs: Positive[int] = 2
    """Passes over the episodes of an iteration."""
    clip_range: Positive[float] = 0.2
    """The probability ratio is clipped to 1 +- this."""


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig(AgentConfig):
    """REINFORCE: each iteration is one update, strictly on-policy."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        super().__post_init__()
        enough = self.episodes_per_iteration >= 2
        require(self, "episodes_per_iteration", enough, "at least 2, each other's baseline")


@dataclass(frozen=True, kw_only=True)
class RLOOConfig(ClippedConfig):
    """REINFORCE leave-one-out; the group is the environment's group_size."""


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(ClippedConfig):
    """Group-relative policy optimisation; the group is the environment's group_size."""

    variant: Literal["grpo", "dr_grpo"] = "grpo"
    """grpo divides by the group's spread and each completion's length; dr_grpo by neither."""


@dataclass(frozen=True, kw_only=True)
class BestOfNConfig:
    """Best of n samples; nothing is trained."""

    n: Positive[int] = 16
    """Samples for each prompt."""
    seed: Seed[int] = 0
    """Seed of sampling."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class OnlineDPOConfig(AgentConfig):
    """DPO on pairs sampled from the environment: best against worst of each prompt's samples."""

    samples_per_prompt: Positive[int] = 4
    """Samples of one prompt that are ranked: the environment's group_size."""
    labels: Literal["hard", "soft"] = "hard"
    """hard: the best beats the worst for certain; soft: with the Bradley-Terry probability of their
    scores, so that the optimum is that of kl_coef = beta (losses sigmoid and cdpo)."""
    minibatch_size: Positive[int] = 32
    """Pairs in one update."""
    num_epochs: Positive[int] = 1
    """Passes over the pairs of an iteration."""
    beta: Positive[float] = 0.1
    """Strength of the pull to the reference; simpo's scale of the margin (2 in its paper), orpo's
    weight of the odds ratio."""
    loss_type: PreferenceLossName | dict[str, float] = "sigmoid"
    """A key of textrl.losses.PREFERENCE_LOSSES, or a mix: {sigmoid: 1.0, sft: 0.2}."""
    label_smoothing: Share[float] = 0.0
    """Assumed share of flipped labels, for sigmoid, cdpo and robust."""
    simpo_margin: NotNegative[float] = 0.5
    """SimPO's target margin over beta, nats a token."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        super().__post_init__()
        _check_preference(self)
        require(self, "samples_per_prompt", self.samples_per_prompt >= 2, "at least 2 to compare")
        fits = self.episodes_per_iteration % self.samples_per_prompt == 0
        require(self, "episodes_per_iteration", fits, "a multiple of samples_per_prompt")
        takes_soft = self.loss_type in ("sigmoid", "cdpo") and not self.label_smoothing
        soft_fits = self.labels == "hard" or takes_soft
        require(self, "labels", soft_fits, "hard, unless the loss is sigmoid without smoothing")


@dataclass(frozen=True, kw_only=True)
class PPOConfig(ClippedConfig):
    """PPO on a text environment."""

    critic_learning_rate: Positive[float | None] = None
    """Learning rate of the critic's own parameters; None is learning_rate."""
    clip_range_vf: Positive[float | None] = 0.2
    """The value's change is clipped to +- this, in reward units; None for no clipping."""
    vf_coef: NotNegative[float] = 0.1
    """Weight of the value loss."""
    ent_coef: NotNegative[float] = 0.0
    """Weight of the entropy bonus, reward units per nat."""
    gae_lambda: NotNegative[float] = 0.95
    """Trade between bias (0) and variance (1) of the advantages."""
    target_kl: Positive[float | None] = None
    """Stop an iteration's updates once k3(old || new) per token exceeds this, in nats."""
    kl_target: Positive[float | None] = None
    """Steer kl_coef towards this KL to the reference, nats a sequence; None keeps kl_coef."""
    kl_horizon: Positive[float] = 10_000.0
    """Episodes over which the controller corrects its error."""
    kl_loss: Literal["sampled", "exact"] = "sampled"
    """KL to the reference: sampled, in the reward; or exact over the vocabulary, in the loss."""
    critic: Literal["value_head", "reward_model", "separate"] = "value_head"
    """A head on the policy's trunk, or a trunk of its own from the reward model or the policy."""
    critic_head: Literal["linear", "mlp"] = "linear"
    """The critic's head; linear starts at zero."""
    ptx_coef: NotNegative[float] = 0.0
    """Weight of the SFT gradient mixed in (PPO-ptx); needs demonstrations."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        super().__post_init__()
        require(self, "gae_lambda", 0 <= self.gae_lambda <= 1, "a number in [0, 1]")
