"""Translation beside MONAI: the same network through both inferers, and MONAI's U-Net trained by a plain loop for the same time.

    OMP_NUM_THREADS=1 python benchmarks/translation_monai.py OUT [--harvard SHARED_DATA] [--minutes 10] [--rates 1e-3,3e-4] [--quick]

Inference: one network with one set of weights, `inference.translate` and MONAI's `sliding_window_inference` in turns, at equal patch,
overlap (half), batch of windows and Gaussian weights; for volumes slice by slice and for volumes in 3-D. Small images ours sees
whole, MONAI cuts them all; the row "in windows" cuts ours too. Memory is the highest of a process of its own, above what it held
before. Differences are those of the middle, in HU, as if [-1, 1] were [-1024, 3071].

Training: T1 -> CT of phantoms, and MR -> CT of Harvard slices where SHARED_DATA is given, which `scansmith train` learns in the
minutes. MONAI's UNet (two residual units, strides) and BasicUNet with as many parameters get the same processor seconds, patch,
batch, precision and layout: random crops, mirrored half of the time, L1, Adam, one run for each of `--rates`, of which that with the
least error on validation patients counts. All are judged by `scansmith evaluate`, MONAI's through its own windows. Images/s at equal patch and batch are timed in
turns, in processor time, so that what else the machine does counts less; those of the whole run include probe, ticks and drawing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import BasicUNet
from monai.networks.nets import UNet as StridedUNet
from torch import Tensor, nn
from torch.nn import functional as F
from translation_sets import harvard

from scansmith import inference, model, pairings, phantom, prepare, train, windows
from scansmith.dataset import Dataset
from scansmith.evaluate.translation import evaluate_translation
from scansmith.networks.unet import UNet
from scansmith.pairings import Pairing
from scansmith.runtime import Interrupted, write_atomic, write_json
from scansmith.train import stage
from scansmith.train.probe import Clock
from scansmith.train.recipes import Recipe

CPU = torch.device("cpu")
OVERLAP, BATCH, AIR = inference.OVERLAP, 4, -1.0
HU = 4095.0 / 2.0  # of one encoded unit
PATCH = {2: (128, 128), 3: (32, 32, 32)}
# Slices, rows, columns of the scans that are translated; of --quick.
SCANS = {2: [(24, 256, 256), (24, 512, 512)], 3: [(96, 128, 128), (90, 125, 123)]}
QUICK = {2: [(4, 160, 160)], 3: [(40, 48, 48)]}
CUT = "ours, in windows"  # of slices; volumes always are
METRICS = {"mae": "MAE", "psnr": "PSNR", "ssim": "SSIM"}


# ------------------------------------------------------------------------------------------------ inference


def network(dimensions: int) -> UNet:
    """The U-Net of `scansmith train` with random weights whose output spans about [-1, 1], in evaluation mode."""
    torch.manual_seed(0)
    made = UNet(1, 1, dimensions, width=16)
    nn.init.normal_(made.end.weight, std=0.1)
    made.train()
    with torch.no_grad():
        made(torch.randn(2, 1, *PATCH[dimensions]))  # batch norm's statistics
    return made.eval().requires_grad_(False)


def scan(shape: tuple[int, ...]) -> np.ndarray:
    """(1, D, H, W) float32: smooth noise in a body, air around it."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.uniform(-1.0, 1.0, (1, 1, *(max(4, side // 8) for side in shape))))
    axes = np.meshgrid(*(np.linspace(-1.0, 1.0, side) for side in shape), indexing="ij")
    values = F.interpolate(coarse, size=shape, mode="trilinear")[0].numpy()
    return np.where(axes[1] ** 2 + axes[2] ** 2 < 0.8, values, AIR).astype(np.float32)


def ours(net: UNet, image: np.ndarray) -> np.ndarray:
    """As `scansmith translate` does it; (C, *spatial) -> middle (*spatial)."""
    return inference.translate(net, image, PATCH[image.ndim - 1], CPU)[0, 0]


def in_windows(net: UNet, image: np.ndarray) -> np.ndarray:
    """Ours in windows, however small the image."""
    made = windows.predict(
        lambda part: net(part).flatten(1, 2),
        torch.from_numpy(image),
        PATCH[image.ndim - 1],
        OVERLAP,
        BATCH,
        net.step,
        None,
        AIR,
    )
    return made[0].numpy()


def monai(net: UNet, image: np.ndarray) -> np.ndarray:
    """MONAI's windows."""
    with torch.inference_mode():
        made = sliding_window_inference(
            torch.from_numpy(image)[None],
            PATCH[image.ndim - 1],
            BATCH,
            lambda part: net(part).flatten(1, 2),
            overlap=OVERLAP,
            mode="gaussian",
            sigma_scale=windows.SIGMA,
            cval=AIR,
        )
    assert isinstance(made, Tensor)
    return made[0, 0].numpy()


WAYS: dict[str, Callable[[UNet, np.ndarray], np.ndarray]] = {
    "ours": ours,
    CUT: in_windows,
    "MONAI": monai,
}


def whole_scan(way: str, dimensions: int, net: UNet, values: np.ndarray) -> np.ndarray:
    """(D, H, W) of a scan (1, D, H, W), in 2-D slice by slice."""
    if dimensions == 3:
        return WAYS[way](net, values)
    return np.stack([WAYS[way](net, np.ascontiguousarray(values[:, k])) for k in range(values.shape[1])])


def peak(way: str, dimensions: int, shape: tuple[int, ...]) -> float:
    """MB that a translation needs above what the process held before (Linux); for a process of its own."""
    torch.set_num_threads(1)
    net, values = network(dimensions), scan(shape)
    small = np.zeros((1, *((1,) if dimensions == 2 else ()), *PATCH[dimensions]), np.float32)
    whole_scan(way, dimensions, net, small)  # what is loaded at first use
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins anew
    whole_scan(way, dimensions, net, values)
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """MB of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024.0


def inferers(rounds: int, scans: Mapping[int, list[tuple[int, ...]]]) -> list[str]:
    """Rows: seconds in turns, memory, differences."""
    lines = [
        "| scan | way | seconds, median | MONAI's ÷ it | memory, MB | greatest, mean difference from MONAI, HU |",
        "|---|---|---|---|---|---|",
    ]
    context = multiprocessing.get_context("spawn")
    for dimensions, shapes in scans.items():
        net, ways = network(dimensions), [way for way in WAYS if dimensions == 2 or way != CUT]
        for shape in shapes:
            values, made = scan(shape), {}
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way in ways:
                    began = time.process_time()
                    made[way] = whole_scan(way, dimensions, net, values)
                    seconds[way].append(time.process_time() - began)
            median = {way: statistics.median(times) for way, times in seconds.items()}
            name = f"{' x '.join(map(str, shape))}, {f'{shape[0]} slices' if dimensions == 2 else '3-D'}"
            for way in ways:
                with context.Pool(1) as pool:  # its own process: the highest mark never falls
                    memory = pool.apply(peak, (way, dimensions, shape))
                away = np.abs(made[way] - made["MONAI"]) * HU
                said = "" if way == "MONAI" else f"{away.max():.3g}, {away.mean():.2g}"
                lines.append(
                    f"| {name} | {way} | {median[way]:.2f} | {median['MONAI'] / median[way]:.2f} | {memory:.0f} | {said} |"
                )
    return lines


# ------------------------------------------------------------------------------------------------ training


class Windowed(nn.Module):
    """A network of MONAI that gives the middle alone, as a translator that looks at a whole image through MONAI's windows."""

    step = 1

    def __init__(self, net: nn.Module, patch: tuple[int, ...]) -> None:
        super().__init__()
        self.net, self.patch = net, patch

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, *spatial) -> (B, 3, C', *spatial); both bounds are the middle."""
        made = sliding_window_inference(
            images, self.patch, BATCH, self.net, overlap=OVERLAP, mode="gaussian", sigma_scale=windows.SIGMA, cval=AIR
        )
        assert isinstance(made, Tensor)
        return torch.stack([made, made, made], 1)


def basic_unet(dimensions: int, channels: int, out_channels: int, width: int) -> nn.Module:
    """MONAI's BasicUNet."""
    features = (width, width, 2 * width, 4 * width, 8 * width, width)
    return BasicUNet(dimensions, channels, out_channels, features)


def strided_unet(dimensions: int, channels: int, out_channels: int, width: int) -> nn.Module:
    """MONAI's UNet with five levels and two residual units in each, as in its tutorials."""
    features = tuple(width * 2**level for level in range(5))
    return StridedUNet(dimensions, channels, out_channels, features, (2, 2, 2, 2), num_res_units=2)


RIVALS = {"MONAI UNet": strided_unet, "MONAI BasicUNet": basic_unet}


def rival(who: str, pairing: Pairing, parameters: int) -> nn.Module:
    """A network of MONAI, as wide as has most nearly so many parameters."""

    def made(width: int) -> nn.Module:
        torch.manual_seed(0)
        return RIVALS[who](len(pairing.data.shape) - 1, pairing.in_channels, pairing.out_channels, width)

    return min((made(width) for width in range(4, 65, 2)), key=lambda net: abs(size(net) - parameters))


def size(net: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


def crops(pairing: Pairing, rows: np.ndarray, recipe: Recipe, patch: tuple[int, ...], random: np.random.Generator):
    """(sources, targets) of a batch of random crops, padded where an image is smaller, mirrored half of the time."""
    batch: tuple[list[Tensor], list[Tensor]] = ([], [])
    for row in random.choice(rows, recipe.batch):
        stored = pairing.data.shape[1:]
        first = [int(random.integers(0, max(1, have - side + 1))) for have, side in zip(stored, patch)]
        part = tuple(slice(start, start + side) for start, side in zip(first, patch))
        mirrored = random.random() < 0.5
        missing = [max(0, side - have) for side, have in zip(patch, stored)]
        padding = [amount for gap in reversed(missing) for amount in (gap // 2, gap - gap // 2)]
        for values, layer in zip((pairing.source(int(row), part), pairing.target(int(row), part)), batch):
            padded = F.pad(torch.from_numpy(np.ascontiguousarray(values)), padding, value=AIR)
            layer.append(padded.flip(-1) if mirrored else padded)
    return tuple(map(torch.stack, batch))


class PlainLoop:
    """MONAI's network moved as its tutorials do: L1, Adam, a constant rate; precision and layout are those of ours."""

    def __init__(self, net: nn.Module, recipe: Recipe, rate: float) -> None:
        self.net, self.recipe = net, recipe
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        if recipe.channels_last and any(one.ndim == 5 for one in net.parameters()):
            layout = torch.channels_last_3d
        self.layout = layout
        net.to(memory_format=layout).train()  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(net.parameters(), rate)

    def step(self, source: Tensor, target: Tensor) -> float:
        """One step; processor seconds."""
        began = time.process_time()
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            made = self.net(source.contiguous(memory_format=self.layout))
        F.l1_loss(made.float(), target).backward()
        self.optimizer.step()
        return time.process_time() - began


def learned(
    net: nn.Module, pairing: Pairing, recipe: Recipe, patch: tuple[int, ...], rate: float, seconds: float
) -> int:
    """Train for so many processor seconds; the images shown."""
    random, moving, shown = np.random.default_rng(0), PlainLoop(net, recipe, rate), 0
    rows, began = pairing.rows("train"), time.process_time()
    while time.process_time() - began < seconds:
        moving.step(*crops(pairing, rows, recipe, patch, random))
        shown += recipe.batch
    net.eval().requires_grad_(False)
    return shown


def validation_error(net: Windowed, pairing: Pairing) -> float:
    """Mean absolute error in the body of validation images, encoded."""
    rows = pairing.rows("validation")
    rows = rows[:: max(1, len(rows) // 24)]
    errors = []
    for row in rows if len(rows) else pairing.rows("train")[:8]:
        source, target = pairing.source(int(row)), pairing.target(int(row))
        made = inference.translate(net, source, net.patch, CPU)[0]
        errors.append(pairing.error(made, target, pairing.body(source, target)))
    return float(np.mean(errors))


def steps_in_turns(
    pairing: Pairing, recipe: Recipe, patch: tuple[int, ...], parameters: int, rounds: int
) -> dict[str, float]:
    """Images a processor second of whole steps on noise at equal patch and batch, timed in turns."""
    task = stage.translation_of(pairing.data, pairing, None)
    clock, random = Clock(task, CPU), torch.Generator().manual_seed(0)
    source = torch.randn(recipe.batch, pairing.in_channels, *patch, generator=random)
    target = torch.randn(recipe.batch, pairing.out_channels, *patch, generator=random)
    own = clock.stepper(recipe)
    plain = {
        f"{who}, {precision}": PlainLoop(
            rival(who, pairing, parameters),
            replace(recipe, precision=precision, channels_last=recipe.channels_last and precision == recipe.precision),
            1e-3,
        )
        for who, precision in product(RIVALS, dict.fromkeys(("fp32", recipe.precision)))
    }
    seconds: dict[str, list[float]] = {"ours": [], **{name: [] for name in plain}}
    for turn in range(rounds + 1):
        began = time.process_time()
        own()
        found = {"ours": time.process_time() - began, **{name: one.step(source, target) for name, one in plain.items()}}
        for name, value in found.items():
            seconds[name] += [value] if turn else []
    return {name: recipe.batch / statistics.median(values) for name, values in seconds.items()}


def compared(name: str, root: Path, minutes: float, rates: list[float], rounds: int) -> dict[str, Any]:
    """Both trained on ROOT/data and judged; kept in ROOT/measured.json."""
    path = root / "measured.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    pairing = pairings.pairing("paired", Dataset.open(root / "data"))
    clock = root / "processor.json"
    began = time.process_time()
    result = train(root / "data", root / "run", minutes=minutes, device="cpu")
    if not clock.is_file():
        write_json(clock, {"seconds": time.process_time() - began})
    seconds = json.loads(clock.read_text())["seconds"]
    opened = model.load(root / "run" / "model")
    recipe = Recipe(**opened.config["recipe"])
    patch = tuple(opened.config["translation"]["patch"])
    parameters = {"ours": size(opened.generator)}
    judged = {"ours": evaluate_translation(pairing.data, opened, root / "evaluated")}
    images, chosen = {"ours": result["images"]}, {}
    alike = {
        **opened.config,
        "translation": {**opened.config["translation"], "calibration": None, "usual_width": None},
    }
    for who in RIVALS:
        tried = []
        for rate in rates:
            net = rival(who, pairing, parameters["ours"])
            shown = learned(net, pairing, recipe, patch, rate, seconds)
            windowed = Windowed(net, patch)
            tried.append((validation_error(windowed, pairing), rate, shown, windowed))
            print(f"{name}: {who} at {rate:g}: validation error {tried[-1][0]:.4f}, {shown:,} images", file=sys.stderr)
        _, chosen[who], images[who], best = min(tried, key=lambda one: one[0])
        parameters[who] = size(best)
        judged[who] = evaluate_translation(pairing.data, model.Model(best, alike, who), root / f"evaluated {who}")
    about = {
        "parameters": parameters, "images": images,
        "rates": chosen, "seconds": seconds, "patch": list(patch), "batch": recipe.batch, "precision": recipe.precision,
        "steps": steps_in_turns(pairing, recipe, patch, parameters["ours"], rounds), "units": judged["ours"]["units"],
        "patients": judged["ours"]["patients"],
        "metrics": {who: one["metrics"]["translation"] for who, one in judged.items()},
        "line": judged["ours"]["metrics"]["line"],
    }  # fmt: skip
    write_json(path, about)
    return about


def training_rows(name: str, found: Mapping[str, Any]) -> list[str]:
    """A row for each in the table of trainings."""
    rows = []
    for who, metrics in found["metrics"].items():
        rates = {label: rate for label, rate in found["steps"].items() if label.startswith(who)}
        speed = ", ".join(f"{rate:.1f}{label.removeprefix(who).replace(',', '')}" for label, rate in rates.items())
        shown, parameters = found["images"][who], found["parameters"][who]
        cells = [f"{parameters:,}", f"{shown:,}", speed, f"{shown / found['seconds']:.1f}"]
        rows.append(f"| {name} | {who} | {' | '.join([*cells, *(metric_words(metrics[key]) for key in METRICS)])} |")
    return rows


def metric_words(metric: Mapping[str, Any]) -> str:
    """ "52.0 (58.1, 46.0)": the mean, and of few patients each, of many the interval over them."""
    if metric["interval"]:
        return f"{metric['value']:.4g} ({' to '.join(f'{bound:.3g}' for bound in metric['interval'])})"
    return f"{metric['value']:.4g} ({', '.join(f'{value:.3g}' for value in metric['each'])})"


def prepared(out: Path, shared: Path | None, patients: int) -> dict[str, Path]:
    """Folders whose `data` is prepared: phantoms, unless there are none, and Harvard slices, where there is shared data."""
    phantoms, found = out / "phantom", {}
    if patients and not (phantoms / "data" / "dataset.json").is_file():
        for modality in ("T1", "CT"):  # the same patients
            phantom(phantoms / "made", patients=patients, modality=modality, slices=8, size=128, format="nifti")  # type: ignore[arg-type]
        prepare(
            phantoms / "made" / "scans", phantoms / "data", pairs="*T1*:*CT*", modality="MR:CT", labels="none", masks="none",
        )  # fmt: skip
    if patients:
        found["phantom T1 -> CT"] = phantoms
    if shared:
        if not (out / "harvard" / "data" / "dataset.json").is_file():
            harvard(shared, out / "harvard")
        found["Harvard MR -> CT"] = out / "harvard"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--harvard", type=Path, help="folder of the shared sets")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each training")
    parser.add_argument("--rates", default="1e-3,3e-4", help="of MONAI's Adam")
    parser.add_argument("--patients", type=int, default=160, help="phantoms; 0: none")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=["inference", "training"])
    parser.add_argument("--quick", action="store_true", help="small scans, one minute, one rate: to try the way")
    options = parser.parse_args()
    torch.set_num_threads(1)
    minutes, rates = options.minutes, [float(rate) for rate in options.rates.split(",")]
    rounds, patients, scans = options.rounds, options.patients, SCANS
    if options.quick:
        minutes, rates, rounds, patients, scans = 1.0, rates[:1], 3, 24, QUICK
    lines = [f"{date.today()}, {platform.machine()}, one thread, {rounds} rounds, {minutes:g} minutes each", ""]
    if options.only != "training":
        lines += [*inferers(rounds, scans), ""]
    if options.only != "inference":
        keys = " | ".join(METRICS.values())
        lines += [
            f"| pairs | who | parameters | images shown | images/s, steps | images/s, whole run | {keys} |",
            "|---" * 9 + "|",
        ]
        notes = []
        for name, root in prepared(options.out, options.harvard, patients).items():
            found = compared(name, root, minutes, rates, rounds)
            lines += training_rows(name, found)
            notes.append(
                f"{name}: {found['patients']} held-out patients, patch {' x '.join(map(str, found['patch']))}, batch {found['batch']}, {found['precision']}, {found['seconds']:.0f} processor seconds each; a straight line {found['line']['mae']['value']:.3g} {found['units']}; rates of Adam {found['rates']}."
            )
        lines += ["", *notes]
    text = "\n".join(lines) + "\n"
    write_atomic(options.out / "table.md", text)
    print(text)


if __name__ == "__main__":
    try:
        main()
    except Interrupted as stop:
        sys.exit(f"{stop}")
