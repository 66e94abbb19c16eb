"""What the Hub's client raises, as one line that says what to do; and no token in it."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    BadRequestError,
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


# The Hub's tokens are hf_ and 34 letters and digits; what is shorter, or goes on with more words, is a name.
TOKEN_PATTERN = re.compile(r"(?<![A-Za-z0-9_])hf_[A-Za-z0-9]{30,}(?![A-Za-z0-9_])")
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token of {settings}"
BUSY = (429, 500, 502, 503, 504)


class HubError(ValueError):
    """The Hub refused, or was not reached. The message is one line, and names what to change."""


def without_tokens(text: str, *tokens: str | None) -> str:
    """`text` with every token in it replaced: these, this environment's, and whatever looks like one."""
    for token in {*tokens, get_token(), os.environ.get("HF_TOKEN")}:
        if token:
            text = text.replace(token, "hf_***")
    return TOKEN_PATTERN.sub("hf_***", text)


@contextmanager
def hub_errors(
    repo_id: str, doing: str, token: str | None = None, revision: str | None = None, endpoint: str | None = None
) -> Iterator[None]:
    """Turn the client's errors into a `HubError`.

    Args:
        repo_id: "owner/name".
        doing: "push to" or "pull from".
        token: In use, so that it can be kept out of the message.
        revision: That was asked for.
        endpoint: Address of the Hub. Default: that of this process.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:  # every other kind is raised again as it is
        message = _explain(error, repo_id, doing, token, revision, endpoint or constants.ENDPOINT)
        if message is None:
            raise
        raise HubError(without_tokens(message, token)) from None


def _explain(
    error: Exception, repo_id: str, doing: str, token: str | None, revision: str | None, hub: str
) -> str | None:
    """One line; None for an error that isn't of the Hub."""
    start = f"Cannot {doing} {repo_id}: "
    log_in = LOG_IN.format(settings=f"{hub}/settings/tokens")
    given = token or get_token()
    if isinstance(error, HFValidationError):
        return (
            f"{repo_id!r} is not a name on the Hub: give owner/name, with letters, digits, `-`, `_` and `.`, at most 96 "
            "characters."
        )
    if isinstance(error, UnicodeEncodeError) or "Illegal header value" in str(error):
        return f"{start}the token holds characters that no token has: {log_in}."
    if type(error).__name__ in ("InvalidURL", "UnsupportedProtocol"):
        return f"{start}{hub!r} is no address: set HF_ENDPOINT to one such as https://huggingface.co, or unset it."
    if isinstance(error, LocalTokenNotFoundError):
        return f"{start}there is no token: {log_in}."
    if isinstance(error, OfflineModeIsEnabled) or (
        constants.HF_HUB_OFFLINE and isinstance(error, (LocalEntryNotFoundError, ConnectionError))
    ):
        return f"{start}HF_HUB_OFFLINE is set, so the Hub is not asked: unset it."
    if isinstance(error, LocalEntryNotFoundError):  # the client's words for a Hub that isn't there
        cause = error.__cause__
        if isinstance(cause, Exception) and not isinstance(cause, LocalEntryNotFoundError):
            explained = _explain(cause, repo_id, doing, token, revision, hub)
            if explained is not None:
                return explained
        return f"{start}{hub} is not reachable: look at the network, a proxy, or HF_ENDPOINT, and run it again."
    if isinstance(error, (HTTPError, ConnectionError, TimeoutError)) and not isinstance(error, HfHubHTTPError):
        return (
            f"{start}{hub} is not reachable, or the connection broke off ({_short(error)}): run the same again, "
            "and what has arrived is not sent twice."
        )
    if isinstance(error, GatedRepoError):
        return f"{start}it is gated: ask for access on {hub}/{repo_id}, then {log_in}."
    if isinstance(error, DisabledRepoError):
        return f"{start}the Hub has disabled it."
    if isinstance(error, RevisionNotFoundError):
        return f"{start}it has no revision {revision!r}: see its branches and tags on {hub}/{repo_id}."
    if isinstance(error, EntryNotFoundError):
        return f"{start}a file is not there: {_short(error)}."
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):  # the client's words for an upload
        return _explain(error.__cause__, repo_id, doing, token, revision, hub)
    if not isinstance(error, HfHubHTTPError):
        if isinstance(error, OSError) and error.errno is not None:
            return (
                f"{start}{error.filename or 'a file'} cannot be used ({error.strerror}): make room, or set HF_HOME to a folder "
                "that can be written."
            )
        return None
    status = error.response.status_code if error.response is not None else 0
    said = _short(error)
    if status == 401 and (
        "Invalid" in said or "credentials" in said.lower() or not isinstance(error, RepositoryNotFoundError)
    ):
        return (
            f"{start}the Hub does not know this token: {log_in}." if given else f"{start}there is no token: {log_in}."
        )
    if isinstance(error, RepositoryNotFoundError):
        private = "the token may not see it" if given else f"it is private: {log_in}"
        return f"{start}there is no such repository, or {private}."
    if status == 403:
        owner = repo_id.partition("/")[0]
        return (
            f"{start}this token may not write there ({said}): give it the role `write`, or another owner than {owner}."
            if "push" in doing
            else f"{start}this token has no permission ({said})."
        )
    if status == 409:
        return f"{start}the name is taken, or somebody else is pushing at this moment ({said})."
    if status == 412:
        return f"{start}somebody else has pushed at the same moment: run the same again."
    if isinstance(error, BadRequestError):
        return f"{start}the Hub refuses this: {said}."
    if status in (402, 413, 507):
        return f"{start}the storage of {repo_id.partition('/')[0]} is full or the file too large ({said})."
    if status in BUSY:
        return (
            f"{start}the Hub is busy (status {status}): run the same again later; what has arrived is not sent twice."
        )
    return f"{start}{said} (status {status})."


def _short(error: Exception) -> str:
    """What the server said, or the last line of the error, without addresses."""
    said = getattr(error, "server_message", None) or str(error)
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    line = (
        next((line for line in lines if not line.startswith(("Make sure", "For more", "Please"))), "") if lines else ""
    )
    line = re.sub(r"\(Request ID: [^)]*\)", "", line)
    return line.strip().rstrip(".:") or type(error).__name__
