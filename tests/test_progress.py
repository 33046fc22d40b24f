"""What a run shows: moving lines in a terminal, one line each in a file."""

from __future__ import annotations

import time

import pytest

from cadiff.progress import Bar, counted, progress


def drawing() -> None:
    with counted("work", 30) as step:
        for _ in range(30):
            time.sleep(0.01)  # longer in all than a display waits between two lines
            step()


def training() -> None:
    with progress() as display:
        bar = Bar(display, "work", 30, samples=2)
        bar.begin(0)
        for done in range(1, 31):
            time.sleep(0.01)
            bar.show(done, 0.5)


@pytest.mark.parametrize("work", [drawing, training])
def test_a_file_gets_one_line_with_the_end(work, capfd):
    work()
    said, errors = capfd.readouterr()
    assert said.count("\n") == 1 and "\r" not in said and errors == ""
    assert said.startswith("work") and "30/30" in said and "/s" in said


def test_what_breaks_off_says_how_far_it_came(capfd):
    with pytest.raises(KeyboardInterrupt), counted("pictures", 5) as step:
        step()
        step()
        raise KeyboardInterrupt
    assert "2/5" in capfd.readouterr().out
