"""Repeated training of a reward model on the rankings so far, to show what the data can teach.

A thread of the server runs `textrl reward` in a separate process and stores the held-out accuracy,
which the lead's page plots.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from textrl.labels.lead import add_reward_check, count_rankings, last_reward_check
from textrl.labels.store import Store

FIRST_AT = 20
"""Number of rankings before the first check; each further check needs a quarter more."""
HELDOUT_SHARE = 0.25
SECONDS_BETWEEN_LOOKS = 5.0


class RewardChecker(threading.Thread):
    """A thread that trains and tests a reward model whenever there are enough new rankings."""

    def __init__(self, store: Store, model: str, keep: Path | None = None) -> None:
        """Make the thread.

        Args:
            store: The label database.
            model: The language model or encoder from which each reward model starts.
            keep: Folder in which the newest reward model is kept, named by its rankings; None
                keeps none.
        """
        super().__init__(name="reward-check", daemon=True)
        self._store, self._model, self._keep = store, model, keep
        self._stopped, self._lock = threading.Event(), threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def run(self) -> None:
        """Check until stopped."""
        checked = 0
        while not self._stopped.wait(SECONDS_BETWEEN_LOOKS):
            try:
                if self._keep is None:  # else a model is needed at once after a restart
                    checked = max(checked, last_reward_check(self._store))
                count = count_rankings(self._store)
                if count < max(FIRST_AT, 1.25 * checked):
                    continue
                checked = count
                accuracy = self._train(count)
                if accuracy is not None:
                    add_reward_check(self._store, count, accuracy)
            except SQLAlchemyError as error:  # a restart of the database, a lock held too long
                print(f"reward model check: {error}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """End the thread and the process that it runs."""
        self._stopped.set()
        with self._lock:
            if self._process is not None:
                self._process.terminate()
        self.join()

    def _train(self, rankings: int) -> float | None:
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "config.json"  # JSON is YAML; the URL may hold a password
            config.write_text(
                json.dumps(
                    {
                        "model": self._model,
                        "data": self._store.url,
                        "heldout_share": HELDOUT_SHARE,
                        "output_dir": f"{folder}/run",
                    }
                )
            )
            command = [sys.executable, "-m", "textrl", "reward", f"--config={config}"]
            with self._lock:
                if self._stopped.is_set():
                    return None
                self._process = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            output, errors = self._process.communicate()
            if self._keep is not None and self._process.returncode == 0:
                self._put_by(Path(folder, "run"), self._keep, rankings)
        found = re.search(r"heldout_accuracy: ([\d.]+)", output)
        if found is None and not self._stopped.is_set():
            reason = (errors.strip().splitlines() or ["no reason given"])[-1]
            print(f"reward model check: {reason}", file=sys.stderr, flush=True)
        return float(found.group(1)) if found else None

    @staticmethod
    def _put_by(run: Path, keep: Path, rankings: int) -> None:
        """Keep a model, whole at once, and the one before it, which may be being read."""
        copy = keep.parent / "coming"
        shutil.move(run, copy)
        copy.rename(keep / str(rankings))
        for old in sorted(keep.iterdir(), key=lambda path: int(path.name))[:-2]:
            shutil.rmtree(old)
