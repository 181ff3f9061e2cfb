"""The options of the command line that are no trainer's or agent's: models, data, run folders.

Standard library only, as `config.py`; the text under each field is its help.
"""

from dataclasses import dataclass

from textrl.bounds import Positive, Seed, check_fields
from textrl.task_config import TaskConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model and the data of a trainer."""

    model: str
    """Folder or hub id of the model to start from."""
    data: str
    """.jsonl, .csv or .parquet file, hub name, or label database (sqlite:///labels.db)."""
    device: str | None = None
    """Such as cpu or cuda; by default the GPU if there is one."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class NormalizeConfig:
    """What the scores of a reward model are normalised on."""

    normalize_on: str | None = None
    """File or hub name with a `text` column (SFT samples); by default the texts of the data."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run goes."""

    output_dir: str
    """Folder of checkpoint, metrics and resolved configuration; must be new or empty."""
    resume: bool = False
    """Continue the run that lies there."""
    overwrite: bool = False
    """Delete what lies there first."""
    log_table: bool = False
    """Also print the logger's table to the terminal at each logged row."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class EnvConfig(TaskConfig):
    """The environment's task."""

    prompts: str
    """File or hub name with a `prompt` column."""
    reward: str
    """Folder or hub id of a reward model, or package.module:function."""
    reference: str | None = None
    """Folder or hub id of the frozen reference; by default the starting policy."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Completions of prompts, as JSON lines."""

    model: str
    """Folder or hub id of the language model."""
    prompts: str
    """File or hub name with a `prompt` column."""
    output: str | None = None
    """File to write; by default the terminal. Must not exist."""
    max_completion_tokens: Positive[int] = 48
    """Token budget of a completion."""
    samples_per_prompt: Positive[int] = 1
    """Completions of each prompt."""
    temperature: Positive[float] = 1.0
    """Of sampling, always from the full softmax."""
    seed: Seed[int] = 0
    """Seed of sampling."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_fields(self)


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
    max_completion_tokens: Positive[int] = 48
    """Token budget of a completion."""
    temperature: Positive[float] = 1.0
    """Of sampling and of every log-prob."""
    seed: Seed[int] = 0
    """Seed of sampling."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_fields(self)
