"""The README says what is true: its Python code runs, top to bottom, and the doctests hold."""

import doctest
import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest

import textrl

ROOT = Path(__file__).parent.parent


def test_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 3
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert (tmp_path / "runs/readme/critic.safetensors").exists()


def test_readme_links_exist() -> None:
    for path in ROOT.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
            assert (ROOT / target).exists(), f"{path.name}: {target}"


def test_readme_options_exist() -> None:
    from textrl.cli import make_parser

    _, known = make_parser()
    for command, rest in re.findall(r"^textrl (\w+) (.*)$", (ROOT / "README.md").read_text(), re.M):
        for option in re.findall(r"--(\w+)", rest):
            assert option in known[command], f"textrl {command} --{option}"


def test_example_learns() -> None:
    spec = importlib.util.spec_from_file_location("own_reward", ROOT / "examples/own_reward.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    before, after = example.main()
    assert after > before + 0.1


def modules() -> list[str]:
    names = [m.name for m in pkgutil.walk_packages(textrl.__path__, "textrl.")]
    return [name for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_doctests(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    failed, _ = doctest.testmod(module)
    assert failed == 0
