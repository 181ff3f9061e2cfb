"""The options of the command line that are no trainer's or agent's: models, data, run folders.

Standard library only, as `config.py`; the text under each field is its help.
"""

from dataclasses import dataclass
from typing import Literal

from textrl.bounds import check_common, require


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
        check_common(self)


@dataclass(frozen=True, kw_only=True)
class NormalizeConfig:
    """What the scores of a reward model are normalised on."""

    normalize_on: str | None = None
    """File or hub name with a `text` column (SFT samples); by default the texts of the data."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type."""
        check_common(self)


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
        check_common(self)


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
    group_size: int = 1
    """Consecutive rows that share a prompt; divides num_envs."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_common(self)


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
        check_common(self)


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

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_common(self)


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Agents, the task that they share, and what each may spend."""

    agents: str
    """Names with commas between: registered (ppo, rloo), sb3:PPO, mlp:DQN, package.module:Class,
    reference, random."""
    model: str | None = None
    """Folder or hub id of the policy to start from, also the reference; by default, a built-in tiny
    task (letters that must rise)."""
    prompts: str | None = None
    """File or hub name with a `prompt` column."""
    reward: str | None = None
    """Folder or hub id of a reward model, or package.module:function."""
    heldout: str | None = None
    """Prompts that agents are measured on; by default those that they are trained on."""
    kl_coef: float = 0.05
    """Weight of the KL to the reference, score units per nat."""
    max_prompt_tokens: int = 64
    """Longer prompts are refused."""
    max_completion_tokens: int = 24
    """Token budget of a completion."""
    group_size: int = 4
    """Rows that share a prompt; divides num_envs."""
    total_timesteps: int = 100_000
    """Tokens for each agent."""
    seeds: int = 3
    """Seeds 0, 1, ... of each agent."""
    num_envs: int = 64
    """Rows of the vector environment."""
    episodes_per_iteration: int = 256
    """Of our agents; Stable-Baselines3's get rollouts of as many tokens."""
    learning_rate: float = 1e-4
    """Of all agents that train the language model."""
    mlp_learning_rate: float = 1e-3
    """Of the mlp agents."""
    candidates: int = 8
    """Tokens that the mlp and random agents choose from."""
    evaluations: int = 5
    """Points of a learning curve after its start."""
    eval_episodes: int = 256
    """Episodes of a measurement, on the same prompts each time."""
    threads: int = 2
    """CPU threads."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_common(self)
        for name in ("seeds", "evaluations", "eval_episodes", "threads"):
            require(self, name, self.__dict__[name] >= 1, "at least 1")
        require(self, "candidates", self.candidates >= 2, "at least 2")
        require(self, "agents", bool(self.agent_names()), "at least one name")
        whole = self.episodes_per_iteration % self.num_envs == 0
        require(self, "episodes_per_iteration", whole, f"a multiple of num_envs {self.num_envs}")
        grouped = self.num_envs % self.group_size == 0
        require(self, "num_envs", grouped, f"a multiple of group_size {self.group_size}")
        require(self, "mlp_learning_rate", self.mlp_learning_rate >= 0, "0 or a positive number")
        together = (self.model is None) == (self.prompts is None) == (self.reward is None)
        require(self, "model", together, "model, prompts and reward together, or none of them")

    def agent_names(self) -> list[str]:
        """Return the agents, each once."""
        names = [name.strip() for name in self.agents.split(",")]
        return list(dict.fromkeys(name for name in names if name))


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """A web page on which people write demonstrations and rank outputs.

    `textrl collect backup` copies the labels meanwhile; `textrl export` writes them for trainers.
    """

    prompts: str | None = None
    """File or hub name with a `prompt` column, and `completions` (a list, 2 to 9) where outputs are
    to be ranked; without it, the tasks that are in the database."""
    database: str = "sqlite:///labels.db"
    """Where labels are kept: sqlite:///FILE or postgresql://USER@HOST/NAME."""
    model: str | None = None
    """Folder or hub id of a language model whose outputs for the prompts are to be ranked."""
    samples: int = 4
    """Outputs for each prompt, with model."""
    max_completion_tokens: int = 48
    """Token budget of an output."""
    temperature: float = 1.0
    """Of sampling, always from the full softmax."""
    seed: int = 0
    """Seed of sampling."""
    overlap: int = 1
    """Labelers for each new task; the lead's page changes it later."""
    labelers: str | None = None
    """Names with commas between; each new one gets a link. By default one, called me."""
    reward_model: str | None = None
    """Folder or hub id of a model from which a reward model is trained now and then on the rankings
    so far; the lead's page shows its held-out accuracy."""
    host: str = "127.0.0.1"
    """Address to listen at; one that others reach needs TLS or a proxy."""
    port: int = 8000
    """Port to listen at; 0 is any that is free."""
    tls_cert: str | None = None
    """File of a TLS certificate (PEM), for https."""
    tls_key: str | None = None
    """File of its key."""
    behind_proxy: bool = False
    """A proxy on this machine does TLS and names the caller in X-Forwarded-For."""
    public_url: str | None = None
    """Where labelers reach the server, for the links: https://labels.example.org behind a proxy."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_common(self)
        require(self, "samples", 2 <= self.samples <= 9, "2 to 9, one number key each")
        require(self, "overlap", 1 <= self.overlap <= 100, "1 to 100")
        require(self, "port", 0 <= self.port < 65536, "0 to 65535")
        together = (self.tls_cert is None) == (self.tls_key is None)
        require(self, "tls_cert", together, "certificate and key together, or neither")
        prompted = self.model is None or self.prompts is not None
        require(self, "prompts", prompted, "a file of prompts for the model to answer")


@dataclass(frozen=True, kw_only=True)
class BackupConfig:
    """A copy of the labels, taken while labelers work."""

    output: str
    """SQLite file to write; must not exist."""
    database: str = "sqlite:///labels.db"
    """The labels: sqlite:///FILE or postgresql://USER@HOST/NAME."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type."""
        check_common(self)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Labels as JSON lines for the trainers, which also read the database itself (--data URL)."""

    database: str = "sqlite:///labels.db"
    """The labels: sqlite:///FILE or postgresql://USER@HOST/NAME."""
    rows: Literal["demonstrations", "rankings", "pairs", "prompts"] = "rankings"
    """What to write: for sft, for reward, for dpo (or reward), the prompts."""
    output: str | None = None
    """File to write; by default the terminal. Must not exist."""
    min_agreement: float | None = None
    """Least share of pairs that the labelers of a task order alike; tasks of one labeler are left
    out then."""
    drop_flagged: bool = False
    """Leave out tasks that anybody flagged."""
    labelers: str | None = None
    """Names with commas between; by default everybody."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type."""
        check_common(self)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole pipeline on the movie reviews: SFT, reward model, PPO, DPO, evaluation, report."""

    output_dir: str = "runs/demo"
    """Folder of everything; must be new or empty."""
    preset: Literal["quick", "tiny", "smollm2"] = "tiny"
    """tiny: a 4M Llama from nothing; quick: half its updates; smollm2: SmolLM2-135M and MiniLM."""
    seed: int = 0
    """Seed of everything."""
    threads: int = 2
    """CPU threads; more than there are free cores is far slower."""
    resume: bool = False
    """Continue the run that lies there, stage by stage."""
    overwrite: bool = False
    """Delete what lies there first."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_common(self)
        require(self, "threads", self.threads >= 1, "at least 1")
