"""Numbers, reasons and paths as the page writes them."""

from __future__ import annotations

import math
import re
from typing import Any

from markupsafe import Markup


def without_paths(value: Any) -> Any:
    """Replace absolute paths and names of scan files in a text by "[path]": they often hold patients' names."""
    if value is None:
        return ""
    if not isinstance(value, str) or isinstance(value, Markup) or value.startswith("data:image/"):
        return value
    value = re.sub(r"[^\s'\"]+\.(?:dcm|ima|nii|nii\.gz|nrrd|mha|mhd|jpe?g)\b", "[path]", value, flags=re.IGNORECASE)
    return re.sub(
        r"(?<![\w./\])}])(?:~?/(?:[^\s/'\",;:<>]+/)+[^\s'\",;:<>]*|[A-Za-z]:\\[^\s'\",;<>]+)", "[path]", value
    )


def number(value: Any, like: Any = None) -> str:
    """Three significant digits, with as many decimals as the largest of `value` and `like` needs; "–" for nothing."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–" if value is None or isinstance(value, float) else str(value)
    if isinstance(value, int) and like is None:
        return f"{value:,}"
    largest = max(abs(one) for one in [value, *([like] if isinstance(like, (int, float)) else like or [])])
    if largest and (largest < 1e-3 or largest >= 1e6):
        return f"{value:.2e}"
    decimals = 2 - math.floor(math.log10(largest)) if largest else 2
    return f"{value:,.{min(max(decimals, 0), 5)}f}".replace("-", "−")


def interval(bounds: Any, like: Any) -> str:
    """ "1.10 to 1.40", or nothing."""
    if not isinstance(bounds, (list, tuple)) or len(bounds) != 2 or None in bounds:
        return ""
    return f"{number(bounds[0], like)} to {number(bounds[1], like)}"


def duration(seconds: Any) -> str:
    """Seconds as "41 s", "12.3 min" or "2.50 h"."""
    if not isinstance(seconds, (int, float)):
        return "–"
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.1f} min"
        if seconds < 5400
        else f"{seconds / 3600:.2f} h"
    )


def sentences(value: Any) -> list[str]:
    """A list of texts from a text, a list or nothing."""
    return [str(one) for one in value if one] if isinstance(value, list) else [str(value)] if value else []


def reasons(value: Any) -> list[dict[str, Any]]:
    """Reasons with counts, most frequent first, from a list of texts or of objects, or from reason -> count.

    File names, which may hold patients' names, are dropped.
    """
    counted: dict[str, int] = {}
    entries = (
        value.items()
        if isinstance(value, dict)
        else [(one, 1) for one in value or []]
        if not isinstance(value, int)
        else []
    )
    for entry, found in entries:
        if isinstance(entry, dict):
            found = entry.get("count", entry.get("images", found))
            entry = entry.get("reason") or entry.get("why") or "no reason given"
        found = found if isinstance(found, int) else len(found) if isinstance(found, list) else 1
        counted[str(entry)] = counted.get(str(entry), 0) + found
    return [
        {"reason": reason, "count": count}
        for reason, count in sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    ]


def aside(value: Any) -> list[dict[str, Any]]:
    """`reasons` of what was left aside; an entry without a reason is described by its kind."""
    if not isinstance(value, list):
        return reasons(value)
    return reasons(
        [
            {"reason": kind_words(one), "count": one.get("scans", one.get("count", 1))}
            if isinstance(one, dict)
            else one
            for one in value
        ]
    )


def kind_words(entry: dict[str, Any]) -> str:
    """ "CT volumes, 1 channel, 240 images" from an entry of `left_aside`."""
    if entry.get("reason"):
        return str(entry["reason"])
    words = str(entry.get("modality", "")) + {2: " pictures", 3: " volumes"}.get(entry.get("dimensions", 0), " scans")
    words += (
        f", {entry['channels']} channel{'s' * (entry['channels'] != 1)}"
        if isinstance(entry.get("channels"), int)
        else ""
    )
    return (words + (f", {entry['images']:,} images" if isinstance(entry.get("images"), int) else "")).strip()


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(term, value) of every plain entry, nested ones as "outer: inner"; long lists and file names are left out."""
    result: list[tuple[str, str]] = []
    for name, value in values.items():
        term = prefix + str(name).replace("_", " ")
        if isinstance(value, dict) and not prefix:
            result += flat(value, f"{term}: ")
        elif (
            isinstance(value, list) and 0 < len(value) <= 8 and not any(isinstance(one, (dict, list)) for one in value)
        ):
            result.append((term, ", ".join(setting(one) for one in value)))
        elif isinstance(value, (str, int, float, bool)) and name not in ("file", "files", "path", "source"):
            result.append((term, {True: "yes", False: "no"}[value] if isinstance(value, bool) else setting(value)))
    return result


def setting(value: Any) -> str:
    """A setting as it was chosen: 0.0002 stays 0.0002."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)
