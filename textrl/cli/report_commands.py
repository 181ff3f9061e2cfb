"""The functions of `textrl doctor` and `textrl report`, which read runs and train nothing."""

from collections.abc import Callable
from pathlib import Path

from textrl.cli.report_options import DoctorConfig, ReportConfig
from textrl.errors import needing

FILE = "report.html"


def run_doctor(config: DoctorConfig) -> None:
    """Say what is wrong with runs, or with the machine; the exit status is 1 for a finding."""
    from textrl.doctor.diagnose import diagnose, in_words
    from textrl.doctor.machine import look
    from textrl.doctor.records import read_records

    if not config.runs:
        facts, warnings = look()
        print("\n".join([*facts, *(f"warning: {warning}" for warning in warnings)]))
        raise SystemExit(1 if warnings else 0)
    sick = False
    for folder in config.runs:
        for record in read_records(folder):
            findings = diagnose(record)
            print(in_words(record, findings, str(record.folder)), flush=True)
            sick = sick or bool(findings)
    raise SystemExit(1 if sick else 0)


def run_report(config: ReportConfig) -> None:
    """Write one page about runs."""
    with needing("report"):
        from textrl.report import Report
    runs = config.runs or []
    target = config.output or (Path(runs[0]) / FILE if len(runs) == 1 else FILE)
    print(f"written to {Report(runs).save(target)}")


RUN: dict[str, Callable[..., None]] = {"doctor": run_doctor, "report": run_report}
