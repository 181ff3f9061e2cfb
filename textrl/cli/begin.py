"""The beginning of a command that writes a run folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from textrl.cli.options import RunConfig
from textrl.errors import hide_password
from textrl.paths import expanded
from textrl.run_folder import check_run_dir, held, prepare_run_dir


def checked_folder(run: RunConfig) -> Path:
    """Return the path of the run folder; nothing is written or deleted before all input is read."""
    return check_run_dir(run.output_dir, resume=run.resume, overwrite=run.overwrite)


@contextmanager
def begun(run: RunConfig, *configs: Any) -> Iterator[Path]:
    """Make the run folder, with the resolved configuration in it, and hold it for this process."""
    settings = {key: value for part in configs for key, value in asdict(part).items()}
    for name, value in settings.items():
        if isinstance(value, str):
            settings[name] = hide_password(value)
        elif isinstance(value, tuple):  # as YAML reads it back
            settings[name] = list(value)
    settings |= {"output_dir": run.output_dir, "log_table": run.log_table, "track": run.track}
    inputs = [value for name, value in settings.items() if isinstance(value, str)]
    inputs.remove(run.output_dir)
    with held(expanded(run.output_dir)):
        yield prepare_run_dir(
            run.output_dir, settings, resume=run.resume, overwrite=run.overwrite, inputs=inputs
        )


def say_end(folder: Path) -> None:
    """Write the model card of a run that is over; print the doctor's verdict and where it is."""
    from textrl.cli.model_card import write_card
    from textrl.doctor.diagnose import diagnose, in_words
    from textrl.doctor.records import read_record

    record = read_record(folder)
    if record.rows:
        write_card(record)
        print(in_words(record, diagnose(record), "doctor"))
    print(f"saved to {folder}")
