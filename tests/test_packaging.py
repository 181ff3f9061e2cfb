import configparser
import importlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_links_equal_the_package_map() -> None:
    folders = dict(
        line.split(" = ") for line in setup()["options"]["package_dir"].strip().splitlines()
    )
    for name in ("agents", "envs"):
        assert folders[f"textrl.{name}"] == name
        link = ROOT / "textrl" / name
        assert link.is_symlink()
        assert os.readlink(link) == f"../{name}"


def test_every_package_is_listed() -> None:
    listed = set(setup()["options"]["packages"].split())
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "textrl").rglob("__init__.py")
        if not path.parent.is_symlink()
    }
    assert listed == found | {"textrl.agents", "textrl.envs"}


@pytest.mark.parametrize("name", ["agents", "envs"])
def test_bare_names_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    sys.modules.pop(name, None)
    with pytest.raises(ModuleNotFoundError, match=f"import textrl.{name}"):
        importlib.import_module(name)


def test_no_machine_and_no_registry_is_named() -> None:
    tracked = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True
    ).stdout.split()
    assert tracked
    here = Path(__file__).relative_to(ROOT).as_posix()
    for name in tracked:
        path = ROOT / name
        if path.is_dir() or path.suffix in (".png", ".svg") or name == here:
            continue
        found = re.search(
            r"pypi\.org|huggingface\.co|(?<![\w.])/(work|root|home)/", path.read_text()
        )
        assert found is None, f"{name}: {found}"


@pytest.mark.slow
def test_the_wheel_holds_textrl_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("textrl_gym-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"textrl"}
    for expected in ("textrl/py.typed", "textrl/agents/ppo.py", "textrl/envs/core.py"):
        assert expected in names
    assert not any("test" in name.lower() for name in names)
