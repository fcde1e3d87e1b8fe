"""Lists the commands and runs them: nutshell NAME, or python -m experiments NAME

    nutshell classify --workdir=W --model=mlp --steps=500

is equivalent to `python -m experiments.classify --workdir=W --model=mlp --steps=500` and works in any folder: modules
in the current folder, such as a train.py, do not shadow this project's. `nutshell lecture.perceptron` runs one topic
of the lecture.
"""

import ast
import difflib
import pathlib
import runpy
import sys

END = "\nif __name__ == "  # A module that contains this is a command.


def commands() -> dict[str, str]:
    """Maps each command's name to the source of its module."""
    found, here = {}, pathlib.Path(__file__).parent
    for path in [*here.glob("[a-z]*.py"), *here.glob("lecture/*.py"), *here.glob("lecture/*/*.py")]:
        source = path.read_text()
        if END in source:
            found[".".join(path.relative_to(here).with_suffix("").parts).removesuffix(".__main__")] = source
    return dict(sorted(found.items()))


def summary(source: str) -> str:
    """The first sentence of a module's docstring, without the example command that `--help` shows."""
    first = (ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0]
    return " ".join(first.split()).split(": python -m ")[0].rstrip(".:")


def main() -> None:
    """The console script `nutshell`. Exits with status 2 for an unknown command."""
    name, *arguments = sys.argv[1:] or ["--help"]
    known = commands()
    if name in ("--help", "-h", "help"):
        width = max(map(len, known))
        print("usage: nutshell NAME --flag=value ...    (nutshell NAME --help lists the flags)\n")
        print("\n".join(f"  {command:{width}}  {summary(source)}" for command, source in known.items()))
        return
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"error: unknown command {name!r}; known: {', '.join(known)}{hint}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"nutshell {name}", *arguments]
    started = {"STARTED_AS": f"nutshell {name}"}  # The name that its --help shows.
    runpy.run_module(f"experiments.{name}", init_globals=started, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
