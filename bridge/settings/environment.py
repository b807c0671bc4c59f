"""Checks of variables that libraries obey: a faulty one is named before a library fails over it."""

from __future__ import annotations

import importlib.util
import ipaddress
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from bridge.errors import SettingsError

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_NO_PROXY = "no_proxy"


def check(environment: Mapping[str, str]) -> None:
    """Check that HTTP clients can be made in this environment.

    Raises:
        SettingsError: names every faulty variable, never with a proxy's address, which may hold a
            password.
    """
    faults = [*_proxy_faults(environment), *_certificate_faults(environment)]
    if faults:
        raise SettingsError("; ".join(faults))


def _proxy_faults(environment: Mapping[str, str]) -> Iterator[str]:
    exceptions = list(_exceptions(environment))
    if any(host == "*" for _, host in exceptions):
        return  # no proxy is used then, whatever the other variables hold
    for name, value in environment.items():
        if name.lower() in _PROXIES and value:
            fault = _proxy_fault(value)
            if fault:
                yield f"{name} {fault}"
    for name, host in exceptions:
        if not _can_be_excepted(host):
            yield (
                f"{name}: {host!a} can't be used: write host names and addresses, IPv6 without "
                "brackets or range"
            )


def _exceptions(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each host that is reached without a proxy, after the variable that names it."""
    for name, value in environment.items():
        if name.lower() != _NO_PROXY:
            continue
        for host in value.split(","):
            if host.strip():
                yield name, host.strip()


def _proxy_fault(value: str) -> str:
    """The fault of a proxy's address; empty for an address that can be used."""
    address = value
    if "://" not in address:
        address = f"http://{value}"
    if address.lower().startswith("socks") and not importlib.util.find_spec("socksio"):
        return (
            "names a SOCKS proxy, which can't be used here: give an http:// or "
            "https:// one, or unset it"
        )
    try:
        proxy = httpx.Proxy(address)
    except (ValueError, httpx.InvalidURL):
        return "must be http://host:port or https://host:port"
    if not proxy.url.host:
        return "names no host"
    return ""


def _can_be_excepted(host: str) -> bool:
    """Whether httpx can make a pattern of a name in NO_PROXY, as each client does."""
    mounts = {_pattern(host): None}
    try:
        httpx.Client(mounts=mounts, trust_env=False, verify=False).close()  # noqa: S501 (it connects to nothing)
    except (ValueError, httpx.InvalidURL):
        return False
    return True


def _pattern(host: str) -> str:
    """The pattern that httpx makes of a name in NO_PROXY."""
    if "://" in host:
        return host
    try:
        address = ipaddress.ip_address(host.partition("/")[0])
    except ValueError:
        return f"all://*{host}"
    if address.version == 6:
        return f"all://[{host}]"
    return f"all://{host}"


def _certificate_faults(environment: Mapping[str, str]) -> Iterator[str]:
    file = environment.get("SSL_CERT_FILE")
    if file:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
        except (OSError, ssl.SSLError) as error:
            yield f"SSL_CERT_FILE: {file} holds no CA certificates ({_why(error)})"
    directory = environment.get("SSL_CERT_DIR")
    if directory and not Path(directory).is_dir():
        yield f"SSL_CERT_DIR: {directory} is not a directory"
    keys = environment.get("SSLKEYLOGFILE")
    if keys:
        try:
            ssl.create_default_context()
        except OSError as error:
            yield f"SSLKEYLOGFILE: {keys} can't be written ({_why(error)})"


def _why(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or error)
