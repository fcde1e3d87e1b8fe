"""The persistent compilation cache, which keeps compiled programs between runs."""

import os
import pathlib
import sys


def cache_folder() -> pathlib.Path:
    """The user's private folder for compiled programs. Raises FileNotFoundError if the home folder is unknown."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    if base.startswith("~"):  # HOME is not set, and the user has no entry in passwd.
        raise FileNotFoundError("no home folder is known; set HOME or XDG_CACHE_HOME")
    return pathlib.Path(base, "nutshell", "compiled")


def start_cache() -> None:
    """Enables jax's persistent compilation cache in a private folder; prints a line if that fails."""
    import jax

    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise PermissionError(f"{folder} is writable by other users")
    except OSError as error:
        print(f"no compilation cache: {error}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
