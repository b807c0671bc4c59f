"""libcloud's errors as ours."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
import requests
from libcloud.common.exceptions import BaseHTTPError
from libcloud.common.google import GoogleAuthError, ResourceNotFoundError
from libcloud.common.types import InvalidCredsError, LibcloudError, MalformedResponseError
from libcloud.common.vultr import VultrException

from bridge.errors import (
    MachineAnswerLost,
    MachineDenied,
    MachineError,
    MachineProviderBusy,
    MachineRejected,
)
from bridge.machines.errors import provider_error


def made(kind: Any, *arguments: Any) -> Exception:
    """An error of libcloud, whose classes have no annotations."""
    error: Exception = kind(*arguments)
    return error


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (
            InvalidCredsError("AuthFailure: no"),
            MachineDenied,
            "refuses the credentials or the rights to x: AuthFailure",
        ),
        (made(GoogleAuthError, "no token"), MachineDenied, "no token"),
        (made(BaseHTTPError, 401, "Unauthorized"), MachineDenied, "Unauthorized"),
        (made(BaseHTTPError, 403, "Forbidden"), MachineDenied, "Forbidden"),
        (
            made(BaseHTTPError, 403, "Quota exceeded for cores"),
            MachineProviderBusy,
            "has no quota left for this account, and did not x: Quota exceeded",
        ),
        (
            made(BaseHTTPError, 400, "InvalidAMIID.NotFound: no"),
            MachineRejected,
            "refuses to x: InvalidAMIID",
        ),
        (made(BaseHTTPError, 422, "size is invalid"), MachineRejected, "size is invalid"),
        (made(BaseHTTPError, 500, "oops"), MachineAnswerLost, "oops"),
        (made(BaseHTTPError, 429, "slow down"), MachineProviderBusy, "slow down"),
        (
            made(BaseHTTPError, 503, "RequestLimitExceeded: slow down"),
            MachineProviderBusy,
            "asks for fewer requests, and did not x",
        ),
        (
            made(BaseHTTPError, 400, "VcpuLimitExceeded: 32 vCPU"),
            MachineProviderBusy,
            "has no quota left",
        ),
        (made(BaseHTTPError, 400, ""), MachineRejected, "HTTP 400, without a reason"),
        (
            made(BaseHTTPError, 400, "InsufficientInstanceCapacity: none"),
            MachineProviderBusy,
            "has no room at the moment, and did not x: InsufficientInstance",
        ),
        (
            LibcloudError("image is not valid Status code: 400."),
            MachineRejected,
            "refuses to x",
        ),
        (made(VultrException, 404, "Invalid instance"), MachineRejected, "Invalid instance"),
        (
            made(VultrException, 400, "Insufficient capacity"),
            MachineProviderBusy,
            "has no room at the moment",
        ),
        (made(ResourceNotFoundError, "no image", 404, "notFound"), MachineRejected, "no image"),
        (ValueError("Invalid region: mars"), MachineRejected, "Invalid region: mars"),
        (ValueError("not enough values to unpack"), MachineAnswerLost, "not enough values"),
        (KeyError("droplet"), MachineAnswerLost, "droplet"),
        (MalformedResponseError("bad", "<html>"), MachineAnswerLost, "its answer can't be read"),
        (
            requests.ConnectTimeout("timed out"),
            MachineProviderBusy,
            "can't reach cloud to x: timed out",
        ),
        (
            requests.ConnectionError(
                "pool(host='h'): Max retries (Caused by E('c: [Errno 111] Connection refused'))"
            ),
            MachineProviderBusy,
            "can't reach cloud to x: Connection refused",
        ),
        (
            ssl.SSLCertVerificationError(1, "self-signed"),
            MachineProviderBusy,
            "can't reach cloud to x: self-signed",
        ),
        (
            requests.ReadTimeout("read timed out"),
            MachineAnswerLost,
            "can't reach cloud to x: read timed out",
        ),
        (Exception("two\nlines"), MachineAnswerLost, "two lines"),
        (RuntimeError(), MachineAnswerLost, "RuntimeError"),
    ],
)
def test_libclouds_errors_become_ours(
    error: Exception, kind: type[MachineError], text: str
) -> None:
    ours = provider_error(error, provider="cloud", what="x", secrets=[])
    assert type(ours) is kind
    assert text in str(ours)


def test_an_error_shows_no_credential_and_is_one_short_line() -> None:
    error = Exception(f"denied for AKIAEXAMPLE\nwith hunter22-hunter22 {'x' * 1000}")
    text = str(
        provider_error(
            error, provider="cloud", what="x", secrets=["AKIAEXAMPLE", "hunter22-hunter22"]
        )
    )
    assert "AKIAEXAMPLE" not in text
    assert "hunter22" not in text
    assert "\n" not in text
    assert len(text) < 400
