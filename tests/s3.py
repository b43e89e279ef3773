"""An S3 service in a process of its own on the loopback interface: `python -m tests.s3 PORT` runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import boto3

from tests.commands import free_port, wait_for_port
from tests.spaces import ROOT

BUCKET = "sweeps"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


class Service:
    """moto's server. It keeps its objects in memory, so it can be paused, but not be started again."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.s3", str(self.port)],
                stdout=output,
                stderr=output,
                cwd=ROOT,
                env=os.environ | KEYS,
            )
        wait_for_port(self.port)
        os.environ.update(KEYS)
        self.client = boto3.client("s3", endpoint_url=self.endpoint)
        self.client.create_bucket(Bucket=BUCKET)

    def uri(self, prefix: str) -> str:
        """The URI of a prefix of the bucket."""
        return f"s3://{BUCKET}/{prefix}?endpoint_override={self.endpoint}"

    def keys(self, prefix: str) -> list[str]:
        """All keys below a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def upload(self, folder: Path, prefix: str) -> None:
        """Upload all files of a folder."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder)}")

    def pause(self) -> None:
        """Answer no request until `resume`."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Answer requests again."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the process."""
        self.resume()
        self._process.terminate()
        self._process.wait()


def serve(port: int) -> None:
    """Run moto's server, which answers one request at a time.

    moto looks for the object of a conditional write and then writes it. On a busy machine two of 16 simultaneous
    writes succeeded for 8 of 300 objects, which S3 excludes.
    """
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import run_simple

    moto, one_at_a_time = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with one_at_a_time:
            answer: Iterable[bytes] = moto(environ, start_response)
            return answer

    run_simple("127.0.0.1", port, application, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
