"""Secrets in URLs: a URL is taken apart, and each part that may be a secret becomes ***.

Everything that shows or writes down a URL of a person's goes through `masked`; the messages of
others, as a database's driver, go through `scrubbed`.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote, unquote, unquote_plus

from mnist_ray.errors import SettingsError

HIDDEN = "***"
# Of these the user's name is no secret; elsewhere a token stands in its place.
NAMED_USERS = ("postgres", "postgresql", "mysql", "mariadb")
# An @ in their path means nothing: their addresses carry no keys (see storage.address).
BUCKETS = ("s3", "gs", "gcs", "az", "file")
# Keys of a query whose values are no secrets. All other values are hidden.
HARMLESS = (
    *("application_name", "charset", "client_encoding", "connect_timeout", "db", "dbname", "host"),
    *("endpoint_override", "port", "protocol", "region", "scheme", "ssl", "ssl_ca", "sslmode"),
    *("sslrootcert", "timeout"),
)
_START = re.compile(r"[A-Za-z][\w+.-]*://")
_URL = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"<>]*[^\s'\"<>.,:;!?)\]]")  # within a sentence
_VARIABLES = re.compile(r"(\$\{\w+\}:?)+")  # names of environment variables, not their values


class _Parts(NamedTuple):
    """A text that ends with a URL: before + user:password@ + host + path + ?query + #fragment."""

    before: str  # with the scheme and ://
    scheme: str
    userinfo: str | None
    host: str
    path: str
    query: str
    fragment: str

    @property
    def ambiguous(self) -> bool:
        """Whether a password may reach beyond its place: it holds / ? # or @."""
        if self.scheme in BUCKETS:
            return ":" in self.host  # of no bucket's name
        if not (self.host or self.userinfo):
            return False
        rest = f"{self.path}{self.query}{self.fragment}"
        return "@" in rest or "@" in (self.userinfo or "")


def _apart(text: str) -> _Parts | None:
    start = _START.search(text)
    if not start:
        return None
    rest, _, fragment = text[start.end() :].partition("#")
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    userinfo, at, host = authority.rpartition("@")
    scheme = start[0].lower().partition("+")[0].removesuffix("://")
    user = userinfo if at else None
    return _Parts(text[: start.end()], scheme, user, host, slash + path, query, fragment)


def masked(text: str) -> str:
    """The text, with *** for the secrets of the URL that it ends with; names as ${VAR} stay.

    Args:
        text: A URL, a word of a command such as --study=URL, or any other text.
    """
    parts = _apart(text)
    if parts is None:  # postgresql:me:password@host, without the slashes
        return re.sub(r":(?!\$\{\w+\}@)[^:@]*:?[^@]*@", f":{HIDDEN}@", text)
    if parts.ambiguous:
        return parts.before + HIDDEN
    of_a_file = parts.scheme == "sqlite" and "=" not in parts.query  # a ? in its name
    pairs = [pair if of_a_file else _masked_pair(pair) for pair in re.split("([&;])", parts.query)]
    hides = "".join(pairs) != parts.query
    fragment = HIDDEN if hides and parts.fragment else parts.fragment
    return (
        f"{parts.before}{_masked_user(parts)}{_masked_host(parts)}{parts.path}"
        f"{'?' if parts.query else ''}{''.join(pairs)}{'#' if fragment else ''}{fragment}"
    )


def _masked_user(parts: _Parts) -> str:
    user, colon, password = (parts.userinfo or "").partition(":")
    if parts.userinfo is None:
        return ""
    # me:${VAR} names the user: no token stands before a password.
    named_only = _VARIABLES.fullmatch(parts.userinfo) or _VARIABLES.fullmatch(password)
    if named_only or (parts.scheme, user) == ("gs", "anonymous"):
        return f"{parts.userinfo}@"
    named = parts.scheme in NAMED_USERS or (colon and not user)  # redis://:password@host
    kept = not password or _VARIABLES.fullmatch(password)
    secret = password if kept else HIDDEN
    return f"{user}{colon}{secret}@" if named else f"{HIDDEN}@"


def _masked_host(parts: _Parts) -> str:
    """me:password if the @ and the host were forgotten; HOST:PORT stays."""
    host, colon, port = parts.host.partition(":")
    plain = not colon or port.isdecimal() or host.startswith("[") or _VARIABLES.fullmatch(port)
    return parts.host if plain else f"{host}:{HIDDEN}"


def _masked_pair(pair: str) -> str:
    key, equals, value = pair.partition("=")
    harmless = not value or key.lower() in HARMLESS or _VARIABLES.fullmatch(value)
    if equals:
        return pair if harmless else f"{key}={HIDDEN}"
    return pair if pair in ("", "&", ";") or _VARIABLES.fullmatch(pair) else HIDDEN


def masked_command(words: Sequence[str]) -> str:
    """The words of a command line as one line, each masked."""
    return shlex.join(map(masked, words))


def scrubbed(text: str, *urls: str) -> str:
    """Another's message, in which none of the secrets of these URLs stands, however quoted."""
    for url in urls:
        unwrapped = " ".join(url.split())  # as it stands in a message that was wrapped
        if unwrapped:  # str.replace would put a blank text between all characters
            shown = " ".join(masked(url).split())
            text = text.replace(url, shown).replace(unwrapped, shown)
    forms = {form for url in urls for secret in _secrets(url) for form in _spellings(secret)}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    return _URL.sub(lambda url: masked(url[0]), text)


def _secrets(url: str) -> Iterator[str]:
    parts = _apart(url)
    if parts is None:
        return
    if parts.ambiguous:
        yield from re.split(r"[:@/?#&=]", url[len(parts.before) :])
    if _masked_user(parts) not in ("", f"{parts.userinfo}@"):
        user, _, password = (parts.userinfo or "").partition(":")
        yield password
        if parts.scheme not in NAMED_USERS:
            yield user
    if _masked_host(parts) != parts.host:
        yield parts.host.partition(":")[2]
    for pair in re.split("[&;]", parts.query):
        if _masked_pair(pair) != pair:
            yield pair.partition("=")[2] or pair


def _spellings(secret: str) -> Iterator[str]:
    yield from filter(None, (secret, unquote(secret), unquote_plus(secret), quote(secret, safe="")))


def check_unambiguous(url: str, flag: str) -> None:
    """Raises SettingsError if the @ at the password's end is not certain.

    Each driver would guess, and show a part of the password as the host's name.
    """
    parts = _apart(url)
    if parts and parts.ambiguous:
        raise SettingsError(
            f"{flag}: {masked(url)}: in a user's name, a password or a query write %40 for @, "
            "%2F for /, %3F for ? and %23 for #"
        )
