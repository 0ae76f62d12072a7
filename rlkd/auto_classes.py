"""Transformers' Auto classes know our networks once rlkd is imported, before transformers or after, at no cost.

``import rlkd`` brings neither torch nor transformers. So our model types are registered when ``AutoConfig`` comes to
be, with stand-ins that import the real ones where a configuration of ours is asked for.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

HOME = "transformers.models.auto.configuration_auto"
"""Where ``AutoConfig`` is."""
OURS = {
    "rlkd-bilstm": "rlkd.models.architectures.BiLstmConfig",
    "rlkd-cnn": "rlkd.models.architectures.CnnConfig",
    "rlkd-mlp": "rlkd.models.architectures.MlpConfig",
    "rlkd-multi-task": "rlkd.models.multi_task.MultiTaskConfig",
    "rlkd-pair-bilstm": "rlkd.models.pair_encoder.PairBiLstmConfig",
}
"""Model types, and their configurations; with the modules of these the networks come."""


def make_known() -> None:
    """Register our model types with ``AutoConfig``: now where that is there, else as soon as it is."""
    if HOME in sys.modules:
        _register(sys.modules[HOME])
    elif not any(isinstance(finder, _Hook) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Hook())


class _Later(type):
    """A class that is another one, imported when somebody asks what it is."""

    path: str

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._real()(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(cls._real(), name)

    def _real(cls) -> Any:
        module, _, name = cls.path.rpartition(".")
        return getattr(import_module(module), name)  # whose import registers it in place of this


def _register(auto: ModuleType) -> None:
    for kind, path in OURS.items():
        if kind not in auto.CONFIG_MAPPING:
            auto.AutoConfig.register(kind, _Later(path.rpartition(".")[2], (), {"path": path, "model_type": kind}))


class _Hook(MetaPathFinder):
    """Sees the module of ``AutoConfig`` being imported, once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module as others find it, with our registration behind its own code."""
        if fullname != HOME:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            _register(module)

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]  # one loader a module
        return spec
