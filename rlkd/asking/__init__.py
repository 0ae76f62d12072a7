"""Ask before you pay: which teacher to ask about which instance, within a budget."""

from rlkd.asking.bank import Answers, OneRun, RecordedTeachers, TeacherBank
from rlkd.asking.base import Strategy
from rlkd.asking.pool import Pool

__all__ = ["Answers", "OneRun", "Pool", "RecordedTeachers", "Strategy", "TeacherBank"]
