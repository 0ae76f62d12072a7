"""Kinds of task: what is taught of a batch, what a weighting sees of it, and the loss. A new kind is one class.

Weightings know one kind, the choice of one of C classes by one instance. Every other kind shows them its batch as such
choices on the leading axes of a :class:`~rlkd.types.State`, so that none of them knows of it; what cannot be shown so
is refused by name.
"""

from collections.abc import Mapping

from torch import Tensor

from rlkd.errors import ConfigError
from rlkd.kinds.base import Kind, Measured, Positions, as_measured, class_losses
from rlkd.kinds.regression import Regression
from rlkd.kinds.several_labels import MultiLabelClassification, by_label
from rlkd.kinds.tokens import CausalTokens, TokenClassification

__all__ = [
    "PROBLEM_TYPES",
    "CausalTokens",
    "Kind",
    "Measured",
    "MultiLabelClassification",
    "Positions",
    "Regression",
    "TokenClassification",
    "as_measured",
    "by_label",
    "class_losses",
    "kind_of_instances",
]

PROBLEM_TYPES: Mapping[str, type[Kind]] = {
    "single_label_classification": Kind,
    "multi_label_classification": MultiLabelClassification,
    "regression": Regression,
}
"""What transformers calls the kinds of instances (``config.problem_type``)."""


def kind_of_instances(problem_type: str | None, outputs: int, labels: Tensor | None) -> type[Kind]:
    """The kind of task of instances, as transformers tells it.

    Args:
        problem_type: What is said of it; None: it follows from the rest.
        outputs: Of the student.
        labels: Of a batch, if there are any.

    Raises:
        ConfigError: There is no such problem type, or labels do not fit the outputs.
    """
    if problem_type is not None:
        if problem_type not in PROBLEM_TYPES:
            raise ConfigError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, got {problem_type!r}; mend it")
        return PROBLEM_TYPES[problem_type]
    if outputs == 1:
        return Regression
    if labels is None or not labels.is_floating_point():
        return Kind
    if labels.ndim < 2 or labels.shape[-1] != outputs:
        raise ConfigError(
            f"labels are floats of shape {tuple(labels.shape)}, and the student has {outputs} outputs: expected "
            f"integers for one of {outputs} classes, floats (B, {outputs}) for {outputs} labels, or num_labels=1 for a "
            "regression; convert the labels, or set num_labels"
        )
    return MultiLabelClassification
