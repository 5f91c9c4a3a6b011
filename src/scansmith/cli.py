"""The command `scansmith`: every verb as a subcommand, `--json` for programs, exit codes 0, 1 and 2."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Any, get_type_hints

from . import VERBS, __version__

DONE, FAILED, INTERRUPTED = 0, 1, 130
LONGEST_LIST = 40
# What people are shown of a result whose whole is long; --json prints everything.
SHOWN = {
    "evaluate": ("fake", "verdict", "not_computed", "not_checked"),
    "run": ("report", "verdict", "skipped"),
    "compare": ("page", "verdict", "table", "skipped"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Returns:
        0 done (what was skipped is listed); 1 failed, or something was skipped under `--strict`; 130 stopped by Ctrl-C.
        Wrong usage exits with 2.
    """
    import tyro

    from .runtime import Interrupted

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments == ["--version"]:
        print(f"scansmith {__version__}")
        return DONE
    brief = not arguments or arguments[0] in ("-h", "--help")
    verbs = {name: subcommand(getattr(import_module(f"scansmith.{name}"), name), brief) for name in VERBS}
    try:
        code: int = tyro.extras.subcommand_cli_from_dict(
            verbs,
            prog="scansmith",
            args=arguments or ["--help"],
            config=(tyro.conf.PositionalRequiredArgs, tyro.conf.FlagCreatePairsOff),
            description="Give it a folder of CT, MR or X-ray scans: it makes more of them, or with a second folder (--to) translates them, and says how far they can be trusted. Start with: scansmith run SCANS OUT",
        )
        return code
    except Interrupted as stop:
        print(f"scansmith: {stop}", file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        print("scansmith: stopped; the same command goes on from the last finished part", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, RuntimeError) as error:
        print(f"scansmith: {message(error)}", file=sys.stderr)
        return FAILED
    except Exception as error:
        if os.environ.get("SCANSMITH_TRACEBACK"):
            raise
        print(
            f"scansmith: a fault of scansmith itself ({type(error).__name__}: {error}); please report it with what SCANSMITH_TRACEBACK=1 prints",
            file=sys.stderr,
        )
        return FAILED


def message(error: Exception) -> str:
    """One sentence; the operating system's own words when an OSError brings no better."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    return str(error) or type(error).__name__


def subcommand(verb: Callable[..., dict[str, Any]], brief: bool = False) -> Callable[..., int]:
    """The verb with `--json` and `--strict` added, its result printed, its exit code returned.

    `brief`: only the first sentence of its help, for the list of all verbs.
    """
    import tyro

    def call(*values: Any, json: bool = False, strict: bool = False, **options: Any) -> int:
        result = verb(*values, **options)
        shown = {name: result[name] for name in SHOWN.get(verb.__name__, tuple(result)) if name in result}
        print(as_json(result) if json else as_text(shown))
        return FAILED if strict and result.get("skipped") else DONE

    hints = get_type_hints(verb)
    parameters = [
        parameter.replace(annotation=option(name, hints[name]))
        if parameter.default is not parameter.empty
        # Named as the documentation names it, and open to both positions and keywords for tyro.
        else parameter.replace(annotation=Annotated[hints[name], tyro.conf.arg(metavar=name.upper())])
        for name, parameter in inspect.signature(verb).parameters.items()
    ]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool)
        for name in ("json", "strict")
    ]
    call.__name__ = verb.__name__
    call.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": int}
    doc = inspect.getdoc(verb) or ""
    call.__doc__ = doc.split("\n\n")[0] if brief else with_help(doc)
    return call


def option(name: str, hint: Any) -> Any:
    """The annotation of an option; `from_`, a word of Python's own, is --from."""
    import tyro

    return Annotated[hint, tyro.conf.arg(name=name.rstrip("_"))] if name.endswith("_") else hint


def with_help(doc: str) -> str:
    """The docstring with the common options explained, without what only Python callers need."""
    before, _, _ = doc.partition("\n\nReturns:")
    return (
        f"{before}\n    json: print the result as one JSON object.\n    strict: exit with 1 when anything was skipped."
    )


def as_json(result: dict[str, Any]) -> str:
    return json.dumps(result, indent=1, default=str, allow_nan=False)


def as_text(result: dict[str, Any], indent: str = "") -> str:
    """The result for people: one line per entry, sentences and records as lists, long lists shortened."""
    lines: list[str] = []
    for name, value in result.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{name}:", as_text(value, indent + "  ")]
        elif isinstance(value, list | tuple) and value and isinstance(value[0], str | dict):
            lines.append(f"{indent}{name}:")
            lines += [
                f"{indent}  {entry if isinstance(entry, str) else ', '.join(map(str, entry.values()))}"
                for entry in value[:LONGEST_LIST]
            ]
            if len(value) > LONGEST_LIST:
                lines.append(f"{indent}  ... and {len(value) - LONGEST_LIST} more (--json lists all)")
        else:
            lines.append(f"{indent}{name}: {value if value or value == 0 else 'none'}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
