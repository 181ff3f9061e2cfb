"""The configuration of every trainer and agent: frozen, checked on construction, one unit a field.

Standard library only, so that the command line can show its help without loading torch. The text
under each field is its help there.
"""

from dataclasses import dataclass, fields
from typing import Literal

from textrl.errors import UserError


def _require(config: object, field: str, ok: bool, expected: str) -> None:
    if not ok:
        value = config.__dict__[field]
        raise UserError(f"{type(config).__name__}.{field} is {value!r}; expected {expected}")


def _check_common(config: object) -> None:
    """Check the fields that several configurations share, by what their names promise."""
    for field in fields(config):  # type: ignore[arg-type]
        value = config.__dict__[field.name]
        if field.name in _POSITIVE and value is not None:
            _require(config, field.name, value > 0, "a positive number")
        if field.name in _SHARES and value is not None:
            _require(config, field.name, 0 <= value < 1, "a share in [0, 1)")
        if field.name in _NOT_NEGATIVE and value is not None:
            _require(config, field.name, value >= 0, "0 or a positive number")


_POSITIVE = (
    "learning_rate",
    "critic_learning_rate",
    "num_epochs",
    "minibatch_size",
    "micro_batch_tokens",
    "max_length",
    "max_grad_norm",
    "max_completion_tokens",
    "episodes_per_iteration",
    "clip_range",
    "clip_range_vf",
    "target_kl",
    "kl_target",
    "kl_horizon",
    "beta",
    "samples_per_prompt",
)
_SHARES = ["warmup_share", "heldout_share", "label_smoothing"]
_NOT_NEGATIVE = ["weight_decay", "vf_coef", "ent_coef", "ptx_coef", "seed", "save_every"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What all trainers on a fixed data set share."""

    learning_rate: float = 1e-4
    """Peak learning rate of AdamW."""
    num_epochs: int = 1
    """Passes over the data."""
    minibatch_size: int = 32
    """Examples in one update (optimiser step), over all processes."""
    micro_batch_tokens: int = 4096
    """Tokens, padding included, in one forward and backward pass; never changes the result."""
    max_length: int = 512
    """Longest sequence in tokens; completions are cut here, prompts over it are refused."""
    warmup_share: float = 0.05
    """Share of the updates with a rising learning rate; a cosine falls to 0 after it."""
    weight_decay: float = 0.0
    """AdamW's decay of the weight matrices, per unit of learning rate."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    heldout_share: float = 0.0
    """Share of the prompts kept out of training and evaluated at the end."""
    save_every: int = 0
    """Updates between resumable states; 0 is once an epoch."""
    seed: int = 0
    """Seed of the data order and of fresh weights."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        _check_common(self)


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainingConfig):
    """Supervised fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig(TrainingConfig):
    """Reward modelling on pairs or rankings."""

    loss_type: Literal["ranking", "plackett_luce"] = "ranking"
    """Loss of a ranking: mean over its pairs (InstructGPT), or of the whole order."""
    center_coef: float = 0.01
    """Weight of the squared score, which keeps scores near 0; score units to the power -2."""


@dataclass(frozen=True, kw_only=True)
class DPOConfig(TrainingConfig):
    """Direct preference optimisation on a fixed set of pairs."""

    beta: float = 0.1
    """Strength of the pull to the reference."""
    loss_type: Literal["sigmoid", "cdpo", "robust", "ipo", "hinge"] = "sigmoid"
    """A key of textrl.losses.PREFERENCE_LOSSES."""
    label_smoothing: float = 0.0
    """Assumed share of flipped labels, for cdpo and robust."""


@dataclass(frozen=True, kw_only=True)
class OnlineDPOConfig:
    """DPO on pairs sampled from the environment: best against worst of each prompt's samples."""

    learning_rate: float = 1e-4
    """Learning rate of AdamW."""
    episodes_per_iteration: int = 256
    """Episodes sampled before each round of updates; a multiple of samples_per_prompt."""
    samples_per_prompt: int = 4
    """Samples of one prompt that are ranked: the environment's group_size."""
    minibatch_size: int = 32
    """Pairs in one update."""
    micro_batch_tokens: int = 4096
    """Tokens, padding included, in one forward and backward pass; never changes the result."""
    num_epochs: int = 1
    """Passes over the pairs of an iteration."""
    beta: float = 0.1
    """Strength of the pull to the reference."""
    loss_type: Literal["sigmoid", "cdpo", "robust", "ipo", "hinge"] = "sigmoid"
    """A key of textrl.losses.PREFERENCE_LOSSES."""
    label_smoothing: float = 0.0
    """Assumed share of flipped labels, for cdpo and robust."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    seed: int = 0
    """Seed of sampling and of the data order."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        _check_common(self)
        _require(self, "samples_per_prompt", self.samples_per_prompt >= 2, "at least 2 to compare")
        fits = self.episodes_per_iteration % self.samples_per_prompt == 0
        _require(self, "episodes_per_iteration", fits, "a multiple of samples_per_prompt")


@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """PPO on a text environment."""

    learning_rate: float = 1e-4
    """Learning rate of AdamW."""
    critic_learning_rate: float | None = None
    """Learning rate of the critic's own parameters; None is learning_rate."""
    episodes_per_iteration: int = 256
    """Episodes collected before each round of updates; a multiple of the environment's rows."""
    minibatch_size: int = 64
    """Episodes in one update (optimiser step)."""
    micro_batch_tokens: int = 4096
    """Tokens, padding included, in one forward and backward pass; never changes the result."""
    num_epochs: int = 2
    """Passes over the episodes of an iteration."""
    clip_range: float = 0.2
    """The probability ratio is clipped to 1 +- this."""
    clip_range_vf: float | None = 0.2
    """The value's change is clipped to +- this, in reward units; None for no clipping."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus, reward units per nat."""
    gae_lambda: float = 0.95
    """Trade between bias (0) and variance (1) of the advantages."""
    target_kl: float | None = None
    """Stop an iteration's updates once k3(old || new) per token exceeds this, in nats."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    kl_target: float | None = None
    """Steer kl_coef towards this KL to the reference, nats a sequence; None keeps kl_coef."""
    kl_horizon: float = 10_000.0
    """Episodes over which the controller corrects its error."""
    kl_loss: Literal["sampled", "exact"] = "sampled"
    """KL to the reference: sampled, in the reward; or exact over the vocabulary, in the loss."""
    critic: Literal["value_head", "reward_model", "separate"] = "value_head"
    """A head on the policy's trunk, or a trunk of its own from the reward model or the policy."""
    critic_head: Literal["linear", "mlp"] = "linear"
    """The critic's head; linear starts at zero."""
    ptx_coef: float = 0.0
    """Weight of the SFT gradient mixed in (PPO-ptx); needs demonstrations."""
    seed: int = 0
    """Seed of sampling and of the minibatches."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        _check_common(self)
        _require(self, "gae_lambda", 0 <= self.gae_lambda <= 1, "a number in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model and the data of a trainer."""

    model: str
    """Folder or hub id of the model to start from."""
    data: str
    """.jsonl, .csv or .parquet file, or hub name."""
    device: str | None = None
    """Such as cpu or cuda; by default the GPU if there is one."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run goes."""

    output_dir: str
    """Folder of checkpoint, metrics and resolved configuration; must be new or empty."""
    resume: bool = False
    """Continue the run that lies there."""
    overwrite: bool = False
    """Delete what lies there first."""


@dataclass(frozen=True, kw_only=True)
class PPORunConfig:
    """The policy and the length of a run."""

    model: str
    """Folder or hub id of the policy to start from (the SFT model)."""
    total_timesteps: int
    """Tokens to train for."""
    agent: str = "ppo"
    """A registered agent, or package.module:Class."""
    num_envs: int = 64
    """Rows of the vector environment; divides episodes_per_iteration."""
    save_every: int = 10
    """Iterations between resumable states."""
    device: str | None = None
    """Such as cpu or cuda; by default the GPU if there is one."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        for field in ("total_timesteps", "num_envs", "save_every"):
            _require(self, field, self.__dict__[field] >= 1, "a positive number")


@dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """The environment's task."""

    prompts: str
    """File or hub name with a `prompt` column."""
    reward: str
    """Folder or hub id of a reward model, or package.module:function."""
    reference: str | None = None
    """Folder or hub id of the frozen reference; by default the starting policy."""
    kl_coef: float = 0.05
    """Weight of the KL to the reference, score units per nat."""
    max_prompt_tokens: int = 64
    """Longer prompts are refused."""
    max_completion_tokens: int = 48
    """Token budget of a completion."""
    temperature: float = 1.0
    """Of sampling and of every log-prob."""
    missing_eos_penalty: float = 0.0
    """Score units subtracted where the budget ends a completion."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Completions of prompts, as JSON lines."""

    model: str
    """Folder or hub id of the language model."""
    prompts: str
    """File or hub name with a `prompt` column."""
    output: str | None = None
    """File to write; by default the terminal. Must not exist."""
    max_completion_tokens: int = 48
    """Token budget of a completion."""
    samples_per_prompt: int = 1
    """Completions of each prompt."""
    temperature: float = 1.0
    """Of sampling, always from the full softmax."""
    seed: int = 0
    """Seed of sampling."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        _check_common(self)
        _require(self, "temperature", self.temperature > 0, "a positive number")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """A policy's score, KL and length on prompts, as JSON."""

    model: str
    """Folder or hub id of the policy."""
    reference: str
    """Folder or hub id of the reference that KL is measured to."""
    reward: str
    """Folder or hub id of a reward model, or package.module:function."""
    prompts: str
    """File or hub name with a `prompt` column."""
    max_completion_tokens: int = 48
    """Token budget of a completion."""
    temperature: float = 1.0
    """Of sampling and of every log-prob."""
    seed: int = 0
    """Seed of sampling."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole pipeline on the movie reviews: SFT, reward model, PPO, DPO, evaluation, report."""

    output_dir: str = "runs/demo"
    """Folder of everything; must be new or empty."""
    preset: Literal["tiny", "smollm2"] = "tiny"
    """tiny: a 4M-parameter Llama from nothing; smollm2: SmolLM2-135M-Instruct and MiniLM."""
    seed: int = 0
    """Seed of everything."""
    threads: int = 2
    """CPU threads; more than there are free cores is far slower."""
    resume: bool = False
    """Continue the run that lies there, stage by stage."""
    overwrite: bool = False
    """Delete what lies there first."""
