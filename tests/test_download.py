"""Tests of downloads: resumption, the checksum, a slow or missing server."""

import hashlib
import time

import numpy as np
import pytest
import tqdm  # noqa: F401 - imported before the download, which would otherwise wait for it and not be slow.
from local_server import Quiet, serving

from data.dataset import DataError
from data.prepare import download

CONTENT = np.random.default_rng(0).bytes(300_000)
HOW = {"md5": hashlib.md5(CONTENT).hexdigest(), "otherwise": "use the mirror"}


def test_an_interrupted_download_is_resumed(tmp_path, capfd):
    ranges = []

    class Handler(Quiet):
        def do_GET(self):
            ranges.append(self.start)
            if len(ranges) == 2:  # Ends inside a chunk.
                self.send_response(206 if self.start else 200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"20000\r\n" + CONTENT[self.start : self.start + 50_000])
                return
            self.begin(len(CONTENT))
            self.wfile.write(CONTENT[self.start : 150_000 if len(ranges) == 1 else None])  # At first only half.

    with serving(Handler) as address:
        url, target = f"{address}/a", tmp_path / "new" / "a"
        for _ in range(2):
            with pytest.raises(DataError, match=r"was interrupted"):
                download.download(url, target, **HOW)
            assert not target.exists()
        download.download(url, target, **HOW)
        assert target.read_bytes() == CONTENT and ranges[:2] == [0, 150_000] and ranges[2] >= 150_000
        with pytest.raises(DataError, match="wrong MD5"):
            download.download(url, tmp_path / "b", **HOW | {"md5": "0" * 32})
        assert not list(tmp_path.glob("b*")) and capfd.readouterr() == ("", "")


def test_a_slow_server_is_reported_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(download, "INTERVAL", 0.02)
    monkeypatch.setattr(download, "SLOW", 10_000_000)

    class Handler(Quiet):
        def do_GET(self):
            self.begin(len(CONTENT))
            for start in range(0, len(CONTENT), 60_000):  # 60 kB in 30 ms are 2 MB/s.
                self.wfile.write(CONTENT[start : start + 60_000])
                time.sleep(0.03)

    with serving(Handler) as address:
        download.download(f"{address}/a", tmp_path / "a", **HOW)
        slow = f"{address}/a is slow (less than 10000 kB/s); use the mirror\n"
        assert (tmp_path / "a").read_bytes() == CONTENT and capfd.readouterr() == ("", slow)
        monkeypatch.setattr(download, "SLOW", 1_000)
        download.download(f"{address}/a", tmp_path / "b", **HOW)
        assert capfd.readouterr() == ("", "")


def test_a_server_that_refuses_or_is_absent(tmp_path):
    class Handler(Quiet):
        def do_GET(self):
            self.send_error(403, "Forbidden")

    with serving(Handler) as address, pytest.raises(DataError, match=r"failed: HTTP Error 403.*; use the mirror$"):
        download.download(f"{address}/a", tmp_path / "a", **HOW)
    with pytest.raises(DataError, match=r"failed: \[Errno \d+\] Connection refused; use the mirror$"):
        download.download(f"{address}/a", tmp_path / "a", **HOW)
    assert not list(tmp_path.iterdir())
