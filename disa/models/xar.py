"""xAR: autoregression over cells of tokens, each cell sampled by flow matching with the transformer itself.

Ren et al., "Beyond Next-Token: Next-X Prediction for Autoregressive Visual Generation", 2025. Parameter names are as
released.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from ..acceleration.feature_cache import Extrapolation, FeatureCache, Layer, run_layers
from ..annealing import AnnealedModel, check_latents
from ..flow import SOLVERS, interpolate, linspace, velocity_loss
from ..guidance import Guidance, guided_velocity
from ..noise import NoiseSource
from ..schedule import StepSchedule
from ..solver import Times
from ..trace import StepTrace
from .checks import check_arguments, check_labels, check_noise
from .layers import TimestepEmbedding, embed_times, initialize
from .rotary import KVCache, ModulatedBlock, Modulation, RMSNorm, grid_rope

MODULATED = 2**24  # channels, over times, images and blocks, up to which modulations are computed together


def flow_times(steps: int) -> tuple[float, ...]:
    """Flow times that `steps` steps visit: evenly from 1 to 0.04, then 0."""
    return (*linspace(1, 0.04, steps), 0.0)


class XAR(AnnealedModel):
    """Cell-wise autoregressive transformer that predicts the velocity of the current cell.

    Args:
        image_size, latent_stride: pixels per side, and pixels per latent.
        latent_channels: channels of the latents.
        cells_per_side: cells per side of the latents; each is one AR step.
        num_classes: labels 0..num_classes-1.
        width, depth, num_heads: of the first half of the transformer, and again of the second.
        attn_dropout and the rest: for training alone.

    Raises:
        ValueError: the sizes do not fit together.
    """

    solvers = SOLVERS
    flow_times = staticmethod(flow_times)

    def __init__(
        self,
        *,
        image_size: int = 256,
        latent_stride: int = 16,
        latent_channels: int = 16,
        cells_per_side: int = 2,
        num_classes: int = 1000,
        width: int = 1024,
        depth: int = 16,
        num_heads: int = 16,
        attn_dropout: float = 0.1,
        proj_dropout: float = 0.1,
        label_drop_prob: float = 0.1,
    ) -> None:
        super().__init__()
        check_arguments(locals())
        grid = image_size // latent_stride
        if image_size % latent_stride or grid % cells_per_side:
            raise ValueError(
                f"cells_per_side is {cells_per_side}; "
                f"it must divide image_size / latent_stride = {image_size / latent_stride:g}"
            )
        if width % (4 * num_heads):
            raise ValueError(
                f"width is {width}; it must be a multiple of 4 · num_heads = {4 * num_heads}, for 2-D rotary positions"
            )
        self.grid, self.cells_per_side, self.num_classes = (grid, cells_per_side, num_classes)
        self.ar_steps = self.cells
        self.head_dim, self.label_drop_prob = width // num_heads, label_drop_prob

        def blocks() -> nn.ModuleList:
            return nn.ModuleList(ModulatedBlock(width, num_heads, attn_dropout, proj_dropout) for _ in range(depth))

        self.class_emb = nn.Embedding(num_classes + 1, width)  # the last row is "no class"
        self.time_embed = TimestepEmbedding(width)
        self.z_proj = nn.Linear(latent_channels, width)
        self.z_proj_ln = RMSNorm(width, affine=True)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, grid**2, width))
        self.encoder_blocks = blocks()
        self.encoder_norm = RMSNorm(width, affine=True)
        self.decoder_embed = nn.Linear(width, width)
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, grid**2, width))
        self.decoder_blocks = blocks()
        self.decoder_norm = RMSNorm(width, affine=True)
        self.pred = nn.Linear(width, latent_channels)
        self._initialize()

    def _initialize(self) -> None:
        initialize(self)
        for name, parameter in self.named_parameters():
            if "pos_embed" in name:
                nn.init.normal_(parameter, std=0.02)
            # Every block begins as the identity: its gates are shut.
            if "ada_lin" in name:
                nn.init.zeros_(parameter)

    @property
    def cells(self) -> int:
        """Cells per image."""
        return self.cells_per_side**2

    def to_cells(self, grid: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, cells, H · W / cells, C], cells and the tokens in each in row-major order."""
        n = self.cells_per_side
        return rearrange(grid, "b c (n h) (m w) -> b (n m) (h w) c", n=n, m=n)

    def from_cells(self, cells: Tensor) -> Tensor:
        """Inverse of `to_cells`."""
        n, side = self.cells_per_side, self.grid // self.cells_per_side
        return rearrange(cells, "b (n m) (h w) c -> b c (n h) (m w)", n=n, h=side)

    def _rope(self, device: torch.device) -> Tensor:
        """Rotary embeddings of the whole sequence, cell by cell."""
        n, side = self.cells_per_side, self.grid // self.cells_per_side
        grid = grid_rope(self.grid, self.head_dim, device)
        return rearrange(grid, "(n h m w) d two -> (n m h w) d two", n=n, m=n, h=side)

    def modulations(self, condition: Tensor) -> Iterator[Modulation]:
        """Conditions [..., 1 or L, W] -> the modulation of every block, computed when it is asked for."""
        return (block.modulation(condition) for block in self._blocks)

    @property
    def _blocks(self) -> Iterator[ModulatedBlock]:
        yield from self.encoder_blocks  # type: ignore[misc]
        yield from self.decoder_blocks  # type: ignore[misc]

    def transform(
        self,
        x: Tensor,
        where: slice,
        modulations: Iterable[Modulation],
        rope: Tensor,
        mask: Tensor | None = None,
        caches: list[KVCache] | None = None,
        keep: bool = True,
        stack: Callable[[Iterator[Layer], Tensor], Tensor] = run_layers,
    ) -> Tensor:
        """Tokens x [B, L, C] at `where` in the sequence, with the modulations of all blocks -> velocity [B, L, C].

        `stack` runs the blocks.
        """
        x = self.z_proj_ln(self.z_proj(x) + self.encoder_pos_embed_learned[:, where])
        x = stack(self._layers(where, modulations, rope[where], mask, caches, keep), x)
        return self.pred(self.decoder_norm(x))

    def _layers(
        self,
        where: slice,
        modulations: Iterable[Modulation],
        rope: Tensor,
        mask: Tensor | None,
        caches: list[KVCache] | None,
        keep: bool,
    ) -> Iterator[Layer]:
        for i, (block, modulation) in enumerate(zip(self._blocks, modulations, strict=True)):
            if i == len(self.encoder_blocks):
                yield lambda x: self.decoder_embed(self.encoder_norm(x)) + self.decoder_pos_embed_learned[:, where]
            cache = caches[i] if caches else None
            yield partial(block, modulation=modulation, rope=rope, mask=mask, cache=cache, keep=keep)

    def _time(self, t: Tensor) -> Tensor:
        """Flow times [N] -> embeddings [N, W]."""
        return self.time_embed((1000 * t).long())

    def forward(
        self, latents: Tensor, labels: Tensor, times: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Compute the training loss of a batch.

        Each cell is noised to a time of its own, and attends to the cells before it as noisy as they are.

        Args:
            latents: [B, C, H, W], unit variance.
            labels: int64 [B].
            times: of each cell, [cells, B]; drawn from a logit-normal if not given.
            noise: [cells, B, tokens, C]; drawn if not given.

        Returns:
            A scalar.
        """
        batch, device = len(latents), latents.device
        x0 = self.to_cells(latents)  # [B, cells, T, C]
        t = torch.randn(self.cells, batch, device=device).sigmoid() if times is None else times
        eps = torch.randn_like(x0) if noise is None else noise.transpose(0, 1)
        dropped = torch.rand(batch, device=device) < self.label_drop_prob
        of_class = self.class_emb(torch.where(dropped, self.num_classes, labels))
        tokens = x0.shape[2]
        condition = (of_class[:, None] + self._time(t.T.flatten()).unflatten(0, (batch, -1))).repeat_interleave(
            tokens, dim=1
        )
        cell_of = torch.arange(self.cells, device=device).repeat_interleave(tokens)
        mask = cell_of[:, None] >= cell_of[None]
        noisy = interpolate(x0, eps, t.T)
        modulations = self.modulations(condition)
        velocity = self.transform(noisy.flatten(1, 2), slice(None), modulations, self._rope(device), mask)
        return velocity_loss(velocity.float(), x0.flatten(1, 2), eps.flatten(1, 2))

    @torch.no_grad()
    def generate(
        self,
        labels: Tensor,
        *,
        schedule: StepSchedule = StepSchedule(50, 15),
        sampler: str = "euler_maruyama",
        guidance: Guidance = Guidance(),
        temperature: float = 1.0,
        extrapolation: Extrapolation = Extrapolation(),
        noise: NoiseSource,
        on_step: Callable[[StepTrace], None] | None = None,
    ) -> Tensor:
        """Sample latents float32 [B, C, H, W] for class labels [B], one AR step per cell.

        `sampler` is a name in `disa.flow.SOLVERS`; guidance applies at flow times in its interval where its scale
        is not 1; `temperature` is a factor on the noise that steps add; `extrapolation` is of the transformer's blocks
        within a cell. All else as for `MAR.generate`.
        """
        check_labels(labels, self.num_classes)
        check_noise(noise, len(labels))
        device = self.pred.weight.device
        labels = labels.to(device, non_blocking=True)
        anneal = self.annealing(schedule, sampler, noise, temperature, on_step)
        *embedded, at_zero = embed_times(self._time, [*anneal.times, (0.0,)], device)
        of_class = self.class_emb(labels)
        if guidance.active:
            of_class = torch.cat([of_class, self.class_emb(torch.full_like(labels, self.num_classes))])
        last, rope, tokens = (self.cells - 1, self._rope(device), self.grid**2 // self.cells)
        heads = of_class.shape[-1] // self.head_dim
        caches = [KVCache(len(of_class), heads, self.grid**2, self.head_dim, of_class) for _ in self._blocks]
        finished = list(self.modulations((of_class + at_zero)[:, None]))
        cells: list[Tensor] = []
        grid = self.to_cells(torch.arange(self.grid**2, device=device).view(1, 1, self.grid, self.grid))[0, ..., 0]
        for step in range(self.cells):
            where = slice(step * tokens, (step + 1) * tokens)
            if cells:  # the finished cell joins the caches, as what it is: data, at time 0
                before, x = (slice(where.start - tokens, where.start), cells[-1].to(of_class.dtype))
                self.transform(x.repeat(1 + guidance.active, 1, 1), before, finished, rope, caches=caches)
            features, times = extrapolation.cache(anneal.times[step]), anneal.times[step]
            velocity = self._bind(where, of_class, times, embedded[step], rope, caches, features)
            scale = guidance.at(step / last if last else 1.0)
            network = guided_velocity(velocity, scale, guidance.interval, of_class.dtype)
            positions = grid[step].expand(len(labels), -1)
            cells.append(
                anneal(step, network, tokens, self.z_proj.in_features, positions, partial(self._so_far, cells))
            )
        latents = self._so_far(cells[:-1], cells[-1])
        check_latents(latents)
        return latents

    def _so_far(self, before: Sequence[Tensor], new: Tensor) -> Tensor:
        """Latents float32 [B, C, H, W] of the finished cells [B, T, C] and the new one, 0 where there is none yet."""
        later = [torch.zeros_like(new)] * (self.cells - len(before) - 1)
        return self.from_cells(torch.stack([*before, new, *later], dim=1)).float()

    def _bind(
        self,
        where: slice,
        of_class: Tensor,
        times: Times,
        embedded: Tensor,
        rope: Tensor,
        caches: list[KVCache],
        features: FeatureCache,
    ) -> Callable[[Tensor, float], Tensor]:
        """The field (x [b, T, C], t) -> v of the cell at `where`, of the first b of the conditions."""
        place, every = {t: i for i, t in enumerate(times)}, None
        if len(times) * of_class.numel() * len(caches) <= MODULATED:  # of each block [times, B, 1, W]
            every = list(self.modulations((of_class + embedded[:, None])[:, :, None]))
        bounds = where.start, where.stop
        return partial(self._evaluate, bounds, of_class, place, embedded, every, rope, caches, features)

    def _evaluate(
        self,
        where: tuple[int, int],
        of_class: Tensor,
        place: dict[float, int],
        embedded: Tensor,
        every: list[Modulation] | None,
        rope: Tensor,
        caches: list[KVCache],
        features: FeatureCache,
        x: Tensor,
        t: float,
    ) -> Tensor:
        i, rows = place[t], len(x)
        if every is None:
            modulations = self.modulations((of_class[:rows] + embedded[i])[:, None])
        else:
            modulations = (tuple(part[i, :rows] for part in modulation) for modulation in every)
        stack = partial(features, t)
        return self.transform(x, slice(*where), modulations, rope, caches=caches, keep=False, stack=stack)
