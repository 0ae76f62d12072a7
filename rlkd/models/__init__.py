"""Teachers and students; importing this package registers our students with transformers' Auto classes.

``import rlkd`` is enough where one of them is loaded, see :mod:`rlkd.auto_classes`.
"""

from rlkd.models.arrays import ArrayTeacher, FileArrayTeacher
from rlkd.models.endpoints import Endpoint
from rlkd.models.estimators import SklearnTeacher
from rlkd.models.labels import align_labels, aligned_logits
from rlkd.models.multi_task import MultiTaskConfig, MultiTaskForSequenceClassification
from rlkd.models.multi_task_loading import load_multi_task
from rlkd.models.served import ServedTeacher
from rlkd.models.specialists import specialist_groups
from rlkd.models.students import STUDENTS, last_linear, load_student
from rlkd.models.teacher_files import load_teachers, save_hf_teacher, save_sklearn_teacher
from rlkd.models.teachers import CallableTeacher, HfTeacher, Teacher
from rlkd.models.tokenizer import train_tokenizer
from rlkd.models.training import train_teachers

__all__ = [
    "STUDENTS",
    "ArrayTeacher",
    "CallableTeacher",
    "Endpoint",
    "FileArrayTeacher",
    "HfTeacher",
    "MultiTaskConfig",
    "MultiTaskForSequenceClassification",
    "ServedTeacher",
    "SklearnTeacher",
    "Teacher",
    "align_labels",
    "aligned_logits",
    "last_linear",
    "load_multi_task",
    "load_student",
    "load_teachers",
    "save_hf_teacher",
    "save_sklearn_teacher",
    "specialist_groups",
    "train_teachers",
    "train_tokenizer",
]
