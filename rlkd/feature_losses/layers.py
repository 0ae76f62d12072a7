"""Which layer of a teacher each of a student learns from, and how far two layers are apart."""

from torch import Tensor

from rlkd.errors import StudentError


def hidden_layer_map(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """The teacher's state that each state 0 to L_S of the student learns from: state j from state ``j * L_T / L_S``.

    State 0 is the output of the embeddings.

    Raises:
        StudentError: L_S does not divide L_T.

    Source:
        Jiao et al. 2020 (TinyBERT), arXiv:1909.10351, section 3 (uniform map).
    """
    step = _layers_per_layer(teacher_layers, student_layers)
    return tuple(j * step for j in range(student_layers + 1))


def attention_layer_map(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """The teacher's layer, from 0, that each layer of the student learns attention from: the last of its block.

    Raises:
        StudentError: L_S does not divide L_T.

    Source:
        As :func:`hidden_layer_map`.
    """
    step = _layers_per_layer(teacher_layers, student_layers)
    return tuple(j * step + step - 1 for j in range(student_layers))


def _layers_per_layer(teacher_layers: int, student_layers: int) -> int:
    if student_layers < 1 or teacher_layers % student_layers:
        raise StudentError(
            f"feature losses map every layer of the student to one of the teacher: {student_layers} layers must "
            f"divide {teacher_layers}; choose another number of layers"
        )
    return teacher_layers // student_layers


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of hidden states over the real tokens of each instance.

    Args:
        student: Projected to the teacher's width, shape (B, L, H).
        teacher: Shape (B, L, H).
        mask: Shape (B, L), bool, at least one True a row.

    Returns:
        Shape (B,), float32.

    Source:
        TinyBERT, arXiv:1909.10351, equations 8 and 9. Deviation: padding does not count; the code averages over it.
    """
    error = (student.float() - teacher.float()).square().mean(-1)
    return (error * mask).sum(-1) / mask.sum(-1)


def attention_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of attention scores over heads and pairs of real tokens of each instance.

    Args:
        student: Scores before the softmax, shape (B, heads, L, L).
        teacher: Likewise.
        mask: Shape (B, L), bool, at least one True a row.

    Returns:
        Shape (B,), float32.

    Source:
        TinyBERT, arXiv:1909.10351, equation 7: unnormalised scores. Deviation: padding does not count.
    """
    error = (student.float() - teacher.float()).square().mean(1)
    pairs = mask.unsqueeze(-1) & mask.unsqueeze(-2)
    return (error * pairs).sum((-2, -1)) / pairs.sum((-2, -1))
