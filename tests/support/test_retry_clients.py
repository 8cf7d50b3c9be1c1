"""How the errors of client libraries are read, none of which agree on where they keep a status or headers."""

from __future__ import annotations

from typing import Any

import botocore.exceptions as aws
import httpx2
import pytest

from embedreg.support.retry import http_status, is_transient, retry_after_s


def aws_error(status: int, **headers: str) -> aws.ClientError:
    """Return botocore's error for a response, as its client makes it."""
    response: Any = {
        "Error": {"Code": "Throttled", "Message": "slow down"},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
    }
    return aws.ClientError(response, "InvokeModel")


class VoyageError(Exception):
    """Has voyageai's attribute."""

    http_status = 401
    headers = {"Retry-After": "3"}  # noqa: RUF012 (as that library's)


@pytest.mark.parametrize(("status", "passes"), [(400, False), (403, False), (424, False), (429, True), (503, True)])
def test_botocore_keeps_them_in_dicts(status: int, passes: bool) -> None:
    """The status and Retry-After of AWS are found in the error's nested dicts, and decide."""
    error = aws_error(status, **{"retry-after": "7"})
    assert (http_status(error), retry_after_s(error), is_transient(error)) == (status, 7.0, passes)
    assert retry_after_s(aws_error(status)) is None


def test_the_attribute_http_status_counts() -> None:
    """It is where voyageai's errors keep it: a wrong key is not tried again."""
    error = VoyageError()
    assert (http_status(error), retry_after_s(error), is_transient(error)) == (401, 3.0, False)


@pytest.mark.parametrize(
    "error",
    [
        aws.NoCredentialsError(),
        aws.PartialCredentialsError(provider="env", cred_var="key"),
        aws.ParamValidationError(report="no such parameter"),
        aws.ProfileNotFound(profile="mine"),
        aws.NoRegionError(),
        httpx2.UnsupportedProtocol("no scheme"),
        httpx2.InvalidURL("no host"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_missing_credentials_and_refused_parameters_last(error: Exception) -> None:
    """Waiting does not help where a key is missing or a setting is refused."""
    assert not is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        aws.EndpointConnectionError(endpoint_url="http://127.0.0.1:1"),
        aws.ReadTimeoutError(endpoint_url="http://127.0.0.1:1"),
        aws.CredentialRetrievalError(provider="role", error_msg="no answer"),
        httpx2.ConnectError("refused"),
        httpx2.ReadTimeout("slow"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_the_network_pass(error: Exception) -> None:
    """A lost connection and a slow server are tried again, whichever library reports it."""
    assert is_transient(error)


def test_an_error_may_say_itself_whether_it_passes_and_when() -> None:
    """google-auth's `retryable`, and a wait that a service asked for in its body."""
    error: Any = Exception("no token")
    assert is_transient(error)
    error.retryable = False
    assert not is_transient(error)
    error.retry_after_s = 2
    assert retry_after_s(error) == 2.0
