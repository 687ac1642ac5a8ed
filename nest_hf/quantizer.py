"""Random-projection quantizer: the targets of masked prediction (BEST-RQ, arXiv 2202.01855, section 3.1)."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init


class RandomProjectionQuantizer(nn.Module):
    """Maps stacked log-mel frames to the index of the nearest random code. Nothing in it is ever trained.

    Buffers: `projection` (H * K, S * M) float32; `codebooks` (H, C, K) float64 unit vectors, NeMo's precision.
    H codebooks of C codes with K dimensions, S stacked frames of M mel bins.
    """

    ROWS_PER_CHUNK = 4096  # bounds the (rows, C) score matrix: 256 MB at C = 8192

    def __init__(self, config):
        super().__init__()
        self.distance = config.quantizer_distance
        self.input_norm = config.quantizer_input_norm
        self.init_name = config.quantizer_init
        self.stack = config.subsampling_factor
        num_codebooks, dim = config.num_codebooks, config.codebook_dim
        # Both dtypes are written out, so that `from_pretrained(dtype=...)` keeps them
        self.projection = nn.Buffer(
            torch.empty(num_codebooks * dim, self.stack * config.num_mel_bins, dtype=torch.float32)
        )
        self.codebooks = nn.Buffer(torch.empty(num_codebooks, config.codebook_size, dim, dtype=torch.float64))

    @torch.no_grad()
    def reset_parameters(self):
        """Draws projection and codes as NeMo does: Xavier, and normal vectors of unit length."""
        draw = init.xavier_normal_ if self.init_name == "xavier_normal" else init.xavier_uniform_
        draw(self.projection)
        if not getattr(self.codebooks, "_is_hf_initialized", False):
            self.codebooks.copy_(F.normalize(torch.randn_like(self.codebooks), dim=-1))

    def _apply(self, fn, recurse=True):
        # Follow the model to another device, but never to another precision: in bfloat16 2 % of the codes change.
        target = fn(torch.empty(0, device=self.projection.device))
        return super()._apply(
            lambda t: fn(t).to(t.dtype) if t.is_meta or target.is_meta else t.to(target.device), recurse
        )

    @torch.no_grad()
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """
        Args:
            features (`torch.Tensor` of shape `(B, T, M)`): Clean log-mel features; T a multiple of the stacking S.

        Returns:
            `torch.LongTensor` of shape `(B, T // S, H)`: the codes.
        """
        batch, frames, _ = features.shape
        if frames % self.stack:
            raise ValueError(
                f"`target_features` has {frames} frames, which is not a multiple of {self.stack}; pad the features "
                f"with NestFeatureExtractor(pad_to_multiple_of=16)."
            )
        num_codebooks, _, dim = self.codebooks.shape
        with torch.autocast(features.device.type, enabled=False):
            stacked = features.float().reshape(-1, self.stack * features.shape[-1])  # (B, T, M) -> (B * T/S, S * M)
            if self.input_norm:
                stacked = F.layer_norm(stacked, stacked.shape[-1:])
            vectors = F.normalize(F.linear(stacked, self.projection).view(-1, num_codebooks, dim), dim=-1)
            vectors = vectors.to(self.codebooks.dtype).transpose(0, 1)  # (H, B * T/S, K)
            codes = [self._nearest(chunk) for chunk in vectors.split(self.ROWS_PER_CHUNK, dim=1)]
        return torch.cat(codes, dim=1).transpose(0, 1).reshape(batch, frames // self.stack, num_codebooks)

    def _nearest(self, vectors: torch.Tensor) -> torch.Tensor:
        """(H, N, K) -> (H, N): argmin |v - c|^2 = argmax v.c - |c|^2 / 2, without the (N, K, C) differences."""
        if self.distance == "cosine":
            return torch.bmm(vectors, F.normalize(self.codebooks, dim=-1).transpose(1, 2)).argmax(-1)
        bias = -0.5 * self.codebooks.square().sum(-1)[:, None]
        return torch.baddbmm(bias, vectors, self.codebooks.transpose(1, 2)).argmax(-1)
