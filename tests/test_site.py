"""The documentation: its snippets run, its reference is complete, and its site builds."""

import importlib
import inspect
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from pages import FILE, NOT_RUN, ROOT, blocks_of, commands_of, pages, run_page
from torch import Tensor

from textrl.cli.parser import COMMANDS, make_parser
from textrl.envs.worlds.experts import EXPERTS
from textrl.task_ids import PROBES, TASKS

DOCS = ROOT / "docs"
OWN_TESTS = ("README.md", "docs/own_agent.md", "docs/rewards.md", "docs/runs.md", "docs/turns.md")
"""Pages that test_docs.py runs, with a look at what they print or learn."""
SLOW = ("docs/agent.md", "docs/chat_models.md", "docs/five_minutes.md", "docs/pipeline.md")
RUN = [
    pytest.param(page, marks=pytest.mark.slow) if page in SLOW else page
    for page in pages()
    if page not in OWN_TESTS and any(block.runs for block in blocks_of(ROOT / page))
]
PUBLIC = ("textrl.agents", "textrl.envs", "textrl.envs.sb3", "textrl.trainers", "textrl.losses")
DOCUMENTED = re.findall(
    r"^\.\. auto(\w+):: ([\w.]+)$",
    "\n".join(path.read_text() for path in sorted(DOCS.glob("reference/*.md"))),
    re.MULTILINE,
)


@pytest.mark.parametrize("page", RUN)
def test_the_snippets_of_a_page_run(page: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page)


def test_pages_with_a_test_of_their_own_have_one() -> None:
    tests = (ROOT / "tests/test_docs.py").read_text()
    for page in OWN_TESTS:
        assert re.search(rf'run_page\(\s*"{page}"', tests), page


@pytest.mark.parametrize("page", pages())
def test_what_is_not_run_says_why_and_has_real_options(page: str) -> None:
    _, known = make_parser()
    for block in blocks_of(ROOT / page):
        if block.note.startswith(NOT_RUN):
            assert len(block.note.removeprefix(NOT_RUN)) > 10, block.place
        assert block.language != "py", f"{block.place}: python, so that it is run"
        if block.language != "sh" or block.note.startswith(FILE):
            continue
        for words in commands_of(block):
            assert not block.runs or words[0] == "textrl", f"{block.place}: {words[0]} is not run"
            if words[0] != "textrl":
                continue
            assert words[1] in COMMANDS, f"{block.place}: textrl {words[1]}"
            given = [w[2:].partition("=")[0] for w in words if w.startswith("--")]
            unknown = set(given) - {*known[words[1]], "help", "print_config"}
            assert not unknown, f"{block.place}: textrl {words[1]} --{unknown.pop()}"


def thing(name: str) -> Any:
    """Return the object that a directive of the reference names."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def objects() -> list[tuple[str, Any]]:
    """Return the classes and functions of the reference, and the methods that are shown of them."""
    found: list[tuple[str, Any]] = []
    for kind, name in DOCUMENTED:
        if kind == "data":
            continue
        found.append((name, thing(name)))
        if inspect.isclass(thing(name)):
            for part, member in vars(thing(name)).items():
                shown = inspect.isfunction(member) or isinstance(
                    member, property | classmethod | staticmethod
                )
                if shown and not part.startswith("_"):
                    found.append((f"{name}.{part}", getattr(member, "__wrapped__", member)))
    return found


def test_every_public_name_is_in_the_reference() -> None:
    shown = {id(thing(name)) for _, name in DOCUMENTED}
    for module in PUBLIC:
        for name in importlib.import_module(module).__all__:
            assert id(thing(f"{module}.{name}")) in shown, f"{module}.{name}"


def test_every_name_that_the_documentation_imports_is_in_the_reference() -> None:
    shown = {id(thing(name)) for _, name in DOCUMENTED}
    texts = [path.read_text() for path in ROOT.glob("examples/*.py")]
    for page in pages():
        texts += [b.code for b in blocks_of(ROOT / page) if b.language == "python"]
    imported = re.findall(r"^ *from (textrl[\w.]*) import \(?([\w, \n]+)", "\n".join(texts), re.M)
    assert len(imported) > 20
    for module, names in imported:
        for name in re.findall(r"\w+", names.partition("\n\n")[0]):
            if not hasattr(importlib.import_module(module), name):
                continue  # a word of the line below
            assert id(thing(f"{module}.{name}")) in shown, f"{module}.{name}"


def test_every_name_of_the_reference_has_a_docstring_of_sentences() -> None:
    assert len(objects()) > 150
    for name, item in objects():
        text = inspect.getdoc(item) or ""
        summary = text.partition("\n\n")[0]
        assert text, f"{name} has no docstring"
        assert summary[0].isupper() or summary[0] in "`1", f"{name}: {summary}"
        assert summary.rstrip()[-1] in ".:", f"{name}: {summary}"


def tensors(item: Any) -> list[str]:
    """Return the arguments of a function that are tensors, the result as "return"."""
    try:
        hints = inspect.get_annotations(inspect.unwrap(item), eval_str=True)
    except (TypeError, NameError):
        return []
    return [name for name, hint in hints.items() if hint is Tensor or hint == (Tensor | None)]


def test_tensors_have_shapes_and_log_probs_have_units() -> None:
    seen, lacking = 0, list[str]()
    for name, item in objects():
        if not inspect.isfunction(item):
            continue
        found, text = tensors(item), inspect.getdoc(item) or ""
        if found:
            seen += 1
            shape = re.search(r"\[[A-Zn0-9*][\w *+.-]*\]|[Aa] scalar|any shape", text)
            lacking += [] if shape else [f"{name}: the shapes of {found}"]
            unit = re.search(r"\bnats?\b", text) or not re.search(r"log-?probs?\b|\bKL\b", text)
            lacking += [] if unit else [f"{name}: the unit"]
    assert lacking == []
    assert seen > 30


def test_each_task_has_a_recipe() -> None:
    for task in TASKS:
        (page,) = (
            path
            for path in DOCS.glob("recipes/*.md")
            if path.name != "index.md" and f"`{task}`" in path.read_text()
        )
        text = page.read_text()
        for heading in ("Train it", "The numbers to expect", "How far from them is a failure"):
            assert f"\n## {heading}\n" in text, page.name
        assert (page.name == "probes.md") == (task in PROBES)
        assert TASKS[task].world is None or TASKS[task].world in EXPERTS


def test_the_recipes_have_the_bars_and_numbers_of_the_benchmark() -> None:
    from turn_tasks import RECIPES

    turns = (DOCS / "turns.md").read_text()
    for name, recipe in RECIPES.items():
        (text,) = (
            t for p in DOCS.glob("recipes/*.md") if f"--tasks {name} " in (t := p.read_text())
        )
        assert f"ends below **{recipe.end_at_least:.2f}**" in text, name
        assert f"begins at {recipe.start_below:.2f} or above" in text, name
        numbers = re.search(r"^\| after PPO \| (.*) \|$", text, re.M)
        assert numbers is not None
        assert numbers[1] in turns or numbers[1] == "not measured yet", name


def test_every_metric_has_a_healthy_range() -> None:
    rows = re.findall(r"^\|(.*)\|$", (DOCS / "metrics.md").read_text(), re.M)
    assert len(rows) > 45
    assert [row for row in rows if row.count(" | ") != 2 and "---" not in row] == []


def test_the_messages_of_the_page_about_troubles_are_in_the_sources() -> None:
    text = (DOCS / "troubles.md").read_text()
    sources = "".join(
        path.read_text() for f in ("textrl", "envs", "agents") for path in (ROOT / f).rglob("*.py")
    )
    plain = re.sub(r'"\s+f?"', "", sources)  # strings over several lines
    messages = re.findall(r"^\| `([^`]+)` \|", text.partition("## Error messages")[2], re.M)
    assert len(messages) >= 15
    assert [message for message in messages if message not in plain] == []
    findings = set(re.findall(r"`([a-z]+_[a-z_]+)`", text.partition("## Error messages")[0]))
    known = set(re.findall(r'name="(\w+)"', sources)) | {"loss_rises", "loss_flat"}
    settings = {"kl_coef", "ent_coef", "critic_learning_rate", "missing_eos_penalty"}
    assert findings - known - settings == set()


class Page(HTMLParser):
    """What a page of the site loads, where it leads, and what in it can be led to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("index", "search", "next", "prev"):
            self.loaded.append(given.get("href", ""))
        elif "src" in given:
            self.loaded.append(given["src"])


@pytest.mark.slow
def test_the_site_builds_without_warnings_and_opens_offline(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-d", str(tmp_path / "trees"), str(DOCS), str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    site = (tmp_path / "site").resolve()
    found = {path: Page(path) for path in site.rglob("*.html")}
    assert len(found) > 50
    for path, page in found.items():
        assert [name for name in page.loaded if re.match(r"(https?:)?//", name)] == [], path.name
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = unquote(link).partition("#")
            target = (path.parent / name).resolve() if name else path
            assert target.exists(), f"{path.name}: {link}"
            if anchor and target in found:
                assert anchor in found[target].anchors, f"{path.name}: {link}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", style.read_text()), style.name
    options = (site / "reference/commands.html").read_text()
    assert all(f"textrl {name}" in options for name in COMMANDS)
