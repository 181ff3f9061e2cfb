"""Imports point down only, and files and functions stay readable in one sitting (DESIGN 3, 8)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"errors", "paths"},
    {"types", "bounds", "config", "command_config", "agent_options"},
    {"allowed", "masking", "logprobs", "advantages", "losses", "preference_losses", "batching"},
    {
        "row_forms",
        "data",
        "labels",
        "chat",
        "shared_prompts",
        "seams",
        "encoding",
        "packing",
        "precision",
        "trunks",
        "heads",
        "adapters",
        "row_cache",
        "models",
        "classifiers",
        "decoding",
        "generation",
        "rewards",
        "metrics",
        "checkpoint",
        "resuming",
        "loop",
    }
    | {"fetch", "reviews", "pretrained", "evaluation", "resolve"},
    {"envs"},
    {"agents", "trainers"},
    {"presets", "demo_models", "report", "demo", "benchmark", "benchmark_agents"}
    | {"benchmark_task", "commands", "feedback", "parser_words", "cli", "__main__"},
]
LABELS = {"answers", "agreement", "tables", "store", "lead", "export", "backup", "tasks"}
"""Files of textrl/feedback that are the store, which the data layer reads; the rest is the app."""
PURE = {"masking", "logprobs", "advantages", "losses", "preference_losses"}
OPTIONAL = {"matplotlib": 1, "datasets": 1, "gguf": 1, "vaderSentiment": 1, "peft": 1, "uvicorn": 1}
IN_FEEDBACK_ONLY = {"fastapi", "starlette", "pydantic", "sqlalchemy", "uvicorn"}


def sources() -> Iterator[tuple[str, Path]]:
    """Yield the unit and path of every source file."""
    for path in sorted((ROOT / "textrl").glob("*.py")):
        if path.name != "__init__.py":
            yield path.stem, path
    for unit, folder in (("trainers", "textrl/trainers"), ("agents", "agents"), ("envs", "envs")):
        for path in sorted((ROOT / folder).glob("*.py")):
            yield unit, path
    for path in sorted((ROOT / "textrl" / "feedback").glob("*.py")):
        yield feedback_unit(path.stem), path


def feedback_unit(name: str) -> str:
    return "labels" if name in LABELS else "feedback"


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def level(unit: str) -> int:
    found = [index for index, names in enumerate(LAYERS) if unit in names]
    assert found, f"{unit} has no layer: name it in LAYERS"
    return found[0]


@pytest.mark.parametrize(("unit", "path"), list(sources()), ids=lambda value: str(value)[-40:])
def test_imports_point_down(unit: str, path: Path) -> None:
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] not in ("agents", "envs"), f"{path}: bare import {name}"
        if parts[0] != "textrl" or len(parts) < 2 or parts[1] == "__version__":
            continue
        target = parts[1]
        if target == "feedback":  # the package itself holds its docstring only
            target = feedback_unit(parts[2]) if len(parts) > 2 else unit
        assert target == unit or level(target) <= level(unit), f"{path} imports {name}"
        siblings = {unit, target} == {"agents", "trainers"}
        assert not siblings, f"{path}: agents and trainers are siblings"


def test_the_maths_is_pure() -> None:
    allowed = {"torch", "textrl", "collections", "dataclasses"}
    for unit, path in sources():
        if unit in PURE:
            assert {name.split(".")[0] for name in imports(path)} <= allowed, path


def test_config_needs_the_standard_library_only() -> None:
    for name in ("errors", "config", "command_config"):
        found = {n.split(".")[0] for n in imports(ROOT / "textrl" / f"{name}.py")}
        assert not found & {"torch", "numpy", "transformers", "gymnasium"}


def test_optional_packages_are_imported_in_one_file_each() -> None:
    for package, most in OPTIONAL.items():
        users = {p for _, p in sources() if any(n.split(".")[0] == package for n in imports(p))}
        assert len(users) <= most, users


def test_the_web_and_the_database_stay_in_feedback() -> None:
    for unit, path in sources():
        if unit not in ("labels", "feedback"):
            assert not {n.split(".")[0] for n in imports(path)} & IN_FEEDBACK_ONLY, path
        if unit == "labels":
            assert not {n.split(".")[0] for n in imports(path)} & {"fastapi", "uvicorn"}, path


@pytest.mark.parametrize(("unit", "path"), list(sources()), ids=lambda value: str(value)[-40:])
def test_files_and_functions_are_short(unit: str, path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 350, f"{path}: too long for one sitting"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            start = first.end_lineno if documented else node.lineno
            assert node.end_lineno is not None
            assert start is not None
            assert node.end_lineno - start <= 50, f"{path}: {node.name}"


def test_nothing_draws_from_global_generators() -> None:
    """torch.manual_seed appears only inside fork_rng; numpy's global functions nowhere."""
    for _, path in sources():
        text = path.read_text()
        assert "np.random.seed" not in text
        assert text.count("torch.manual_seed") == text.count("torch.random.fork_rng")
