"""What makes the meta-teacher one: its transferable feature, which must not tell the domains apart, and its loss.

Source:
    Pan et al. 2021, arXiv:2012.01266, section 3.2, and its released code.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rlkd.data.task import Task
from rlkd.errors import TeacherError, one_line
from rlkd.losses import cross_entropy
from rlkd.models.inner_states import encoder_config
from rlkd.models.networks import load_config
from rlkd.models.students import seeded_weights
from rlkd.models.teachers import HfTeacher
from rlkd.systems.meta_kd.settings import MetaKdSettings
from rlkd.types import InnerStates, Wanted

CORRUPTION_FILE = "corruption.safetensors"


class DomainCorruption(nn.Module):
    """The transferable feature ``tanh(W (E_D(d) + E_C(x)) + b)`` of content E_C and domain d.

    Source:
        Pan et al. 2021, section 3.2; ``corrupt_dense`` of the released code.
    """

    def __init__(self, num_domains: int, width: int, *, seed: int = 0) -> None:
        """Draw the domain embedding (D, H) and the dense layer from ``seed``."""
        super().__init__()
        with seeded_weights(seed):
            self.domain_embedding = nn.Embedding(num_domains, width)
            self.dense = nn.Linear(width, width)
            nn.init.normal_(self.domain_embedding.weight, std=0.02)

    def forward(self, content: Tensor, domains: Tensor) -> Tensor:
        """The feature of contents (B, H) and domains (B,), shape (B, H), in (-1, 1)."""
        mixed: Tensor = torch.tanh(self.dense(self.domain_embedding(domains) + content))
        return mixed


def content(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the last hidden states (B, L, H) over real tokens behind the first, shape (B, H)."""
    kept = mask.clone()
    kept[torch.arange(len(mask)), mask.int().argmax(1)] = False  # the first real token, wherever padding stands
    kept = torch.where(kept.any(1, keepdim=True), kept, mask)
    return (hidden * kept.unsqueeze(-1)).sum(1) / kept.sum(1, keepdim=True)


def false_domains(domains: Tensor, order: Tensor | None = None) -> Tensor:
    """Wrong labels for the domain-corruption loss: the batch's own domains in another order, shape (B,).

    About one in D stays right by accident, as in the released code.

    Args:
        domains: Shape (B,).
        order: The permutation, shape (B,); None: drawn from torch's generator.
    """
    return domains[torch.randperm(len(domains), device=domains.device) if order is None else order]


class MetaTeacherObjective:
    """The meta-teacher's loss, ``t * (CE + gamma_1 * CE(false domain))``.

    An :class:`~rlkd.models.teacher_settings.Objective`.

    Source:
        Pan et al. 2021, section 3.2; the released code multiplies both terms by t.
    """

    def __init__(self, task: Task, scores: NDArray[np.floating[Any]], settings: MetaKdSettings, width: int) -> None:
        """Hold the scores t (N,) and make the modules for an encoder of that width, with ``num_layers`` layers."""
        config = load_config(settings.encoder)
        self._last = settings.num_layers or config.num_hidden_layers
        self.wanted = Wanted(hidden=(self._last,))
        self._settings = settings
        self._scores = torch.from_numpy(np.asarray(scores, dtype=np.float32))
        self._domains = torch.from_numpy(task.table.domains)
        self.corruption = DomainCorruption(len(task.domain_names), width, seed=settings.seed)
        with seeded_weights(settings.seed + 1):
            self._head = nn.Sequential(nn.Dropout(0.1), nn.Linear(width, len(task.domain_names)))
        self.module: nn.Module = nn.ModuleDict({"corruption": self.corruption, "head": self._head})

    def losses(self, logits: Tensor, inside: InnerStates, ids: Tensor, labels: Tensor) -> Tensor:
        """See :class:`~rlkd.models.teacher_settings.Objective`."""
        losses, rows = cross_entropy(logits, labels), ids.cpu()
        if self._settings.corruption_weight:
            domains = self._domains[rows].to(logits.device)
            feature = self.corruption(content(inside.hidden[self._last], inside.mask), domains)
            wrong = F.cross_entropy(self._head(feature), false_domains(domains), reduction="none")
            losses = losses + self._settings.corruption_weight * wrong
        return losses * self._scores[rows].to(logits.device) if self._settings.weighted else losses

    def described(self) -> Mapping[str, Any]:
        """See :class:`~rlkd.models.teacher_settings.Objective`."""
        mine = ("prototypes", "weighted", "corruption_weight")
        return {"objective": "meta_kd"} | {name: asdict(self._settings)[name] for name in mine}

    def save(self, directory: Path) -> None:
        """Write the module of the transferable feature; the head that names false domains has served."""
        directory.mkdir(parents=True, exist_ok=True)
        values = {name: value.cpu().contiguous() for name, value in self.corruption.state_dict().items()}
        save_file(values, directory / CORRUPTION_FILE)


def load_corruption(directory: Path, num_domains: int, width: int) -> DomainCorruption:
    """Read the meta-teacher's frozen module.

    Raises:
        TeacherError: There is none, or it was made for other domains or another encoder.
    """
    module, path = DomainCorruption(num_domains, width), directory / CORRUPTION_FILE
    try:
        module.load_state_dict(load_file(path))
    except Exception as error:  # safetensors and torch raise many kinds for damaged or foreign files
        raise TeacherError(
            f"expected a meta-teacher's module for {num_domains} domains of width {width} in {path}: "
            f"{one_line(error)}; train the meta-teacher with rlkd meta-kd"
        ) from error
    return module.eval().requires_grad_(False)


def corruption_of(directory: Path, teacher: HfTeacher, task: Task) -> DomainCorruption:
    """The meta-teacher's module, for its network and the task's domains; see :func:`load_corruption`."""
    return load_corruption(directory, len(task.domain_names), encoder_config(teacher.model).hidden_size)
