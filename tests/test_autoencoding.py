"""Autoencoders: the latents and the picture of reconstructions that a training leaves, beside the images and the saved model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from test_train import make_dataset
from torch import Tensor

from scansmith import dataset, model, train
from scansmith.networks.autoencoder import Autoencoder

SIDE = 16
# Recipe and labels of the images; "": an image without a label among others that have one.
CASES = {"vae": ("vae", ()), "autoencoder": ("autoencoder", ()), "vae with labels": ("vae", ("a", "b", ""))}


@dataclass(frozen=True)
class Trained:
    """A training that is over: its data, its folder, its saved network and what it left of latents."""

    data: dataset.Dataset
    run: Path
    network: Autoencoder
    stored: dict[str, np.ndarray]

    @property
    def known(self) -> np.ndarray:
        """Rows that can be encoded: with labels those that have one."""
        return np.flatnonzero(self.data.classes() >= 0) if self.data.labels else np.arange(len(self.data))

    def classes(self, rows: np.ndarray) -> Tensor | None:
        return torch.from_numpy(self.data.classes()[rows]) if self.data.labels else None

    def images(self, rows: np.ndarray) -> Tensor:
        """(n, 1, SIDE, SIDE) in [-1, 1], straight from the shards: the grid is the stored size."""
        return torch.stack([torch.from_numpy(self.data.image(int(row)) / 127.5 - 1.0).float() for row in rows])

    @torch.no_grad()
    def encoded(self, rows: np.ndarray) -> Tensor:
        return self.network.encode(self.images(rows), self.classes(rows))[0]

    @torch.no_grad()
    def decoded(self, rows: np.ndarray) -> Tensor:
        """Images from the stored latents of some rows."""
        places = np.searchsorted(self.known, rows)
        return self.network.decode(torch.from_numpy(self.stored["latents"][places]), self.classes(rows))


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def trained(request, tmp_path_factory) -> Trained:
    recipe, labels = request.param
    root = tmp_path_factory.mktemp("autoencoding")
    data = dataset.Dataset.open(make_dataset(root / "data", count=80, labels=labels, side=SIDE))
    train(data.root, root / "run", recipe=recipe, minutes=0.02, images=320, side=SIDE, device="cpu")
    network = model.load(root / "run" / "model").generator
    assert isinstance(network, Autoencoder)
    with np.load(root / "run" / "latents.npz") as stored:  # without pickle, which numpy refuses by itself
        return Trained(data, root / "run", network, dict(stored))


def test_every_image_has_its_row_of_latents_in_the_order_of_the_dataset(trained):
    latents = trained.stored["latents"]
    assert latents.dtype == np.float32 and latents.shape == (len(trained.known), trained.network.latent)
    for name in ("case", "slice", "split", "label"):
        assert np.array_equal(trained.stored[name], trained.data.columns[name][trained.known]), name
    assert set(trained.stored["split"]) == {"train", "validation", "holdout"}


def test_an_image_without_a_label_among_others_with_one_has_no_latents(trained):
    without = len(trained.data) - len(trained.stored["latents"])
    assert without == (sum(trained.data.columns["label"] == "") if trained.data.labels else 0)
    assert ("" in trained.stored["label"]) == (not trained.data.labels)


def test_the_saved_model_encodes_the_same_images_to_the_same_latents(trained):
    latents, again = trained.stored["latents"], trained.encoded(trained.known).numpy()
    np.testing.assert_allclose(again, latents, rtol=1e-4, atol=1e-5)
    apart = np.linalg.norm(latents[:, None] - latents[None], axis=2)[~np.eye(len(latents), dtype=bool)]
    assert apart.min() > 10 * np.linalg.norm(again - latents, axis=1).max()  # so that another order would be noticed


def test_stored_latents_are_decoded_to_what_the_network_makes_of_the_images(trained):
    with torch.no_grad():
        whole = trained.network.decode(trained.encoded(trained.known), trained.classes(trained.known))
    decoded = trained.decoded(trained.known)
    assert decoded.shape == (len(trained.known), 1, SIDE, SIDE)
    np.testing.assert_allclose(decoded.numpy(), whole.numpy(), atol=1e-4)


# With labels the mean is taken over the mixture that training draws, in which rare classes count more.
@pytest.mark.parametrize("trained", [CASES["vae"], CASES["autoencoder"]], indirect=True, ids=["vae", "autoencoder"])
def test_new_images_are_drawn_around_the_latents_of_the_training_images(trained):
    learned = trained.stored["latents"][trained.stored["split"] == "train"]
    np.testing.assert_allclose(trained.network.center.numpy(), learned.mean(0), rtol=1e-4, atol=1e-5)


def test_the_picture_shows_validation_images_each_beside_its_reconstruction(trained):
    """An image without a label was once shown as if it were of the first class."""
    rows = np.intersect1d(trained.data.rows("validation"), trained.known)
    shown = tiles(trained.run / "samples" / "reconstructions.png", 2 * len(rows))
    stored = np.stack([trained.data.image(int(row))[0] for row in rows])
    assert np.array_equal(shown[::2], stored)
    made = (trained.decoded(rows)[:, 0].clamp(-1.0, 1.0).numpy() + 1.0) * 127.5
    assert np.abs(shown[1::2] - made).max() < 0.6  # rounded to whole grey values
    others = np.abs(np.roll(made, 1, axis=0) - stored).mean()
    assert np.abs(made - stored).mean() < others  # each is like its own image


def tiles(path: Path, count: int) -> np.ndarray:
    """A sheet of eight columns with two pixels after each tile -> (count, SIDE, SIDE)."""
    pixels = np.asarray(Picture.open(path))
    rows = -(-count // 8)
    assert pixels.shape == (rows * (SIDE + 2), 8 * (SIDE + 2))
    cut = pixels.reshape(rows, SIDE + 2, 8, SIDE + 2)[:, :SIDE, :, :SIDE].swapaxes(1, 2)
    return cut.reshape(-1, SIDE, SIDE)[:count].astype(np.float32)
