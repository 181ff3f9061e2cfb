"""The snippets of the documentation, read from its pages and run as a reader would run them.

`python tests/pages.py docs/kl.md ...` runs pages by hand, each in a folder of its own.
"""

import contextlib
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parent.parent
FENCE = re.compile(
    r"^(?:<!-- (?P<note>[^\n]*?) -->\n+)?```(?P<language>\S*)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
NOT_RUN = "not run: "
FILE = "file: "
STOPPED = "stopped by Ctrl+C after two iterations"
FINDS = "exit status 1"
ALONE = ("README.md", "docs/turns.md")
"""Pages each of whose blocks of Python can be run without those before it."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    note: str
    """The comment on the line before it: what the reader does not have to see."""
    language: str
    code: str

    @property
    def runs(self) -> bool:
        """Whether it is run as it stands."""
        known = self.language in ("python", "sh") or self.note.startswith(FILE)
        return known and not self.note.startswith(NOT_RUN)

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Return the pages with snippets, relative to the checkout."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [str(path.relative_to(ROOT)) for path in found if blocks_of(path)]


def blocks_of(path: Path) -> list[Block]:
    """Return the blocks of a page that are Python, commands or files."""
    text = path.read_text()
    name = str(path.relative_to(ROOT))
    blocks = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        block = Block(name, line, match["note"] or "", match["language"], match["code"])
        if block.language in ("python", "py", "sh") or block.note.startswith(FILE):
            blocks.append(block)
    return blocks


def commands_of(block: Block) -> list[list[str]]:
    """Return the commands of a block of the shell, each as its words, without comments."""
    lines = block.code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run_page(page: str, change: Callable[[str], str] = str) -> list[dict[str, Any]]:
    """Run the blocks of a page, in the current folder; return the names of each one of Python.

    `change` may put another text in place of a block's code.
    """
    folder, known = Path.cwd().resolve(), {*sys.modules}
    sys.path.insert(0, str(folder))  # as a script in that folder has it
    try:
        return _run_blocks(page, change)
    finally:
        sys.path.remove(str(folder))
        for name in {*sys.modules} - known:  # the next page may have a file of the same name
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]


def _run_blocks(page: str, change: Callable[[str], str]) -> list[dict[str, Any]]:
    names: dict[str, Any] = {}
    made = []
    for block in blocks_of(ROOT / page):
        if not block.runs:
            continue
        if block.note.startswith(FILE):
            target = Path(block.note.removeprefix(FILE))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.code)
        elif block.language == "python":
            code = compile("\n" * (block.line - 1) + change(block.code), page, "exec")
            names = {} if page in ALONE else names
            exec(code, names)
            made.append(names)
        else:
            for words in commands_of(block):
                run_command(words, block)
    return made


def run_command(words: list[str], block: Block) -> None:
    """Run a command of textrl in this process; fail unless it ends as the page says."""
    from textrl.cli import main

    assert words[0] == "textrl", f"{block.place}: {words[0]} is not run; say so above the block"
    expected = {FINDS: 1, STOPPED: 130}.get(block.note, 0)
    stop = stopping(words) if block.note == STOPPED else contextlib.nullcontext()
    with stop:
        try:
            main(words[1:])
            status: Any = 0
        except SystemExit as end:
            status = end.code or 0
    assert status == expected, f"{block.place}: {shlex.join(words)} ended with status {status}"


@contextlib.contextmanager
def stopping(words: list[str]) -> Iterator[None]:
    """Press Ctrl+C once the run of a command has logged two rows."""
    progress = Path(words[words.index("--output_dir") + 1]) / "progress.json"
    over = threading.Event()

    def press() -> None:
        while not over.is_set():
            if progress.exists() and progress.read_text().count("\n") >= 2:
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def by_hand() -> None:
    """Run the pages that are named."""
    for name in sys.argv[1:]:
        began = time.perf_counter()
        with TemporaryDirectory() as folder, contextlib.chdir(folder):
            run_page(name)
        print(f"== {name}: {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    by_hand()
