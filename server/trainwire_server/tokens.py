"""The token file: who may call, in which role, for which tenant. It holds hashes, never a token.

A line is `sha256:HEX ROLE NAME [TENANT]`; what follows a `#` is a comment. The hash needs neither
salt nor work factor: a token is 256 random bits, which nobody finds by trying.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import os
import re
import secrets
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainwire_server.identity import DEFAULT_TENANT, TENANT_WORDS, Identity, Role, is_tenant

_PREFIX = "trainwire_"
"""What every token begins with, so that it is recognised where it should not be."""
_SCHEME = "sha256:"
_LINE = "sha256:HEX ROLE NAME [TENANT]"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_NAME_WORDS = "1 to 64 letters, digits and . _ @ -, the first a letter or digit"
_MOST_BYTES = 1 << 20


class TokenFileError(Exception):
    """The token file cannot be used; the message has path, line and reason, and no secret."""


@dataclass(frozen=True)
class Token:
    """A line of the token file: the SHA-256 of a token (32 bytes), and whose it is."""

    digest: bytes
    identity: Identity


def digest_of(token: str) -> bytes:
    """The SHA-256 of a token (32 bytes), which is what the file holds of it."""
    # What a caller sends need not be text that can be encoded.
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


def find(tokens: Sequence[Token], token: str) -> Identity | None:
    """Whose token this is; None if it is nobody's.

    Takes the same time whichever it is, and whether it is one at all.
    """
    sent = digest_of(token)
    found = None
    for known in tokens:
        if hmac.compare_digest(known.digest, sent):
            found = known.identity
    return found


def read_tokens(path: Path) -> tuple[Token, ...]:
    """The tokens of a file, at least one.

    Raises:
        TokenFileError: it cannot be read, is writable by others, has no token or a bad line.
    """
    return _parse_file(path, _read_text(path))


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            _check_writers(path, os.fstat(file.fileno()).st_mode)
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise TokenFileError(f"cannot read token file {path}: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise TokenFileError(f"token file {path} is larger than {_MOST_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise TokenFileError(f"token file {path} is not text in UTF-8") from None


def _parse_file(path: Path, text: str) -> tuple[Token, ...]:
    try:
        return parse_tokens(text)
    except TokenFileError as error:
        raise TokenFileError(f"token file {path}: {error}") from None


def _check_writers(path: Path, mode: int) -> None:
    """Whoever may write the file may let himself in."""
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        allowed = "only its owner may write it: chmod go-w"
        raise TokenFileError(f"token file {path} is writable by group or others; {allowed}")


def parse_tokens(text: str) -> tuple[Token, ...]:
    """The tokens of a file's text.

    Raises:
        TokenFileError: everything that is wrong with it, by line.
    """
    tokens: list[Token] = []
    wrong: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            tokens.append(_token(words, tokens))
        except TokenFileError as error:
            wrong.append(f"line {number}: {error}")
    if wrong:
        raise TokenFileError("; ".join(wrong))
    if not tokens:
        raise TokenFileError("there is no token in it; trainwire-server token makes one")
    return tuple(tokens)


def _token(words: list[str], before: list[Token]) -> Token:
    """What is wrong is said without the words: one of them may be a token put there in error."""
    if len(words) not in (3, 4):
        raise TokenFileError(f"{len(words)} words; allowed: {_LINE}")
    digest, role, name, *rest = words
    tenant = _checked_tenant(rest[0]) if rest else DEFAULT_TENANT
    token = Token(_digest(digest), Identity(_checked_name(name), _role(role), tenant))
    for other in before:
        if other.digest == token.digest:
            raise TokenFileError(f"the token of {other.identity.name} once more")
        if other.identity.name == name:
            raise TokenFileError("a name that another line has")
    return token


def _digest(text: str) -> bytes:
    if not re.fullmatch(rf"{_SCHEME}[0-9a-f]{{64}}", text):
        raise TokenFileError(f"the first word is not {_SCHEME} and 64 lower-case hex digits")
    return bytes.fromhex(text.removeprefix(_SCHEME))


def _role(text: str) -> Role:
    roles = {role.text: role for role in Role}
    if text not in roles:
        raise TokenFileError(f"the second word is no role; allowed: {', '.join(roles)}")
    return roles[text]


def _checked_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise TokenFileError(f"the third word is no name; allowed: {_NAME_WORDS}")
    return text


def _checked_tenant(text: str) -> str:
    if not is_tenant(text):
        raise TokenFileError(f"the fourth word is no tenant; allowed: {TENANT_WORDS}")
    return text


def new_token() -> str:
    """A new token: 256 random bits."""
    return _PREFIX + secrets.token_urlsafe(32)


def line_of(token: str, identity: Identity) -> str:
    """The line for the token file."""
    words = [f"{_SCHEME}{digest_of(token).hex()}", identity.role.text, identity.name]
    return " ".join(words if identity.tenant == DEFAULT_TENANT else [*words, identity.tenant])


# ------------------------------------------------------------------------ the command


def run_command(arguments: Sequence[str]) -> None:
    """`trainwire-server token`: make a token, and print it this once. Exits on wrong usage."""
    given = _parser().parse_args(arguments)
    token = new_token()
    line = line_of(token, Identity(given.name, _role(given.role), given.tenant))
    if given.token_file is None:
        sys.stdout.write(f"{token}\n{line}\n")
        return
    try:
        _append(given.token_file, line)
    except TokenFileError as error:
        sys.exit(f"trainwire-server: {error}")
    sys.stdout.write(f"{token}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainwire-server token",
        description="Makes a token and prints it, this once: give it to the caller. Without "
        "--token-file the line for the server's token file is printed below it.",
    )
    add = parser.add_argument
    roles = [role.text for role in Role]
    add("--role", required=True, choices=roles, help="what its caller may do")
    add("--name", required=True, type=_name_argument, help=f"name for the log: {_NAME_WORDS}")
    tenant = f"whose jobs, datasets and models it has to do with: {TENANT_WORDS}"
    add("--tenant", default=DEFAULT_TENANT, type=_tenant_argument, help=f"{tenant} (%(default)s)")
    add("--token-file", type=Path, help="append the line to this file, made if need be")
    return parser


def _name_argument(text: str) -> str:
    try:
        return _checked_name(text)
    except TokenFileError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {_NAME_WORDS}") from None


def _tenant_argument(text: str) -> str:
    try:
        return _checked_tenant(text)
    except TokenFileError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {TENANT_WORDS}") from None


def _append(path: Path, line: str) -> None:
    """Add a line to the file, unless that would make a file the server refuses."""
    before = _read_text(path) if path.exists() else ""
    start = "\n" if before and not before.endswith("\n") else ""
    _parse_file(path, f"{before}{start}{line}")
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
            file.write(f"{start}{line}\n")
    except OSError as error:
        raise TokenFileError(f"cannot write token file {path}: {error.strerror}") from error
