"""Does a training that is killed end as one that is not? Kills real commands by SIGKILL and compares the ends bit for bit.

    OMP_NUM_THREADS=1 python benchmarks/kills.py [--kills 20] [--images 4800] [--folder FOLDER] [--parts kills,disk,peer]

`scansmith train` on a small phantom dataset runs once unharmed. Then it is started anew in another folder for each kill,
killed at a random moment of one phase (start and probe; training; while a checkpoint is being written; end), and started
again by the same command. Compared are the model and the last checkpoint (all tensors, and the state but for seconds), with
those of an unharmed run of the same recipe: what the probe settles by timing may differ between two starts.

Part "disk": the run folder lies on a file system too small for a second checkpoint (tmpfs, when root; else the write is
made to fail); the command must end with exit code 1, keep the checkpoint, and after room was made go on to the same end.
Part "peer": two processes under torchrun, of which one is killed; the job must end, and go on to the end of an unharmed
pair. Takes about 15 s a kill.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open

PHASES = ("start", "training", "checkpoint", "training", "checkpoint", "training", "end")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# Instead of a small file system: the third file of the size of a checkpoint does not fit.
FULL_DISK = """
import errno, sys
from pathlib import Path
from scansmith.cli import main
written, write = [], Path.write_bytes
def full(path, content):
    if "checkpoint" in path.name:
        written.append(path)
        if len(written) > 2:
            write(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
    return write(path, content)
Path.write_bytes = full
sys.exit(main(sys.argv[1:]))
"""


def command(dataset, run, images):
    return ["train", dataset, run, "--minutes", "1", "--images", images, "--side", "32", "--device", "cpu"]


def start(arguments, program=("-m", "scansmith.cli")):
    return subprocess.Popen(
        [sys.executable, *map(str, program), *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip


def finish(arguments, program=("-m", "scansmith.cli")):
    """(exit code, what was said)."""
    process = start(arguments, program)
    said = process.communicate()[0]
    return process.returncode, said


def end_of(run):
    """What a finished run leaves, to compare: hashes of model, checkpoint tensors, state; and the recipe."""
    if not (run / "result.json").is_file():
        return {"finished": False}
    whole = hashlib.sha256()
    with safe_open(run / "checkpoint.safetensors", framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        for name in sorted(file.keys()):
            whole.update(name.encode() + file.get_tensor(name).reshape(-1).view(torch.uint8).numpy().tobytes())
    recipe = json.loads((run / "recipe.json").read_text())
    model = hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()[:12]
    return {
        "model": model,
        "tensors": whole.hexdigest()[:12],
        "state": without_seconds(state),
        "recipe": {key: value for key, value in recipe.items() if key != "reasons"},
    }


def without_seconds(value):
    """JSON without what the clock decided."""
    if isinstance(value, dict):
        return {key: without_seconds(part) for key, part in value.items() if not key.endswith(("seconds", "_s"))}
    return [without_seconds(part) for part in value] if isinstance(value, list) else value


def differences(found, expected):
    names = [key for key in {**expected, **found} if found.get(key) != expected.get(key)]
    return f"different {', '.join(names)}" if names else "identical"


def unharmed_end(run, ends, dataset, folder, images):
    """The end of an unharmed run with the recipe of `run`, and how that recipe differs from the first one's.

    Two probes on a busy machine may settle on different precisions; a training is compared with one of the same recipe,
    which is made by giving its recipe.json to a new folder.
    """
    text = (run / "recipe.json").read_text()
    recipe = {key: value for key, value in json.loads(text).items() if key != "reasons"}
    key = json.dumps(recipe, sort_keys=True)
    if key not in ends:
        other = folder / f"unharmed{len(ends)}"
        other.mkdir()
        (other / "recipe.json").write_text(text)
        finish(command(dataset, other, images))
        ends[key] = end_of(other)
    first = json.loads(next(iter(ends)))
    changed = [f"{name} {value}" for name, value in recipe.items() if value != first[name]]
    return ends[key], ", ".join(changed)


def timings(dataset, run, images):
    """Seconds until the recipe was settled and until the end, of an unharmed run."""
    began, settled = time.monotonic(), None
    process = start(command(dataset, run, images))
    while process.poll() is None:
        if settled is None and (run / "recipe.json").is_file():
            settled = time.monotonic() - began
        time.sleep(0.01)
    if process.returncode != 0:
        raise SystemExit(process.stdout.read())
    return settled, time.monotonic() - began


def kill_in(phase, process, run, settled, ended, draw):
    """SIGKILL at a random moment of a phase; returns the seconds since the start and the images shown then."""
    began = time.monotonic()
    if phase in ("start", "training"):
        first, last = (0.3, settled) if phase == "start" else (settled, ended)
        moment = draw.uniform(first, last)
        while time.monotonic() - began < moment and process.poll() is None:
            time.sleep(0.001)
    elif phase == "checkpoint":
        wanted, seen, there = draw.randint(1, 6), 0, False
        partial = run / ".checkpoint.safetensors.partial"
        while process.poll() is None:  # the partial file lives for some milliseconds only
            now = partial.exists()
            seen += now and not there
            there = now
            if seen == wanted and now:
                break
    else:
        final = len(list_ticks(run))
        while process.poll() is None and not (run / "model").exists() and final < 6:
            final = len(list_ticks(run))
        time.sleep(draw.uniform(0.0, 0.05))
    process.kill()
    process.communicate()
    return time.monotonic() - began, max(list_ticks(run), default=0)


def list_ticks(run):
    """Images at each tick of the log."""
    log = run / "log.jsonl"
    rows = log.read_text().splitlines() if log.is_file() else []
    return [json.loads(row)["images"] for row in rows if row.endswith("}") and '"tick"' in row]


def kills(count, dataset, folder, images, draw):
    """Rows of the table: one kill each."""
    settled, ended = timings(dataset, folder / "unharmed", images)
    expected = end_of(folder / "unharmed")
    print(f"unharmed: recipe settled after {settled:.1f} s, ended after {ended:.1f} s, model {expected['model']}\n")
    print("| kill in | after s | at tick of images | recipe | end |\n|---|---|---|---|---|", flush=True)
    same, ends = 0, {json.dumps(expected["recipe"], sort_keys=True): expected}
    for number in range(count):
        phase, run = PHASES[number % len(PHASES)], folder / f"kill{number}"
        if phase == "start":
            shutil.rmtree(dataset / "levels", ignore_errors=True)
        process = start(command(dataset, run, images))
        moment, seen = kill_in(phase, process, run, settled, ended, draw)
        code, said = finish(command(dataset, run, images))
        wanted, changed = unharmed_end(run, ends, dataset, folder, images)
        verdict = differences(end_of(run), wanted) if code == 0 else f"exit {code}: {said.strip().splitlines()[-1]}"
        same += verdict == "identical"
        print(f"| {phase} | {moment:.2f} | {seen} | {changed or 'the same'} | {verdict} |", flush=True)
        shutil.rmtree(run, ignore_errors=True)
    print(f"\n{same} of {count} ends are identical to the bit")
    return expected, same == count


def full_disk(dataset, folder, images, expected):
    """Whether a run whose disk fills while it writes a checkpoint keeps the last one and goes on to the same end."""
    run = folder / "disk" / "run"
    run.parent.mkdir(parents=True)
    recipe = (folder / "unharmed" / "recipe.json").read_bytes()
    size = (folder / "unharmed" / "checkpoint.safetensors").stat().st_size
    small = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={int(1.6 * size)}", "tmpfs", run.parent], capture_output=True
    )
    mounted = small.returncode == 0
    run.mkdir()
    (run / "recipe.json").write_bytes(recipe)
    try:
        if mounted:
            code, said = finish(command(dataset, run, images))
        else:
            code, said = finish(command(dataset, run, images), ("-c", FULL_DISK))
        kept = (run / "checkpoint.safetensors").is_file()
        sentence = next((line for line in said.splitlines() if line.startswith("scansmith:")), "no sentence")
        if mounted:
            subprocess.run(["mount", "-o", f"remount,size={20 * size}", run.parent], check=True)
        finish(command(dataset, run, images))
        verdict = differences(end_of(run), expected)
    finally:
        if mounted:
            subprocess.run(["umount", run.parent], check=True)
    how = "tmpfs" if mounted else "injected"
    print(f"\nfull disk ({how}): exit {code}, checkpoint kept: {kept}, then {verdict}\n  {sentence}", flush=True)
    return code == 1 and kept and verdict == "identical"


def killed_peer(dataset, folder, images, draw):
    """Whether a pair of which one process is killed ends by itself and goes on to the end of an unharmed pair."""
    program = [*TORCHRUN, "-m", "scansmith.cli"]
    code, said = finish(command(dataset, folder / "pair", images), program)
    if code != 0:
        raise SystemExit(said)
    expected, run, good = end_of(folder / "pair"), folder / "broken", True
    # The same recipe: under load, the probe of another pair may choose another precision.
    run.mkdir()
    shutil.copy(folder / "pair" / "recipe.json", run)
    for rank in ("0", "1"):
        process = start(command(dataset, run, images), program)
        before = len(list_ticks(run))
        while len(list_ticks(run)) < before + 2 and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.3))
        os.kill(worker(process.pid, rank), 9)
        began = time.monotonic()
        said = process.communicate()[0]
        sentence = next((line for line in said.splitlines() if line.startswith("scansmith:")), "no sentence")
        print(
            f"\nprocess {rank} of 2 killed: exit {process.returncode} after {time.monotonic() - began:.1f} s\n  {sentence}"
        )
        good = good and process.returncode != 0 and "another process" in sentence
    finish(command(dataset, run, images), program)
    verdict = differences(end_of(run), expected)
    print(f"then, started again as a pair: {verdict}", flush=True)
    return good and verdict == "identical"


def worker(torchrun, rank):
    """Process id of one worker of torchrun."""
    for child in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split():
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0"):
            return int(child)
    raise SystemExit("no such worker")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=4800)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder, removed at the end")
    parser.add_argument("--parts", default="kills,disk,peer")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder, parts = options.folder or Path(tempfile.mkdtemp(prefix="kills-")), options.parts.split(",")
    folder.mkdir(parents=True, exist_ok=True)
    draw, good = random.Random(options.seed), True
    try:
        dataset = folder / "dataset"
        finish(["phantom", folder / "phantom", "--patients", "12", "--format", "png", "--size", "64", "--slices", "8"])
        code, said = finish(["prepare", folder / "phantom" / "scans", dataset])
        if code != 0:
            raise SystemExit(said)
        expected, same = kills(options.kills if "kills" in parts else 0, dataset, folder, options.images, draw)
        good = good and same
        if "disk" in parts:
            good = full_disk(dataset, folder, options.images, expected) and good
        if "peer" in parts:
            good = killed_peer(dataset, folder, options.images, draw) and good
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
