"""Random features of images: filters drawn once, thresholds from training images; nothing is trained."""

import math
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybrid_lightning.errors import ConfigError, check_choice, check_keys, check_number
from hybrid_lightning.network.modules.random_rows import RandomRows, drawn_seed, inputs_by_name

IMAGES = 512
"""Training images from which patches and thresholds are drawn, at most."""
KEPT_VALUES = 2**26
"""Pixels times channels of these images together, at most: 256 MB."""
MAP_VALUES = 2**20
"""Responses that a processor computes at a time: 4 MB, which its caches hold."""
MAP_VALUES_ON_A_DEVICE = 2**26
"""The same for an accelerator, which needs large pieces: 256 MB."""
PATCHES = 4000
"""Patches from which a bank's filters, their whitening and their thresholds come."""
WHITENING = 0.1
"""Share of the mean eigenvalue that is added to each before its inverse is taken."""
RAMP = 0.4
"""How far, in deviations, a response lies above its threshold when it counts fully as positive."""
FLAT = 1e-6
"""Deviation of responses, as a share of the largest pixel, up to which images are flat."""
GOLDEN = (math.sqrt(5) - 1) / 2
"""Multiples of it, without their whole part, are spread evenly between 0 and 1, however many there are."""


class FilterBank(nn.Module):
    """Square filters of one size on images of one scale, and the thresholds of their responses.

    `scale` is the factor by which images are averaged down; every filter has the same number of thresholds.
    """

    filters: Tensor
    biases: Tensor

    def __init__(self, in_channels: int, count: int, thresholds: int, size: int, scale: int) -> None:
        super().__init__()
        self.size = size
        self.scale = scale
        self.register_buffer("filters", torch.zeros(count, in_channels, size, size))
        self.register_buffer("biases", torch.zeros(thresholds, count))

    def shrunk(self, images: Tensor) -> Tensor:
        """Images `(B, C, H, W)` at the bank's scale, at least one pixel, with a border that repeats the outer ones."""
        if self.scale > 1:
            height, width = images.shape[2:]
            sides = (math.ceil(height / self.scale), math.ceil(width / self.scale))
            images = functional.adaptive_avg_pool2d(images, sides)
        # maps are as large as the image, and zeros would make an edge around it
        before = self.size // 2
        after = self.size - 1 - before
        return functional.pad(images, (before, after, before, after), mode="replicate")

    def features(self, shrunk: Tensor, pool: Sequence[str], grids: Sequence[int]) -> Tensor:
        """Shrunk images with their border → `(B, thresholds × pools × cells × filters)`, a bounded piece at a time."""
        limit = MAP_VALUES if shrunk.is_cpu else MAP_VALUES_ON_A_DEVICE
        border = self.size - 1
        height, width = shrunk.shape[2:]
        area = (height - border) * (width - border)
        filters_at_once = max(1, limit // area)
        samples_at_once = max(1, limit // (area * len(self.filters)))
        pieces: Sequence[Tensor] = [shrunk]
        # a program that is traced for any number of samples cannot cut them
        if not torch.compiler.is_compiling():
            pieces = torch.split(shrunk, samples_at_once)
        rows = []
        for piece in pieces:
            columns = []
            for start in range(0, len(self.filters), filters_at_once):
                some = slice(start, start + filters_at_once)
                columns.append(self._pooled(piece, some, pool, grids))
            rows.append(torch.cat(columns, dim=2))
        return torch.cat(rows).flatten(1)

    def _pooled(self, shrunk: Tensor, some: slice, pool: Sequence[str], grids: Sequence[int]) -> Tensor:
        """Features of some of the filters, `(B, thresholds × pools × cells, filters)`."""
        maps = functional.conv2d(shrunk, self.filters[some])
        features = []
        for bias in self.biases[:, some]:
            above = maps - bias.view(-1, 1, 1)
            if "mean" in pool:
                excess = above.relu()
                features += _cell_means(excess, grids)
            if "positive" in pool:
                share = above.div_(RAMP).clamp_(0, 1)
                features += _cell_means(share, grids)
        return torch.stack(features, dim=1)

    def draw_noise(self, generator: torch.Generator) -> None:
        """Draws Gaussian filters."""
        noise = torch.randn(self.filters.shape, generator=generator)
        filters = _unit(noise.flatten(1))
        self.filters.copy_(filters.view_as(self.filters))

    def take_filters(self, patches: Tensor, generator: torch.Generator) -> None:
        """Takes filters from patches `(N, C × size × size)` that are rich in contrast, and whitens them."""
        contrast = patches.std(dim=1, correction=0)
        # what is flatter than most would be a filter of noise
        is_rich = contrast >= contrast.median()
        rich = _unit(patches[is_rich])
        covariance = rich.T @ rich / len(rich)
        mean_variance = covariance.diagonal().mean()
        covariance.diagonal().add_((WHITENING * mean_variance).clamp(min=1e-12))
        order = torch.randperm(len(rich), generator=generator)
        # again from the start if there are fewer patches than filters
        turns = torch.arange(len(self.filters)) % len(rich)
        chosen = rich[order[turns]]
        # whitening both the filter and what it is compared with is the inverse of the covariance
        solved = torch.cholesky_solve(chosen.T, torch.linalg.cholesky(covariance))
        whitened = _unit(solved.T)
        self.filters.copy_(whitened.view_as(self.filters))

    def fit_responses(self, patches: Tensor) -> None:
        """Scales filters to responses of deviation 1 on patches, and takes thresholds at quantiles of the responses."""
        filters = self.filters.flatten(1).to(patches)
        responses = filters @ patches.T
        deviation = responses.std(dim=1, keepdim=True, correction=0)
        # responses to flat images are rounding errors
        is_flat = deviation <= FLAT * patches.abs().max()
        scale = torch.where(is_flat, 1.0, 1 / deviation)
        scaled = filters * scale
        self.filters.copy_(scaled.view_as(self.filters))
        ascending = (responses * scale).sort(dim=1).values
        ranks = self._spread_ranks(len(patches))
        self.biases.copy_(ascending.gather(1, ranks).T)

    def _spread_ranks(self, count: int) -> Tensor:
        """The rank of each threshold among `count` responses, `(filters, thresholds)`, spread over all filters."""
        thresholds, filters = self.biases.shape
        numbers = torch.arange(1, filters * thresholds + 1, dtype=torch.float64)
        levels = (GOLDEN * numbers).frac()
        ranks = (levels * (count - 1)).round().long()
        return ranks.view(filters, thresholds)


class RandomConvolutions2d(nn.Module):
    """How often, and how far, filters that are never trained exceed thresholds, over the cells of coarse grids.

    Square filters of several sizes see the image at several scales (averaged down). They are patches of training
    images, whitened (Coates, Ng and Lee, AISTATS 2011; Coates and Ng, ICML 2011), or Gaussian noise; both without their
    mean, and scaled to responses of deviation 1 on training images. A threshold is a quantile of a filter's responses
    there; quantiles are spread evenly between 0 and 1 over the filters (as MiniRocket, arXiv 2012.08791, does it for
    series). The image's border repeats its outer pixels, so a map of responses is as large as the image, and an image
    of one pixel will do. Its mean brightness counts for nothing.

    What it takes from the data (`prepare`) stands in buffers, and there are no parameters. A pixel that is not finite
    makes all features of its image nan.

    Args:
        in_channels: Channels of the images.
        features: Features of the output at most; as many as give every filter the same number: of thresholds ×
            statistics × cells.
        filters: ``patches`` of training images, or ``gaussian``.
        sizes: Sides of the filters, in pixels of the scale.
        scales: Factors by which images are averaged down; 1 takes them as they are.
        pool: Statistics of responses r above a threshold t over a cell: ``positive``, the share of pixels with r > t,
            of which one counts in proportion to r - t up to 0.4 deviations, because else rounding errors would
            decide about flat areas; ``mean``, the mean of max(0, r - t).
        grids: Cells along each side of each grid: [1, 2] is the whole image and its quarters.
        thresholds: Thresholds of each filter.
        seed: Of all that is drawn; None follows the seed of the run.

    Raises:
        ConfigError: If an argument is impossible, or images have another number of channels.
    """

    prepared: Tensor

    def __init__(
        self,
        in_channels: int,
        features: int = 2048,
        filters: str = "patches",
        sizes: Sequence[int] = (3, 5, 9),
        scales: Sequence[int] = (1, 2, 4),
        pool: Sequence[str] = ("positive",),
        grids: Sequence[int] = (1,),
        thresholds: int = 4,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        _check_sides("sizes", sizes)
        _check_sides("scales", scales)
        _check_sides("grids", grids)
        _refuse_empty("pool", pool, "positive")
        check_keys(pool, ("positive", "mean"), "pool", "statistic")
        _check_whole("thresholds", thresholds)
        self.kind = check_choice(filters, "filters", ("patches", "gaussian"))
        self.in_channels = in_channels
        self.pool = list(pool)
        self.grids = list(grids)
        self.seed = drawn_seed(seed)
        cells = sum(grid * grid for grid in grids)
        per_filter = thresholds * len(pool) * cells
        least = len(sizes) * len(scales) * per_filter
        _check_whole("features", features, least)
        count = features // least
        self.banks: Any = nn.ModuleList()
        for scale, size in product(scales, sizes):
            bank = FilterBank(in_channels, count, thresholds, size, scale)
            self.banks.append(bank)
        self._draw_noise()
        self.register_buffer("prepared", torch.zeros((), dtype=torch.int64))

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, in_channels, H, W)` → `(B, features)`, in the dtype of the buffers."""
        self._check_images(images)
        images = images.to(self.banks[0].filters.dtype)
        features = []
        with torch.autocast(images.device.type, enabled=False):
            for bank in self.banks:
                shrunk = bank.shrunk(images)
                features.append(bank.features(shrunk, self.pool, self.grids))
        # a pixel that is not a number makes all features nan, where a comparison would hide it
        spoiled = 0 * images.flatten(1).mean(dim=1, keepdim=True)
        return torch.cat(features, dim=1) + spoiled

    def _draw_noise(self) -> None:
        """Draws Gaussian filters of all banks."""
        generator = torch.Generator().manual_seed(self.seed)
        for bank in self.banks:
            bank.draw_noise(generator)

    @torch.no_grad()
    def prepare(self, batches: Iterable[list[Any]]) -> None:
        """Takes filters and thresholds from training images.

        Args:
            batches: The part's inputs of each batch, in one pass that is always in the same order; read once.

        Raises:
            ConfigError: If there is no image, or a pixel is not finite.
        """
        # another stream of random numbers than that of the filters
        choice = torch.Generator().manual_seed(self.seed + 1)
        sample = RandomRows(IMAGES, choice, KEPT_VALUES)
        for inputs in batches:
            images = inputs_by_name(inputs, ("images",))["images"]
            self._check_images(images)
            if not images.isfinite().all():
                raise ConfigError(
                    "RandomConvolutions2d: training images have pixels that are not finite. Correct them."
                )
            sample.add(images)
        if not sample.rows():
            raise ConfigError("RandomConvolutions2d: there is no training sample to prepare with.")
        generator = torch.Generator().manual_seed(self.seed + 2)
        with torch.autocast("cpu", enabled=False):
            for bank in self.banks:
                self._prepare_bank(bank, sample.rows(), generator)
        self.prepared.fill_(1)

    def _prepare_bank(self, bank: FilterBank, images: list[Tensor], generator: torch.Generator) -> None:
        """Takes a bank's filters and thresholds from images `(C, H, W)` on the CPU."""
        # one at a time, because their sizes may differ
        shrunk = [bank.shrunk(image[None].float())[0] for image in images]
        patches = _patches(shrunk, bank.size, generator)
        if self.kind == "patches":
            bank.take_filters(patches, generator)
        bank.fit_responses(patches)

    def _check_images(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ConfigError(
                f"RandomConvolutions2d: images of shape {tuple(images.shape)} came, and in_channels says "
                f"{self.in_channels}; they must be (B, {self.in_channels}, H, W). Correct it."
            )


def _cell_means(maps: Tensor, grids: Sequence[int]) -> list[Tensor]:
    """Means `(B, filters)` over each cell of each grid on maps `(B, filters, H, W)`; cells meet, or share a pixel."""
    height, width = maps.shape[2:]
    means = []
    for grid in grids:
        for rows in _cuts(height, grid):
            for columns in _cuts(width, grid):
                cell = maps[:, :, rows, columns]
                means.append(cell.mean(dim=(2, 3)))
    return means


def _cuts(side: int, grid: int) -> list[slice]:
    """The cells along a side of so many pixels, at least one pixel each."""
    cells = []
    for cell in range(grid):
        first = side * cell // grid
        last = math.ceil(side * (cell + 1) / grid)
        cells.append(slice(first, last))
    return cells


def _patches(images: list[Tensor], size: int, generator: torch.Generator) -> Tensor:
    """Patches `(PATCHES, C × size × size)`, from images in turn at random places."""
    draws = torch.rand(PATCHES, 2, generator=generator).tolist()
    patches = []
    for index, (down, right) in enumerate(draws):
        image = images[index % len(images)]
        _, height, width = image.shape
        top = int(down * (height - size + 1))
        left = int(right * (width - size + 1))
        patch = image[:, top : top + size, left : left + size]
        patches.append(patch.flatten())
    return torch.stack(patches)


def _unit(filters: Tensor) -> Tensor:
    """Rows `(filters, values)` of mean 0 and length 1; 0 if they are constant."""
    centered = filters - filters.mean(dim=1, keepdim=True)
    length: Tensor = centered.norm(dim=1, keepdim=True)
    return centered / length.clamp(min=1e-12)


def _check_whole(name: str, value: int, low: int = 1) -> None:
    """Raises `ConfigError` unless a value is a whole number of at least `low`."""
    check_number(value, name, low)
    if value != int(value):
        raise ConfigError(f"{value} is not a whole number.", name)


def _check_sides(name: str, sides: Sequence[int]) -> None:
    """Raises `ConfigError` unless a list holds whole numbers from 1."""
    _refuse_empty(name, sides, "3")
    for side in sides:
        _check_whole(name, side)


def _refuse_empty(name: str, values: Sequence[Any], example: str) -> None:
    """Raises `ConfigError` if a list is empty."""
    if not values:
        raise ConfigError(f"the list is empty; give at least one value, such as [{example}].", name)
