"""The options of `textrl collect`, `textrl collect backup` and `textrl export`.

The text under each field is its help. This module imports the standard library only.
"""

from dataclasses import dataclass
from typing import Literal

from textrl.bounds import NotNegative, Positive, Seed, check_fields, require


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """A web page on which people write demonstrations and rank outputs.

    `textrl collect backup` copies the labels during that; `textrl export` writes them to a file.
    """

    prompts: str | None = None
    """File, or `hub:OWNER/NAME`, with a `prompt` column. Outputs to rank are in a `completions`
    column (lists of 2 to 9). Without a file, the tasks are those in the database."""
    database: str = "sqlite:///labels.db"
    """Database of the labels: sqlite:///FILE or postgresql://USER@HOST/NAME."""
    model: str | None = None
    """Folder or hub id of a language model. People rank its outputs for the prompts."""
    samples: Positive[int] = 4
    """Number of outputs per prompt that the model samples."""
    max_completion_tokens: Positive[int] = 48
    """Maximum length of a sampled output in tokens (its token budget)."""
    temperature: Positive[float] = 1.0
    """Temperature of sampling, which is always from the full softmax."""
    seed: Seed[int] = 0
    """Seed of sampling."""
    choose: Literal["in_order", "informative"] = "in_order"
    """Which sampled outputs are shown: all of a prompt, prompt after prompt, or the two of each
    prompt, and first of those prompts, that teach the reward model most (needs `reward_model`)."""
    overlap: Positive[int] = 1
    """Number of labelers per new task. The lead's page can change it later."""
    labelers: str | None = None
    """Comma-separated names of labelers. The server prints a link for each new one. The default is
    one labeler with the name me."""
    reward_model: str | None = None
    """Folder or hub id of a model. From time to time, a reward model is trained from it on the
    rankings so far, and the lead's page shows the held-out accuracy."""
    host: str = "127.0.0.1"
    """Address to listen at. An address that other machines can reach needs TLS or a proxy."""
    port: NotNegative[int] = 8000
    """Port to listen at; 0 picks any free port."""
    tls_cert: str | None = None
    """File of the TLS certificate (PEM), for https."""
    tls_key: str | None = None
    """File of the private key of the TLS certificate."""
    behind_proxy: bool = False
    """Trust a proxy on this machine that terminates TLS and names the client in X-Forwarded-For."""
    public_url: str | None = None
    """Address of the server in the links for labelers, such as https://labels.example.org behind a
    proxy."""

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        check_fields(self)
        require(self, "samples", 2 <= self.samples <= 9, "2 to 9, as each needs a number key")
        require(self, "overlap", 1 <= self.overlap <= 100, "1 to 100")
        require(self, "port", 0 <= self.port < 65536, "0 to 65535")
        together = (self.tls_cert is None) == (self.tls_key is None)
        require(self, "tls_cert", together, "certificate and key together, or neither")
        prompted = self.model is None or self.prompts is not None
        require(self, "prompts", prompted, "a file of prompts for the model to answer")
        chosen = self.choose == "in_order" or None not in (self.model, self.reward_model)
        needs = "in_order; informative needs a model to sample from and a reward_model to ask"
        require(self, "choose", chosen, needs)


@dataclass(frozen=True, kw_only=True)
class BackupConfig:
    """Copies the label database while labelers use it."""

    output: str
    """SQLite file to write. It must not exist."""
    database: str = "sqlite:///labels.db"
    """Database of the labels: sqlite:///FILE or postgresql://USER@HOST/NAME."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type."""
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The labels as JSON lines. Trainers also read the database directly (--data URL)."""

    database: str = "sqlite:///labels.db"
    """Database of the labels: sqlite:///FILE or postgresql://USER@HOST/NAME."""
    rows: Literal["demonstrations", "rankings", "pairs", "prompts"] = "rankings"
    """Rows to write: demonstrations for `textrl sft`, rankings for `textrl reward`, pairs for
    `textrl dpo` (or reward), or the prompts alone."""
    output: str | None = None
    """File to write, which must not exist; the default is the terminal."""
    min_agreement: NotNegative[float | None] = None
    """Minimum share of pairs of outputs that the labelers of a task order alike. It leaves out
    tasks with a single labeler too."""
    drop_flagged: bool = False
    """Leave out tasks that any labeler flagged."""
    labelers: str | None = None
    """Comma-separated names of the labelers to include; the default is all of them."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type."""
        check_fields(self)
