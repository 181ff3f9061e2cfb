"""The tables of the label database, and functions to open it (SQLite by default, or PostgreSQL).

SQLite runs in WAL mode with synchronous=FULL, so that a commit is on disk when it returns. A
trigger refuses updates and deletions in the audit table. `SCHEMA_VERSION` is checked at every
start.
"""

import secrets
import time
from pathlib import Path
from typing import Any

from sqlalchemy import (
    DDL,
    JSON,
    ForeignKey,
    Index,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    inspect,
)
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from textrl.errors import UserError, hide_password

SCHEMA_VERSION = 1
BUSY_SECONDS = 30
"""Seconds for which a writer waits for another writer."""


class Base(DeclarativeBase):
    """The base class of all tables. Times are seconds since 1970, UTC."""


class Meta(Base):
    """Named values: the schema version and the lead's settings."""

    __tablename__ = "meta"
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[Any] = mapped_column(JSON)


class Task(Base):
    """A prompt with outputs to rank; with fewer than two outputs, a prompt to write a text for."""

    __tablename__ = "task"
    id: Mapped[int] = mapped_column(primary_key=True)
    digest: Mapped[str] = mapped_column(unique=True)  # the same task is never stored twice
    prompt: Mapped[Any] = mapped_column(JSON)  # a text or chat messages
    outputs: Mapped[list[str]] = mapped_column(JSON)
    source: Mapped[Any] = mapped_column(JSON)  # model, parameters and seed, or file and line
    columns: Mapped[dict[str, Any]] = mapped_column(JSON)  # the file's other columns, for export
    overlap: Mapped[int]  # number of labelers that it needs
    paused: Mapped[bool] = mapped_column(default=False)
    done: Mapped[int] = mapped_column(default=0)  # number of answers other than skips
    open: Mapped[bool] = mapped_column(default=True)  # done < overlap and not paused
    created_at: Mapped[float]
    __table_args__ = (Index("task_open", "open", "id"),)


class Labeler(Base):
    """A person who labels, or a lead, who may also see all data."""

    __tablename__ = "labeler"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    is_lead: Mapped[bool] = mapped_column(default=False)
    active: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[float]


class Token(Base):
    """A labeler's token, of which only the SHA-256 hash is stored."""

    __tablename__ = "token"
    hash: Mapped[str] = mapped_column(primary_key=True)
    labeler_id: Mapped[int] = mapped_column(ForeignKey("labeler.id"))
    created_at: Mapped[float]


class Lease(Base):
    """The reservation of a task for a labeler; it keeps the shown order even after it expires."""

    __tablename__ = "lease"
    task_id: Mapped[int] = mapped_column(ForeignKey("task.id"), primary_key=True)
    labeler_id: Mapped[int] = mapped_column(ForeignKey("labeler.id"), primary_key=True)
    shown_order: Mapped[list[int]] = mapped_column(JSON)
    expires_at: Mapped[float]
    created_at: Mapped[float]


class Answer(Base):
    """A labeler's single answer to a task; ranks are in stored order, not in shown order."""

    __tablename__ = "answer"
    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("task.id"), index=True)
    labeler_id: Mapped[int] = mapped_column(ForeignKey("labeler.id"), index=True)
    ranks: Mapped[Any] = mapped_column(JSON(none_as_null=True), nullable=True)
    demonstration: Mapped[str | None] = mapped_column(Text)
    rating: Mapped[int | None]
    flags: Mapped[list[str]] = mapped_column(JSON)
    skip_reason: Mapped[str | None] = mapped_column(Text)
    shown_order: Mapped[list[int]] = mapped_column(JSON)
    seconds: Mapped[float]
    revision: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[float]
    updated_at: Mapped[float]
    __table_args__ = (UniqueConstraint("task_id", "labeler_id"),)


class RewardCheck(Base):
    """The held-out accuracy of a reward model that was trained on the rankings so far."""

    __tablename__ = "reward_check"
    id: Mapped[int] = mapped_column(primary_key=True)
    rankings: Mapped[int]
    accuracy: Mapped[float]
    created_at: Mapped[float]


class Audit(Base):
    """The log of all changes, in order; rows are only added, never changed."""

    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[float]
    action: Mapped[str]
    labeler_id: Mapped[int | None]
    task_id: Mapped[int | None]
    body: Mapped[Any] = mapped_column(JSON)


for change in ("UPDATE", "DELETE"):
    event.listen(
        Audit.__table__,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]  # SQLAlchemy's own
            f"CREATE TRIGGER audit_no_{change.lower()} BEFORE {change} ON audit "
            "BEGIN SELECT RAISE(ABORT, 'the audit table is append-only'); END"
        ).execute_if(dialect="sqlite"),
    )
event.listen(
    Audit.__table__,
    "after_create",
    DDL(  # type: ignore[no-untyped-call]  # SQLAlchemy's own
        "CREATE OR REPLACE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE EXCEPTION 'the audit table is append-only'; END$$; "
        "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "EXECUTE FUNCTION audit_refuse()"
    ).execute_if(dialect="postgresql"),
)


def parse_url(url: str) -> URL:
    """Return the parsed URL; PostgreSQL goes through psycopg 3.

    Raises:
        UserError: it is not a URL of SQLite (a file) or PostgreSQL.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        shown = hide_password(url)
        raise UserError(f"{shown!r} is no database URL; write sqlite:///labels.db") from None
    kind = parsed.get_backend_name()
    if kind in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if kind != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise UserError(
            f"{hide_password(url)!r}: expected sqlite:///FILE (four slashes for an absolute path) "
            f"or postgresql://USER@HOST/NAME"
        )
    return parsed


def open_engine(url: str, *, create: bool) -> Engine:
    """Return an engine on a database whose schema has been checked.

    Args:
        url: A URL such as `sqlite:///labels.db` or `postgresql://user@host/name`.
        create: Whether to make the tables if there are none; if False, a missing database is an
            error.

    Raises:
        UserError: the database cannot be reached, is not a label database, or has another version.
    """
    parsed = parse_url(url)
    shown = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() == "sqlite":
        path = Path(parsed.database or "")
        if not create and not path.exists():
            raise UserError(f"{path}: no such label database; `textrl collect` makes one")
        if not path.parent.is_dir():
            raise UserError(f"{path.parent}: no such folder")
    try:
        engine = create_engine(parsed, pool_size=40, max_overflow=0, pool_pre_ping=True)
        if parsed.get_backend_name() == "sqlite":
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        try:
            _check_schema(engine, create=create, shown=shown)
        except BaseException:
            engine.dispose()
            raise
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise UserError(f"{shown}: {error}; pip install 'textrl-gym[postgres]'") from error
    except DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise UserError(f"{shown}: cannot be used as a label database ({reason})") from error
    return engine


def writing(engine: Engine) -> Session:
    """Return a session whose transaction takes SQLite's write lock at its start."""
    return Session(engine.execution_options(writes=True), expire_on_commit=False)


def _prepare_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins the transactions
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={BUSY_SECONDS * 1000}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _check_schema(engine: Engine, *, create: bool, shown: str) -> None:
    ours = set(Base.metadata.tables)
    with writing(engine) as session:
        found = set(inspect(session.connection()).get_table_names())
        if not found & ours and create:
            Base.metadata.create_all(session.connection())
            session.add(Meta(key="schema_version", value=SCHEMA_VERSION))
            session.add(Meta(key="identity", value=secrets.token_hex(8)))  # of this database
            session.add(Audit(at=time.time(), action="created", body={"version": SCHEMA_VERSION}))
            session.commit()
            return
        version = session.get(Meta, "schema_version") if "meta" in found else None
        if version is None:
            raise UserError(f"{shown}: holds no labels; `textrl collect` makes a label database")
        if version.value != SCHEMA_VERSION:
            raise UserError(
                f"{shown}: its schema is version {version.value}, this textrl reads "
                f"{SCHEMA_VERSION}; use the textrl that wrote it, or export there and start anew"
            )
        if missing := ours - found:
            raise UserError(f"{shown}: tables are missing: {', '.join(sorted(missing))}")
