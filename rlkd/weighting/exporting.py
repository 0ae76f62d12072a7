"""A policy as a graph: from teachers' logits to weights, by ``torch.export`` or as ONNX, to run without rlkd."""

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlkd.errors import PolicyError
from rlkd.features import ObservationConfig
from rlkd.records.files import write_atomic
from rlkd.types import State

INPUTS = ("teacher_logits", "teacher_mask", "sureness")
OUTPUT = "weights"
EXAMPLE = (5, 3, 7)
"""Rows, teachers and classes that a graph is traced with. None of them is 1 or 2, which graphs may take for fixed."""
ONNX_NEEDS = ("onnx", "onnxscript")


def export_graph(
    policy: nn.Module, weigh: Callable[[State], Tensor], observation: ObservationConfig, path: Path
) -> Path:
    """Write a policy as a graph: a path that ends in ``.pt2`` by :mod:`torch.export`, one in ``.onnx`` as ONNX.

    Its inputs are ``teacher_logits`` (B, K, C), float32; ``teacher_mask`` (B, K), bool, False where a teacher is
    absent, whose logits may be anything; and, where the policy sees teachers as relative to it, ``sureness`` (K,),
    float32, see :func:`rlkd.usual_sureness`. Its output is ``weights`` (B, K), float32. B and K may be anything from 1
    on, C from 2 on; instances on more axes than one are to be made one.

    ``torch.export.load(path).module()`` runs the one, ONNX Runtime the other. The first says what the policy says. So
    does the second of nine in ten instances to 1e-5, of 99 in 100 to 1e-3; but single precision cannot tell a
    probability of 0.99999 from its neighbours, another library rounds in other places, and the log odds of teachers
    that are so sure follow that rounding: their weights can differ by a hundredth, as on a processor of another kind.

    Args:
        policy: Its parameters become the graph's.
        weigh: From a state to weights (B, K).
        observation: What the policy sees.
        path: Of the file, whose folder exists.

    Returns:
        The path.

    Raises:
        PolicyError: The policy observes more than logits, the path ends in something else, or ONNX is not installed.
    """
    unknown = observation.requires - {"sureness"}
    if unknown:
        raise PolicyError(
            f"a graph reads teachers' logits alone, this policy observes {', '.join(sorted(unknown))} too; export one "
            "with a portable observation, or call policy.weights(rlkd.State(...))"
        )
    write = {".pt2": _write_pt2, ".onnx": _write_onnx}.get(path.suffix)
    if write is None:
        raise PolicyError(f"expected a path that ends in .pt2 (torch.export) or .onnx, got {str(path)!r}; rename it")
    graph = _Graph(policy, weigh).eval()
    example = (
        torch.arange(105.0).sin().view(EXAMPLE),
        torch.ones(EXAMPLE[:2], dtype=torch.bool),
        torch.ones(EXAMPLE[1]),
    )
    batch, sets, labels = (torch.export.Dim(name, min=low) for name, low in (("B", 1), ("K", 1), ("C", 2)))
    shapes = ({0: batch, 1: sets, 2: labels}, {0: batch, 1: sets}, {0: sets})
    count = len(INPUTS) if observation.relative else len(INPUTS) - 1
    with torch.no_grad():
        write(graph, example[:count], (shapes[:count],), path)
    return path


class _Graph(nn.Module):
    def __init__(self, policy: nn.Module, weigh: Callable[[State], Tensor]) -> None:
        super().__init__()
        self.policy, self._weigh = policy, weigh

    def forward(self, *inputs: Tensor) -> Tensor:
        logits, mask, *sureness = inputs
        return self._weigh(State(teacher_logits=logits, teacher_mask=mask, sureness=sureness[0] if sureness else None))


Shapes = tuple[tuple[dict[int, Any], ...]]
"""Names of the axes of every input, of all of them: ``forward`` has one argument."""


def _write_pt2(graph: nn.Module, example: tuple[Tensor, ...], shapes: Shapes, path: Path) -> None:
    program = torch.export.export(graph, example, dynamic_shapes=shapes)
    write_atomic(path, lambda file: torch.export.save(program, file))


def _write_onnx(graph: nn.Module, example: tuple[Tensor, ...], shapes: Shapes, path: Path) -> None:
    missing = [name for name in ONNX_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise PolicyError(f"export to ONNX needs {' and '.join(missing)}; pip install 'rlkd[onnx]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, of its own parts
        program = torch.onnx.export(
            graph,
            example,
            dynamic_shapes=shapes,
            input_names=INPUTS[: len(example)],
            output_names=[OUTPUT],
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    data = program.model_proto.SerializeToString()
    write_atomic(path, lambda file: file.write(data))
