"""`Report`: the page about some runs, for a file or a notebook."""

import html
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from textrl.doctor.records import Record, read_records
from textrl.durable import write_text
from textrl.errors import UserError
from textrl.paths import expanded
from textrl.report.benchmark import RESULTS, benchmark_sections
from textrl.report.groups import names_of
from textrl.report.page import page
from textrl.report.runs import sections, settings_section
from textrl.report.samples import sample_sections

MARK = "<title>textrl report: "
"""By which a page of ours is known."""


class Report:
    """The page about one run or several: verdict, curves, samples, settings.

    In a notebook it shows itself.
    """

    def __init__(self, runs: Sequence[str | Path] | str | Path) -> None:
        """Read the runs.

        Args:
            runs: Folders of runs of agents and trainers, of a demo (all its stages) or of
                `textrl benchmark`.

        Raises:
            UserError: a folder holds no run.
        """
        named = [runs] if isinstance(runs, str | Path) else list(runs)
        if not named:
            raise UserError("no run is named; give the folder of one")
        folders = list(dict.fromkeys(expanded(folder).resolve() for folder in named))
        self.records: list[Record] = []
        parts: list[str] = []
        for folder in folders:
            if (folder / RESULTS).exists():
                parts += benchmark_sections(folder)
            else:
                self.records += read_records(folder)
        if self.records:
            names = names_of(self.records)
            parts += sections(self.records)
            for name, record in zip(names, self.records, strict=True):
                parts += sample_sections(record, name)
            parts.append(settings_section(self.records))
        self.title = f"textrl report: {', '.join(folder.name for folder in folders)}"
        now = datetime.now(UTC).isoformat(timespec="minutes")
        places = ", ".join(map(str, folders))
        self.body = [
            f"<h1>{html.escape(self.title)}</h1>",
            f"<p class=quiet>{html.escape(places)}; written {now}</p>",
            *parts,
        ]

    def save(self, path: str | Path) -> Path:
        """Write the page to a file and return its path.

        Raises:
            UserError: the file is there and is no report.
        """
        target = expanded(path)
        if target.is_dir():
            target = target / "report.html"
        if target.exists() and MARK not in target.read_text(encoding="utf-8", errors="replace"):
            raise UserError(f"{target} is there and is no report of textrl; name another file")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, page(self.title, self.body))
        return target

    def _repr_html_(self) -> str:
        """Return the page as a part of a notebook, in a frame of its own."""
        whole = html.escape(page(self.title, self.body), quote=True)
        style = "width:100%;height:80vh;border:0"
        return f'<iframe srcdoc="{whole}" style="{style}"></iframe>'
