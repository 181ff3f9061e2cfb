"""A store on SQLite, one on a PostgreSQL of the tests' own, and labelers."""

import getpass
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy", reason="needs the extra collect")

from labels import free_port, or_fail

from textrl.labels.store import Store


@pytest.fixture(autouse=True)
def stores_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what a test has opened: Python 3.13 warns of connections that are left to chance."""
    opened, real = [], Store.__init__

    def init(self: Store, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **options)
        opened.append(self)

    monkeypatch.setattr(Store, "__init__", init)
    yield
    for store in opened:
        store.close()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL, without a database name, of a PostgreSQL server that is the tests' own."""
    pytest.importorskip("psycopg", reason="needs the extra postgres")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (str(found[-1]) if found else None)
    if initdb is None:
        or_fail("no PostgreSQL here (apt-get install postgresql)")
    assert initdb is not None
    folder = tmp_path_factory.mktemp("postgres")
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    if user:
        for path in (folder, *list(folder.parents)[:3]):  # one more level under pytest-xdist
            if path != Path(tempfile.gettempdir()):
                path.chmod(0o755)
        shutil.chown(folder, user)
    port = free_port()
    data, bin_folder = folder / "data", Path(initdb).resolve().parent
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    subprocess.run(
        [bin_folder / "initdb", "-D", data, "-A", "trust", "-U", "postgres"],
        user=user,
        check=True,
        **quiet,
    )
    server = subprocess.Popen(
        [bin_folder / "postgres", "-D", data, "-p", str(port), "-k", str(folder)],
        user=user,
        **quiet,
    )
    ready = [bin_folder / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-t", "30"]
    while subprocess.run(ready, **quiet).returncode:
        assert server.poll() is None, f"PostgreSQL ended; run as {user or getpass.getuser()}"
    yield f"postgresql://postgres@127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """Return the URL of a fresh database."""
    import psycopg

    with psycopg.connect(f"{postgres_server}/postgres", autocommit=True) as connection:
        count = connection.execute("SELECT count(*) FROM pg_database").fetchone()
        assert count is not None
        name = f"labels_{count[0]}"
        connection.execute(f"CREATE DATABASE {name}")
    return f"{postgres_server}/{name}"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/labels.db"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store(url, create=True)
    yield store
    store.close()
