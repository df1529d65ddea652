"""The streaming Paraformer's encoder (SAN-M), all its windows at once.

The reference implementation walks through the sound in windows of nine frames (five carried over, four new),
running every layer for every window. But all that a layer takes from other windows are its own keys and
values of the four windows before, and those depend on the layer below only. So here each layer
runs once for all windows together: the same sums, one pass of large matrix products in place of
thousands of tiny ones. Names of modules and parameters are the checkpoint's.

Attention with a memory convolution: Gao et al., SAN-M, arXiv 2006.01713; windows: SCAMA, arXiv 2006.01712.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

NEW_FRAMES = 4
CARRIED_FRAMES = 5
WINDOW = CARRIED_FRAMES + NEW_FRAMES
LOOK_BACK_WINDOWS = 4
REMEMBERED = WINDOW - CARRIED_FRAMES
"""Positions of a window that later windows may attend to: all but its last five."""

MEMORY = LOOK_BACK_WINDOWS * NEW_FRAMES


@dataclass(frozen=True)
class SanmConfig:
    """Sizes of the network. ``left_context`` is how many frames the memory convolution sees to the left."""

    input_size: int
    size: int
    heads: int
    linear_units: int
    blocks: int
    kernel_size: int
    left_context: int
    norm_eps: float


class SanmAttention(nn.Module):
    """Self-attention over a window and the windows before it, plus a depthwise convolution of the values."""

    def __init__(self, config: SanmConfig, input_size: int) -> None:
        super().__init__()
        self.heads, self.size = config.heads, config.size
        self.context = (config.left_context, config.kernel_size - 1 - config.left_context)
        self.linear_q_k_v = nn.Linear(input_size, 3 * config.size)
        self.linear_out = nn.Linear(config.size, config.size)
        self.fsmn_block = nn.Conv1d(config.size, config.size, config.kernel_size, groups=config.size, bias=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, last: int) -> torch.Tensor:
        """Return (W, 9, size) for windows ``x`` (W, 9, input_size).

        mask: bool (W, 1, 1, 25), which of 16 remembered and 9 own positions each window may attend to.
        last: how many positions of the last window are real.
        """
        windows = len(x)
        query, key_value = self.linear_q_k_v(x).split((self.size, 2 * self.size), dim=-1)
        remembered = F.pad(key_value[:, :REMEMBERED].reshape(-1, 2 * self.size), (0, 0, MEMORY, 0))
        before = remembered.unfold(0, MEMORY, NEW_FRAMES)[:windows].transpose(1, 2)  # (W, 16, 2 * size)
        key, value = torch.cat((before, key_value), dim=1).chunk(2, dim=-1)  # (W, 25, size) each
        attended = F.scaled_dot_product_attention(self._split(query), self._split(key), self._split(value), mask)
        attended = attended.transpose(1, 2).reshape(windows, WINDOW, self.size)
        return self.linear_out(attended) + self._memory(key_value[..., self.size :], last)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """Return (W, heads, positions, size / heads) of (W, positions, size)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _memory(self, value: torch.Tensor, last: int) -> torch.Tensor:
        """Return the values plus their convolution within each window, zeros beyond its ends."""
        padded = F.pad(value, (0, 0, *self.context))
        if last < WINDOW:
            padded[-1, self.context[0] + last :] = 0
        # As a 2-D convolution over (1, time) the channels stay innermost, ten times faster on a CPU.
        image = padded.transpose(1, 2).unsqueeze(2)  # (W, size, 1, 9 + kernel - 1)
        out = F.conv2d(image, self.fsmn_block.weight.unsqueeze(2), groups=self.size)
        return out.squeeze(2).transpose(1, 2) + value


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, config: SanmConfig) -> None:
        super().__init__()
        self.w_1 = nn.Linear(config.size, config.linear_units)
        self.w_2 = nn.Linear(config.linear_units, config.size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.w_2(F.relu(self.w_1(x)))
        return out


class SanmLayer(nn.Module):
    """One pre-norm layer; where its input has another width than its output, attention has no residual."""

    def __init__(self, config: SanmConfig, input_size: int) -> None:
        super().__init__()
        self.residual = input_size == config.size
        self.self_attn = SanmAttention(config, input_size)
        self.feed_forward = FeedForward(config)
        self.norm1 = nn.LayerNorm(input_size, eps=config.norm_eps)
        self.norm2 = nn.LayerNorm(config.size, eps=config.norm_eps)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, last: int) -> torch.Tensor:
        """Return (W, 9, size) for (W, 9, input_size); see SanmAttention for ``mask`` and ``last``."""
        attended: torch.Tensor = self.self_attn(self.norm1(x), mask, last)
        x = x + attended if self.residual else attended
        return x + self.feed_forward(self.norm2(x))


class SanmEncoder(nn.Module):
    """The encoder: frames (n, input_size) to frames (n, size), equal to the chunk loop up to rounding."""

    def __init__(self, config: SanmConfig) -> None:
        super().__init__()
        self.config = config
        self.encoders0 = nn.ModuleList([SanmLayer(config, config.input_size)])
        self.encoders = nn.ModuleList(SanmLayer(config, config.size) for _ in range(config.blocks - 1))
        self.after_norm = nn.LayerNorm(config.size, eps=config.norm_eps)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return (n, size) for stacked, normalised filterbank frames (n, input_size)."""
        count = len(frames)
        if count == 0:
            return frames.new_zeros(0, self.config.size)
        windows = -(-count // NEW_FRAMES)
        last = WINDOW - (windows * NEW_FRAMES - count)
        embedded = frames * math.sqrt(self.config.size) + positions(count, self.config.input_size).to(frames)
        # Five zero frames stand before the first window; those after the last frame are masked.
        embedded = F.pad(embedded, (0, 0, CARRIED_FRAMES, WINDOW - last))
        x = embedded.unfold(0, WINDOW, NEW_FRAMES).transpose(1, 2)  # (W, 9, input_size)
        mask = attention_mask(windows, last, frames.device)
        for layer in (*self.encoders0, *self.encoders):
            x = layer(x, mask, last)
        out: torch.Tensor = self.after_norm(x[:, CARRIED_FRAMES:].flatten(0, 1)[:count])
        return out


class RoundedLinear(nn.Module):
    """A linear layer whose product is computed in ``dtype`` and comes back in the precision of its input."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().to(dtype))
        self.register_buffer("bias", linear.bias.detach().to(dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., out) for (..., in)."""
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


def round_products(network: SanmEncoder, dtype: torch.dtype) -> SanmEncoder:
    """Return ``network`` with its linear layers computing in ``dtype``, all else as it was; changes it in place.

    What adds up over fifty layers (residuals, norms, embedding) keeps its precision: on trained weights this leaves
    a third fewer codes changed than bfloat16 throughout, and most of its speed.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, RoundedLinear(child, dtype))
    return network


def positions(count: int, size: int) -> torch.Tensor:
    """Return sinusoids (count, size), float32, of positions 1 .. count: all sines, then all cosines."""
    step = -torch.log(torch.tensor(10000.0)) / (size / 2 - 1)
    angles = torch.arange(1, count + 1).float()[:, None] * torch.exp(torch.arange(size // 2).float() * step)
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def attention_mask(windows: int, last: int, device: torch.device) -> torch.Tensor:
    """Return bool (W, 1, 1, 25): the positions that exist, of the 16 remembered and the window's own 9."""
    number = torch.arange(windows, device=device)[:, None]
    origin = torch.arange(MEMORY, device=device) // NEW_FRAMES - LOOK_BACK_WINDOWS
    own = torch.ones(windows, WINDOW, dtype=torch.bool, device=device)
    own[-1, last:] = False
    return torch.cat((number + origin >= 0, own), dim=1)[:, None, None]
