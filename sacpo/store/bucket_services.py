"""Cloud services that offer buckets: the form of their URIs, and where their credentials come from.

obstore reads the environment variables of each service, and asks the machine's own identity service. Beyond that, it
reads Google's files of a service account or of gcloud's login, but none of AWS's profiles: those are boto3's part.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs

from sacpo.errors import StoreError

FIRST_CONTACT_PATIENCE_S = 5.0
"""Seconds for which obstore itself repeats a request."""
_BACKOFF = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2), "base": 2}
_CLIENT = {
    "allow_http": True,  # of an endpoint that the user gives; the services' own endpoints are https
    "read_timeout": timedelta(seconds=60),  # also bounds the time of sending one part of an upload
    "timeout": timedelta(days=1),  # bounds a whole download
}


@dataclass(frozen=True)
class Service:
    """A cloud service.

    Attributes:
        store_class: obstore's class for it.
        form: Form of its URIs.
        options: Options of its URIs.
        credentials: Where its credentials come from, for people.
    """

    store_class: str
    form: str
    options: tuple[str, ...]
    credentials: str


SERVICES: Mapping[str, Service] = {
    "s3": Service(
        "S3Store",
        "s3://BUCKET/PREFIX",
        ("endpoint_override", "region", "scheme"),  # as in pyarrow's URIs
        "AWS_ACCESS_KEY_ID and so on, AWS_PROFILE, or an instance role",
    ),
    "gs": Service(
        "GCSStore",
        "gs://BUCKET/PREFIX",
        ("endpoint_override", "scheme"),
        "GOOGLE_APPLICATION_CREDENTIALS, gcloud's login, or the machine's service account",
    ),
    "az": Service(
        "AzureStore",
        "az://CONTAINER/PREFIX",
        ("account", "endpoint_override", "scheme"),
        "AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_KEY, AZURE_CLIENT_ID and so on, or a managed identity",
    ),
}
"""Services by the scheme of their URIs."""


@dataclass(frozen=True)
class Address:
    """A prefix of a bucket.

    Attributes:
        scheme: Key of `SERVICES`.
        path: `BUCKET/PREFIX`.
        query: The URI's options as they were given, without the question mark.
    """

    scheme: str
    path: str
    query: str

    @classmethod
    def parse(cls, uri: str) -> Address:
        """Read a URI.

        Raises:
            StoreError: it names no bucket, or an unknown option.
        """
        location, _, query = uri.partition("?")
        scheme, _, path = location.partition("://")
        service = SERVICES[scheme]
        unknown_options = sorted(parse_qs(query, keep_blank_values=True).keys() - set(service.options))
        if not path.strip("/") or unknown_options:
            problem = f"unknown option {', '.join(unknown_options)}" if unknown_options else "no bucket is named"
            raise StoreError(
                f"{uri}: {problem}; write {service.form}, with ?{'=...&'.join(service.options)}=... if needed"
            )
        return cls(scheme, path.rstrip("/"), query)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}{'?' if self.query else ''}{self.query}"

    @property
    def service(self) -> Service:
        """The service."""
        return SERVICES[self.scheme]

    @property
    def bucket(self) -> str:
        """Name of the bucket."""
        return self.path.partition("/")[0]

    def option(self, name: str) -> str | None:
        """Value of an option of the URI; None if it is not given."""
        return parse_qs(self.query).get(name, [None])[-1]

    def arguments(self) -> dict[str, Any]:
        """Arguments with which obstore opens the bucket, beside its name; they can be pickled.

        Raises:
            StoreError: there are no credentials, no account is named, or the bucket's region cannot be looked up.
        """
        endpoint = self.option("endpoint_override")
        if endpoint and "://" not in endpoint:
            endpoint = f"{self.option('scheme') or 'https'}://{endpoint}"
        retries = {
            "backoff": _BACKOFF,
            "max_retries": 1000,
            "retry_timeout": timedelta(seconds=FIRST_CONTACT_PATIENCE_S),
        }
        own = {"s3": self._s3, "gs": self._gs, "az": self._az}[self.scheme](endpoint)
        return {"client_options": _CLIENT, "retry_config": retries, **own}

    def _gs(self, endpoint: str | None) -> dict[str, Any]:
        return {"base_url": endpoint} if endpoint else {}

    def _az(self, endpoint: str | None) -> dict[str, Any]:
        account = self.option("account") or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
        if not account:
            raise StoreError(
                f"{self}: no storage account is named; write az://CONTAINER/PREFIX?account=NAME, or set "
                "AZURE_STORAGE_ACCOUNT_NAME"
            )
        return {"account_name": account, **({"endpoint": endpoint} if endpoint else {})}

    def _s3(self, endpoint: str | None) -> dict[str, Any]:
        arguments: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
        # obstore reads the environment alone.
        if not (os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY")):
            try:
                _boto3_credentials()
            except Exception as error:
                raise StoreError(
                    f"{self} cannot be reached: there are no AWS credentials ({error}); give credentials that may "
                    f"read, write, list and delete there ({self.service.credentials})"
                ) from error
            arguments["credential_provider"] = aws_credentials
        has_endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = self.option("region") or (None if has_endpoint else _region(self))
        return arguments | ({"region": region} if region else {})


def _region(address: Address) -> str:
    """The region of a bucket of AWS, which needs no credentials to be looked up."""
    from pyarrow.fs import resolve_s3_region

    try:
        region: str = resolve_s3_region(address.bucket)
    except OSError as error:
        raise StoreError(
            f"{address}: the region of the bucket {address.bucket} cannot be looked up ({error}); check the bucket's "
            "name, or give its region with ?region=..."
        ) from error
    return region


def aws_credentials() -> Any:
    """AWS credentials from boto3's other sources: profiles, SSO, roles, containers, instances; renewed in time."""
    return _boto3_credentials()()


@functools.cache
def _boto3_credentials() -> Any:
    """boto3's provider for this process.

    boto3 renews credentials at least ten minutes before they expire. obstore asks for them again five minutes before
    the end of the time that the provider names, so it never uses any that have expired.
    """
    from obstore.auth.boto3 import Boto3CredentialProvider

    return Boto3CredentialProvider(ttl=timedelta(minutes=10))
