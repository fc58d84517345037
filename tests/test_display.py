import io
from dataclasses import replace

import pytest
from rich.console import Console

from nanonet.training.display import ConsoleDisplay, LoggingDisplay, SilentDisplay
from nanonet.training.observers import LogRow

ROW = LogRow(
    5,
    {"teacher.supervised": 0.5, "student1.supervised": 0.25, "student1.mutual": 0.125},
    {"teacher.encoder": 0.005, "teacher.head": 0.01, "student1.head": 0.02},
    2.0,
    1234.0,
)


def make_display(terminal: bool, quiet: bool = False):
    display = ConsoleDisplay(quiet)
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200, highlight=False)
    display._console = display._progress.live.console = console
    return display, out


def play(display) -> None:
    display.say("[hello]")
    display.start(0, 10)
    display.on_step(5)
    display.on_log(ROW)
    display.warn("odd [x]")
    display.stop()


def test_plain_lines_elsewhere():
    display, out = make_display(terminal=False)
    play(display)
    display.on_log(replace(ROW, step=7, seconds=ROW.seconds + 1.0))
    hello, line, warning, later = out.getvalue().splitlines()
    assert (hello, warning) == ("[hello]", "warning: odd [x]")
    for part in ("step 5/10", "mutual 0.1250", "1,234 tokens/s"):
        assert part in line
    assert "left" not in line  # the pace is not known yet
    assert "2 s left" in later  # half a second a step, three steps to go: 1.5


def test_a_live_table_on_a_terminal():
    display, out = make_display(terminal=True)
    play(display)
    text = out.getvalue()
    for part in ("supervised", "mutual", "0.1250", "5.00e-03", "2.00e-02", "1,234 tokens/s"):
        assert part in text


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_shows_warnings_only(terminal):
    display, out = make_display(terminal, quiet=True)
    play(display)
    assert "warning: odd [x]" in out.getvalue()
    assert out.getvalue().count("\n") == 1
    assert "hello" not in out.getvalue()


def test_messages_are_kept_in_the_log(tmp_path):
    display = LoggingDisplay(SilentDisplay(), tmp_path / "log.txt")
    play(display)
    assert (tmp_path / "log.txt").read_text() == "[hello]\nwarning: odd [x]\n"
