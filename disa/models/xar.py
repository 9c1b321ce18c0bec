"""xAR: autoregression over cells of tokens, each cell sampled by flow matching with the transformer itself.

Ren et al., "Beyond Next-Token: Next-X Prediction for Autoregressive Visual Generation", 2025. Parameter names are the released ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..flow import get_flow_sampler, interpolate, linspace, velocity_loss
from ..guidance import Guidance, combine
from ..noise import NoiseSource
from ..schedule import StepSchedule
from ..trace import StepTrace
from .checks import check_finite, check_labels, check_shares, check_sizes, check_temperature
from .layers import TimestepEmbedding
from .rotary import KeyValues, ModulatedBlock, RMSNorm, Rotation, rotation


def flow_times(steps: int) -> tuple[float, ...]:
    """The flow times that `steps` steps visit: evenly from 1 to 0.04, then 0."""
    return (*linspace(1, 0.04, steps), 0.0)


class XAR(nn.Module):
    """Cell-wise autoregressive transformer that predicts the velocity of the current cell.

    Args:
        image_size, latent_stride: pixels a side, and pixels a latent.
        latent_channels: channels of the latents.
        cells_per_side: cells a side of the latents; each is one AR step.
        num_classes: labels 0..num_classes-1.
        width, depth, num_heads: of the first half of the transformer, and again of the second.
        attn_dropout, proj_dropout, label_drop_prob: training alone.

    Raises:
        ValueError: the sizes do not fit together.
    """

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
        check_sizes(image_size=image_size, latent_stride=latent_stride, latent_channels=latent_channels, num_classes=num_classes)
        check_sizes(cells_per_side=cells_per_side, width=width, depth=depth, num_heads=num_heads)
        check_shares(attn_dropout=attn_dropout, proj_dropout=proj_dropout, label_drop_prob=label_drop_prob)
        grid = image_size // latent_stride
        if image_size % latent_stride or grid % cells_per_side:
            raise ValueError(
                f"cells_per_side is {cells_per_side}; it must divide image_size / latent_stride = {image_size / latent_stride:g}"
            )
        if width % (4 * num_heads):
            raise ValueError(f"width is {width}; it must be a multiple of 4 · num_heads = {4 * num_heads}, for 2-D rotary positions")
        self.grid, self.cells_per_side, self.num_classes = grid, cells_per_side, num_classes
        self.head_width, self.label_drop_prob = width // num_heads, label_drop_prob

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
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for name, parameter in self.named_parameters():
            if "pos_embed" in name:
                nn.init.normal_(parameter, std=0.02)
            # Every block begins as the identity: its gates are shut.
            if "ada_lin" in name:
                nn.init.zeros_(parameter)

    @property
    def cells(self) -> int:
        """Cells an image."""
        return self.cells_per_side**2

    def to_cells(self, grid: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, cells, H · W / cells, C], cells and the tokens in each in row-major order."""
        n = self.cells_per_side
        return grid.unflatten(3, (n, -1)).unflatten(2, (n, -1)).permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)

    def from_cells(self, cells: Tensor) -> Tensor:
        """The way back."""
        n, side = self.cells_per_side, self.grid // self.cells_per_side
        return cells.unflatten(2, (side, side)).unflatten(1, (n, n)).permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def _rotation(self, device: torch.device) -> Rotation:
        """Of the whole sequence, cell by cell."""
        cos, sin = (
            self.to_cells(part.T.unflatten(1, (self.grid, self.grid))[None]).flatten(0, 2)
            for part in rotation(self.grid, self.head_width, device)
        )
        return cos, sin

    @property
    def _blocks(self) -> Iterator[ModulatedBlock]:
        yield from self.encoder_blocks  # type: ignore[misc]
        yield from self.decoder_blocks  # type: ignore[misc]

    def transform(
        self,
        x: Tensor,
        where: slice,
        condition: Tensor,
        turn: Rotation,
        mask: Tensor | None = None,
        caches: list[KeyValues] | None = None,
        keep: bool = True,
    ) -> Tensor:
        """Tokens x [B, L, C] that lie at `where` in the sequence, with conditions [B, 1 or L, W] -> velocity [B, L, C]."""
        turn = (turn[0][where], turn[1][where])
        x = self.z_proj_ln(self.z_proj(x) + self.encoder_pos_embed_learned[:, where])
        for i, block in enumerate(self._blocks):
            if i == len(self.encoder_blocks):
                x = self.decoder_embed(self.encoder_norm(x)) + self.decoder_pos_embed_learned[:, where]
            x = block(x, block.modulation(condition), turn, mask=mask, cache=caches[i] if caches else None, keep=keep)
        return self.pred(self.decoder_norm(x))

    def _time(self, t: Tensor) -> Tensor:
        """Flow times [N] -> embeddings [N, W]."""
        return self.time_embed((1000 * t).long())

    def forward(self, latents: Tensor, labels: Tensor, times: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Training loss of a batch; every cell is noised to a time of its own and sees the cells before it as noisy as they are.

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
        condition = (of_class[:, None] + self._time(t.T.flatten()).unflatten(0, (batch, -1))).repeat_interleave(tokens, dim=1)
        cell_of = torch.arange(self.cells, device=device).repeat_interleave(tokens)
        mask = cell_of[:, None] >= cell_of[None]
        noisy = interpolate(x0, eps, t.T)
        velocity = self.transform(noisy.flatten(1, 2), slice(None), condition, self._rotation(device), mask)
        return velocity_loss(velocity.float(), x0.flatten(1, 2), eps.flatten(1, 2))

    def evaluations(self, schedule: StepSchedule, sampler: str) -> list[int]:
        """Evaluations of the velocity at each AR step that `generate` would make with these settings."""
        steps = (len(flow_times(schedule.steps(step, self.cells))) - 1 for step in range(self.cells))
        return [get_flow_sampler(sampler).evaluations(count) for count in steps]

    @torch.no_grad()
    def generate(
        self,
        labels: Tensor,
        schedule: StepSchedule | None = None,
        sampler: str = "euler_maruyama",
        guidance: Guidance | None = None,
        temperature: float = 1.0,
        *,
        noise: NoiseSource,
        on_step: Callable[[StepTrace], None] | None = None,
    ) -> Tensor:
        """Latents for class labels, one AR step a cell.

        Args:
            labels: int64 [B].
            schedule: flow steps at each cell; by default 50 down to 15, linear.
            sampler: a name in `disa.flow.FLOW_SAMPLERS`.
            guidance: by default none; it applies at flow times up to `max_time`, where its scale is not 1.
            temperature: factor on the noise that steps add; Euler and Heun add none.
            noise: where the randomness comes from, such as `disa.ImageNoise`.
            on_step: called after each cell.

        Returns:
            float32 [B, C, H, W], unit variance.

        Raises:
            ValueError: a setting or a label is impossible.
            FloatingPointError: a latent came out as NaN or infinite.
        """
        schedule, guidance, solver = schedule or StepSchedule(50, 15), guidance or Guidance(), get_flow_sampler(sampler)
        check_labels(labels, self.num_classes)
        check_temperature(temperature)
        batch, last, device = len(labels), self.cells - 1, labels.device
        branches = 2 if guidance.active else 1
        of_class = self.class_emb(labels)
        if guidance.active:
            of_class = torch.cat([of_class, self.class_emb(torch.full_like(labels, self.num_classes))])
        turn = self._rotation(device)
        heads = of_class.shape[-1] // self.head_width
        caches = [KeyValues(len(of_class), heads, self.grid**2, self.head_width, of_class) for _ in self._blocks]
        tokens = self.grid**2 // self.cells
        cells: list[Tensor] = []
        for step in range(self.cells):
            start = time.perf_counter()
            where = slice(step * tokens, (step + 1) * tokens)
            scale = guidance.at(step / last if last else 1.0)
            if cells:  # the finished cell joins the caches, as what it is: data, at time 0
                before = slice(where.start - tokens, where.start)
                finished = cells[-1].to(of_class.dtype).repeat(branches, 1, 1)
                self.transform(finished, before, (of_class + self._time(torch.zeros(1, device=device)))[:, None], turn, caches=caches)

            def velocity(x: Tensor, t: float, where=where, scale=scale) -> Tensor:
                when = self._time(torch.tensor([t], device=device))
                x = x.to(of_class.dtype)
                if scale == 1 or t > guidance.max_time:
                    return self.transform(x, where, (of_class[:batch] + when)[:, None], turn, caches=caches, keep=False)
                both = self.transform(torch.cat([x, x]), where, (of_class + when)[:, None], turn, caches=caches, keep=False)
                conditional, unconditional = both.float().chunk(2)
                return combine(conditional, unconditional, scale)

            times = flow_times(schedule.steps(step, last + 1))
            draws = noise.normal(step, solver.draws(len(times) - 1), tokens, self.z_proj.in_features)
            cells.append(solver.solve(velocity, draws, times, temperature))
            if on_step is not None:
                evaluations = solver.evaluations(len(times) - 1)
                on_step(StepTrace(step, tokens, schedule.steps(step, last + 1), evaluations, time.perf_counter() - start))
        latents = self.from_cells(torch.stack(cells, dim=1)).float()
        check_finite(latents)
        return latents
