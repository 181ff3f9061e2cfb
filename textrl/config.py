"""The configuration of every trainer and agent: frozen dataclasses, validated on construction.

The text under each field states its unit and is its help on the command line. This module imports
the standard library only, so that the command line can show its help without loading torch.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from textrl.bounds import NotNegative, Positive, Seed, Share, check_fields, require
from textrl.errors import did_you_mean
from textrl.loss_names import SMOOTHED_LOSSES, PreferenceLossName

Precision = Literal["float32", "bfloat16", "auto"]
"""Precision of matrix products, see textrl.precision."""
TrackerName = Literal["wandb", "trackio"]
"""A package that metrics may be sent to, see textrl.trackers."""


def _require_read(config: object, field: str, read: bool, needs: str) -> None:
    """Raise UserError if a field was set that nothing reads without another setting."""
    default = type(config).__dataclass_fields__[field].default  # type: ignore[attr-defined]  # a dataclass
    untouched = config.__dict__[field] == default
    require(config, field, read or untouched, f"{default!r}, as it has no effect without {needs}")


def _check_preference(config: object) -> None:
    """Check what dpo_loss would refuse later."""
    smoothing, kind = config.__dict__["label_smoothing"], config.__dict__["loss_type"]
    require(config, "label_smoothing", 0 <= smoothing < 0.5, "a share in [0, 0.5)")
    require(config, "loss_type", isinstance(kind, str | dict), "a name, or {name: weight, ...}")
    names = [kind] if isinstance(kind, str) else list(kind)
    require(config, "loss_type", bool(names), "one loss or a mix of losses")
    weights = [] if isinstance(kind, str) else list(kind.values())
    numbers = all(isinstance(w, int | float) and not isinstance(w, bool) for w in weights)
    require(
        config, "loss_type", numbers and all(0 < w < 1e300 for w in weights), "positive weights"
    )
    known = get_args(PreferenceLossName)
    for name in names:
        require(config, "loss_type", name in known, f"known losses{did_you_mean(str(name), known)}")
    _require_read(config, "simpo_margin", "simpo" in names, "the loss simpo")
    meant = not smoothing or any(name in SMOOTHED_LOSSES for name in names)
    require(config, "label_smoothing", meant, f"0, as it has no meaning for loss_type {kind!r}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The settings that all trainers on a fixed data set share."""

    learning_rate: Positive[float] = 1e-4
    """Peak learning rate of AdamW."""
    num_epochs: Positive[int] = 1
    """Number of passes over the data."""
    minibatch_size: Positive[int] = 32
    """Number of examples per update (optimiser step), summed over all processes."""
    micro_batch_tokens: Positive[int] = 4096
    """Number of tokens per micro-batch, whose texts are held in memory together. It never changes
    the result."""
    max_length: Positive[int] = 512
    """Maximum length of a sequence in tokens. Longer texts and completions are cut; longer prompts
    are refused."""
    warmup_share: Share[float] = 0.05
    """Share of the updates in which the learning rate rises (warm-up). After them it falls to 0
    along a cosine."""
    weight_decay: NotNegative[float] = 0.0
    """Weight decay of AdamW, which applies to the weight matrices only. It is multiplied by the
    learning rate."""
    adam_beta1: Share[float] = 0.9
    """Decay rate of AdamW's running mean of the gradients, per update."""
    adam_beta2: Share[float] = 0.99
    """Decay rate of AdamW's running mean of the squared gradients, per update."""
    max_grad_norm: Positive[float] = 1.0
    """Maximum norm of the gradient. A gradient with a larger norm is scaled down to it."""
    heldout_share: Share[float] = 0.0
    """Share of the prompts that are held out from training and used for an evaluation at the
    end."""
    precision: Precision = "float32"
    """Precision of matrix products; weights and losses always stay in float32. `auto` uses bfloat16
    where that is faster (new GPUs; CPUs with AMX for models of 100M parameters or more) and float32
    elsewhere."""
    save_every: NotNegative[int] = 0
    """Number of updates between two saves to resume from; 0 saves by time and after each epoch."""
    save_minutes: NotNegative[float] = 10.0
    """Minutes between two saves to resume from; 0 saves by updates and after each epoch."""
    keep_saves: Positive[int] = 2
    """Number of saves that are kept while the run goes on."""
    seed: Seed[int] = 0
    """Seed of the order of the data and of newly initialised weights."""

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
    """Maximum length of a prompt with its completion, in tokens. Longer texts are refused, because
    a cut text would get the score of a different text."""
    loss_type: Literal["ranking", "plackett_luce"] = "ranking"
    """Loss of a ranking. `ranking` is the mean over its pairs (InstructGPT); `plackett_luce` is the
    loss of the whole order."""
    center_coef: NotNegative[float] = 0.01
    """Weight of the penalty on the squared score, which keeps scores near 0; its unit is score
    units to the power -2."""


@dataclass(frozen=True, kw_only=True)
class DPOConfig(TrainingConfig):
    """Direct preference optimisation on a fixed set of pairs."""

    beta: Positive[float] = 0.1
    """Strength of the pull towards the reference. For simpo it is the scale of the margin (2 in its
    paper); for orpo it is the weight of the odds ratio."""
    loss_type: PreferenceLossName | dict[str, float] = "sigmoid"
    """Name of a preference loss (a key of textrl.losses.PREFERENCE_LOSSES), or a weighted sum of
    losses such as {sigmoid: 1.0, sft: 0.2}."""
    label_smoothing: Share[float] = 0.0
    """Assumed share of flipped labels; it applies to the losses sigmoid, cdpo and robust."""
    simpo_margin: NotNegative[float] = 0.5
    """Target margin of SimPO divided by beta, in nats per token."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        super().__post_init__()
        _check_preference(self)


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """The settings that all agents in a text environment share."""

    learning_rate: Positive[float] = 1e-4
    """Learning rate of AdamW."""
    decay_timesteps: Positive[int | None] = None
    """Number of tokens over which the learning rate falls linearly to 0; None keeps it constant."""
    episodes_per_iteration: Positive[int] = 256
    """Number of episodes collected before each round of updates. It must be a multiple of the
    number of rows of the environment."""
    micro_batch_tokens: Positive[int] = 4096
    """Number of tokens per micro-batch, whose texts are held in memory together. It never changes
    the result."""
    adam_beta1: Share[float] = 0.9
    """Decay rate of AdamW's running mean of the gradients, per update."""
    adam_beta2: Share[float] = 0.99
    """Decay rate of AdamW's running mean of the squared gradients, per update."""
    max_grad_norm: Positive[float] = 1.0
    """Maximum norm of the gradient. A gradient with a larger norm is scaled down to it."""
    precision: Precision = "float32"
    """Precision of matrix products; weights and losses always stay in float32. `auto` uses bfloat16
    where that is faster (new GPUs; CPUs with AMX for models of 100M parameters or more) and float32
    elsewhere."""
    seed: Seed[int] = 0
    """Seed of sampling and of the choice of minibatches."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class ClippedConfig(AgentConfig):
    """The settings of agents that reuse their episodes with PPO's clipped ratio."""

    minibatch_size: Positive[int] = 64
    """Number of episodes per update (optimiser step)."""
    num_epochs: Positive[int] = 2
    """Number of passes over the episodes of an iteration."""
    clip_range: Positive[float] = 0.2
    """The probability ratio is clipped to 1 +- this value."""


@dataclass(frozen=True, kw_only=True)
class ReinforceConfig(AgentConfig):
    """REINFORCE: each iteration is one update, strictly on-policy."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        super().__post_init__()
        enough = self.episodes_per_iteration >= 2
        require(self, "episodes_per_iteration", enough, "at least 2, for a baseline")


@dataclass(frozen=True, kw_only=True)
class RLOOConfig(ClippedConfig):
    """REINFORCE leave-one-out; the group is the environment's group_size."""


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(ClippedConfig):
    """Group-relative policy optimisation; the group is the environment's group_size."""

    variant: Literal["grpo", "dr_grpo"] = "grpo"
    """`grpo` divides by the standard deviation of the group and by the length of each completion;
    `dr_grpo` divides by neither."""


@dataclass(frozen=True, kw_only=True)
class BestOfNConfig:
    """Best of n samples; nothing is trained."""

    n: Positive[int] = 16
    """Number of samples per prompt."""
    seed: Seed[int] = 0
    """Seed of sampling."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class OnlineDPOConfig(AgentConfig):
    """DPO on pairs of the best and the worst of the samples of each prompt."""

    samples_per_prompt: Positive[int] = 4
    """Number of samples per prompt that are ranked. It must equal the group_size of the
    environment."""
    labels: Literal["hard", "soft"] = "hard"
    """Label of a pair. `hard` means that the best sample wins for certain. `soft` is the
    probability of that win by the Bradley-Terry model of the two scores, so that the optimum is
    that of kl_coef = beta; it needs the loss sigmoid or cdpo."""
    minibatch_size: Positive[int] = 32
    """Number of pairs per update (optimiser step)."""
    num_epochs: Positive[int] = 1
    """Number of passes over the pairs of an iteration."""
    beta: Positive[float] = 0.1
    """Strength of the pull towards the reference. For simpo it is the scale of the margin (2 in its
    paper); for orpo it is the weight of the odds ratio."""
    loss_type: PreferenceLossName | dict[str, float] = "sigmoid"
    """Name of a preference loss (a key of textrl.losses.PREFERENCE_LOSSES), or a weighted sum of
    losses such as {sigmoid: 1.0, sft: 0.2}."""
    label_smoothing: Share[float] = 0.0
    """Assumed share of flipped labels; it applies to the losses sigmoid, cdpo and robust."""
    simpo_margin: NotNegative[float] = 0.5
    """Target margin of SimPO divided by beta, in nats per token."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        super().__post_init__()
        _check_preference(self)
        require(self, "samples_per_prompt", self.samples_per_prompt >= 2, "at least 2 to compare")
        fits = self.episodes_per_iteration % self.samples_per_prompt == 0
        require(self, "episodes_per_iteration", fits, "a multiple of samples_per_prompt")
        takes_soft = self.loss_type in ("sigmoid", "cdpo") and not self.label_smoothing
        soft_fits = self.labels == "hard" or takes_soft
        require(self, "labels", soft_fits, "hard, or a sigmoid or cdpo loss without smoothing")


@dataclass(frozen=True, kw_only=True)
class PPOConfig(ClippedConfig):
    """PPO on a text environment."""

    critic_learning_rate: Positive[float | None] = None
    """Learning rate of the critic's own parameters; None uses learning_rate."""
    clip_range_vf: Positive[float | None] = 0.2
    """The change of a value since collection is clipped to +- this value, in reward units; None
    turns clipping off."""
    vf_coef: NotNegative[float] = 0.1
    """Weight of the value loss in the total loss."""
    ent_coef: NotNegative[float] = 0.0
    """Weight of the entropy bonus, in reward units per nat."""
    gae_lambda: NotNegative[float] = 0.95
    """Lambda of generalised advantage estimation (GAE), from 0 to 1. Smaller values give more bias,
    larger values give more variance."""
    target_kl: Positive[float | None] = None
    """The updates of an iteration stop once the estimated KL(old policy, new policy) (k3) exceeds
    this, in nats per token. None never stops them early."""
    kl_target: Positive[float | None] = None
    """Target of the KL to the reference, in nats per sequence; kl_coef is adapted to reach it. None
    keeps kl_coef fixed."""
    kl_horizon: Positive[float] = 10_000.0
    """Horizon of the controller that adapts kl_coef, in episodes. A larger one adapts more
    slowly."""
    kl_loss: Literal["sampled", "exact"] = "sampled"
    """Form of the KL to the reference. `sampled` is the KL of the sampled tokens, as a part of the
    reward; `exact` is the KL over the whole vocabulary, as a part of the loss."""
    critic: Literal["value_head", "reward_model", "separate"] = "value_head"
    """Network of the critic. `value_head` is a head on the policy's trunk. The other two have a
    trunk of their own: `reward_model` copies the reward model's, `separate` copies the policy's."""
    critic_head: Literal["linear", "mlp"] = "linear"
    """Head of the critic: one linear layer, or an MLP with one hidden layer. Its last layer is
    initialised to zero."""
    ptx_coef: NotNegative[float] = 0.0
    """Weight of the SFT gradient that is added to the gradient of PPO (PPO-ptx). It needs
    demonstrations."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        super().__post_init__()
        require(self, "gae_lambda", 0 <= self.gae_lambda <= 1, "a number in [0, 1]")
        _require_read(self, "kl_horizon", self.kl_target is not None, "kl_target")


AGENT_COMMANDS: dict[str, tuple[str, type[AgentConfig]]] = {
    "ppo": ("train a policy with PPO", PPOConfig),
    "rloo": ("train a policy with RLOO", RLOOConfig),
    "grpo": ("train a policy with GRPO or Dr.GRPO", GRPOConfig),
    "reinforce": ("train a policy with REINFORCE", ReinforceConfig),
    "online_dpo": ("train a policy with DPO on its own samples", OnlineDPOConfig),
}
"""The agents that are commands, with their purpose and their configuration."""
