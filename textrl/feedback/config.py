"""The options of `textrl collect`, its backup and `textrl export`.

Standard library only, as `textrl/config.py`; the text under each field is its help.
"""

from dataclasses import dataclass
from typing import Literal

from textrl.bounds import NotNegative, Positive, Seed, check_fields, require


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
    samples: Positive[int] = 4
    """Outputs for each prompt, with model."""
    max_completion_tokens: Positive[int] = 48
    """Token budget of an output."""
    temperature: Positive[float] = 1.0
    """Of sampling, always from the full softmax."""
    seed: Seed[int] = 0
    """Seed of sampling."""
    overlap: Positive[int] = 1
    """Labelers for each new task; the lead's page changes it later."""
    labelers: str | None = None
    """Names with commas between; each new one gets a link. By default one, called me."""
    reward_model: str | None = None
    """Folder or hub id of a model from which a reward model is trained now and then on the rankings
    so far; the lead's page shows its held-out accuracy."""
    host: str = "127.0.0.1"
    """Address to listen at; one that others reach needs TLS or a proxy."""
    port: NotNegative[int] = 8000
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
        check_fields(self)
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
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Labels as JSON lines for the trainers, which also read the database itself (--data URL)."""

    database: str = "sqlite:///labels.db"
    """The labels: sqlite:///FILE or postgresql://USER@HOST/NAME."""
    rows: Literal["demonstrations", "rankings", "pairs", "prompts"] = "rankings"
    """What to write: for sft, for reward, for dpo (or reward), the prompts."""
    output: str | None = None
    """File to write; by default the terminal. Must not exist."""
    min_agreement: NotNegative[float | None] = None
    """Least share of pairs that the labelers of a task order alike; tasks of one labeler are left
    out then."""
    drop_flagged: bool = False
    """Leave out tasks that anybody flagged."""
    labelers: str | None = None
    """Names with commas between; by default everybody."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type."""
        check_fields(self)
