"""Variables of the environment that libraries obey: one that can't be used is named before a
library fails over it.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx

from bridge.errors import SettingsError

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_EXCEPTIONS = "no_proxy"
_FOR_ALL = "*"


def check(environment: Mapping[str, str]) -> None:
    """Raise where HTTP clients could not be made, with every variable at fault.

    Raises:
        SettingsError: never with a proxy's address, which may hold a password.
    """
    faults = [*_proxy_faults(environment), *_certificate_faults(environment)]
    if faults:
        raise SettingsError("; ".join(faults))


def _proxy_faults(environment: Mapping[str, str]) -> Iterator[str]:
    exceptions = {name: value for name, value in environment.items() if name.lower() == _EXCEPTIONS}
    hosts = [
        (name, host.strip()) for name, value in exceptions.items() for host in value.split(",")
    ]
    if any(host == _FOR_ALL for _, host in hosts):
        return  # there is no proxy then, whatever the others say
    for name, value in environment.items():
        if name.lower() in _PROXIES and value and (fault := _proxy_fault(value)):
            yield f"{name} {fault}"
    for name, host in hosts:
        if host and not _can_be_excepted(host):
            yield (
                f"{name}: {host!a} can't be used: write host names and addresses, IPv6 without "
                "brackets or range"
            )


def _proxy_fault(value: str) -> str | None:
    """What is wrong with a proxy's address."""
    address = value if "://" in value else f"http://{value}"
    if address.lower().startswith("socks") and not importlib.util.find_spec("socksio"):
        return (
            "names a SOCKS proxy, which can't be used here: give an http:// or "
            "https:// one, or unset it"
        )
    try:
        found = httpx.Proxy(address)
    except (ValueError, httpx.InvalidURL):
        return "must be http://host:port or https://host:port"
    return None if found.url.host else "names no host"


def _can_be_excepted(host: str) -> bool:
    """Whether httpx can make a pattern of it, as it does of each name in NO_PROXY."""
    try:
        httpx.Client(mounts={_pattern(host): None}, trust_env=False, verify=False).close()  # noqa: S501 (it asks nobody)
    except (ValueError, httpx.InvalidURL):
        return False
    return True


def _pattern(host: str) -> str:
    if "://" in host:
        return host
    try:
        address = ipaddress.ip_address(host.partition("/")[0])
    except ValueError:
        return f"all://*{host}"
    return f"all://[{host}]" if address.version == 6 else f"all://{host}"


def _certificate_faults(environment: Mapping[str, str]) -> Iterator[str]:
    file, directory = environment.get("SSL_CERT_FILE"), environment.get("SSL_CERT_DIR")
    if file:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
        except (OSError, ssl.SSLError) as error:
            yield f"SSL_CERT_FILE: {file} holds no CA certificates ({_why(error)})"
    if directory and not Path(directory).is_dir():
        yield f"SSL_CERT_DIR: {directory} is not a directory"
    if keys := environment.get("SSLKEYLOGFILE"):
        try:
            ssl.create_default_context()
        except OSError as error:
            yield f"SSLKEYLOGFILE: {keys} can't be written ({_why(error)})"


def _why(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error.strerror or error)
