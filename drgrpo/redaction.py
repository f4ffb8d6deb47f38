"""Secrets in names and texts: what must not reach a log, an error, MLflow or an artifact."""

import itertools
import re

_SECRET_WORDS = frozenset(
    {"token", "password", "passwd", "pwd", "passphrase", "secret", "secrets", "credential", "credentials", "apikey"}
)
_SECRET_PAIRS = frozenset({("api", "key"), ("access", "key"), ("private", "key"), ("auth", "string")})

# User and password of a URL. The password may hold what has a meaning there, so all up to the last @ goes.
_LOGIN = re.compile(r"""(?<=://)(?:[^/\s:@'"<>]{0,200}:[^\s'"<>]{0,500}|[^/\s'"<>]{0,500})(?=@)""")
_QUERY = re.compile(
    r"(?i)(?<=[?&;])([\w.-]{0,40}(?:token|password|passwd|pwd|secret|signature|api_?key)[\w.-]{0,40}=)[^&;\s'\"]+"
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{16,}")
_TOKENS = re.compile(
    r"\b(?:(?:hf|sk|ghp|gho|ghs|pnu|pnb)_[A-Za-z0-9]{16,}|github_pat_\w{16,}|(?:sk|glpat)-[\w-]{16,}"
    r"|dapi[0-9a-f]{32}|AKIA[0-9A-Z]{16})"
)


def is_secret(key: str) -> bool:
    """Whether a dotted key names a secret by one of its words: `hub_token` does, `max_completion_tokens` does not."""
    words = re.split(r"[._\-/\s]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower())
    return not _SECRET_WORDS.isdisjoint(words) or not _SECRET_PAIRS.isdisjoint(itertools.pairwise(words))


def mask(text: str) -> str:
    """`text` with logins in URLs, secrets in their queries and the shapes of well-known tokens replaced by `***`."""
    text = _QUERY.sub(r"\1***", _LOGIN.sub("***", text))
    return _TOKENS.sub("***", _BEARER.sub(r"\1 ***", text))
