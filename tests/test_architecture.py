"""The house rules: imports go down the tiers, bare hosts need torch, numpy and safetensors alone, nothing needs torchvision."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import scansmith

SOURCE = Path(scansmith.__file__).parent
TIERS = {
    "cli": 6, "__init__": 6, "run": 5, "compare": 5, "report": 4,
    "prepare": 3, "train": 3, "synthesize": 3, "translate": 3, "evaluate": 3, "phantom": 3,
    "dataset": 2, "model": 2, "preprocess": 2, "pairings": 2, "inference": 2, "translator": 2, "together": 2, "patterns": 2,
    "formats": 1, "anatomy": 1, "networks": 1, "losses": 1, "augment": 1, "metrics": 1, "conformal": 1, "windows": 1,
    "familiarity": 1, "lesions": 1, "degradations": 1,
    "image": 0, "intensity": 0, "runtime": 0, "capacity": 0,
}  # fmt: skip
# Within a tier: who may use whom.
NEIGHBOURS = {
    ("dataset", "preprocess"),
    ("model", "preprocess"),
    ("pairings", "preprocess"),
    ("pairings", "dataset"),
    ("translator", "inference"),
    ("translator", "model"),
    ("translator", "pairings"),
    ("translator", "preprocess"),
    ("translator", "together"),
    ("together", "model"),
    ("together", "preprocess"),
    ("image", "runtime"),
    ("intensity", "runtime"),
}


def module_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path: Path):
    """(module of scansmith, True when only for type checking) for each import in a file, inside functions too."""
    tree = ast.parse(path.read_text())
    package = ["scansmith", *path.relative_to(SOURCE).parent.parts]
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            full = [*base, *(node.module.split(".") if node.module else [])]
            names = [[*full, alias.name] for alias in node.names] if len(full) == 1 else [full]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        for parts in names:
            if parts[0] == "scansmith" and len(parts) > 1 and parts[1] in TIERS:
                yield parts[1], id(node) in typing_only


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_only_go_to_lower_tiers(path):
    own = module_of(path)
    for other, typing_only in imports_of(path):
        if other == own or typing_only:
            continue
        assert TIERS[other] < TIERS[own] or (own, other) in NEIGHBOURS, (
            f"{own} (tier {TIERS[own]}) imports {other} (tier {TIERS[other]})"
        )


def test_every_module_has_a_tier():
    assert {module_of(path) for path in FILES} <= set(TIERS)


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_training_imports_on_a_bare_host_with_torch_numpy_and_safetensors_alone():
    blocked = [
        "scipy",
        "skimage",
        "pydicom",
        "nibabel",
        "SimpleITK",
        "tyro",
        "rich",
        "tensorboardX",
        "PIL",
        "matplotlib",
        "jinja2",
    ]
    code = (
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\n"
        "import scansmith.train.stage, scansmith.train.loop, scansmith.networks, scansmith.losses, scansmith.runtime"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_signatures_need_no_torch():
    code = "import sys, scansmith.cli, scansmith as s\n[getattr(s, v) for v in s.VERBS]\nassert 'torch' not in sys.modules and 'matplotlib' not in sys.modules, 'torch or matplotlib was imported'"
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_a_verb_stays_a_function_after_its_module_was_imported():
    code = "import scansmith.prepare, scansmith\nassert callable(scansmith.prepare) and scansmith.prepare.__name__ == 'prepare'\nfrom scansmith import prepare\nassert callable(prepare)"
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_nothing_names_torchvision():
    wanted = "torch" + "vision"
    for path in FILES:
        assert wanted not in path.read_text(), path


def test_no_pickle_reaches_a_loader():
    for path in FILES:
        text = path.read_text()
        assert "pickle" not in text.replace("allow_pickle=False", ""), path
        assert "torch.load" not in text, path
