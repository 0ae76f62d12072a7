"""Tables for terminals and Markdown, and HTML pages that need nothing but themselves."""

from rlkd.report.benchmark import write_benchmark_report
from rlkd.report.benchmark_tables import brief_table, task_table
from rlkd.report.deploying import GLOSSARY, MIXTURE, Use, can_be_deployed, deploy_sentences, trust_sentences
from rlkd.report.document import plain
from rlkd.report.origins import untraced
from rlkd.report.page import write_report
from rlkd.report.tables import Row, format_table, markdown_table
from rlkd.report.wording import brief_sentences, failures, task_sentences

__all__ = [
    "GLOSSARY",
    "MIXTURE",
    "Row",
    "Use",
    "brief_sentences",
    "brief_table",
    "can_be_deployed",
    "deploy_sentences",
    "failures",
    "format_table",
    "markdown_table",
    "plain",
    "task_sentences",
    "task_table",
    "trust_sentences",
    "untraced",
    "write_benchmark_report",
    "write_report",
]
