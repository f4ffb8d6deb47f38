"""What a person reads of a run: its history on disk, tables for terminal and Markdown, and one plot."""

from drgrpo.report.history import read_history, write_history
from drgrpo.report.plot import plot_run
from drgrpo.report.tables import markdown_table, rich_table, samples_table, summary_table
from drgrpo.report.untrusted import clean, code_span

__all__ = [
    "clean",
    "code_span",
    "markdown_table",
    "plot_run",
    "read_history",
    "rich_table",
    "samples_table",
    "summary_table",
    "write_history",
]
