"""The exact state of an agent on disk, without a pickle: tensors as safetensors, the rest as JSON, a manifest last."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from rlkd.records import step_number, write_json_atomic, write_manifest

KEPT_CHECKPOINTS = 2
TENSORS, PLAIN = "state.safetensors", "state.json"


@dataclass(frozen=True)
class RandomState:
    """Of the generators that training draws from: PyTorch's, and NumPy's own (a Mersenne Twister)."""

    torch: Tensor
    numpy: Tensor
    position: int

    @classmethod
    def now(cls) -> "RandomState":
        """As they are."""
        state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 (the library's generator)
        key = torch.from_numpy(state["state"]["key"].astype(np.int64))
        return cls(torch.get_rng_state(), key, int(state["state"]["pos"]))

    def restore(self) -> None:
        """Put the generators back."""
        torch.set_rng_state(self.torch)
        np.random.set_state(  # noqa: NPY002 (the library's generator)
            ("MT19937", self.numpy.numpy().astype(np.uint32), self.position, 0, 0.0)
        )


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds beside the agent."""

    tensors: Mapping[str, Tensor]
    plain: Mapping[str, Any]
    random: RandomState

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose names begin so, without that."""
        return under(prefix, self.tensors)


def write_checkpoint(
    output_dir: Path, agent: OnPolicyAlgorithm, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]
) -> None:
    """Write ``checkpoint-STEP`` and drop all but the newest ``KEPT_CHECKPOINTS``.

    Args:
        output_dir: Of the run.
        agent: Its policy, optimizer and counters are written, and the generators as they are.
        tensors: What else there is.
        plain: Likewise, as plain values.
    """
    folder = output_dir / f"checkpoint-{agent.num_timesteps}"
    folder.mkdir(parents=True, exist_ok=True)
    random = RandomState.now()
    written = {f"policy.{k}": v for k, v in agent.policy.state_dict().items()} | dict(tensors)
    for index, slot in agent.policy.optimizer.state_dict()["state"].items():
        written |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in slot.items()}
    written |= {"random.torch": random.torch, "random.numpy": random.numpy}
    save_file({name: tensor.clone() for name, tensor in written.items()}, folder / TENSORS)
    counters = {
        "num_timesteps": agent.num_timesteps,
        "n_updates": agent._n_updates,
        "numpy_position": random.position,
    }
    write_json_atomic(folder / PLAIN, {**counters, **plain})
    write_manifest(folder)
    for older in sorted(output_dir.glob("checkpoint-*"), key=step_number)[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(older)


def read_checkpoint(folder: Path, agent: OnPolicyAlgorithm) -> Loaded:
    """Restore an agent that was made with the same settings; the rest is given."""
    plain = json.loads((folder / PLAIN).read_text(encoding="utf-8"))
    tensors = load_file(folder / TENSORS)
    agent.policy.load_state_dict(under("policy.", tensors))
    optimizer = agent.policy.optimizer.state_dict()
    optimizer["state"] = {}
    for name, value in under("optimizer.", tensors).items():
        index, _, key = name.partition(".")
        optimizer["state"].setdefault(int(index), {})[key] = value
    agent.policy.optimizer.load_state_dict(optimizer)
    agent.num_timesteps, agent._n_updates = plain["num_timesteps"], plain["n_updates"]
    random = RandomState(tensors["random.torch"], tensors["random.numpy"], plain["numpy_position"])
    return Loaded(tensors, plain, random)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose names begin so, without that."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
