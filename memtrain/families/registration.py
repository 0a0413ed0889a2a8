"""Registration of two pictures by their thumbnails: mirrored or not, scaled, shifted and slightly turned.

For each pair (a, b), the registration finds the transform of b under which the luminance of both is most alike.
A coarse search takes the best few of all shifts at seven scales, mirrored or not. It uses circular cross-correlation of
band-passed luminance at 16 pixels. Gauss-Newton steps then refine scale by axis, rotation and shift. They work first at
16 pixels, then at 32 for pairs that still look alike.
Source: Kuglin and Hines, "The phase correlation image alignment method" (1975), without whitening; Lucas and Kanade,
"An iterative image registration technique" (1981), with a new estimate of gain and offset in each step.
Cost: about 0.1 ms for a pair that is dropped after the coarse search, 0.5 ms for one that is kept, on one core.
Cannot: undo rotations beyond about 10 degrees, upside-down copies, or crops that keep less than half of the width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 32
"""The height and width of a thumbnail."""
COARSE = 16
SCALES = tuple(2 ** (step / 4) for step in range(-3, 4))
"""The scales of b in the coarse search: from a crop of 59 % to one of 168 %."""
KEPT = 2
"""The number of transforms that the coarse search passes on."""
LARGEST_SCALE, LARGEST_TURN, LARGEST_STRETCH = 2.0, 0.2, 1.25
STEPS = 3
"""The number of refining steps at each resolution."""


@dataclass(frozen=True)
class Placement:
    """The places of b over a, for m pairs.

    Attributes:
        motion: horizontal and vertical scale, rotation, horizontal and vertical shift, `(m, 5)`. They lead from places
            in a to places in b, in units of half a side, counted from the center.
        mirrored: whether b is mirrored before, `(m,)` bool.
    """

    motion: Tensor
    mirrored: Tensor

    def __getitem__(self, index: Tensor) -> Placement:
        return Placement(self.motion[index], self.mirrored[index])

    def matrices(self) -> Tensor:
        """Return the transforms `(m, 2, 3)` in the form of :func:`torch.nn.functional.affine_grid`."""
        across, down, turn, x, y = self.motion.unbind(dim=1)
        side = torch.where(self.mirrored, -1.0, 1.0)
        cosine, sine = turn.cos(), turn.sin()
        first = torch.stack([side * across * cosine, -side * across * sine, side * x], dim=1)
        return torch.stack([first, torch.stack([down * sine, down * cosine, y], dim=1)], dim=1)

    def inverse(self) -> Placement:
        """Return the places of a over b: exact for one scale in both directions, and nearly exact otherwise."""
        across, down, turn, x, y = self.motion.unbind(dim=1)
        side = torch.where(self.mirrored, -1.0, 1.0)
        back = -side * turn
        cosine, sine = turn.cos(), turn.sin()
        moved_x, moved_y = x / across, y / down
        shifts = [-side * (cosine * moved_x + sine * moved_y), sine * moved_x - cosine * moved_y]
        return Placement(torch.stack([1 / across, 1 / down, back, *shifts], dim=1), self.mirrored)

    def cover(self, side: int = SIDE) -> Tensor:
        """Return how much of each pixel of a is covered by b, from 0 to 1, `(m, side, side)`."""
        return _inside(self.matrices(), side)

    def place(self, images: Tensor) -> Tensor:
        """Return the images b in their places over a, `(m, C, H, W)`; border pixels fill the places without b."""
        rows, columns = _axes(images, images.shape[-1])
        grid = torch.stack(_places(self.matrices(), rows, columns), dim=3)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def luminance(images: Tensor) -> Tensor:
    """Turn `(n, 3, H, W)` into luminance `(n, 1, H, W)`."""
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def spectra(images: Tensor) -> Tensor:
    """Return spectra of unit length of the unchanged images, for the coarse search, `(n, 16, 9)` complex."""
    return _spectrum(_coarse(luminance(images)))


def scaled_spectra(images: Tensor) -> Tensor:
    """Return spectra of the images at every scale, plain ones first, then mirrored, `(n, 14, 16, 9)` complex."""
    grey = _coarse(luminance(images))
    found = []
    for picture in (grey, grey.flip(3)):
        for scale in SCALES:
            matrix = grey.new_tensor([[1 / scale, 0, 0], [0, 1 / scale, 0]]).expand(len(grey), 2, 3)
            grid = F.affine_grid(matrix, list(grey.shape), align_corners=False)
            found.append(_spectrum(F.grid_sample(picture, grid, padding_mode="border", align_corners=False)))
    return torch.stack(found, dim=1)


def coarse_placements(first: Tensor, second: Tensor) -> tuple[Tensor, Placement]:
    """Return the best few placements of each pair by cross-correlation.

    Args:
        first: the spectra `(m, 16, 9)`, from :func:`spectra`.
        second: the spectra `(m, 14, 16, 9)`, from :func:`scaled_spectra`.

    Returns:
        The correlations `(m, KEPT)`, best first, and `m * KEPT` placements, one pair after the other.
    """
    correlation = torch.fft.irfft2(first[:, None].conj() * second, s=(COARSE, COARSE))
    best, at = correlation.flatten(2).max(dim=2)
    best, kind = best.topk(KEPT, dim=1)
    at = at.gather(1, kind)
    down, right = ((shift + COARSE // 2) % COARSE - COARSE // 2 for shift in (at // COARSE, at % COARSE))
    scale = 1 / first.real.new_tensor(SCALES)[kind % len(SCALES)]
    shifts = [right * 2 / COARSE * scale, down * 2 / COARSE * scale]
    motion = torch.stack([scale, scale, torch.zeros_like(scale), *shifts], dim=2)
    return best, Placement(motion.flatten(0, 1), (kind >= len(SCALES)).flatten())


def refine(first: Tensor, second: Tensor, placement: Placement, *, steps: int = STEPS) -> tuple[Placement, Tensor]:
    """Refine placements by Gauss-Newton steps on the luminance.

    Args:
        first: the luminance of a, `(m, 1, H, H)`.
        second: the luminance of b, `(m, 1, H, H)`.
        placement: the first placement of b.
        steps: the number of steps.

    Returns:
        The placements, and the share of a's variance that was explained before the last step, `(m,)`.
    """
    a, side = first[:, 0], first.shape[-1]
    rows, columns = _axes(a, side)
    explained = a.new_zeros(len(a))
    for _ in range(steps):
        weight = placement.cover(side)
        total = weight.sum(dim=(1, 2), keepdim=True) + 1e-6
        b = placement.place(second)[:, 0]
        a_free = a - (weight * a).sum(dim=(1, 2), keepdim=True) / total
        b_free = b - (weight * b).sum(dim=(1, 2), keepdim=True) / total
        product = (weight * a_free * b_free).sum(dim=(1, 2), keepdim=True)
        gain = (product / ((weight * b_free.square()).sum(dim=(1, 2), keepdim=True) + 1e-4 * side)).clamp(0.3, 3)
        residual = a_free - gain * b_free
        variance = (weight * a_free.square()).sum(dim=(1, 2))
        explained = 1 - (weight * residual.square()).sum(dim=(1, 2)) / (variance + 1e-6)
        b = F.pad(b[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
        slope = gain * weight.sqrt() * side / 4
        x, y = slope * (b[:, 1:-1, 2:] - b[:, 1:-1, :-2]), slope * (b[:, 2:, 1:-1] - b[:, :-2, 1:-1])
        basis = torch.stack([x * columns, y * rows, y * columns - x * rows, x, y], dim=1).flatten(2)
        normal = basis @ basis.mT
        damping = 1e-3 * normal.diagonal(dim1=1, dim2=2).mean(dim=1) + 1e-5
        normal = normal + torch.eye(5) * damping[:, None, None]
        step = torch.linalg.solve(normal, basis @ (residual * weight.sqrt()).flatten(1)[:, :, None])[:, :, 0]
        placement = Placement(_moved(placement.motion, step.clamp(-0.15, 0.15)), placement.mirrored)
    return placement, explained


def _moved(motion: Tensor, step: Tensor) -> Tensor:
    """Return motions after a step, within the bounds."""
    across, down = motion[:, 0] * (1 + step[:, 0]), motion[:, 1] * (1 + step[:, 1])
    scale = (across * down).clamp(min=1e-6).sqrt().clamp(1 / LARGEST_SCALE, LARGEST_SCALE)
    stretch = (across / down).clamp(1 / LARGEST_STRETCH, LARGEST_STRETCH).sqrt()
    turn = (motion[:, 2] + step[:, 2]).clamp(-LARGEST_TURN, LARGEST_TURN)
    shifts = motion[:, 3:] + motion[:, :2] * step[:, 3:]
    return torch.cat([torch.stack([scale * stretch, scale / stretch, turn], dim=1), shifts.clamp(-2, 2)], dim=1)


def _coarse(grey: Tensor) -> Tensor:
    return F.avg_pool2d(grey, grey.shape[-1] // COARSE)


def _spectrum(grey: Tensor) -> Tensor:
    """Return spectra of luminance at 16 pixels without parts broader than five pixels; equal ones correlate by 1."""
    fields = (grey - F.avg_pool2d(F.pad(grey, (2, 2, 2, 2), mode="replicate"), 5, 1))[:, 0]
    fields = fields - fields.mean(dim=(1, 2), keepdim=True)
    return torch.fft.rfft2(fields / (fields.square().sum(dim=(1, 2), keepdim=True).sqrt() + 1e-3))


def _axes(like: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return vertical and horizontal places of pixels, from -1 to 1, `(side, 1)` and `(side,)`."""
    places = (torch.arange(side, dtype=like.dtype) * 2 + 1) / side - 1
    return places[:, None], places


def _inside(matrices: Tensor, side: int) -> Tensor:
    rows, columns = _axes(matrices, side)
    # The cover falls from 1 to 0 over a pixel at the border, so that the refinement meets no jump.
    x, y = ((1.02 - places.abs()).clamp(0, 0.06) for places in _places(matrices, rows, columns))
    return x * y / 0.06**2


def _places(matrices: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return the new horizontal and vertical places of pixels, `(m, side, side)` each."""
    x, y = matrices[:, :, :, None, None].unbind(dim=1)
    return x[:, 0] * columns + x[:, 1] * rows + x[:, 2], y[:, 0] * columns + y[:, 1] * rows + y[:, 2]
