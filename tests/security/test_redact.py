"""`redact`: a secret is found in a text in whatever spelling it stands there."""

import base64
import json
from urllib.parse import quote

import pytest

from embedreg.security.redaction import redact
from tests.secret_holders import SECRET


@pytest.mark.parametrize(
    "spelling",
    [
        SECRET,
        quote(SECRET),
        quote(SECRET, safe=""),
        quote(SECRET, safe="").lower(),
        quote(SECRET, safe="").replace("%20", "+"),
        json.dumps({"key": SECRET}),
        repr(SECRET),
        SECRET.encode().hex(),
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
        base64.b64encode(f"user:{SECRET}".encode()).decode(),
        base64.b64encode(f"me:{SECRET}:more".encode()).decode(),
        base64.b64encode(f"u:{SECRET}".encode()).decode(),
    ],
)
def test_a_secret_is_redacted_in_every_spelling(spelling: str) -> None:
    """Quoted for a URL, escaped for JSON, in hex, and in base64 at any offset."""
    cleaned = redact(f"before {spelling} after", [SECRET])
    assert cleaned.startswith("before ")
    assert cleaned.endswith(" after")
    assert "***" in cleaned
    for piece in (spelling[i : i + 8] for i in range(6, max(7, len(spelling) - 12))):
        assert piece not in cleaned.replace('{"key": "', "")


def test_a_significant_part_of_a_secret_is_redacted() -> None:
    """The key of a "Bearer <key>", each line of a PEM key, and a value that came with a line break."""
    assert redact("bad abcdefgh!", ["Bearer abcdefgh"]) == "bad ***!"
    assert redact("bad abcdefgh", ["abcdefgh\n"]) == "bad ***"
    pem = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----\n"
    assert redact("read MIIEvQIBADANBgkq", [pem]) == "read ***"


def test_the_longer_of_two_secrets_goes_first() -> None:
    """One secret may begin another: no tail is left."""
    assert redact("abcd-efgh", ["abcd", "abcd-efgh"]) == "***"


def test_a_very_short_secret_does_not_destroy_the_message() -> None:
    """A secret under four characters is replaced only as a separate word; elsewhere it may occur by chance."""
    assert redact("a bad apple: key=a, 'a' and /a/", ["a"]) == "*** bad apple: key=***, '***' and /***/"
    assert redact("error 404 for 40 at 4040", ["40"]) == "error 404 for *** at 4040"
    assert redact("untouched", [""]) == "untouched"
