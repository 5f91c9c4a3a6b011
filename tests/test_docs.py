"""The documentation: its commands and snippets run, its links lead somewhere, its reference names what the code has.

`python tests/test_docs.py` writes docs/reference/commands.md anew from the signatures and docstrings.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shlex
import shutil
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import scansmith
from scansmith import cli, dataset, formats, image, metrics, networks
from scansmith.evaluate import words
from scansmith.metrics import prdc, radiomics, random_conv
from scansmith.prepare import copies, fingerprint, overrides, split
from scansmith.preprocess import crop, dimensions
from scansmith.run.plan import MAKING
from scansmith.train import kinds, probe, recipes

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    if path.is_file()
)
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
COMMANDS = ROOT / "docs" / "reference" / "commands.md"
# Pages speak of minutes and hundreds of scans; here every number below takes its place, so that a command takes seconds.
# The keys are options of the verb named, or of all verbs ("").
TINY = {
    "": {"minutes": "0.1", "count": "16", "images": "96", "side": "16", "draws": "3"},
    "train": {"minutes": "0.02"},
    "phantom": {"patients": "10", "slices": "3", "size": "32"},
}
# Options whose defaults would take longer.
ALWAYS = {
    "run": {"count": "16"},
    "phantom": TINY["phantom"],
    "evaluate": {"draws": "3"},
    "compare": {"count": "16", "images": "96", "side": "16"},
}


# ------------------------------------------------------------------------------------------------ snippets


def blocks(page: Path) -> Iterator[tuple[int, str, str]]:
    """(line number, language, text) of every fenced block."""
    language, start, lines = None, 0, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = re.fullmatch(r"\s*```(\S*)\s*", line)
        if fence is None:
            lines.append(line)
        elif language is None:
            language, start, lines = fence[1], number + 1, []
        else:
            yield start, language, "\n".join(lines)
            language = None
    assert language is None, f"{page}: a block that begins in line {start} does not end"


def runnable(page: Path) -> list[tuple[int, str, str]]:
    return [
        (number, language, text)
        for number, language, text in blocks(page)
        if language == "python" or (language == "bash" and text.startswith("scansmith "))
    ]


def tiny(line: str) -> list[str]:
    """Arguments of a command line with the numbers of `TINY` in place of its own."""
    arguments = shlex.split(line, comments=True)[1:]
    values = TINY[""] | TINY.get(arguments[0], {})
    for place, word in enumerate(arguments[:-1]):
        if word.startswith("--"):
            arguments[place + 1] = values.get(word[2:], arguments[place + 1])
    for name, value in ALWAYS.get(arguments[0], {}).items():
        arguments += [] if f"--{name}" in arguments else [f"--{name}", value]
    return arguments


def run_commands(text: str) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            assert line.startswith("scansmith "), (
                f"expected a scansmith command, got {line!r}: use a console block for others"
            )
            try:
                code = cli.main(tiny(line))
            except SystemExit as stop:
                code = stop.code
            assert code == 0, f"{line} exits with {code}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """scans/: a phantom data set; run/: what `scansmith run scans run` makes of it. Trainings have small networks."""
    root = tmp_path_factory.mktemp("docs")
    small = dataclasses.replace(recipes.RECIPES["relativistic"], width=8, batch=8, ticks=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.RECIPES, "relativistic", small)
        patch.setattr(probe, "cpu_count", lambda: 1)  # for networks this small a second thread only waits
        patch.setattr(
            probe, "fastest_machine", lambda recipe, *_args, **_options: (dataclasses.replace(recipe, threads=1), 0.1)
        )
        patch.setattr(probe.Clock, "time", lambda *_args, **_options: 0.1)
        patch.setattr(probe.Probe, "images_in", lambda self, seconds: 96)
        patch.chdir(root)
        run_commands("scansmith phantom phantom --seed 7")
        Path("scans").symlink_to("phantom/scans")
        run_commands("scansmith run scans run --minutes 15")
        yield root


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A folder to run a page in; what the page adds to the tables of the package is taken out again."""
    # A link, so that `prepare` knows the scans again; the run is copied, since pages write into it.
    (tmp_path / "scans").symlink_to((made / "scans").resolve())
    shutil.copytree(made / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    tables = [
        formats.READERS,
        formats.WRITERS,
        metrics.METRICS,
        networks.GENERATORS,
        networks.DISCRIMINATORS,
        recipes.RECIPES,
    ]
    before = [dict(table) for table in tables]
    yield tmp_path
    for table, content in zip(tables, before):
        table.clear()
        table.update(content)


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=lambda page: page.name)
def test_every_command_and_snippet_of_a_page_runs_in_its_order(page, folder):
    names: dict[str, object] = {"__name__": "__main__"}
    for number, language, text in runnable(page):
        if language == "python":
            # Empty lines before, so that a traceback names the line of the page.
            exec(compile("\n" * (number - 1) + text, str(page), "exec"), names)
        else:
            run_commands(text)


def test_the_tutorial_ends_with_the_files_it_promises(made):
    tree = next(
        text
        for _, language, text in blocks(ROOT / "docs" / "start.md")
        if language == "text" and text.startswith("out/")
    )
    promised = [line.split()[0] for line in tree.splitlines()[1:]]
    assert len(promised) > 5
    for name in promised:
        assert (made / "run" / name).exists(), name


def test_artifacts_names_every_file_of_a_run(made):
    text = (ROOT / "docs" / "reference" / "artifacts.md").read_text()
    named = re.sub(r"\d{5,}", "#", text)
    for path in (made / "run").rglob("*"):
        if path.is_file():
            name = (
                "events/"
                if path.parent.name == "events"
                else re.sub(r"\d+x\d+", "HEIGHTxWIDTH", re.sub(r"\d{5,}", "#", path.name))
            )
            assert name in named, f"{path.name} is not in reference/artifacts.md"


@pytest.mark.parametrize(
    ("file", "heading"),
    [("dataset/dataset.json", "dataset.json"), ("model/config.json", "config.json"), ("images/manifest.json", "images/manifest.json"),
     ("metrics.json", "metrics.json"), ("run.json", "run.json"), ("train/result.json", "result.json"), ("dataset.private.json", "private")],
)  # fmt: skip
def test_artifacts_names_every_key_of_the_json_files(made, file, heading):
    text = (ROOT / "docs" / "reference" / "artifacts.md").read_text()
    assert heading in text
    missing = [key for key in json.loads((made / "run" / file).read_text()) if f"`{key}`" not in text]
    assert not missing, f"{file}: {missing}"


def test_artifacts_names_every_column_of_the_manifest():
    text = (ROOT / "docs" / "reference" / "artifacts.md").read_text()
    assert [name for name in dataset.COLUMNS if f"`{name}`" not in text] == []


def test_every_choice_of_the_plan_is_explained():
    text = (ROOT / "docs" / "how-to" / "from-your-own-scans.md").read_text()
    rows = " ".join(line for line in text.splitlines() if line.startswith("| `"))
    assert [field.name for field in dataclasses.fields(overrides.Choices) if f"`{field.name}`" not in rows] == []


def test_the_page_of_formats_names_every_format_and_modality():
    text = (ROOT / "docs" / "reference" / "formats.md").read_text()
    names = {"dicom": "DICOM", "nifti": "NIfTI", "nrrd": "NRRD", "metaimage": "MetaImage"}
    assert [name for name in formats.READERS if names.get(name, name.upper()) not in text] == []
    assert [name for name in image.MODALITIES if not re.search(rf"\b{name}\b", text)] == []


def test_artifacts_names_every_key_of_the_log_and_every_metric(made):
    text = (ROOT / "docs" / "reference" / "artifacts.md").read_text()
    rows = map(json.loads, (made / "run" / "train" / "log.jsonl").read_text().splitlines())
    row = {key: value for row in rows for key, value in row.items()}
    measured = json.loads((made / "run" / "metrics.json").read_text())
    names = [*row, *measured["metrics"], *measured["not_computed"], *next(iter(measured["metrics"].values()))]
    assert [name for name in names if f"`{name}`" not in text] == []


# ------------------------------------------------------------------------------------------------ links


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as code hosts make them."""
    prose = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
    headings = re.findall(r"(?m)^#+ +(.+)$", prose)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_leads_somewhere(name):
    page = ROOT / name
    prose = re.sub(r"(?ms)^```.*?^```", "", page.read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name} links to {link}"
        assert target.is_relative_to(ROOT), f"{name} links out of the project: {link}"
        if anchor:
            assert anchor in anchors(target), f"{name} links to {link}: no such heading"


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("docs/") and name != "docs/index.md"])
def test_every_page_is_named_in_the_index(name):
    index = (ROOT / "docs" / "index.md").read_text()
    assert name.removeprefix("docs/") in index


@pytest.mark.parametrize("name", NAMES)
def test_no_page_names_a_host_or_a_place_of_its_writing(name):
    text = (ROOT / name).read_text()
    # Installing is pip's business, with whatever index the reader has; and no page carries the writer's own paths.
    hosts = re.findall(r"https?://([^/:\s)]+)", text)
    assert all(host.endswith(".example") for host in hosts), hosts
    assert "/" + "work/" not in text and "/" + "tmp/" not in text


# ------------------------------------------------------------------------------------------------ reference


@pytest.mark.parametrize("verb", scansmith.VERBS)
def test_every_verb_has_a_section_with_all_its_options(verb):
    text = COMMANDS.read_text()
    section = re.search(rf"(?ms)^## {verb}\n(.*?)(?=^## |\Z)", text)
    assert section, f"no section for {verb}"
    for name, parameter in inspect.signature(getattr(scansmith, verb)).parameters.items():
        shown = name.upper() if parameter.default is parameter.empty else flag(name, parameter)
        assert f"`{shown}`" in section[1], shown


def test_the_page_of_commands_is_what_the_signatures_say():
    assert COMMANDS.read_text() == commands_page(), (
        "docs/reference/commands.md is not up to date: run 'python tests/test_docs.py'"
    )


def test_every_field_of_a_recipe_is_explained():
    text = (ROOT / "docs" / "reference" / "recipe.md").read_text()
    for field in dataclasses.fields(recipes.Recipe):
        assert f"| `{field.name}` |" in text, field.name
    for name in recipes.RECIPES:
        assert f"`{name}`" in text


def test_the_tutorial_names_the_stages_of_a_run():
    text = (ROOT / "docs" / "start.md").read_text()
    assert all(f"| {stage} |" in text for stage in MAKING)


def test_the_pages_name_the_limits_that_the_code_uses():
    judged = (ROOT / "docs" / "explanation" / "how-it-is-judged.md").read_text()
    assert f"at least {words.TELL_TALE:g} times its floor" in judged
    assert f"{random_conv.FEATURES} features" in judged and f"{len(radiomics.NAMES)} features" in judged
    assert f"its {prdc.NEIGHBOURS}th nearest neighbour" in judged
    privacy = (ROOT / "docs" / "explanation" / "data-and-privacy.md").read_text()
    assert all(f"| {name} | {share:.0%}".replace("%", " %") in privacy for name, share in split.FRACTIONS.items())
    trains = (ROOT / "docs" / "explanation" / "how-it-trains.md").read_text()
    assert f"less than {kinds.APART:.0%} of".replace("%", " %") in trains and (kinds.FEWEST, kinds.FEWEST_PATIENTS) == (
        100,
        10,
    )
    assert f"{kinds.THUMBNAIL[2]} × {kinds.THUMBNAIL[2]} pixels" in trains
    assert f"{64 * probe.IMAGES_PER_PIXEL:,.0f} at 64 pixels" in trains and (
        "cosines over the whole run" in trains
    ) == (recipes.Recipe().burn_in == 1.0)
    prepared = (ROOT / "docs" / "explanation" / "how-scans-are-prepared.md").read_text()
    assert (
        f"at most {copies.FARTHEST} of 64 bits" in prepared and f"correlation of at least {copies.SAME:g}" in prepared
    )
    assert f"more than {copies.MOST_IN_ONE:.0%}".replace("%", " %") in prepared
    assert f"at least {dimensions.FEWEST_VOLUMES} of them, of at least {dimensions.FEWEST_SLICES} slices" in prepared
    assert f"less than {crop.WORTH_CROPPING:.0%}".replace("%", " %") in prepared
    scans = (ROOT / "docs" / "start.md").read_text()
    assert {8: "Eight images are the least"}[fingerprint.LEAST_IMAGES] in scans


def commands_page() -> str:
    """docs/reference/commands.md."""
    head = """# Commands

Every verb is a subcommand of `scansmith` and a function of the same name in Python. This page is written from the
signatures and docstrings by `python tests/test_docs.py`; a test keeps it up to date. `scansmith VERB --help` says the same.

These options belong to every verb on the command line:

| option | default | meaning |
|---|---|---|
| `--json` | off | print the result as one JSON object; the lists are complete |
| `--strict` | off | exit with 1 when anything was skipped |
| `--help` | | explain the verb and stop |

`scansmith --version` prints the version. Results go to standard output; plans, progress and errors go to standard error.
[Exit codes and errors](exit-codes-and-errors.md) lists what a command can return, [Artifacts](artifacts.md) what it writes.
"""
    return head + "".join(verb_section(verb) for verb in scansmith.VERBS)


def verb_section(verb: str) -> str:
    function = getattr(scansmith, verb)
    parts = re.split(r"\n\n(Args|Returns|Raises):\n", inspect.getdoc(function) or "")
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    meaning = entries(sections["Args"])
    parameters, hints = inspect.signature(function).parameters, typing.get_type_hints(function)
    required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    lines = [
        "",
        f"## {verb}",
        "",
        f"    scansmith {verb} {' '.join(name.upper() for name in required)} [options]",
        "",
        parts[0].strip(),
        "",
    ]
    lines += [
        "| argument | meaning |",
        "|---|---|",
        *(f"| `{name.upper()}` | {meaning[name]} |" for name in required),
        "",
    ]
    lines += ["| option | values | default | meaning |", "|---|---|---|---|"]
    for name, parameter in parameters.items():
        if name not in required:
            lines.append(
                f"| `{flag(name, parameter)}` | {values_of(hints[name])} | {default_of(parameter.default)} | {meaning[name]} |"
            )
    for title, name in (("Result", "Returns"), ("Fails", "Raises")):
        if name in sections:
            found = entries(sections[name]) if name == "Raises" else {}
            said = "; ".join(f"`{error}`: {when.rstrip('.')}" for error, when in found.items())
            lines += ["", f"{title}: {said}." if said else f"{title}: {' '.join(sections[name].split())}"]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def flag(name: str, parameter: inspect.Parameter) -> str:
    """The option of the command line; what is on by default is switched off by --no-..."""
    return ("--no-" if parameter.default is True else "--") + name.rstrip("_").replace("_", "-")


def entries(section: str) -> dict[str, str]:
    """name -> words of a Google-style section; deeper lines go on with the entry above."""
    section = inspect.cleandoc(section)
    result: dict[str, str] = {}
    for line in section.splitlines():
        if line and not line.startswith(" "):
            # Two short entries may share a line: "brightness: (B,) added. contrast: ...".
            name, _, words = line.partition(": ")
            result[name] = words
        elif line:
            result[name] += " " + line.strip()
    return {name: words.replace("|", "\\|") for name, words in result.items()}


def values_of(hint: object) -> str:
    """A type as the reader of a command line knows it."""
    arguments = [one for one in typing.get_args(hint) if one is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(str(one) for one in arguments)
    if arguments:
        return values_of(arguments[0])
    return {int: "whole number", float: "number", str: "text", bool: "flag", Path: "path"}[hint]


def default_of(value: object) -> str:
    return (
        {None: "none", False: "off", True: "on"}.get(value, str(value))
        if isinstance(value, bool | None)
        else str(value)
    )


if __name__ == "__main__":
    COMMANDS.parent.mkdir(exist_ok=True)
    COMMANDS.write_text(commands_page())
    print(f"wrote {COMMANDS}", file=sys.stderr)
