"""Runs `osm` commands in stages: each finished stage is recorded, so that the same command resumes where it stopped."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osm.errors import OsmError, RunStopped, write_failed
from osm.files import read_json, write_atomically
from osm.terminal import clock, json_flag, message_logger

logger = message_logger(__name__)

RECORD = "stages.json"
# By default, glibc returns the memory of every freed large tensor to the system, which slows down allocations.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
_QUIET = {"TQDM_DISABLE": "1"}  # commands that run in parallel would overwrite each other's progress bars


@dataclass(frozen=True)
class Stage:
    """One stage: commands that run one after another, except for `osm generate`, whose parts run in parallel.

    Attributes:
        name: the name of the stage.
        what: a one-line description.
        commands: the commands of the stage.
        environment: additional environment variables of the commands.
        optional: whether the run goes on if the stage fails. It is then tried again in the next run.
    """

    name: str
    what: str
    commands: list[list[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    optional: bool = False


def osm_command(*arguments: object) -> list[str]:
    """Return the command line of an `osm` command that runs in this Python."""
    return [sys.executable, "-m", "osm", *map(str, arguments)]


def interrupt_on_sigterm() -> None:
    """Let SIGTERM end the running stage's processes, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def run_stages(
    out: Path,
    command: str,
    options: Mapping[str, Any],
    stages: Sequence[Stage],
    prepare: Callable[[], None],
    unrecorded: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Run all stages that have not finished yet.

    Args:
        out: the folder of all outputs.
        command: the name of the command, for messages, such as `osm quickstart`.
        options: the options of the command, as JSON values. An earlier run with other options is not resumed.
        stages: the stages, in order.
        prepare: writes the files that the stages read. It is called before the first stage.
        unrecorded: the values of options that records of older versions lack.

    Returns:
        stage name -> duration of its last run in seconds.

    Raises:
        OsmError: a stage failed, or the folder contains outputs of a run with different options.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_failed(error, f"out {out}", "a folder that can be written") from None
    path = out / RECORD
    record = _record(path, command, options, unrecorded or {})
    prepare()
    for number, stage in enumerate(stages, 1):
        title = f"[{number}/{len(stages)}] {stage.name}"
        if stage.name in record["seconds"]:
            logger.info(f"{title}: done before ({record['seconds'][stage.name]:.0f} s)", to_stdout=True)
            continue
        logger.info(f"{title}: {stage.what}", to_stdout=True)
        try:
            seconds = run_stage(stage)
        except OsmError as error:
            if not stage.optional:
                raise
            logger.warning(f"{title}: left out; {error}")
            continue
        record["seconds"][stage.name] = round(seconds, 1)
        write_atomically(path, [json.dumps(record, indent=1) + "\n"])
        logger.info(f"{title}: {seconds:.0f} s ({clock(sum(record['seconds'].values()))} in all)", to_stdout=True)
    found: dict[str, float] = record["seconds"]
    return found


def _record(path: Path, command: str, options: Mapping[str, Any], unrecorded: Mapping[str, Any]) -> dict[str, Any]:
    """Load the record of finished stages. Raises OsmError if an earlier run in the folder used other options."""
    record = read_json(path, "stages")[0] if path.is_file() else {"options": dict(options), "seconds": {}}
    if not isinstance(record, dict) or not all(isinstance(record.get(key), dict) for key in ("options", "seconds")):
        raise OsmError(f"{path} was not written by {command}; remove the file to rerun every stage")
    found = {**unrecorded, **record["options"]}
    changed = [key for key, value in options.items() if found.get(key) != value]
    if changed:
        raise OsmError(
            f"{path.parent} was created with different values of {', '.join(changed)}; choose a different folder, or "
            "delete this one"
        )
    return record


def run_stage(stage: Stage) -> float:
    """Run the commands of a stage and return the duration in seconds. Raises OsmError if a command fails."""
    started = time.monotonic()
    environment = {**_QUIET, **stage.environment, **os.environ}
    # The commands that generate predictions run in parallel, as they would on several GPUs.
    together = stage.commands if stage.commands[0][3:4] == ["generate"] else None
    for batch in [together] if together else [[command] for command in stage.commands]:
        for command in batch:
            logger.info(f"$ {shlex.join(command)}", to_stdout=True)
        processes = [subprocess.Popen([*command, *json_flag()], env=environment) for command in batch]
        try:
            codes = [process.wait() for process in processes]
        except BaseException:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
            raise
        if any(codes):
            failed = next(k for k, code in enumerate(codes) if code)
            kind = RunStopped if codes[failed] == 3 else OsmError
            raise kind(f"stage {stage.name!r} failed with exit code {codes[failed]}: {shlex.join(batch[failed])}")
    return time.monotonic() - started
