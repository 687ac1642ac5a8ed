"""What torch leaves slow on CPU: dropout, float32 products, the first convolution. Other devices use torch's own."""

import torch
from torch import nn
from torch.nn import functional as F


class _CpuDropout(torch.autograd.Function):
    """Dropout from 16 random bits an element: on CPU torch draws a whole word each, 15 % of a training step."""

    @staticmethod
    def forward(ctx, x, p):
        threshold = round(p * 65536)
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= threshold - 32768
        ctx.save_for_backward(keep)
        ctx.scale = 65536 / (65536 - threshold)
        return (x * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, grad):
        (keep,) = ctx.saved_tensors
        return (grad * keep).mul_(ctx.scale), None


def dropout(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """Zeroes elements of `x` with probability `p` in training and scales the others by 1 / (1 - p)."""
    if not training or p == 0.0:
        return x
    if p >= 1.0 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    return _CpuDropout.apply(x, p)


def is_plain_cpu(x: torch.Tensor) -> bool:
    """Whether the CPU's own float32 paths apply: not on other devices, under autocast or when compiling."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return plain and not torch.compiler.is_compiling()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """
    `F.linear`; on CPU in float32 as a 1x1 convolution. oneDNN runs it with AVX-512 on any vendor's processor, where
    the BLAS behind `F.linear` falls back to AVX2 on some: half the speed, forward and backward.
    """
    if not is_plain_cpu(x) or not torch.backends.mkldnn.enabled or x.numel() == 0:
        return F.linear(x, weight, bias)
    image = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, D, 1, N), channels last
    return F.conv2d(image, weight[:, :, None, None], bias).permute(0, 2, 3, 1).view(*x.shape[:-1], -1)


class NestLinear(nn.Linear):
    """`nn.Linear` with the faster product of `linear`; same parameters."""

    def forward(self, x):
        return linear(x, self.weight, self.bias)

    @classmethod
    def replace(cls, module: nn.Module, *names: str) -> None:
        """Replaces the named `nn.Linear` children of a fresh module."""
        for name in names:
            old = getattr(module, name)
            setattr(module, name, cls(old.in_features, old.out_features, bias=old.bias is not None))


class MaskedReLU(torch.autograd.Function):
    """ReLU that also zeroes padding and keeps one tensor: padding stops its gradient as a negative value does."""

    @staticmethod
    def forward(ctx, x, mask):
        y = x.clamp_min(0)
        if mask is not None:
            y.mul_(mask)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, y, 0), None


class PatchStage(torch.autograd.Function):
    """
    First convolution, ReLU and zeroing of padding over (N, 9 + 1) patches, the last column 1 for the bias, ->
    (N, channels), in chunks that stay in the cache: the output is the largest tensor of the model, and this keeps one
    copy of it instead of three.
    """

    CHUNK = 4096

    @staticmethod
    def forward(ctx, patches, weight, mask):
        out = patches.new_empty(len(patches), len(weight))
        for rows, chunk in zip(patches.split(PatchStage.CHUNK), out.split(PatchStage.CHUNK), strict=True):
            torch.mm(rows, weight.t(), out=chunk).clamp_min_(0)
        if mask is not None:
            out.mul_(mask)
        ctx.save_for_backward(patches, weight, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        patches, weight, out = ctx.saved_tensors
        grad_patches = torch.empty_like(patches) if ctx.needs_input_grad[0] else None
        grad_weight = weight.new_zeros(weight.shape[::-1])
        for start in range(0, len(patches), PatchStage.CHUNK):
            rows = slice(start, start + PatchStage.CHUNK)
            part = torch.ops.aten.threshold_backward(grad[rows], out[rows], 0)
            grad_weight.addmm_(patches[rows].t(), part)
            if grad_patches is not None:
                torch.mm(part, weight, out=grad_patches[rows])
        return grad_patches, grad_weight.t(), None
