"""Images are fetched from allowed hosts over checked addresses only, and nothing that a server does takes longer."""

from __future__ import annotations

import datetime as dt
import itertools
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stamina

import embedreg
from embedreg import ImagePolicy, RowError, allow_images, url_retrieve
from embedreg.errors import ConfigError
from embedreg.images import current_policy
from embedreg.media import fetching
from embedreg.media.fetching import fetch
from tests.image_fakes import png
from tests.image_servers import ImageServer

PICTURE = png(seed=1)


@pytest.fixture(scope="module")
def server() -> Iterator[ImageServer]:
    """A server on loopback that serves a picture, and misbehaves by path."""
    with ImageServer(PICTURE) as made:
        yield made


@pytest.fixture(autouse=True)
def no_waits(server: ImageServer) -> Iterator[None]:
    """Leave out the sleeps between attempts, and forget what was asked before."""
    server.asked.clear()
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


def policy(server: ImageServer, **more: Any) -> ImagePolicy:
    """Return a policy that allows the server, whose address is private."""
    return ImagePolicy(private_hosts=[server.host], **{"timeout_s": 20.0, **more})


def refusal(url: str, allowed: ImagePolicy) -> str:
    """Why an address gives no image."""
    with pytest.raises(RowError) as caught:
        fetch(url, allowed)
    return caught.value.message


# -- what is allowed ---------------------------------------------------------------------------------------------------


def test_nothing_is_fetched_by_default(server: ImageServer) -> None:
    """Without an allowance the refusal names the host and the call that allows it; no connection is made."""
    with pytest.raises(RowError) as caught:
        url_retrieve(server.url() + "?token=secret")
    assert f"allow_images(hosts=['{server.host}'])" in str(caught.value)
    assert "--allow-host" in caught.value.message
    assert "secret" not in str(caught.value)
    assert server.asked == []


def test_an_allowed_host_gives_its_image(server: ImageServer) -> None:
    """`url_retrieve` gives the bytes under an allowance, and nothing after it; no cookie, no proxy, no password."""
    with allow_images(private_hosts=[server.host]):
        assert url_retrieve(server.url("picture.png?a=1 ü#part")) == PICTURE
    assert server.asked == ["/picture.png?a=1%20%C3%BC"]
    assert server.headers == {
        "host": server.host,
        "user-agent": f"embedreg/{embedreg.__version__}",
        "accept": "image/*",
        "accept-encoding": "identity",
        "connection": "close",
    }
    with pytest.raises(RowError, match="may not be fetched"):
        url_retrieve(server.url())


def test_a_public_allowance_does_not_cover_private_addresses(server: ImageServer) -> None:
    """Allowing the host, or any host, does not allow this machine or its network; the error names what would."""
    for hosts in ([server.host], ["127.0.0.1"], [f"http://{server.host}"]):
        said = refusal(server.url(), ImagePolicy(hosts=hosts))
        assert "not public" in said
        assert f"private_hosts=['{server.host}']" in said
    assert "may not be fetched" in refusal(server.url(), ImagePolicy(hosts=["*"]))  # `*` is ports 80 and 443
    assert "not public" in refusal("http://127.0.0.1/picture.png", ImagePolicy(hosts=["*"]))
    assert server.asked == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "224.0.0.1",
        "239.1.2.3",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%lo",
        "fc00::1",
        "fd12:3456::1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:a9fe:a9fe",
        "::ffff:8.8.8.8",
        "64:ff9b:1::808:808",
        "4000::1",
        "::127.0.0.1",
        "::a00:1",
        "64:ff9b::7f00:1",
        "64:ff9b::10.0.0.1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2001:0:7f00:1::1",
    ],
)
def test_addresses_that_are_not_public(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads to any of these is refused, also where its other addresses are public."""
    answer = [("93.184.215.14", 80), (address, 80)]
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in answer]
    )
    assert "not public" in refusal("http://images.example/x.png", ImagePolicy(hosts=["*"]))


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "8.8.8.8", "2606:4700::1111", "2002:808:808::1", "64:ff9b::808:808"]
)
def test_addresses_that_are_public(address: str) -> None:
    """Public addresses are, also inside the forms that hide one in another."""
    assert fetching._is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.0.1./",
        "http://0/",
        "http://images.example.0x7f/",
        "http://user@127.0.0.1/",
        "http://images.example@127.0.0.1/",
        "http://127.0.0.1\\@images.example/",
        "http://127。0。0。1/",
        "http://①②⑦.0.0.1/",
        "http://%31%32%37.0.0.1/",
        "http://[::1%25lo]/",
        "http://[::ffff:127.0.0.1/",
        "http://images.example:0/",
        "http://images.example:99999/",
        "http:///picture.png",
        "http:images.example/x.png",
        "http:/images.example/x.png",
        "http://\udcff/x.png",
        "https://" + "a" * 300 + ".example/",
    ],
)
def test_spellings_that_could_lead_elsewhere_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decimal, octal and hexadecimal hosts, user names, other scripts' digits: refused before anything is looked up."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("it was looked up"))
    assert "the address of the image" in refusal(url, ImagePolicy(hosts=["*"], private_hosts=["images.example"]))


@pytest.mark.parametrize("url", ["ftp://images.example/x", "javascript:1", "//images.example/x", "x.png", ""])
def test_what_is_no_web_address(url: str) -> None:
    """Only http and https are fetched."""
    with allow_images(hosts=["*"]), pytest.raises(RowError, match="not an http"):
        url_retrieve(url)


def test_a_host_is_looked_up_once_and_that_address_is_used(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection goes to the address that was judged: a second look-up, which could lie, is never made."""
    real, looked_up = socket.getaddrinfo, []

    def once(host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        looked_up.append(host)
        return real("127.0.0.1" if len(looked_up) == 1 else "10.0.0.1", port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", once)
    host = f"images.example:{server.port}"
    assert fetch(f"http://{host}/picture.png", ImagePolicy(private_hosts=[host])) == PICTURE
    assert looked_up == ["images.example"]
    assert server.headers["host"] == host


def test_the_next_address_is_tried_where_one_does_not_answer(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several addresses the first that answers serves."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = closed.getsockname()[1]
    places = [("127.0.0.1", dead), ("127.0.0.1", server.port)]
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]
    )
    assert fetch("http://images.example/picture.png", ImagePolicy(private_hosts=["images.example"])) == PICTURE


def test_settings_of_the_environment_are_not_used(server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment sees nothing of it."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetch(server.url(), policy(server)) == PICTURE


# -- redirects ---------------------------------------------------------------------------------------------------------


def test_redirects_are_followed_and_each_is_checked(server: ImageServer) -> None:
    """A redirect to an allowed URL is followed; one to a private, forbidden or ambiguous URL is not."""
    assert fetch(server.url("to?url=/picture.png&status=307"), policy(server)) == PICTURE
    assert fetch(server.url(f"to?url={server.url()}"), policy(server)) == PICTURE
    anywhere = policy(server, hosts=["*"])
    for url, said in (
        ("http://169.254.169.254/latest/meta-data/", "not public"),
        ("http://10.0.0.1/", "not public"),
        ("http://[::1]/", "not public"),
        ("http://2130706433/", "ambiguous number"),
        ("http://127.0.0.1:1/x.png", "may not be fetched"),
        ("file:///etc/passwd", "not an http"),
        ("ftp://images.example/", "not an http"),
        ("http://[x", "not an http"),
    ):
        assert said in refusal(server.url(f"to?url={url}"), anywhere), url


def test_redirects_end(server: ImageServer) -> None:
    """A loop, and a redirect to nowhere, end."""
    assert "max_redirects=3" in refusal(server.url("loop"), policy(server, max_redirects=3))
    assert len(server.asked) == 4
    assert "without a Location" in refusal(server.url("to"), policy(server))
    assert "max_redirects=0" in refusal(server.url("to?url=/picture.png"), policy(server, max_redirects=0))


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("absent.png", "HTTP 404"),
        ("status?code=403", "HTTP 403"),
        ("status?code=204", "HTTP 204"),
        ("picture?kind=text/html;charset=utf-8", "sends text/html"),
        ("picture?kind=application/json", "sends application/json"),
        ("picture?kind=<script>", "sends something else"),
        ("picture?gzip=1", "compressed"),
        ("nonsense", "its response is invalid"),
    ],
)
def test_responses_other_than_images(server: ImageServer, path: str, said: str) -> None:
    """A 404, a page, a compressed answer: a reason, once."""
    assert said in refusal(server.url(path), policy(server))
    assert len(server.asked) == (3 if path == "nonsense" else 1)


@pytest.mark.parametrize(
    "kind", ["image/jpeg", "IMAGE/PNG; q=1", "application/octet-stream", "binary/octet-stream", ""]
)
def test_kinds_of_content_that_may_be_images(server: ImageServer, kind: str) -> None:
    """An image by any type's name, and what servers say who do not know."""
    assert fetch(server.url(f"picture?kind={kind}"), policy(server)) == PICTURE


def test_bytes_are_limited(server: ImageServer) -> None:
    """What is announced too long is not read, and what never ends is cut off."""
    assert fetch(server.url(), policy(server, max_bytes=len(PICTURE))) == PICTURE
    assert "over max_bytes" in refusal(server.url(), policy(server, max_bytes=len(PICTURE) - 1))
    assert "99,999,999,999 bytes" in refusal(server.url("claims?bytes=99999999999"), policy(server))
    assert "over max_bytes=100,000" in refusal(server.url("endless"), policy(server, max_bytes=100_000))


@pytest.mark.parametrize("path", ["silent", "drip", "headers"])
def test_a_slow_server_ends_at_the_deadline(server: ImageServer, path: str) -> None:
    """A silent server, and one that sends a byte now and then, of the headers or of the body, time out."""
    start = time.monotonic()
    assert "timeout_s" in refusal(server.url(path), policy(server, timeout_s=0.4))
    assert 0.3 < time.monotonic() - start < 3


def test_a_slow_dns_lookup_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own patience with name servers is longer."""
    import threading

    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(20) and [])
    start = time.monotonic()
    assert "timeout_s" in refusal("http://images.example/", ImagePolicy(hosts=["*"], timeout_s=0.3))
    assert time.monotonic() - start < 3
    over.set()


def test_what_may_pass_is_tried_again(server: ImageServer) -> None:
    """A busy server and a lost connection get two more tries, a refusal none."""
    assert fetch(server.url("status?code=503&times=2"), policy(server)) == PICTURE
    assert fetch(server.url("status?code=429&times=1&after=0"), policy(server)) == PICTURE
    assert fetch(server.url("cut?times=1"), policy(server)) == PICTURE
    server.asked.clear()
    assert "HTTP 503" in refusal(server.url("status?code=503"), policy(server))
    assert len(server.asked) == 3
    server.asked.clear()
    assert "too soon" in refusal(server.url("cut"), policy(server))
    assert len(server.asked) == 3
    server.asked.clear()
    assert "HTTP 404" in refusal(server.url("status?code=404"), policy(server))
    assert len(server.asked) == 1


def test_a_wait_that_would_outlast_the_deadline_is_not_begun(server: ImageServer) -> None:
    """A server that asks for a minute is believed, and not waited for."""
    stamina.set_testing(False)
    start = time.monotonic()
    assert "HTTP 503" in refusal(server.url("status?code=503&after=60"), policy(server, timeout_s=5))
    assert time.monotonic() - start < 3


def test_an_unknown_host_and_a_closed_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is an error of the call."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{closed.getsockname()[1]}"
    assert "cannot be reached" in refusal(f"http://{host}/", ImagePolicy(private_hosts=[host]))

    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "unknown" in refusal("http://absent.example/", ImagePolicy(hosts=["*"]))


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for images.example that signs itself, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "images.example")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("images.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "images.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every name lead to this machine, as a name server would."""
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda _, port, *args, **kwargs: real("127.0.0.1", port, *args, **kwargs)
    )


@pytest.fixture
def fresh_trust() -> Iterator[Callable[[], None]]:
    """Forget which certificates are trusted, now and after the test."""
    fetching._tls.cache_clear()
    yield fetching._tls.cache_clear
    fetching._tls.cache_clear()


def test_https_is_checked_by_name(
    certificate: Path, to_loopback: None, fresh_trust: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name, not the address, is sent with SNI and matched with the certificate; another certificate is refused."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    named: list[str] = []
    context.sni_callback = lambda _, name, __: named.append(name)  # type: ignore[assignment]
    with ImageServer(PICTURE, context) as server:
        hosts = [f"images.example:{server.port}", f"other.example:{server.port}", server.host]
        allowed = ImagePolicy(private_hosts=hosts)
        assert "certificate" in refusal(f"https://{hosts[0]}/picture.png", allowed)  # nobody has vouched for it
        monkeypatch.setenv("SSL_CERT_FILE", os.fspath(certificate))
        fresh_trust()
        assert fetch(f"https://{hosts[0]}/picture.png", allowed) == PICTURE
        assert server.headers["host"] == hosts[0]
        assert "certificate" in refusal(f"https://{hosts[1]}/picture.png", allowed)
        assert "certificate" in refusal(f"https://{hosts[2]}/picture.png", allowed)
        assert named[:3] == ["images.example", "images.example", "other.example"]


def test_a_handshake_that_never_ends(server: ImageServer, fresh_trust: Callable[[], None]) -> None:
    """A connection to a server that accepts but stays silent ends at the deadline."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host = f"127.0.0.1:{listening.getsockname()[1]}"
        start = time.monotonic()
        said = refusal(f"https://{host}/", ImagePolicy(private_hosts=[host], timeout_s=0.3))
        assert "timeout_s" in said
        assert time.monotonic() - start < 3


# -- the policy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "url", "covered"),
    [
        ("a.example", "http://a.example/x", True),
        ("a.example", "https://a.example:8443/x", True),
        ("A.Example", "https://a.EXAMPLE/x", True),
        ("a.example", "https://b.a.example/x", False),
        ("a.example:443", "https://a.example/x", True),
        ("a.example:443", "http://a.example/x", False),
        ("https://a.example", "http://a.example/x", False),
        ("https://a.example/", "https://a.example/x", True),
        ("*.a.example", "http://b.a.example/x", True),
        ("*.a.example", "http://c.b.a.example:81/x", True),
        ("*.a.example", "http://a.example/x", False),
        ("*.a.example", "http://ba.example/x", False),
        ("https://*.a.example", "http://b.a.example/x", False),
        ("*", "http://any.example/x", True),
        ("*", "https://any.example:443/x", True),
        ("*", "https://any.example:8443/x", False),
        ("https://*", "http://any.example/x", False),
    ],
)
def test_what_a_host_in_the_policy_means(rule: str, url: str, covered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`host`, `host:port`, `https://host`, the hosts below one, any host on the two usual ports."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("10.0.0.1", 80))])
    assert ("not public" in refusal(url, ImagePolicy(hosts=[rule]))) == covered


@pytest.mark.parametrize(
    "wrong",
    [
        {"hosts": [""]},
        {"hosts": ["a b"]},
        {"hosts": ["http://a.example/folder"]},
        {"hosts": ["user@a.example"]},
        {"hosts": ["*.com"]},
        {"hosts": ["a.*.example"]},
        {"hosts": [7]},
        {"private_hosts": ["*"]},
        {"private_hosts": ["*.a.example"]},
        {"dirs": [""]},
        {"dirs": ["file://elsewhere/x"]},
        {"max_bytes": 0},
        {"max_bytes": True},
        {"max_pixels": 1.5},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"max_redirects": -1},
        {"max_aspect": 0.5},
        {"max_byte": 7},
        {"formats": [""]},
    ],
)
def test_a_policy_that_cannot_be_meant(wrong: dict[str, Any]) -> None:
    """It is refused at the door, and nothing of it holds."""
    with pytest.raises(ConfigError) as caught:
        allow_images(**wrong)
    assert caught.value.hint
    assert current_policy() == ImagePolicy()


def test_allowances_add_up_and_end(tmp_path: Path) -> None:
    """Folders and hosts of several allowances add up, the last limit applies, and each can be revoked alone."""
    outer = allow_images(dirs=tmp_path, hosts="a.example", max_bytes=10)
    with allow_images(ImagePolicy(hosts=["b.example"], max_pixels=7), hosts=["c.example"]):
        assert current_policy().hosts == ("a.example", "b.example", "c.example")
        assert current_policy().dirs == (str(tmp_path),)
        assert (current_policy().max_bytes, current_policy().max_pixels) == (ImagePolicy().max_bytes, 7)
    assert (current_policy().hosts, current_policy().max_bytes) == (("a.example",), 10)
    outer.revoke()
    assert current_policy() == ImagePolicy()
    assert ImagePolicy().dirs == ImagePolicy().hosts == ImagePolicy().private_hosts == ()


def test_an_allowance_holds_in_every_thread(server: ImageServer) -> None:
    """Engines embed in threads of their own."""
    from concurrent.futures import ThreadPoolExecutor

    with allow_images(private_hosts=[server.host]), ThreadPoolExecutor(4) as pool:
        assert list(pool.map(url_retrieve, itertools.repeat(server.url(), 8))) == [PICTURE] * 8
