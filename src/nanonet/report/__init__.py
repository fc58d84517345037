"""Layer 7: a finished or unfinished run as one page for people. Torch only where it evaluates."""

from nanonet.report.page import check_out, write_report
from nanonet.report.run import Run, read_run

__all__ = ["Run", "check_out", "read_run", "write_report"]
