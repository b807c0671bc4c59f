"""TLS to Kestra: whom it trusts, what it shows, and what it says where it fails."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from aiohttp import web

from bridge.errors import KestraAmbiguous, KestraDenied, KestraError
from bridge.kestra import Kestra
from tests.support.certificates import Authority
from tests.support.kestra_client import JOB, failing, settings


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


class TestTls:
    @asynccontextmanager
    async def server(self, tls: ssl.SSLContext | None) -> AsyncIterator[str]:
        """The address of a server without a scheme."""

        async def answer(request: web.BaseRequest) -> web.Response:
            return web.json_response({"version": "2.0.0", "results": [], "total": 0})

        runner = web.ServerRunner(web.Server(answer), shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        try:
            yield f"127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def denied(
        self, tls: ssl.SSLContext | None, *, scheme: str = "https", **files: Path
    ) -> str:
        """What a client says of a server that only an operator can fix."""
        async with (
            self.server(tls) as address,
            Kestra(settings(f"{scheme}://{address}", **files)) as kestra,
        ):
            with pytest.raises(KestraDenied) as caught:
                await kestra.probe()
        return str(caught.value)

    async def test_trusts_the_ca_that_the_settings_name(self, authority: Authority) -> None:
        async with (
            self.server(authority.server("kestra", "127.0.0.1")) as address,
            Kestra(settings(f"https://{address}", kestra_ca=authority.ca)) as kestra,
        ):
            assert await kestra.probe() == "2.0.0"

    async def test_trusts_no_other_private_ca(self, authority: Authority) -> None:
        said = await self.denied(authority.server("kestra", "127.0.0.1"))
        for words in ("can't be trusted", "BRIDGE_KESTRA_CA names whom to trust"):
            assert words in said

    async def test_does_not_trust_an_expired_certificate(self, authority: Authority) -> None:
        tls = authority.server("expired", "127.0.0.1", days=-1)
        assert "certificate has expired" in await self.denied(tls, kestra_ca=authority.ca)

    async def test_does_not_trust_a_certificate_for_another_host(
        self, authority: Authority
    ) -> None:
        tls = authority.server("other", "kestra.example")
        assert "not valid for '127.0.0.1'" in await self.denied(tls, kestra_ca=authority.ca)

    async def test_is_missing_on_a_port_without_it(self, authority: Authority) -> None:
        assert "it does not speak TLS there" in await self.denied(None, kestra_ca=authority.ca)

    async def test_is_named_where_a_plain_request_ends_without_a_word(
        self, authority: Authority
    ) -> None:
        said = await self.denied(authority.server("kestra", "127.0.0.1"), scheme="http")
        assert "the address must begin with https://" in said

    @pytest.mark.parametrize(
        "text",
        [
            "<h1>400 Bad Request</h1>The plain HTTP request was sent to HTTPS port",
            "Client sent an HTTP request to an HTTPS server.",
        ],
        ids=["nginx", "Go"],
    )
    async def test_is_named_where_a_gateway_says_so(self, text: str) -> None:
        transport = httpx.MockTransport(lambda _: httpx.Response(400, text=text))
        async with Kestra(settings(), transport=transport) as kestra:
            with pytest.raises(KestraDenied, match="only https://"):
                await kestra.probe()

    async def test_shows_our_certificate_to_a_server_that_demands_one(
        self, authority: Authority
    ) -> None:
        certificate, key = authority.issue("bridge")
        files = {"kestra_ca": authority.ca, "kestra_certificate": certificate, "kestra_key": key}
        async with (
            self.server(authority.server("kestra", "127.0.0.1", demanding=True)) as address,
            Kestra(settings(f"https://{address}", **files)) as kestra,
        ):
            assert await kestra.probe() == "2.0.0"

    async def test_shows_a_renewed_certificate_without_a_restart(
        self, authority: Authority
    ) -> None:
        stranger = Authority(authority.ca.parent / "stranger").issue("bridge")
        certificate, key = authority.issue("renewed")
        right = certificate.read_bytes() + key.read_bytes()
        certificate.write_bytes(b"".join(path.read_bytes() for path in stranger))
        files = {"kestra_ca": authority.ca, "kestra_certificate": certificate}
        server = self.server(authority.server("kestra", "127.0.0.1", demanding=True))
        async with server as address, Kestra(settings(f"https://{address}", **files)) as kestra:
            with pytest.raises(KestraError):
                await kestra.probe()
            certificate.write_bytes(right)
            assert await kestra.probe() == "2.0.0"

    @pytest.mark.parametrize("name", ["kestra_ca", "kestra_certificate"])
    def test_names_the_setting_of_a_file_that_holds_no_certificate(
        self, name: str, tmp_path: Path
    ) -> None:
        (tmp_path / "file.pem").write_text("no certificate")
        with pytest.raises(KestraDenied, match=f"BRIDGE_{name.upper()}"):
            Kestra(settings("https://kestra.example", **{name: tmp_path / "file.pem"}))

    async def test_that_breaks_after_a_create_was_sent_leaves_it_ambiguous(self) -> None:
        """The execution may exist, whatever the alert says: a look must come before a create."""
        error = httpx.ReadError("cut")
        error.__cause__ = alert("TLSV1_ALERT_UNKNOWN_CA")
        async with failing(error) as kestra:
            with pytest.raises(KestraAmbiguous):
                await kestra.create(JOB)

    async def test_that_breaks_below_httpx_is_our_error_all_the_same(self) -> None:
        what_to_do = r"certificate required.*BRIDGE_KESTRA_CERTIFICATE"
        async with failing(alert("TLSV13_ALERT_CERTIFICATE_REQUIRED")) as kestra:
            with pytest.raises(KestraDenied, match=what_to_do):
                await kestra.executions.find(JOB)


def alert(reason: str) -> ssl.SSLError:
    """OpenSSL's error for an alert of the other side."""
    error = ssl.SSLError(1, f"[SSL: {reason}]")
    error.reason, error.library = reason, "SSL"
    return error
