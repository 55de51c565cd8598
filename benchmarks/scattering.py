"""The scattering transform of 28 x 28 images: features that are not learned, and so cost no privacy.

Moduli of two layers of Morlet wavelets, at two scales and eight angles, averaged to 7 x 7 places: 1 + 16 + 64 channels
of each image by itself. What a private training then has to learn is linear.

Sources: Bruna and Mallat, "Invariant scattering convolution networks" (2013), with Kymatio's filters; Tramèr and Boneh,
"Differentially private learning needs better features (or much more data)" (2021).
"""

import math

import torch
from torch.nn import functional

CHANNELS, PLACES = 81, 7
"""An image becomes `[81, 7, 7]`: channels by place and place."""

GROUPS = 27
"""Of three neighbouring channels each, as in Tramèr and Boneh."""

_SCALES, _ANGLES = 2, 8
_STRIDE = 2**_SCALES
_SIDE = 28 + 2 * _STRIDE  # images are continued by reflection, because a Fourier transform wraps around
_BATCH = 16
"""Images at a time: more do not fit into a processor's cache."""


def normalised(images: torch.Tensor) -> torch.Tensor:
    """The transform of each image, each of its groups of channels with mean 0 and variance 1; float32 `[n, 81, 7, 7]`."""
    return functional.group_norm(scattering(images), GROUPS)


def scattering(images: torch.Tensor) -> torch.Tensor:
    """Each image's own transform; float32 `[n, 1, 28, 28]` -> `[n, 81, 7, 7]`."""
    fine, coarse = (_morlets(scale) for scale in range(_SCALES))
    return torch.cat([_channels(batch, fine, coarse) for batch in torch.split(images, _BATCH)])


def _channels(images: torch.Tensor, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    """Averages of the image, then of the moduli of one wavelet, then of those of a fine and a coarse one in turn."""
    padded = functional.pad(images, [_STRIDE] * 4, mode="reflect")
    spectrum = torch.fft.fft2(padded)
    of_fine = torch.fft.ifft2(spectrum * fine).abs()
    of_coarse = _halved(spectrum * coarse)
    of_both = _halved(torch.fft.fft2(of_fine)[:, :, None] * coarse).flatten(1, 2)
    return torch.cat([_averages(each) for each in (padded, of_fine, of_coarse, of_both)], dim=1)


def _halved(spectrum: torch.Tensor) -> torch.Tensor:
    """The moduli of what has this spectrum, at every other place: coarse wavelets leave no more to see."""
    half = _SIDE // 2
    folded = spectrum[..., :half, :] + spectrum[..., half:, :]
    folded = folded[..., :half] + folded[..., half:]
    return torch.fft.ifft2(folded).abs().div_(4)


def _averages(channels: torch.Tensor) -> torch.Tensor:
    """Gaussian averages around 7 x 7 places, away from the borders; `[n, c, side, side]` -> `[n, c, 7, 7]`."""
    side = channels.shape[-1]
    centres = torch.arange(1, PLACES + 1) * (side * _STRIDE // _SIDE)
    distances = _wrapped(torch.arange(side) - centres[:, None], side) * (_SIDE / side)
    weights = torch.exp(-0.5 * (distances / (0.8 * 2 ** (_SCALES - 1))) ** 2)
    weights /= weights.sum(dim=1, keepdim=True)
    return weights @ channels @ weights.T


def _morlets(scale: int) -> torch.Tensor:
    """The spectra of a scale's wavelets, one for each angle; float32 `[8, side, side]`, zero at frequency zero."""
    frequency, width, slant = 0.75 * math.pi / 2**scale, 0.8 * 2**scale, 4 / _ANGLES
    places = _wrapped(torch.arange(_SIDE), _SIDE)
    down, across = torch.meshgrid(places, places, indexing="ij")
    wavelets = []
    for angle in (torch.arange(_ANGLES) * math.pi / _ANGLES).tolist():
        along = across * math.cos(angle) + down * math.sin(angle)
        aside = down * math.cos(angle) - across * math.sin(angle)
        bell = torch.exp(-(along**2 + (slant * aside) ** 2) / (2 * width**2)) * slant / (2 * math.pi * width**2)
        wave = bell * torch.exp(1j * frequency * along)
        wavelets.append(torch.fft.fft2(wave - bell * (wave.sum() / bell.sum())).real)
    return torch.stack(wavelets)


def _wrapped(distances: torch.Tensor, side: int) -> torch.Tensor:
    """Distances on a ring, in [-side / 2, side / 2)."""
    return ((distances + side // 2) % side - side // 2).float()
