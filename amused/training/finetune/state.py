"""Training states to resume from: `checkpoint-N`, each written completely or not at all.

`state.safetensors` holds `weights/NAME`, `average/NAME` (with EMA) and `optimizer/NAME/KEY` for every trained parameter
NAME; `state.json` holds step, seed and the state of the gradient scaler.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from amused.atomic import atomic_dir, write_json
from amused.errors import UserError
from amused.training.finetune.model import EMA, TrainingModel, check_finite

log = logging.getLogger(__name__)

STATE, PROGRESS = "state.safetensors", "state.json"
SMALL = 1024  # elements
DIFFERENT_OPTIONS = "{} was saved with different options: repeat the options of that run."


def list_states(folder: Path) -> list[Path]:
    """The folders `checkpoint-N`, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def find_state(folder: Path, wanted: str | None) -> Path | None:
    """The state to resume from, None to start from the beginning.

    Args:
        folder: of the run.
        wanted: "latest", which may not exist yet, a folder, or the name of a folder in `folder`.
    """
    if wanted is None:
        return None
    if wanted == "latest":
        found = list_states(folder)
        if not found:
            log.info("There is no checkpoint yet: training starts from the beginning.")
        return found[-1] if found else None
    for path in (Path(wanted), folder / wanted):
        if (path / PROGRESS).is_file():
            return path
    raise UserError(f"There is no checkpoint {wanted} to resume from.")


def write_state(
    folder: Path,
    step: int,
    seed: int,
    model: TrainingModel,
    optimizer: torch.optim.Optimizer,
    ema: EMA | None,
    scaler: dict[str, Any] | None,
) -> None:
    """Write `checkpoint-STEP` into a folder.

    Args:
        scaler: state of the gradient scaler, if there is one.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.trainable().items():
        tensors[f"weights/{name}"] = parameter.detach()
        if ema is not None:
            tensors[f"average/{name}"] = ema.weights[name]
        for key, value in optimizer.state[parameter].items():
            # Small ones are copied: bitsandbytes shares its tables between parameters, safetensors refuses that.
            tensor = torch.as_tensor(value)
            tensors[f"optimizer/{name}/{key}"] = tensor.clone() if tensor.numel() <= SMALL else tensor
    check_finite(tensor for tensor in tensors.values() if tensor.is_floating_point())
    with atomic_dir(folder / f"checkpoint-{step}") as part:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, part / STATE)
        write_json(part / PROGRESS, {"step": step, "seed": seed, "scaler": scaler})
    log.debug("saved checkpoint-%d", step)


def read_state(folder: Path, model: TrainingModel, optimizer: torch.optim.Optimizer, ema: EMA | None) -> None:
    """Restore weights, EMA and optimizer in place, one tensor at a time."""
    parameters = model.trainable()
    with safe_open(folder / STATE, framework="pt") as stream:
        names = set(stream.keys())
        for kind, targets in (("weights", parameters), ("average", ema.weights if ema else {})):
            saved = {name for name in names if name.startswith(f"{kind}/")}
            if saved != {f"{kind}/{name}" for name in targets}:
                raise UserError(DIFFERENT_OPTIONS.format(folder.name))
            for name, target in targets.items():
                tensor = stream.get_tensor(f"{kind}/{name}")
                if tensor.shape != target.shape:
                    raise UserError(DIFFERENT_OPTIONS.format(folder.name))
                target.detach().copy_(tensor)
        for name in names:
            if name.startswith("optimizer/"):
                _, owner, key = name.split("/")
                restore_optimizer_value(optimizer, parameters[owner], key, stream.get_tensor(name))


def restore_optimizer_value(
    optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, key: str, value: Tensor
) -> None:
    if key != "step":
        optimizer.state[parameter][key] = value.to(parameter.device)
    elif value.is_floating_point():
        optimizer.state[parameter][key] = value
    else:  # bitsandbytes counts in a plain integer
        optimizer.state[parameter][key] = int(value)
