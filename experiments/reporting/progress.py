"""The progress of a run on standard error."""

import datetime
import sys
import time

from train.messages import say
from train.parallel import processes


class Progress:
    """Shows progress on standard error: on a terminal, a progress bar; otherwise a line for each evaluation and, if
    there was none for EVERY seconds, for the next row of metrics."""

    EVERY = 30.0

    def __init__(self, start: int, steps: int, *, split: str, shown: bool):
        self.steps, self.split, self.bar, self.start = steps, split, None, start
        self.shown = shown and processes.is_main()
        self.first: tuple[int, float] | None = None  # Step and time of the first row, after the compilation.
        self.last = time.monotonic()

    def __enter__(self):
        if sys.stderr.isatty() and self.shown:
            from tqdm import tqdm

            self.bar = tqdm(total=self.steps, initial=self.start, unit="step", file=sys.stderr)
        return self

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()

    def remaining(self, step: int, now: float) -> str:
        """The estimated remaining time as h:mm:ss, from the speed since the first row; "" if unknown."""
        if self.first is None or step <= self.first[0]:
            self.first = self.first or (step, now)
            return ""
        seconds = (now - self.first[1]) / (step - self.first[0]) * (self.steps - step)
        return f"{datetime.timedelta(seconds=round(seconds))} left" if step < self.steps else ""

    def __call__(self, step: int, row: dict) -> None:
        named = {"train_loss": "loss", "train_accuracy": "accuracy", "train_global_accuracy": "global accuracy",
                 "images_per_second": "images/s", "eval_loss": f"{self.split} loss",
                 "eval_accuracy": f"{self.split} accuracy", "eval_mean_iou": f"{self.split} mean IoU",
                 "eval_psnr": f"{self.split} PSNR", "eval_classifier_fid": "classifier_fid"}  # fmt: skip
        shown = {
            label: f"{row[key]:,.0f}" if row[key] >= 1000 else f"{row[key]:.4g}"
            for key, label in named.items()
            if row.get(key) is not None
        }
        now = time.monotonic()
        remaining = self.remaining(step, now)
        if self.bar is not None:
            self.bar.n = step
            self.bar.set_postfix(shown)
        elif self.shown and ("eval_loss" in row or now - self.last >= self.EVERY):
            self.last = now
            say("  ".join([f"step {step}/{self.steps}", *(f"{k} {v}" for k, v in shown.items()), remaining]).rstrip())
