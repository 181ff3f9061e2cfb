"""The options of `textrl doctor` and `textrl report`.

The text under each field is its help. This module imports the standard library only.
"""

from dataclasses import dataclass

from textrl.bounds import require


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """The runs that are looked at."""

    runs: list[str] | None = None
    """Folders of runs; without one, the machine is looked at. `textrl doctor RUN` is short for
    `textrl doctor --runs [RUN]`."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type."""
        listed = self.runs is None or _are_texts(self.runs)
        require(self, "runs", listed, "a list of folders")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """The runs of a report, and its file."""

    runs: list[str] | None = None
    """Folders of runs, or of `textrl benchmark`; several are compared. `textrl report RUN RUN -o
    FILE` is short for `textrl report --runs [RUN, RUN] --output FILE`."""
    output: str | None = None
    """File to write; the default is report.html in the folder of a single run, and in the working
    directory for several."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type."""
        listed = bool(self.runs) and _are_texts(self.runs)
        require(self, "runs", listed, "folders: textrl report RUN RUN -o FILE")


def _are_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)
