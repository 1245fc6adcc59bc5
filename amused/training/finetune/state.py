"""Training states to resume from: `checkpoint-N`, each written completely or not at all.

`state.safetensors` holds `weights/NAME`, `average/NAME` (with EMA) and `optimizer/NAME/KEY` for every trained parameter
NAME; `state.json` holds step, seed and the state of the gradient scaler. `history.json` lists those of the run.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from amused.atomic import atomic_dir, atomic_file, write_json
from amused.checkpoints.json_file import read_json
from amused.errors import UserError
from amused.training.finetune.model import EMA, TrainingModel, check_finite

log = logging.getLogger(__name__)

STATE, PROGRESS, HISTORY = "state.safetensors", "state.json", "history.json"
SMALL = 1024  # elements


def find_states(folder: Path) -> dict[str, Path]:
    """All checkpoints in a folder, of any run, by name. A copy such as `checkpoint-5-good` is none."""
    found = (path.parent for path in folder.glob(f"checkpoint-*/{PROGRESS}"))
    return {path.name: path for path in found if re.fullmatch(r"checkpoint-\d+", path.name)}


def list_states(folder: Path) -> list[Path]:
    """The checkpoints of a run, in the order in which they were written."""
    found = find_states(folder)
    if (folder / HISTORY).is_file():
        names = read_json(folder, HISTORY).get("checkpoints", [])
    else:  # a run of version 0.4
        names = sorted(found, key=lambda name: os.stat(found[name] / PROGRESS).st_mtime_ns)
    return [found[name] for name in names if name in found]


def find_state(folder: Path, wanted: str | None) -> Path | None:
    """The state to resume from, None to start from the beginning.

    Args:
        folder: of the run. It may not hold checkpoints of another one.
        wanted: "latest", which may not exist yet, a folder, or the name of a folder in `folder`.
    """
    state = None
    if wanted == "latest":
        state = next(reversed(list_states(folder)), None)
    elif wanted is not None:
        state = next((path for path in (folder / wanted, Path(wanted)) if (path / PROGRESS).is_file()), None)
        if state is None:
            raise UserError(f"There is no checkpoint {wanted} to resume from.")
    if find_states(folder) and not is_inside(folder, state):
        raise UserError(
            f"{folder} holds the checkpoints of another run: choose another --output_dir, "
            "or go on from one of them with --resume_from_checkpoint."
        )
    if wanted == "latest" and state is None:
        log.info("There is no checkpoint yet: training starts from the beginning.")
    return state


def is_inside(folder: Path, state: Path | None) -> bool:
    return state is not None and state.resolve().parent == folder.resolve()


def start_history(folder: Path, state: Path | None) -> None:
    """Make the checkpoints up to this one those of the run. Later ones are abandoned: kept, but no longer listed."""
    names = [path.name for path in list_states(folder)]
    if state is None or not is_inside(folder, state):
        names = []
    elif state.name in names:
        names = names[: names.index(state.name) + 1]
    else:  # an abandoned one, or a copy
        names = [state.name]
    write_history(folder, names)


def add_to_history(folder: Path, state: Path, limit: int | None) -> None:
    """Append a new checkpoint of the run, then delete its oldest ones above the limit."""
    states = [*(path for path in list_states(folder) if path != state), state]
    write_history(folder, [path.name for path in states])
    for old in states[:-limit] if limit else ():
        shutil.rmtree(old)


def write_history(folder: Path, names: Sequence[str]) -> None:
    with atomic_file(folder / HISTORY) as part:
        write_json(part, {"checkpoints": names})


def write_state(
    folder: Path,
    step: int,
    seed: int,
    model: TrainingModel,
    optimizer: torch.optim.Optimizer,
    ema: EMA | None,
    scaler: dict[str, Any] | None,
) -> Path:
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
    state = folder / f"checkpoint-{step}"
    with atomic_dir(state) as part:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, part / STATE)
        write_json(part / PROGRESS, {"step": step, "seed": seed, "scaler": scaler})
    return state


def read_state(folder: Path, model: TrainingModel, optimizer: torch.optim.Optimizer, ema: EMA | None) -> None:
    """Restore weights, EMA and optimizer in place, one tensor at a time."""
    parameters = model.trainable()
    with safe_open(folder / STATE, framework="pt") as stream:
        names = set(stream.keys())
        for kind, targets in (("weights", parameters), ("average", ema.weights if ema else {})):
            saved = {name: stream.get_slice(name).get_shape() for name in names if name.startswith(f"{kind}/")}
            if saved != {f"{kind}/{name}": list(target.shape) for name, target in targets.items()}:
                raise UserError(f"{folder.name} was saved with different options: repeat the options of that run.")
            for name, target in targets.items():
                target.detach().copy_(stream.get_tensor(f"{kind}/{name}"))
        for name in names:
            if name.startswith("optimizer/"):
                _, owner, key = name.split("/")
                value, state = stream.get_tensor(name), optimizer.state[parameters[owner]]
                if key != "step":
                    state[key] = value.to(parameters[owner].device)
                else:  # bitsandbytes counts in a plain integer
                    state[key] = value if value.is_floating_point() else int(value)
