"""The networks to fine-tune, whole or by adapters: memory, loss, optimizer, EMA, and the results.

Adapters are peft's. Frozen weights stay in half precision; each is converted only for its matmul.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from amused.atomic import atomic_dir
from amused.checkpoints.adapters import TEXT_ENCODER, WEIGHTS
from amused.checkpoints.lora import LoraWeights, merged
from amused.checkpoints.save import save_checkpoint
from amused.checkpoints.weights import Checkpoint, is_finite
from amused.errors import UserError
from amused.model.text import encode_text
from amused.model.transformer import ConvNextBlock, CrossAttentionBlock, TransformerLayer, UViT

if TYPE_CHECKING:
    from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

Network = TypeVar("Network", bound=nn.Module)

NO_WEIGHT_DECAY = ("bias", "layer_norm.weight", "mlm_ln.weight", "embeddings.weight")  # as in the published script
LAYERS = (ConvNextBlock, CrossAttentionBlock, TransformerLayer)
CLIP_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "out_proj"}
"""Names of the layers to adapt, as the published script spells them, to CLIP's own."""
ADAPTER = "default"  # peft's name for the only adapter


class TrainingModel(nn.Module):
    """The networks of a training step, and its loss. The text encoder is None while it is frozen."""

    def __init__(self, transformer: UViT, text_encoder: CLIPTextModelWithProjection | None) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder

    def forward(self, tokens: Tensor, masked: Tensor, micro: Tensor, texts: Sequence[Tensor]) -> Tensor:
        """The cross-entropy of the masked tokens, summed (aMUSEd, arXiv 2401.01808; MaskGIT, equation 3).

        Args:
            tokens: (batch, height, width) int64.
            masked: (batch, height, width) bool, the tokens to predict.
            micro: (batch, 5) micro-conditions, as `UViT.condition` takes them.
            texts: hidden states and pooled embeddings, or token ids if the text encoder is trained.
        """
        hidden, pooled = texts if self.text_encoder is None else encode_text(self.text_encoder, *texts)
        inputs = tokens.masked_fill(masked, self.transformer.config.vocab_size - 1)
        conditioning = self.transformer.condition(hidden, pooled, micro)
        features = self.transformer.features(inputs, conditioning)
        logits = self.transformer.mlm_layer(features[masked.flatten(1)])  # masked tokens, codebook
        return F.cross_entropy(logits.float(), tokens[masked], reduction="sum")

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


def build_model(checkpoint: Checkpoint, options: argparse.Namespace, device: torch.device) -> TrainingModel:
    """Load the networks to train onto the device. What is trained is in single precision."""
    if options.use_lora:
        transformer = checkpoint.load_transformer(device, torch.float16)
        keep_half(transformer)
        add_adapter(transformer, options.lora_r, options.lora_alpha, options.lora_target_modules)
    else:
        transformer = checkpoint.load_transformer(device, torch.float32).requires_grad_(True)
    text_encoder = None
    if options.train_text_encoder:
        text_encoder = checkpoint.load_text_encoder(device, torch.float32)
        if options.text_encoder_use_lora:
            targets = [CLIP_NAMES.get(name, name) for name in options.text_encoder_lora_target_modules]
            add_adapter(text_encoder, options.text_encoder_lora_r, options.text_encoder_lora_alpha, targets)
        else:
            text_encoder.requires_grad_(True)
    if options.gradient_checkpointing:
        checkpoint_gradients(transformer)
        if text_encoder is not None:
            text_encoder.gradient_checkpointing_enable({"use_reentrant": False})
    return TrainingModel(transformer, text_encoder).train()


def add_adapter(network: nn.Module, rank: int, alpha: int, targets: Sequence[str]) -> None:
    """Add a LoRA adapter in place, in single precision, and freeze everything else.

    Args:
        alpha: the update is scaled by alpha / rank.
        targets: names of linear layers, or ends of their names.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))
    try:
        inject_adapter_in_model(config, network, ADAPTER)
    except ValueError as error:
        known = sorted({name.rpartition(".")[2] for name, part in network.named_modules() if type(part) is nn.Linear})
        raise UserError(f"No layers are called {', '.join(targets)}; there are {', '.join(known)}.") from error
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


class HalfLinear(nn.Linear):
    """A frozen linear layer that keeps its weight in half precision and computes in the precision of its input."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = HalfMatmul.apply(x, self.weight)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return y if self.bias is None else y + self.bias


class HalfMatmul(torch.autograd.Function):
    """x W^T. Only the half-precision W is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        return F.linear(x, weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return (gradient @ weight.to(gradient.dtype)).to(ctx.dtype), None


def keep_half(network: nn.Module) -> None:
    """Keep the matrices of a half-precision network as they are and convert everything else, which is small."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = HalfLinear
        else:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()


def checkpoint_gradients(network: nn.Module) -> None:
    """Recompute the activations within each layer in the backward pass instead of keeping them."""
    for layer in network.modules():
        if isinstance(layer, LAYERS):
            wrapped = partial(recompute, layer.forward, use_reentrant=False)
            layer.forward = wrapped  # type: ignore[method-assign]  # no hook of torch can skip keeping activations


# Optimizer and EMA


def new_optimizer(model: TrainingModel, options: argparse.Namespace, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW, with weight decay only where the published script has it."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.trainable().items():
        no_decay = name.startswith("transformer.") and any(part in name for part in NO_WEIGHT_DECAY)
        (plain if no_decay else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": options.adam_weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return optimizer_class(options.use_8bit_adam)(
        [group for group in groups if group["params"]],
        lr=learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
    )


def optimizer_class(use_8bit_adam: bool) -> Callable[..., torch.optim.Optimizer]:
    if not use_8bit_adam:
        return torch.optim.AdamW
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError("--use_8bit_adam needs the package bitsandbytes: pip install bitsandbytes") from error
    return AdamW8bit


class EMA:
    """Exponential moving average of the trained weights, with the warm-up of diffusers' `EMAModel`.

    Args:
        decay: the largest share of the average that a step keeps, 0 to 1.
        after: number of steps before averaging starts.
    """

    def __init__(self, model: TrainingModel, decay: float, after: int) -> None:
        self.decay, self.after = decay, after
        self.weights = {name: parameter.detach().clone() for name, parameter in model.trainable().items()}

    @torch.no_grad()
    def update(self, model: TrainingModel, step: int) -> None:
        """Call after the optimizer's step number `step`, counted from 1."""
        averaged = max(0, step - self.after - 1)
        decay = min((1 + averaged) / (10 + averaged), self.decay) if averaged else 0.0
        for name, parameter in model.trainable().items():
            self.weights[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def swap(self, model: TrainingModel) -> None:
        """Exchange the model's weights for the average; a second call undoes it."""
        for name, parameter in model.trainable().items():
            current = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(current)


# Results


def check_finite(tensors: Iterable[Tensor]) -> None:
    """Refuse to save a value that is not finite."""
    if not all(is_finite(tensor) for tensor in tensors):
        raise UserError("The weights are not finite and are not saved: try a lower --learning_rate.")


def write_adapter(folder: Path, model: TrainingModel, base: str) -> None:
    """Write the adapters in peft's layout: the transformer's in the folder, the text encoder's in a subfolder.

    Args:
        base: name of the model that was fine-tuned.
    """
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    check_finite(model.trainable().values())
    with atomic_dir(folder) as part:
        for network, place in ((model.transformer, part), (model.text_encoder, part / TEXT_ENCODER)):
            if network is None:
                continue
            config = vars(network)["peft_config"][ADAPTER]
            assert isinstance(config, LoraConfig)
            replace(config, inference_mode=True, base_model_name_or_path=base).save_pretrained(str(place))
            state = {
                f"base_model.model.{name}": tensor.detach().to("cpu", torch.float32).contiguous()
                for name, tensor in get_peft_model_state_dict(network, save_embedding_layers=False).items()
            }
            save_file(state, place / WEIGHTS, metadata={"format": "pt"})


def write_model(folder: Path, model: TrainingModel, checkpoint: Checkpoint) -> None:
    """Write the whole model in the published layout, in half precision, with adapters merged."""
    check_finite(model.trainable().values())
    save_checkpoint(
        folder,
        transformer=without_adapter(model.transformer, checkpoint.load_transformer),
        vqgan=checkpoint.load_vqgan("cpu", torch.float32),
        text_encoder=without_adapter(model.text_encoder, checkpoint.load_text_encoder),
        tokenizer=checkpoint.folder / "tokenizer",
        masking_schedule=checkpoint.masking_schedule,
        traits=checkpoint.traits,
        defaults={**checkpoint.defaults, "model_version": 1},
    )


def without_adapter(network: Network | None, load: Callable[[str, torch.dtype], Network]) -> Network:
    """The network itself, the original one with the adapter merged, or the original one if it was not trained."""
    if network is not None and not hasattr(network, "peft_config"):
        return network
    original = load("cpu", torch.float32)
    return original if network is None else merged(original, lora_weights(network), strength=1.0)


def lora_weights(network: nn.Module) -> dict[str, LoraWeights]:
    """The adapter of a network, by layer."""
    from peft.tuners.lora import LoraLayer

    return {
        name: LoraWeights(
            network.get_parameter(f"{name}.lora_A.{ADAPTER}.weight").detach(),
            network.get_parameter(f"{name}.lora_B.{ADAPTER}.weight").detach(),
            layer.scaling[ADAPTER],
        )
        for name, layer in network.named_modules()
        if isinstance(layer, LoraLayer)
    }
