"""Names that topics of the lecture import."""

from experiments.cli.app import UsageError as UsageError
from experiments.cli.app import require as require
from experiments.cli.app import run as run
from experiments.cli.compilation_cache import start_cache as start_cache
