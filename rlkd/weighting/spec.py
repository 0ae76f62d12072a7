"""A weighting's name, parsed once: users write a string, what is passed on is an object."""

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rlkd import plugins
from rlkd.errors import WeightingError, nearest, one_line, unknown_name
from rlkd.weighting.base import WeightingBuilder
from rlkd.weighting.controls import PolicyMean, PolicyShuffle
from rlkd.weighting.fitted import CalibratedUniform, LrDev, LrTrain
from rlkd.weighting.fixed import BestTeacher, Fixed, Labels, RandomTeacher, Uniform
from rlkd.weighting.gate import Gate
from rlkd.weighting.gradient import AekdBatchMean, AekdFlat, Govern
from rlkd.weighting.heuristic import (
    Agreement,
    BestPerInstance,
    CaMkd,
    CrossEntropy,
    Ebkd,
    Entropy,
    MaxProbability,
    MtBert,
    MtBertRaw,
    Oracle,
)
from rlkd.weighting.learned import Policy
from rlkd.weighting.online import Hedge
from rlkd.weighting.policy_files import AUTO, saved_identity
from rlkd.weighting.router import Router
from rlkd.weighting.shipped import Auto

WEIGHTINGS: dict[str, WeightingBuilder] = {
    "uniform": Uniform,
    "labels": Labels,
    "fixed": Fixed,
    "random_teacher": RandomTeacher,
    "best_teacher": BestTeacher,
    "lr_train": LrTrain,
    "lr_dev": LrDev,
    "calibrated_uniform": CalibratedUniform,
    "entropy": Entropy,
    "ebkd": Ebkd,
    "max_probability": MaxProbability,
    "agreement": Agreement,
    "aekd_batch_mean": AekdBatchMean,
    "aekd_flat": AekdFlat,
    "govern": Govern,
    "cross_entropy": CrossEntropy,
    "ca_mkd": CaMkd,
    "mt_bert": MtBert,
    "mt_bert_raw": MtBertRaw,
    "best_per_instance": BestPerInstance,
    "hedge": Hedge,
    "gate": Gate,
    "oracle": Oracle,
    "router": Router,
    AUTO: Auto,
    "policy": Policy,
    "policy_mean": PolicyMean,
    "policy_shuffle": PolicyShuffle,
}
"""Every weighting of the core by name; published systems add theirs, ``"package.module:Name"`` loads a user's own."""
SHORTENED = ("policy", "policy_mean", "policy_shuffle", AUTO)
"""Names that tell a weighting of ours without the path of its policy, where there is one of them."""


def weighting_names() -> tuple[str, ...]:
    """Names of all weightings, those of published systems too."""
    return (*WEIGHTINGS, *plugins.registered("weightings"))


def named_weighting(name: str) -> WeightingBuilder:
    """The weighting of a name, one of :func:`weighting_names`."""
    found: WeightingBuilder = WEIGHTINGS[name] if name in WEIGHTINGS else plugins.load("weightings", name)
    return found


@dataclass(frozen=True)
class WeightingSpec:
    """Which weighting is meant, and what it is built from; :meth:`parse` reads it.

    Three forms are known: ``name[:argument]`` with a name of the registry, ``package.module:Name`` for a user's own
    class, and the folder of a policy alone, which stands for ``policy:FOLDER``.
    """

    text: str
    """As it was written."""
    name: str
    """In the registry; of a user's own ``package.module:Name``."""
    argument: str | None = None
    """What the builder is given; a learned weighting is read from the folder of this name."""

    @classmethod
    def parse(cls, text: str) -> "WeightingSpec":
        """Read a weighting and look its name up; touches no data, so it is called before long work.

        Raises:
            UnknownNameError: There is no such weighting.
            WeightingError: A user's module has no such class.
        """
        name, _, argument = text.partition(":")
        if text == AUTO:
            return cls(text, text, AUTO)
        if name in weighting_names():
            return cls(text, name, argument or None)
        if argument and name.replace(".", "").isidentifier():
            _imported(text)
            return cls(text, text)
        if Path(text).is_dir():
            return cls(text, "policy", text)
        raise unknown_name("weighting", text, weighting_names())

    @property
    def builder(self) -> WeightingBuilder:
        """The class that makes it."""
        return named_weighting(self.name) if self.name in weighting_names() else _imported(self.name)

    def learned(self) -> str | None:
        """Names what it reads from a folder by content: another policy in the same folder is another weighting.

        Returns:
            64 hexadecimal digits, see :func:`~rlkd.weighting.policy_files.saved_identity`; None where it reads no
            weights.
        """
        return None if self.argument is None else saved_identity(self.argument)

    def identity(self) -> str:
        """What it is: where learned weights lie is no part of it, their content is."""
        learned = self.learned()
        return self.text if learned is None else f"{self.name}:{learned}"

    def short_name(self, everybody: Iterable["WeightingSpec"]) -> str:
        """What tables call it: a policy's name without the path, if nobody else of them (itself included) has it.

        The policy that is shipped keeps its own name, and takes nobody else's.
        """
        others = [other.name for other in everybody if other.argument != AUTO or other.name == AUTO]
        alone = others.count(self.name) == 1
        return self.name if alone and self.name in SHORTENED and self.argument != AUTO else self.text


def _imported(text: str) -> WeightingBuilder:
    """A user's own class, by ``package.module:Name``."""
    (module, _, name), names = text.partition(":"), sorted(weighting_names())
    try:
        loaded: WeightingBuilder = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise WeightingError(
            f"weighting {text!r} could not be imported: {one_line(error)}; {nearest(module, names)}name one of "
            f"{', '.join(names)}, or put your module on the Python path"
        ) from error
    if not (hasattr(loaded, "build") and hasattr(loaded, "weights")):
        raise WeightingError(f"weighting {text!r} needs the methods build and weights, see rlkd.weighting.base")
    return loaded
