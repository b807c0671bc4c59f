"""Types of the settings' values, with the checks that a single value has to pass.

No error quotes a value: somebody may have put a password into the wrong variable.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo
from pydantic_core import from_json
from pydantic_settings import NoDecode

from bridge import tls
from bridge.job.flow_name import FlowName
from bridge.settings.queue_names import not_an_exchange_of_ours
from bridge.settings.variables import variable

_INSIDE_KESTRA = re.compile(r"/(?:api/v1|ui)(?:/.*)?$")
"""Paths below Kestra's own address, as a browser or Kestra's documentation shows them."""

_FLOW_PATTERN = re.compile(r"[A-Za-z0-9._/*?\[\]!-]+")


class SecretUrl(SecretStr):
    """A URL that is never shown whole. Only the password in it is a secret."""


def spellings(secret: SecretStr) -> set[str]:
    """The texts to mask for a secret: as it is, and as a URL spells it."""
    text = secret.get_secret_value()
    if not isinstance(secret, SecretUrl):
        return {text, quote(text, safe="")} - {""}
    parts = url_parts(text)
    if parts is None or not parts.password:
        return set()
    return {parts.password, unquote(parts.password)}


def plain(value: str | SecretStr | None) -> str:
    """The text of a setting, secret or not; empty for None."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return value or ""


def url_parts(text: str) -> SplitResult | None:
    """A URL's parts; None for text that is not a URL.

    The library's own errors aren't shown: they quote what may be a password.
    """
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises ValueError for a port that is not a number
    except ValueError:
        return None
    return parts


def authority(host: str, port: int) -> str:
    """Host and port as a URL writes them: an IPv6 address stands in brackets."""
    if ":" in host:
        return f"[{host}]:{port}"
    return f"{host}:{port}"


def check_tls(identity: tls.TlsIdentity, *, speaks_tls: bool, url: str, scheme: str) -> None:
    """Check that files for TLS go with an address that speaks TLS.

    `url` is the variable of that address, and `scheme` the scheme that it would need.

    Raises:
        ValueError: TLS is not spoken, or a key has no certificate.
    """
    for name in ("ca", "certificate", "key"):
        if getattr(identity, name) and not speaks_tls:
            raise ValueError(
                f"{identity.prefix}_{name.upper()} is for TLS: {url} must begin with {scheme}://"
            )
    if identity.key and not identity.certificate:
        raise ValueError(f"{identity.prefix}_KEY needs {identity.prefix}_CERTIFICATE")


def _lower(value: Any) -> Any:
    if isinstance(value, str):
        return value.lower()
    return value


def _from_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return from_json(value)
    except ValueError:
        raise ValueError("is not valid JSON") from None


def _not_a_boolean(value: Any) -> Any:
    # Python takes JSON's true for the number 1.
    if isinstance(value, bool):
        raise ValueError("must be a whole number, not true or false")
    return value


def _readable(path: Path) -> Path:
    if not os.access(path, os.R_OK):
        raise ValueError("is no file that can be read")
    return path


def _amqp_url(secret: SecretStr) -> SecretUrl:
    text = secret.get_secret_value()
    if not _is_amqp_url(text):
        raise ValueError(
            "must be amqp://user:password@host:port/vhost or amqps://…; in user, password and "
            "virtual host write %2F for /, %3F for ?, %23 for #, %40 for @"
        )
    return SecretUrl(text)


def _is_amqp_url(text: str) -> bool:
    parts = url_parts(text)
    if parts is None or parts.scheme not in ("amqp", "amqps"):
        return False
    # A password that begins with digits looks like a port. Its rest then stands after the host:
    # with the @, or as a fragment.
    if "@" in parts.path or "@" in parts.query or "#" in text:
        return False
    return _is_host(parts.hostname)


def _http_url(text: str, info: ValidationInfo) -> str:
    parts = url_parts(text)
    if parts is None or parts.scheme not in ("http", "https"):
        raise ValueError("must be http://host:port or https://…")
    # Wherever the @ stands: after `user:12345/` the rest of a password looks like a path.
    if "@" in text:
        service = variable((info.field_name or "").removesuffix("_url"))
        raise ValueError(
            f"must not hold credentials: use {service}_USERNAME and {service}_PASSWORD"
        )
    if not _is_host(parts.hostname) or "?" in text or "#" in text:
        raise ValueError("must be http://host:port or https://…, without ? and #")
    return parts.geturl().rstrip("/")


def _kestra_url(text: str) -> str:
    found = _INSIDE_KESTRA.search(text)
    if found:
        raise ValueError(f"must be Kestra's own address, without {found.group()}")
    return text


def _is_host(name: str | None) -> bool:
    if not name:
        return False
    return not any(character.isspace() for character in name)


def _header_text(secret: SecretStr) -> SecretStr:
    # A token often ends in a line break; the HTTP client's error about it would quote the token.
    text = secret.get_secret_value()
    if not text.isascii() or not text.isprintable() or text != text.strip():
        raise ValueError("must be printable ASCII without a space or a line break around it")
    return secret


def _lane_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]+", text):
        raise ValueError("must be letters, digits and . _ : - only")
    return not_an_exchange_of_ours(text)


def _tenant(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", text):
        raise ValueError("must be lower-case letters, digits, - and _ only")
    return text


def _flow_name(text: str) -> str:
    try:
        return str(FlowName.parse(text))
    except ValueError:
        raise ValueError("must be namespace/id") from None


def _flow_pattern(text: str) -> str:
    is_pattern = any(character in text for character in "*?[")
    if not _FLOW_PATTERN.fullmatch(text) or not (is_pattern or _is_flow_name(text)):
        raise ValueError("must be namespace/id or a pattern of such, as company.team/*")
    return text


def _is_flow_name(text: str) -> bool:
    try:
        FlowName.parse(text)
    except ValueError:
        return False
    return True


# Decoded here: pydantic-settings would stop at the first setting that is not JSON.
FROM_JSON = (NoDecode, BeforeValidator(_from_json))
ANY_CASE = BeforeValidator(_lower)
"""Takes a choice in capitals too."""
Readable = Annotated[Path, AfterValidator(_readable)]
AmqpUrl = Annotated[SecretStr, AfterValidator(_amqp_url)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
KestraUrl = Annotated[HttpUrl, AfterValidator(_kestra_url)]
HeaderSecret = Annotated[SecretStr, AfterValidator(_header_text)]
FlowText = Annotated[str, AfterValidator(_flow_name)]
# One validator: pydantic 2.8 drops the first of two beside a Field.
QueueName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_lane_name)]
Tenant = Annotated[str, AfterValidator(_tenant)]
FlowPattern = Annotated[str, AfterValidator(_flow_pattern)]
Prefetch = Annotated[int, BeforeValidator(_not_a_boolean), Field(ge=1, le=65_535)]
Delay = Annotated[int, BeforeValidator(_not_a_boolean), Field(ge=1, le=2_000_000)]
