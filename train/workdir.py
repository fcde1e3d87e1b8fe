"""A run's folder: its lock, its flags, metrics.csv, TensorBoard events and JSON files. A process that is killed leaves
no partially written files."""

import contextlib
import fcntl
import json
import os
import pathlib
from typing import Any

import numpy as np


class WorkdirError(RuntimeError):
    """The folder is in use, can't be written, or contains a different run."""


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Writes `path` so that it has either its old content or all of the new content. Creates its folder if missing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # The error of a full disk has no file name.
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        with contextlib.suppress(OSError):  # A read-only file system raises an error even if the file does not exist.
            temporary.unlink()


def read_json(path: pathlib.Path) -> dict | None:
    """The object in a JSON file; None if there is no file. Raises WorkdirError if it contains anything else."""
    try:
        value = json.loads(path.read_text()) if path.exists() else None
    except ValueError as error:
        raise WorkdirError(f"{path} is damaged: {error}") from None
    if value is not None and not isinstance(value, dict):
        raise WorkdirError(f"{path} is damaged: it does not contain a JSON object")
    return value


def check_name(path: pathlib.Path) -> None:
    """Raises WorkdirError for a path that Orbax can't open or would misinterpret: a path that the locale can't
    represent, a glob pattern, or a path with a backslash, for which tensorstore writes to other folders."""
    for character in "*?[\\":
        if character in str(path):
            raise WorkdirError(f"--workdir={path}: the path of a workdir can't contain {character}; rename that folder")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        advice = "the locale can't represent this name; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
        raise WorkdirError(f"--workdir={ascii(str(path))[1:-1]}: {advice}") from None


class Workdir:
    """The folder `workdir`, created if missing and locked until the process ends. Raises WorkdirError if another run
    has locked it."""

    def __init__(self, workdir: str):
        self.path = pathlib.Path(workdir).absolute()
        check_name(self.path)
        self._made = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "a")  # noqa: SIM115 - kept open: the lock ends with the process.
        except OSError as error:
            reason = "it is a file, not a folder" if self.path.is_file() else error.strerror
            raise WorkdirError(f"cannot write in --workdir={workdir}: {reason}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise WorkdirError(f"another run is using {self.path}; wait for it or choose another --workdir") from None
        except OSError as error:  # Raised on some network file systems.
            self._lock.close()
            raise WorkdirError(f"cannot lock --workdir={workdir}: {error.strerror}") from None

    def close(self) -> None:
        self._lock.close()

    def remove_if_made(self) -> None:
        """Removes the folders that were created for this run, unless they contain anything else."""
        if self._made:
            (self.path / ".lock").unlink(missing_ok=True)
        for path in self._made:
            if any(path.iterdir()):
                return
            path.rmdir()

    def read_json(self, name: str) -> dict | None:
        return read_json(self.path / name)

    def write_json(self, name: str, value: dict) -> None:
        write_atomically(self.path / name, json.dumps(value, indent=2) + "\n")


def _is_row(row: list[str], columns: int) -> bool:
    """Whether a row consists of a step and numbers or empty cells, as `append` writes them; other rows are dropped."""
    try:
        return len(row) == columns and row[0].isdecimal() and all(float(cell or 0) is not None for cell in row)
    except ValueError:
        return False


def tag(column: str) -> str:
    """TensorBoard's tag of a column: loss/train and loss/eval share a chart."""
    part, _, name = column.partition("_")
    return f"{name}/{part}" if part in ("train", "eval") else column


def write_event_images(folder: pathlib.Path, images: dict[str, np.ndarray], *, step: int) -> None:
    """Adds uint8 images [H, W, C] by tag to TensorBoard's files."""
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(folder), filename_suffix=".images") as events:
        for name, image in images.items():
            events.add_image(name, image, step, dataformats="HWC")


class MetricsFile:
    """Writes metrics.csv and the same values in TensorBoard's format. Rows after `step` are dropped at the start; the
    resumed run writes them again."""

    def __init__(self, folder: pathlib.Path, columns: list[str], *, step: int):
        self.path, self.columns, self._folder, self._step = folder / "metrics.csv", columns, folder, step
        self._events: Any = None
        kept: list[list[str]] = []
        if self.path.exists():
            with open(self.path, newline="", errors="replace") as file:
                lines = (line.rstrip("\r\n").split(",") for line in file)
                kept = [row for row in lines if _is_row(row, len(columns)) and int(row[0]) <= step]
        write_atomically(self.path, "".join(",".join(row) + "\n" for row in [columns, *kept]))

    def append(self, row: dict) -> None:
        """Writes one row; a missing value becomes an empty cell. Numbers are written with all digits."""
        with open(self.path, "a") as file:
            file.write(",".join("" if row.get(name) is None else repr(row[name]) for name in self.columns) + "\n")
        if self._events is None:
            from tensorboardX import SummaryWriter  # Imported late: not needed before the first row.

            self._events = SummaryWriter(str(self._folder), purge_step=self._step + 1)
        for name, value in row.items():
            if name != "step" and value is not None:
                self._events.add_scalar(tag(name), value, row["step"])

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
