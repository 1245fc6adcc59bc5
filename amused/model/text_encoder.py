"""The text encoder that reads prompts (CLIP, arXiv 2103.00020, section 2.4; ViT-L/14's in the published checkpoints).

Module and parameter names are those of the published checkpoints, so that a state dict loads strictly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OLD_EOS = 2
"""What `eos_token_id` is in configurations that say nothing of where a text ends: it is the greatest id of a text."""


@dataclass(frozen=True)
class TextConfig:
    """`text_encoder/config.json`: the keys that decide what CLIP computes. The defaults are those of transformers."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("num_attention_heads must divide hidden_size")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act must be {' or '.join(ACTIVATIONS)}")


def quick_gelu(x: Tensor) -> Tensor:
    """The approximation of GELU by a sigmoid (arXiv 1606.08415, section 2)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class Embeddings(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class Attention(nn.Module):
    """Multi-head attention of each token to itself and those before it. Works on b l c."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.heads, self.dropout = config.num_attention_heads, config.attention_dropout
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.q_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # b h l d

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = (self.split(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        dropout = self.dropout if self.training else 0.0
        x = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)
        return self.out_proj(x.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activate(self.fc1(x)))


class EncoderLayer(nn.Module):
    """Self attention, feed-forward; a norm before each. Works on b l c."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = FeedForward(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the last layer is given, and what it makes of it."""
        *first, last = self.layers
        for layer in first:
            x = layer(x)
        return x, last(x)


class TextModel(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        hidden, x = self.encoder(self.embeddings(ids))
        return hidden, self.final_layer_norm(x)


class TextEncoder(nn.Module):
    """Token ids in, embeddings of each token and of the whole text out."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextModel(config)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of texts.

        Args:
            ids: (batch, length), of a `Tokenizer`.

        Returns:
            The input of the last layer, (batch, length, hidden_size), and the last layer's output at the end of the
            text, normed and projected, (batch, projection_dim).
        """
        hidden, last = self.text_model(ids)
        batch = torch.arange(len(ids), device=ids.device)
        return hidden, self.text_projection(last[batch, self.ends(ids)])

    def ends(self, ids: Tensor) -> Tensor:
        """Where each text ends: (batch, length) to (batch,), at 0 if it does not."""
        if self.config.eos_token_id == OLD_EOS:
            return ids.int().argmax(dim=-1)
        return (ids == self.config.eos_token_id).int().argmax(dim=-1)


@torch.no_grad()
def initialize(encoder: TextEncoder, factor: float = 1.0) -> TextEncoder:
    """Random weights as CLIP's own code draws them, `factor` times as large. Returns the encoder."""
    width, layers = encoder.config.hidden_size, encoder.config.num_hidden_layers
    onto_residual = (2 * layers * width) ** -0.5
    scales = {"embedding": 0.02, "out_proj": width**-0.5, "fc1": (2 * width) ** -0.5, "text_projection": width**-0.5}
    for name, module in encoder.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            std = next((scale for part, scale in scales.items() if name.endswith(part)), onto_residual)
            nn.init.normal_(module.weight, std=factor * std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return encoder
