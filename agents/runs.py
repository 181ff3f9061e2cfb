"""An agent's run in a folder: logged, saved on its way, and saved whole when it is stopped.

The command line and the demo train their agents here.
"""

from functools import partial
from pathlib import Path

from textrl.agents.callbacks import HeldoutEvaluation
from textrl.agents.text_agent import TextAgent
from textrl.checkpoint import Checkpoints, logged_by, write_finished
from textrl.config import TrackerName
from textrl.durable import save_files
from textrl.metrics import open_logger
from textrl.stopping import uninterrupted
from textrl.trackers import trackers
from textrl.updater import Numbers


def saved_agent(folder: Path) -> Path | None:
    """Return the folder of a run's newest save, or of its finished agent; None where is neither.

    Raises:
        UserError: There are saves, and none of them is whole.
    """
    newest = Checkpoints(folder).newest()
    if newest is None and (folder / "agent.json").exists():
        return folder
    return newest


def train_in(
    folder: Path,
    agent: TextAgent,
    total_timesteps: int,
    checkpoints: Checkpoints,
    *,
    callback: HeldoutEvaluation | None = None,
    resumed_from: Path | None = None,
    log_table: bool = False,
    track: TrackerName | None = None,
) -> None:
    """Train an agent up to a number of tokens; errors and Ctrl+C leave a save to resume from.

    Args:
        folder: of the run.
        agent: A new agent, or the one of a save of the run.
        total_timesteps: Number of tokens of the whole run, those before the save included.
        checkpoints: The saves of the run.
        callback: Measurements on held-out prompts.
        resumed_from: The folder of that save; the metrics are cut to it.
        log_table: Whether SB3's table of the metrics is printed as well.
        track: A tracker that gets the metrics too.
    """

    def save(*, is_last: bool = False) -> None:
        with uninterrupted():
            checkpoints.save(agent.iteration, agent.write, is_last=is_last)

    def save_now_and_then(numbers: Numbers) -> None:
        checkpoints.check_metric(numbers)
        if checkpoints.due(agent.iteration):
            save()

    rows, more = logged_by(resumed_from) if resumed_from else b"", trackers(track, folder)
    with open_logger(folder, table=log_table, begin_with=rows, more=more) as agent.logger:
        try:
            left = max(0, total_timesteps - agent.env_steps)
            agent.learn(left, callback, progress_bar=True, after_iteration=save_now_and_then)
            if checkpoints.best_by is not None:  # the end may be the best
                save(is_last=True)
        except BaseException as error:  # Ctrl+C and SIGTERM, a reward that fails
            if agent.whole and agent.iteration:
                save()
                error.add_note(f"the run is saved after iteration {agent.iteration}")
            elif checkpoints.exist():
                error.add_note("the run goes on from its last save; the iteration is lost")
            raise
    with uninterrupted():
        save_files(folder, partial(write_finished, folder, agent.write))
        checkpoints.clear()
