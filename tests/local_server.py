"""A web server for tests of downloads."""

import contextlib
import http.server
import threading


@contextlib.contextmanager
def serving(handler):
    """Runs a server with the http.server handler class; yields its address without a trailing slash."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Quiet(http.server.BaseHTTPRequestHandler):
    """A handler that logs nothing."""

    def log_message(self, *arguments):
        del arguments

    @property
    def start(self) -> int:
        """The first byte that the client asks for."""
        return int((self.headers.get("Range") or "bytes=0-")[6:-1])

    def begin(self, length: int) -> None:
        """Sends the headers of a response with the rest of a file of `length` bytes."""
        self.send_response(206 if self.start else 200)
        self.send_header("Content-Length", str(length - self.start))
        self.end_headers()
