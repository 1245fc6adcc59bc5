"""What is fine-tuned: a network or its adapters, in how much memory, the loss, and what is written in the end.

Knows no files of pictures and no steps. Adapters are peft's; weights that are not trained stay in half precision and
are brought to the precision of what they meet, one matrix at a time.
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
from torch.utils.checkpoint import checkpoint as recomputed

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

NOT_DECAYED = ("bias", "layer_norm.weight", "mlm_ln.weight", "embeddings.weight")  # as published
Network = TypeVar("Network", bound=nn.Module)

LAYERS = (ConvNextBlock, CrossAttentionBlock, TransformerLayer)
CLIP_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "out_proj"}
"""Published targets, which the text encoder calls otherwise."""


class Trainee(nn.Module):
    """The networks of a training step, and its loss."""

    def __init__(self, transformer: UViT, text_encoder: CLIPTextModelWithProjection | None) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder

    def forward(self, tokens: Tensor, masked: Tensor, micro: Tensor, texts: Sequence[Tensor]) -> Tensor:
        """The sum of the cross-entropies of the masked tokens.

        Args:
            tokens, masked: (batch, height, width).
            micro: (batch, 5).
            texts: hidden states and pooled embeddings, or token ids if the text encoder is trained.
        """
        hidden, pooled = texts if self.text_encoder is None else encode_text(self.text_encoder, *texts)
        inputs = tokens.masked_fill(masked, self.transformer.config.vocab_size - 1)
        conditioning = self.transformer.condition(hidden, pooled, micro)
        features = self.transformer.features(inputs, conditioning)
        logits = self.transformer.mlm_layer(features[masked.flatten(1)])  # masked tokens, codebook size
        return F.cross_entropy(logits.float(), tokens[masked], reduction="sum")

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}


def build(checkpoint: Checkpoint, options: argparse.Namespace, device: torch.device) -> Trainee:
    """The networks to train, on the device, what is trained of them in single precision."""
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
            r, alpha = options.text_encoder_lora_r, options.text_encoder_lora_alpha
            add_adapter(text_encoder, r, alpha, targets)
        else:
            text_encoder.requires_grad_(True)
    if options.gradient_checkpointing:
        recompute(transformer)
        if text_encoder is not None:
            text_encoder.gradient_checkpointing_enable({"use_reentrant": False})
    return Trainee(transformer, text_encoder).train()


def add_adapter(network: nn.Module, r: int, alpha: int, targets: Sequence[str]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=list(targets))
    try:
        inject_adapter_in_model(config, network)
    except ValueError as error:
        known = sorted({name.rpartition(".")[2] for name, part in network.named_modules() if type(part) is nn.Linear})
        raise UserError(f"No layers are called {', '.join(targets)}; there are {', '.join(known)}.") from error
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


class HalfLinear(nn.Linear):
    """A linear layer that is not trained, its weight in half precision whatever is computed in."""

    def forward(self, x: Tensor) -> Tensor:
        x = HalfProduct.apply(x, self.weight)
        return x if self.bias is None else x + self.bias


class HalfProduct(torch.autograd.Function):
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
    """Leave the matrices of a half-precision network as they are; all else, which is little, in single precision."""
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = HalfLinear
        else:
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()


def recompute(network: nn.Module) -> None:
    """Forget what is within a layer and compute it again on the way back."""
    for layer in network.modules():
        if isinstance(layer, LAYERS):
            layer.forward = partial(recomputed, layer.forward, use_reentrant=False)


# Optimizer and average


def new_optimizer(trainee: Trainee, options: argparse.Namespace, rate: float) -> torch.optim.Optimizer:
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    if options.use_8bit_adam:
        try:
            from bitsandbytes.optim import AdamW8bit as kind
        except ImportError as error:
            raise UserError("8-bit Adam is in another library: pip install bitsandbytes, and try again.") from error
    decayed, others = [], []
    for name, parameter in trainee.trained().items():
        plain = name.startswith("transformer.") and any(part in name for part in NOT_DECAYED)
        (others if plain else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": options.adam_weight_decay}, {"params": others, "weight_decay": 0.0}]
    return kind(
        [group for group in groups if group["params"]],
        lr=rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
    )


class Average:
    """An exponential moving average of what is trained."""

    def __init__(self, trainee: Trainee, decay: float, after: int) -> None:
        self.decay, self.after = decay, after
        self.weights = {name: parameter.detach().clone() for name, parameter in trainee.trained().items()}

    @torch.no_grad()
    def update(self, trainee: Trainee, steps: int) -> None:
        """After the optimizer's step number `steps`, counted from 1."""
        seen = max(0, steps - self.after - 1)
        decay = min((1 + seen) / (10 + seen), self.decay) if seen else 0.0
        for name, parameter in trainee.trained().items():
            self.weights[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def swap(self, trainee: Trainee) -> None:
        """Exchange the network's weights for the average, and back by a second call."""
        for name, parameter in trainee.trained().items():
            current = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(current)


# Results


def check_finite(tensors: Iterable[Tensor]) -> None:
    """Refuse to write weights that no step can bring back."""
    if not all(is_finite(tensor) for tensor in tensors):
        raise UserError("The weights are no longer finite numbers and are not saved: try a lower --learning_rate.")


def write_adapter(folder: Path, trainee: Trainee, base: str) -> None:
    """The adapters in peft's layout: the U-ViT's in the folder, the text encoder's, if it is trained, within."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    check_finite(trainee.trained().values())
    with atomic_dir(folder) as part:
        for network, place in ((trainee.transformer, part), (trainee.text_encoder, part / TEXT_ENCODER)):
            if network is None:
                continue
            config = replace(network.peft_config["default"], inference_mode=True, base_model_name_or_path=base)
            config.save_pretrained(place)
            state = {
                f"base_model.model.{name}": tensor.detach().to("cpu", torch.float32).contiguous()
                for name, tensor in get_peft_model_state_dict(network, save_embedding_layers=False).items()
            }
            save_file(state, place / WEIGHTS, metadata={"format": "pt"})


def write_model(folder: Path, trainee: Trainee, checkpoint: Checkpoint) -> None:
    """The whole model in the published layout, in half precision; adapters that were trained are merged into it."""
    check_finite(trainee.trained().values())
    save_checkpoint(
        folder,
        transformer=whole(trainee.transformer, checkpoint.load_transformer),
        vqgan=checkpoint.load_vqgan("cpu", torch.float32),
        text_encoder=whole(trainee.text_encoder, checkpoint.load_text_encoder),
        tokenizer=checkpoint.folder / "tokenizer",
        masking_schedule=checkpoint.masking_schedule,
        traits=checkpoint.traits,
    )


def whole(network: Network | None, load: Callable[[str, torch.dtype], Network]) -> Network:
    """A network without adapters: itself, or the first one with its adapters merged."""
    if network is not None and not hasattr(network, "peft_config"):
        return network
    first = load("cpu", torch.float32)
    return first if network is None else merged(first, changes(network), strength=1.0)


def changes(network: nn.Module) -> dict[str, LoraWeights]:
    """The adapter of a network, by layer."""
    from peft.tuners.lora import LoraLayer

    return {
        name: LoraWeights(
            layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach(), layer.scaling["default"]
        )
        for name, layer in network.named_modules()
        if isinstance(layer, LoraLayer)
    }
