"""The token file: what it may hold, whom it lets in, and how its lines are made."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

import pytest

from trainwire_server import tokens
from trainwire_server.identity import Identity, Role
from trainwire_server.tokens import TokenFileError, line_of, parse_tokens, read_tokens, run_command

LINE = line_of("one", Identity("ci", Role.READ))
OTHER = line_of("two", Identity("ops", Role.ADMIN, "acme"))
HEX = hashlib.sha256(b"one").hexdigest()


def write(folder: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path = folder / "tokens"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def test_a_line_is_the_hash_of_a_token_with_role_and_name() -> None:
    found = parse_tokens(f"# who may call\n\n  sha256:{HEX}\tread   ci # until May\n{OTHER}\n")
    assert [token.identity for token in found] == [
        Identity("ci", Role.READ, "default"),
        Identity("ops", Role.ADMIN, "acme"),
    ]
    assert f"sha256:{HEX} read ci" == LINE
    assert parse_tokens(f"{LINE} default")[0].identity == found[0].identity
    assert found[0].digest == hashlib.sha256(b"one").digest()


def test_a_token_is_found_by_its_hash_alone() -> None:
    known = parse_tokens(f"{LINE}\n{OTHER}")
    assert tokens.find(known, "one") == Identity("ci", Role.READ)
    assert tokens.find(known, "two") == Identity("ops", Role.ADMIN, "acme")
    for wrong in ("", "One", "one ", "onetwo", HEX, f"sha256:{HEX}", "\udcff"):
        assert tokens.find(known, wrong) is None


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("secret", "1 words; allowed: sha256:HEX ROLE NAME [TENANT]"),
        (f"{LINE} acme secret", "5 words"),
        (f"sha256:{'0' * 64} read ci2 Secret", "is no tenant; allowed: 1 to 64 lower-case"),
        (f"sha256:{'0' * 64} read ci2 ../secret", "is no tenant"),
        (f"sha256:{'0' * 64} read ci2 .secret", "is no tenant"),
        (f"sha256:{'0' * 64} read ci2 {'x' * 65}", "is no tenant"),
        (f"sha256:{'0' * 64} read ci acme", "a name that another line has"),
        ("secret read ci2", "the first word is not sha256: and 64 lower-case hex digits"),
        (f"{HEX} read ci2", "the first word is not sha256:"),
        (f"md5:{HEX} read ci2", "the first word is not sha256:"),
        (f"sha256:{HEX[:-1]} read ci2", "64 lower-case hex digits"),
        (f"sha256:{HEX.upper()} read ci2", "64 lower-case hex digits"),
        (f"sha256:{'0' * 64} secret ci2", "is no role; allowed: read, train, admin"),
        (f"sha256:{'0' * 64} READ ci2", "is no role"),
        (f"sha256:{'0' * 64} read -secret", "is no name; allowed: 1 to 64 letters"),
        (f"sha256:{'0' * 64} read {'x' * 65}", "is no name"),
        (f"sha256:{HEX} admin secret", "the token of ci once more"),
        (f"sha256:{'0' * 64} read ci", "a name that another line has"),
    ],
)
def test_a_bad_line_is_named_and_not_shown(line: str, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"{LINE}\n{line}\nsecret\n")
    with pytest.raises(TokenFileError) as caught:
        read_tokens(path)
    message = str(caught.value)
    assert message.startswith(f"token file {path}: line 2: ")
    assert problem in message
    assert "; line 3: 1 words" in message
    assert "secret" not in message
    assert HEX[:8] not in message.lower()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "there is no token in it"),
        ("# nobody\n", "there is no token in it"),
        (b"\xff\xfe", "is not text in UTF-8"),
        ("#" * (2**20 + 1), "is larger than 1048576 bytes"),
    ],
)
def test_a_file_without_sound_lines_lets_nobody_in(
    text: str | bytes, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(TokenFileError, match=problem):
        read_tokens(write(tmp_path, text))


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(mode: int, tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match=r"writable by group or others.*chmod go-w"):
        read_tokens(write(tmp_path, LINE, mode))


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenFileError, match="none: No such file"):
        read_tokens(tmp_path / "none")
    with pytest.raises(TokenFileError, match="Is a directory"):
        read_tokens(tmp_path)


# ------------------------------------------------------------------------ the command


def test_the_command_prints_the_token_once(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(["--role", "train", "--name", "ci"])
    token, line = capsys.readouterr().out.splitlines()
    assert token.startswith("trainwire_")
    assert len(token) > 50
    assert parse_tokens(line)[0].identity == Identity("ci", Role.TRAIN)
    assert tokens.find(parse_tokens(line), token)


def test_the_command_adds_the_line_to_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tokens"
    given: list[str] = []
    for name in ("ci", "ops"):
        run_command(["--role", "read", "--name", name, "--token-file", str(path)])
        given += capsys.readouterr().out.splitlines()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    known = read_tokens(path)
    found = [tokens.find(known, token) for token in given]
    assert found == [Identity("ci", Role.READ), Identity("ops", Role.READ)]
    assert not any(token in path.read_text() for token in given)


def test_the_command_leaves_a_file_alone_that_the_line_would_spoil(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, LINE)  # without a line feed at its end
    with pytest.raises(SystemExit, match="a name that another line has"):
        run_command(["--role", "read", "--name", "ci", "--token-file", str(path)])
    assert path.read_text() == LINE
    assert not capsys.readouterr().out
    run_command(["--role", "read", "--name", "ci2", "--token-file", str(path)])
    assert [token.identity.name for token in read_tokens(path)] == ["ci", "ci2"]


def test_the_command_says_whose_the_caller_is(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(["--role", "train", "--name", "ci", "--tenant", "acme"])
    _, line = capsys.readouterr().out.splitlines()
    assert line.endswith(" train ci acme")
    assert parse_tokens(line)[0].identity == Identity("ci", Role.TRAIN, "acme")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--role", "root", "--name", "ci"],
        ["--role", "read", "--name", "a b"],
        ["--role", "read", "--name", "ci", "--tenant", "a/b"],
        [],
    ],
)
def test_the_command_refuses_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_command(arguments)
    assert stop.value.code == 2
