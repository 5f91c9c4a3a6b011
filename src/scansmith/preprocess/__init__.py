"""Crop, grid, orientation and resampling as every stage applies them: one place, so that what was learned is what is measured."""

from .crop import choose_crop, crop_extent, foreground_box
from .dimensions import choose_dimensions
from .grid import Grid, band, resampling_matrix, resize, resize_volume, to_dtype
from .mr import bias_corrected, histogram_knots, landmarks, match_histogram, piecewise
from .window import corrected, stores_grey_levels, window_of

__all__ = [
    "Grid",
    "band",
    "bias_corrected",
    "choose_crop",
    "choose_dimensions",
    "corrected",
    "crop_extent",
    "foreground_box",
    "histogram_knots",
    "landmarks",
    "match_histogram",
    "piecewise",
    "resampling_matrix",
    "resize",
    "resize_volume",
    "stores_grey_levels",
    "to_dtype",
    "window_of",
]
