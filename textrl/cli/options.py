"""The options of the command line for models, data and run folders.

The text under each field is its help. This module imports the standard library only.
"""

from dataclasses import dataclass

from textrl.bounds import Positive, Seed, check_fields
from textrl.config import TrackerName
from textrl.task_config import TaskConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model and the data of training."""

    model: str
    """Folder or hub id of the model to start from."""
    data: str
    """Training data: a .jsonl, .csv or .parquet file, `hub:OWNER/NAME`, or a label database
    (sqlite:///labels.db)."""
    device: str | None = None
    """Device of the model, such as cpu or cuda; the default is the GPU if there is one."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class NormalizeConfig:
    """The normalisation of the reward model's scores."""

    normalize_on: str | None = None
    """File, or `hub:OWNER/NAME`, with a `text` column (SFT samples). The scores of these texts
    get mean 0 and standard deviation 1. The default is the texts of the data."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The output of the run."""

    output_dir: str
    """Folder of the checkpoint, the metrics and the resolved configuration. It must be new or empty
    unless --resume or --overwrite is given."""
    resume: bool = False
    """Continue the unfinished run in output_dir."""
    overwrite: bool = False
    """Delete what is in output_dir before the run starts."""
    log_table: bool = False
    """Also print each logged row as a table to the terminal."""
    track: TrackerName | None = None
    """Tracker that gets the metrics too: Weights & Biases or trackio. It needs the extra of that
    name."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class EnvConfig(TaskConfig):
    """The task of the environment."""

    prompts: str
    """File, or `hub:OWNER/NAME`, with a `prompt` column."""
    reward: str
    """Folder or hub id of a reward model, package.module:function, or collect:labels.db, which asks
    the labelers of that database."""
    reference: str | None = None
    """Folder or hub id of the frozen reference; the default is the policy before training."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """The completions of prompts, as JSON lines."""

    model: str
    """Folder or hub id of the language model."""
    prompts: str
    """File, or `hub:OWNER/NAME`, with a `prompt` column."""
    output: str | None = None
    """File to write, which must not exist; the default is the terminal."""
    max_completion_tokens: Positive[int] = 48
    """Maximum length of a completion in tokens (its token budget)."""
    samples_per_prompt: Positive[int] = 1
    """Number of completions per prompt."""
    temperature: Positive[float] = 1.0
    """Temperature of sampling, which is always from the full softmax."""
    seed: Seed[int] = 0
    """Seed of sampling."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class BestOfConfig:
    """The best of n completions of each prompt by a reward, as JSON lines; nothing is trained."""

    model: str
    """Folder or hub id of the language model."""
    reward: str
    """Folder or hub id of a reward model, or package.module:function."""
    prompts: str
    """File, or `hub:OWNER/NAME`, with a `prompt` column."""
    n: Positive[int] = 16
    """Number of completions of each prompt, of which the best one is written."""
    output: str | None = None
    """File to write, which must not exist; the default is the terminal."""
    max_completion_tokens: Positive[int] = 48
    """Maximum length of a completion in tokens (its token budget)."""
    temperature: Positive[float] = 1.0
    """Temperature of sampling, which is always from the full softmax."""
    seed: Seed[int] = 0
    """Seed of sampling."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The score, KL and length of a policy on prompts, as JSON."""

    model: str
    """Folder or hub id of the policy."""
    reference: str
    """Folder or hub id of the reference policy of the KL."""
    reward: str
    """Folder or hub id of a reward model, or package.module:function."""
    prompts: str
    """File, or `hub:OWNER/NAME`, with a `prompt` column."""
    max_completion_tokens: Positive[int] = 48
    """Maximum length of a completion in tokens (its token budget)."""
    temperature: Positive[float] = 1.0
    """Temperature of sampling and of all log-probs."""
    seed: Seed[int] = 0
    """Seed of sampling."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_fields(self)
