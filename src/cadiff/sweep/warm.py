"""Cells as forks of one process, `cadiff.sweep.serve`, that has made their imports: those take seconds, a fork milliseconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def can_fork() -> bool:
    """Whether a process of this system may fork after it has imported torch: libraries of macOS do not stand it."""
    return sys.platform == "linux"


class Warm:
    """The server, as its client sees it: one question at a time, each with its answer."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        """Starts it; its forks have the thread pools of `environment`, and `log` receives what it complains about."""
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cadiff.sweep.serve"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=dict(environment),
                start_new_session=True,
                text=True,
            )
        self._number = 0

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> ForkedRun:
        """A fork that does what `command`, a call of `cadiff.sweep.work`, would do.

        Raises:
            EOFError: the server is gone.
        """
        what = {"command": list(command), "environment": dict(environment), "log": str(log)}
        return ForkedRun(self, self.ask(what))

    def ask(self, what: Mapping[str, Any]) -> Any:
        """The answer to a question: see `cadiff.sweep.serve`.

        Raises:
            EOFError: the server is gone.
        """
        questions, answers = self.process.stdin, self.process.stdout
        assert questions is not None and answers is not None
        self._number += 1
        with suppress(BrokenPipeError):
            questions.write(json.dumps({"number": self._number, **what}) + "\n")
            questions.flush()
        for line in answers:  # Ctrl-C may have left an answer that nobody read
            number, answer = json.loads(line)
            if number == self._number:
                return answer
        raise EOFError

    def close(self) -> None:
        """Ends it; forks that are still there end themselves."""
        self.process.kill()
        self.process.communicate()


class ForkedRun:
    """A fork of the server."""

    def __init__(self, warm: Warm, pid: int) -> None:
        self.warm, self.pid = warm, pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """As `Running`."""
        if self._code is None:
            try:
                self._code = self.warm.ask({"pid": self.pid})
            except EOFError:  # its forks end with it
                self._code = -signal.SIGKILL
        return self._code

    def stop(self) -> None:
        """Ends it and what it started."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGTERM)
            while self.poll() is None:
                time.sleep(0.02)
