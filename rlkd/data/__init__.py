"""Tasks: loading them, the embedded ones, and turning instances into model inputs."""

from typing import TYPE_CHECKING, Any

from rlkd.data.collection import TaskCollection, keep_domains, keep_fraction, leave_domain_out
from rlkd.data.embedded import EMBEDDED, digits, docstrings
from rlkd.data.loading import load_task
from rlkd.data.planted import planted, planted_logits
from rlkd.data.splitting import Fractions, split_task
from rlkd.data.task import SPLITS, UNLABELLED, Table, Task

if TYPE_CHECKING:
    from rlkd.data.batching import Inputs, LengthBucketSampler, TokenInputs, VectorInputs, bucketed_order, encode_inputs

__all__ = [
    "EMBEDDED",
    "SPLITS",
    "UNLABELLED",
    "Fractions",
    "Inputs",
    "LengthBucketSampler",
    "Table",
    "Task",
    "TaskCollection",
    "TokenInputs",
    "VectorInputs",
    "bucketed_order",
    "digits",
    "docstrings",
    "encode_inputs",
    "keep_domains",
    "keep_fraction",
    "leave_domain_out",
    "load_task",
    "planted",
    "planted_logits",
    "split_task",
]


def __getattr__(name: str) -> Any:
    """Import batching on first use: it needs torch, and a task alone does not."""
    if name in __all__:
        from rlkd.data import batching

        return getattr(batching, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
