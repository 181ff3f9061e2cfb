"""The commands `textrl collect`, `textrl collect backup` and `textrl export`, without torch."""

from collections.abc import Callable

from textrl.data import write_lines
from textrl.errors import needing
from textrl.feedback.config import BackupConfig, CollectConfig, ExportConfig


def run_collect(config: CollectConfig) -> None:
    """Serve the labelers' and the lead's pages until stopped."""
    with needing("collect"):
        from textrl.feedback.server import serve
    serve(config)


def run_backup(config: BackupConfig) -> None:
    """Copy a label database while it is in use."""
    with needing("collect"):
        from textrl.labels.backup import back_up
    answers = back_up(config.database, config.output)
    print(f"{answers} answers copied to {config.output}; it opens as sqlite:///{config.output}")


def run_export(config: ExportConfig) -> None:
    """Write labels as JSON lines."""
    with needing("collect"):
        from textrl.labels.export import Filters, rows, split_names
        from textrl.labels.store import Store
    filters = Filters(
        min_agreement=config.min_agreement,
        drop_flagged=config.drop_flagged,
        labelers=split_names(config.labelers),
    )
    store = Store(config.database)
    try:
        found = rows(store, config.rows, filters)
    finally:
        store.close()
    write_lines(found, config.output)


RUN: dict[str, Callable[..., None]] = {
    "collect": run_collect,
    "collect-backup": run_backup,
    "export": run_export,
}
