"""Downloads files with a checksum; an interrupted download is resumed."""

import hashlib
import http.client
import pathlib
import sys
import time
import urllib.error
import urllib.request

from data.dataset import DataError

SLOW, INTERVAL = 100_000, 60.0  # Below SLOW bytes per second over INTERVAL seconds, the user is told what else works.


def md5_of(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _bar(total: int, done: int):
    from tqdm import tqdm

    shown = {"total": total or None, "initial": done, "unit": "B", "unit_scale": True}
    return tqdm(**shown, file=sys.stderr, disable=not sys.stderr.isatty())


def download(url: str, target: pathlib.Path, *, md5: str, otherwise: str) -> None:
    """Downloads a file to `target` with a progress bar, resuming an interrupted download. `otherwise` says what else
    the user can do; it is printed once if the server is slow, and is part of the message if it refuses.

    Raises DataError if the connection breaks (the partial file is kept) or the MD5 is wrong (the file is removed).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            if done and response.status != 206:  # The server does not support ranges.
                done = 0
            total = done + int(response.headers.get("Content-Length", 0))
            with open(part, "ab" if done else "wb") as file, _bar(total, done) as bar:
                _receive(response, file, bar, f"{url} is slow (less than {SLOW // 1000} kB/s); {otherwise}")
            got = part.stat().st_size
            if total and got < total:
                raise DataError(
                    f"the download of {url} was interrupted at {got:,} of {total:,} bytes; "
                    "run the same command to resume"
                )
    except urllib.error.URLError as error:  # Also raised for an HTTP status.
        status = getattr(error, "code", None)
        if status != 416:  # 416: the partial file is already complete.
            raise DataError(f"the download of {url} failed: {error if status else error.reason}; {otherwise}") from None
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"the download of {url} was interrupted: {error}; run the same command to resume") from None
    if md5_of(part) != md5:
        part.unlink()
        raise DataError(f"{url} returned a file with the wrong MD5, expected {md5}; it was removed")
    part.replace(target)


def _receive(response, file, bar, slow: str) -> None:
    """Writes the response to the file. Prints `slow` once, above the progress bar, if an interval had few bytes."""
    began, received, told = time.monotonic(), 0, False
    while chunk := response.read1(1 << 16):  # What has arrived, so that a slow connection is noticed in time.
        file.write(chunk)
        bar.update(len(chunk))
        received += len(chunk)
        seconds = time.monotonic() - began
        if seconds < INTERVAL:
            continue
        if received < SLOW * seconds and not told:
            bar.write(slow, file=sys.stderr)
            told = True
        began, received = time.monotonic(), 0
