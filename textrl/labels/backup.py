"""Backup of a label database while labelers use it."""

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import create_engine, insert, select
from sqlalchemy.engine import Connection

from textrl.errors import UserError
from textrl.labels.tables import Base, open_engine, parse_url


def back_up(database: str, output: str) -> int:
    """Write a consistent copy of the database to a new SQLite file; return its number of answers.

    SQLite copies itself page by page; PostgreSQL is read in one snapshot, row by row. The copy
    opens as `sqlite:///OUTPUT`, in `textrl collect` and in `textrl export`.

    Raises:
        UserError: there is no such database, the file exists already, or the copy is incomplete.
    """
    target = Path(output)
    if target.exists():
        raise UserError(f"{target} exists; name another file")
    if not target.resolve().parent.is_dir():
        raise UserError(f"{target.parent}: no such folder")
    engine = open_engine(database, create=False)
    partial = target.with_name(target.name + ".part")
    partial.unlink(missing_ok=True)
    try:
        if engine.dialect.name == "sqlite":
            path = parse_url(database).database or ""
            with (
                closing(sqlite3.connect(path)) as source,
                closing(sqlite3.connect(partial)) as copy,
            ):
                source.backup(copy)
        else:
            snapshot = engine.execution_options(isolation_level="REPEATABLE READ")
            with snapshot.connect() as source_connection:
                _copy_rows(source_connection, f"sqlite:///{partial}")
    finally:
        engine.dispose()
    with closing(sqlite3.connect(partial)) as copy:
        verdict = copy.execute("PRAGMA integrity_check").fetchone()[0]
        answers = int(copy.execute("SELECT count(*) FROM answer").fetchone()[0])
        copy.execute("PRAGMA journal_mode=DELETE")  # a single file, without a -wal file
    if verdict != "ok":
        raise UserError(f"{partial}: the copy is not whole ({verdict})")
    partial.rename(target)
    return answers


def _copy_rows(source: Connection, url: str) -> None:
    copy = create_engine(url)
    try:
        Base.metadata.create_all(copy)
        with copy.begin() as connection:
            for table in Base.metadata.sorted_tables:
                rows = source.execution_options(stream_results=True).execute(select(table))
                for part in rows.mappings().partitions(1000):
                    connection.execute(insert(table), [dict(row) for row in part])
    finally:
        copy.dispose()
