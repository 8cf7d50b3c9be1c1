"""What a secret looks like, by its name and by its form, without taking other things for one."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import embedreg
from embedreg import get_registry
from embedreg.errors import ConfigError, HardcodedSecretError, MissingVariableError
from embedreg.security.references import holds_credentials, looks_sensitive
from tests.declared import LENGTHS, stored
from tests.secret_holders import Keyed
from tests.timing import within

NAMES = """
api_keys apiKeys API_KEYS apikeys pat github_pat githubPAT signing_key signingKeys signingkey dsn sentry_dsn DSN bearer
bearer_token credential credentials creds aws_credentials passphrase passPhrase private_key privateKey privatekey
private_key_pem client_secret clientsecret clientSecret client-secret access_token accessToken accesstoken access_tokens
auth cookie cookies session_cookie connection_string connectionString connectionstring conn_str connstr passwords
db_password dbPassword pgpassword db_pass passcode secret_key secretkey SecretKey secret_access_key aws_access_key_id
AccessKeyId encryption_key master_key shared_access_key shared_key license_key hmac_key ssh_key openai_key oauth_token
refresh_tokens sas_token sas github_token gitlab-token slack_bot_token x-goog-api-key Proxy-Authorization api_key_2
api_key_value webhook_secret
"""
OTHER = """
token_limit max_tokens maxTokens tokens tokenizer tokenizer_name key_column key keys primary_key foreign_key sort_key
partition_key public_key cache_key dict_key path pattern patch compat compatible patience author authority authors
auth_type auth_url auth_mode secret_name password_field secretary keyboard keyring keyword keywords monkey pad_token
bos_token cls_token mask_token stop_tokens num_tokens image_token user_token special_tokens prompt_tokens read_tokens
forward_pass two_pass bypass compass cookie_policy credential_type passage passages passive basic base sasl_mechanism
dsnames bearing id name model dim url region bucket text vector language x-title user-agent tokenization
"""


@pytest.mark.parametrize("name", [*NAMES.split(), "\uff41\uff50\uff49_\uff4b\uff45\uff59"])
def test_names_of_secrets_are_recognised_in_every_spelling(name: str) -> None:
    """Plurals, camel case, run together, hyphens, a number at the end, full-width letters."""
    assert looks_sensitive(name)


@pytest.mark.parametrize("name", OTHER.split())
def test_names_of_other_things_are_left_alone(name: str) -> None:
    """Options of tokenizers, columns, counts, words that contain one."""
    assert not looks_sensitive(name)


WRITTEN = [
    "s3://bucket/data?secret_key=abc123&region=eu",
    "s3://bucket?access_key=AK&secret_key=abc",
    "https://user:password@host/x",
    "postgresql+psycopg://u:p@db:5432/x",
    "//user:pw@host",
    "user:pw@proxy.example.com:8080",
    "https://x.blob.core.windows.net/c?sv=1&sig=abc%3D",
    "https://maps.example.com/?key=AIzaX",
    "https://b.s3.amazonaws.com/k?X-Amz-Signature=abc",
    "https://host/#access_token=abc",
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=abc==;EndpointSuffix=x",
    "Server=x;User Id=y;Password=z;",
    "host=db user=me password=hunter2",
    "Bearer abc",
    "bearer abcdefgh12345678",
    "Basic dXNlcjpwdw==",
    "Authorization: Bearer abc",
    "X-Title: a\nX-Api-Key: abc",
    '{"api_key": "abc"}',
    "sk-proj-abcdefghijklmnopqrstuvwx",
    "sk-abcdefghijklmnopqrstuvwx1234",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "AKIAIOSFODNN7EXAMPLE",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc",
    "-----BEGIN RSA PRIVATE KEY-----\nMII",
    "see https://u:pw@host/x for it",
]
PLAIN = [
    "https://host/x?page=2&lang=en#part",
    "https://host:8080/v1",
    "https://user@host/x",
    "s3://bucket/key=1/part.parquet",
    "/data/year=2024/password.txt",
    "mailto:me@example.com",
    "search_query: ",
    "Represent this sentence: {text}",
    "the bearer of bad news",
    "Bearers of a token",
    "password: what is it?",
    "sk-bert-base-multilingual-cased",
    "sentence-transformers/all-MiniLM-L6-v2",
    "text-embedding-3-small",
    "$var:key",
    "https://host/x?api_key=$var:key",
    "https://host/x?api_key={key}",
    "a=b;c=d",
    "max_tokens=512, token_limit=3",
    "",
]


@pytest.mark.parametrize("text", WRITTEN)
def test_texts_that_hold_a_secret_are_refused_and_masked(text: str) -> None:
    """In a plain field, in a dict, in an address of data, in what another writer has stored."""
    assert holds_credentials(text)
    for config in ({"url": text}, {"headers": {"x-other": text}}, {"headers": {"list": [[text]]}}):
        with pytest.raises(HardcodedSecretError) as caught:
            Keyed(**config)
        assert text not in str(caught.value)
    [seen] = embedreg.inspect(
        stored({**LENGTHS, "name": "keyed-elsewhere", "model": {"option": text, "more": [{"a": text}]}})
    )
    assert seen["config"] == {"option": "***", "more": [{"a": "***"}]}


@pytest.mark.parametrize("text", PLAIN)
def test_other_texts_are_left_alone(text: str) -> None:
    """Addresses, prompts, names of models, references."""
    assert not holds_credentials(text)


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ({"dsn": "x1", "pat": "x1", "api_keys": ["x1"]}, {"dsn": "***", "pat": "***", "api_keys": ["***"]}),
        ({"headers": [["X-Api-Key", "x1"], ["X-Title", "t"]]}, {"headers": [["X-Api-Key", "***"], ["X-Title", "t"]]}),
        ({"env": [{"name": "API_KEY", "value": "x1"}]}, {"env": [{"name": "API_KEY", "value": "***"}]}),
        ({"client": {"auth": {"user": "u", "x": 17}}}, {"client": {"auth": {"user": "***", "x": "***"}}}),
        ({"signing_key": "$var:k:x1", "max_tokens": 8}, {"signing_key": "$var:k:***", "max_tokens": 8}),
        ({"more": {"Bearer x1abc": 1}}, {"more": {"***": 1}}),
        ({"columns": ["token", "text"]}, {"columns": ["token", "text"]}),
    ],
)
def test_inspect_masks_by_name_however_a_pair_is_written(model: dict[str, Any], shown: dict[str, Any]) -> None:
    """Dicts, lists of pairs, lists of names and values; by keys too."""
    [seen] = embedreg.inspect(stored({**LENGTHS, "name": "keyed-elsewhere", "model": model}))
    assert seen["config"] == shown


@pytest.mark.parametrize(
    "headers",
    [
        {"pat": "x1"},
        {"a": [["X-Api-Key", "x1"]]},
        {"a": [("cookie", "x1")]},
        {"a": [{"name": "API_KEY", "value": "x1"}]},
    ],
)
def test_the_same_is_refused_where_it_is_written_out(headers: dict[str, Any]) -> None:
    """A reference is accepted in the same place."""
    with pytest.raises(HardcodedSecretError) as caught:
        Keyed(headers=headers)
    assert "x1" not in str(caught.value)


def test_a_key_in_place_of_an_environment_variable_is_not_shown() -> None:
    """`[env] x = "sk-..."` in a serve file, and `bind_env` with a key."""
    for wrong in ("sk-live-abc", "a b", "", "X=1", "ghp_abcdefghijklmnopqrstuvwxyz0123456789", "é", "1A", "A" * 300):
        with pytest.raises(ConfigError, match="cannot be the name of an environment variable") as caught:
            get_registry().bind_env("x", wrong)
        assert not wrong or wrong not in str(caught.value)


def test_the_error_for_a_missing_variable_has_both_wordings() -> None:
    """Code that was written for LanceDB looks for its words, or catches its errors."""
    for known in (ValueError, KeyError):
        with pytest.raises(known) as caught:
            get_registry().get_var("nowhere")
        first = str(caught.value).partition("\n")[0]
        assert "Variable 'nowhere' not found in registry" in first
        assert "variable 'nowhere' is not set" in first
    with pytest.raises(MissingVariableError) as long:
        get_registry().get_var("n" * 10**6)
    assert len(str(long.value)) < 1000


@given(st.text(max_size=200), st.text(max_size=200))
def test_every_text_is_classified(name: str, text: str) -> None:
    """Both give an answer, the same one each time."""
    assert looks_sensitive(name) is looks_sensitive(name)
    assert holds_credentials(text) is holds_credentials(text)


@pytest.mark.parametrize(
    "part",
    [
        "a",
        "a:",
        "://",
        "a=",
        "; =",
        "&a",
        "//a:",
        "sk-",
        "Bearer ",
        "eyJa.",
        '"a":',
        "\na:",
        "a.b@",
        "a b ",
        "-",
        "?",
        "k=$",
    ],
)
def test_classification_takes_linear_time(part: str) -> None:
    """No repetitive text of a megabyte takes more than a few seconds."""
    text = part * (2**20 // len(part))
    with within(3):
        holds_credentials(text)
        looks_sensitive(text)
