"""Tables for terminals and Markdown, and HTML pages that need nothing but themselves."""

from rlkd.report.benchmark import write_benchmark_report
from rlkd.report.comparison import brief_comparison, full_comparison
from rlkd.report.page import write_report
from rlkd.report.tables import Row, format_table, markdown_table

__all__ = [
    "Row",
    "brief_comparison",
    "format_table",
    "full_comparison",
    "markdown_table",
    "write_benchmark_report",
    "write_report",
]
