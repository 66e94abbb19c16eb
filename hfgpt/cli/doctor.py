"""`hfgpt doctor`: what is installed here, and what is known to go wrong with it."""

import argparse
import json
from typing import Any


def add(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="versions, devices, compilers, the Hub, disks and limits here, and what is wrong with them",
        allow_abbrev=False,
        description="Examine this machine: one line for each thing, ok, note (worth knowing) or problem (something will not "
        "work), with what to do. Nothing is changed, and no token is shown. Exit status 1 if there is a problem.",
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from ..doctor import examine

    report = examine()
    print(json.dumps(report.as_dict(), ensure_ascii=False) if arguments.json else "\n".join(report.lines()))
    if report.problems:
        raise SystemExit(1)
