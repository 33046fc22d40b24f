"""The process that cells are forked from: `python -m cadiff.sweep.serve`, one JSON line a question and one an answer.

    {"number": 1, "command": [..], "environment": {..}, "log": ".."}  ->  [1, process id]
    {"number": 2, "pid": 4711}  ->  [2, exit status, null while it runs]

It imports what cells import and does nothing else: no GPU is touched and no parallel region of OpenMP is entered before a fork,
since neither survives it. OpenBLAS, whose threads start at import, ends them before a fork by itself and starts others after it.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import suppress
from importlib import import_module
from typing import Any

from cadiff.sweep import work

PRELOAD = (
    "cadiff.data.simulate",
    "cadiff.contrast.stage",
    "cadiff.attend.stage",
    "cadiff.diffuse.stage",
    "cadiff.diffuse.reconstruct",
    "cadiff.baselines.stage",
    "cadiff.evaluate.stage",
    "cadiff.report",
)
"""What cells import; anything else they import themselves."""


def main() -> int:
    """Answers until its client is gone; in a fork, the exit status of the cell."""
    server, questions, answers = os.getpid(), os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # libraries may print
    work.quieten()
    for name in PRELOAD:
        with suppress(ImportError):  # a cell that needs it will say so
            import_module(name)
    codes: dict[int, int] = {}  # of forks that have ended: an answer that Ctrl-C swallowed is asked for again
    for line in questions:
        asked = json.loads(line)
        if "pid" in asked:
            ended, status = (0, 0) if asked["pid"] in codes else os.waitpid(asked["pid"], os.WNOHANG)
            if ended:
                codes[ended] = os.waitstatus_to_exitcode(status)
            answer = codes.get(asked["pid"])
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 counts OpenBLAS's threads
                answer = os.fork()
            if answer == 0:
                questions.close()
                answers.close()
                return _become(asked, server)
            with suppress(OSError):  # it has done so itself
                os.setpgid(answer, answer)
            codes.pop(answer, None)  # of an earlier one, whose number the system gives again
        answers.write(json.dumps([asked["number"], answer]) + "\n")
        answers.flush()
    return 0


def _become(asked: dict[str, Any], server: int) -> int:
    """The rest of a fork's life."""
    os.setpgid(0, 0)
    log = os.open(asked["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(asked["environment"])
    command = [*asked["command"], "--watch", str(server)]
    import torch

    if torch.cuda._is_in_bad_fork():  # some library has touched a GPU while it was imported
        os.execv(command[0], command)
    sys.argv = [work.__file__, *command[3:]]
    return work.main(command[3:])


if __name__ == "__main__":
    sys.exit(main())
