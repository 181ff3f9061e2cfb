"""One server per label database: a second one is refused while the first one runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, func, select

from textrl import locks
from textrl.errors import UserError

ADVISORY_LOCK = 7_287_103_351
"""The number of PostgreSQL's lock, which applies within one database."""


@contextmanager
def served_alone(engine: Engine) -> Iterator[None]:
    """Hold a label database for this server; a server that was killed holds nothing.

    Raises:
        UserError: Another server holds it.
    """
    if engine.url.get_backend_name() == "sqlite":
        path = Path(engine.url.database or "")
        beside = path.with_name(f"{path.name}.lock"), path.with_name(f"{path.name}.held_by.json")
        with locks.held(path, *beside):
            yield
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if not connection.scalar(select(func.pg_try_advisory_lock(ADVISORY_LOCK))):
            shown = engine.url.render_as_string(hide_password=True)
            raise UserError(f"{shown} is in use by another `textrl collect`; stop that one first")
        try:
            yield
        finally:
            connection.scalar(select(func.pg_advisory_unlock(ADVISORY_LOCK)))
