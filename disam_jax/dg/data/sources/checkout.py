"""The files of one commit of a Git repository: fetched whole or not at all, and kept in a cache."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from disam_jax.dg.errors import InputError
from disam_jax.dg.reading import exists, is_folder, reason, shown
from disam_jax.dg.unfinished import remove_unfinished, unfinished_folder

# Seconds for the whole of a fetch, and for a connection on which nothing comes.
TIME_LIMIT = 3600.0
STALL_LIMIT = 60

# What a user's settings must not change: the bytes of a file, what runs beside git, and what it may ask for.
_SETTINGS = {
    "core.autocrlf": "false",
    "core.hooksPath": os.devnull,
    "gc.auto": "0",
    "maintenance.auto": "false",
    "advice.detachedHead": "false",
    "protocol.version": "2",
    "http.lowSpeedLimit": "1",
    "http.lowSpeedTime": str(STALL_LIMIT),
}
# Which repository a git is about that runs this program, for example in a hook.
_OF_ANOTHER_REPOSITORY = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_SHALLOW_FILE",
    "GIT_PREFIX",
)

_FULL = re.compile("no space left|disk quota exceeded", re.IGNORECASE)
_NO_COMMIT = re.compile("not our ref|unadvertised object|couldn't find remote ref", re.IGNORECASE)
_NO_NETWORK = re.compile(
    "could(n't| not) (resolve|connect)|failed to connect|connection (refused|reset)|unreachable|timed out|too slow|"
    "early eof|remote end hung up|unable to look up",
    re.IGNORECASE,
)
_NO_REPOSITORY = re.compile(
    "not appear to be a git repository|not a git repository|not found|does not exist|could not read (username|password)"
    "|terminal prompts disabled|authentication failed|dubious ownership|unable to find remote helper",
    re.IGNORECASE,
)


class GitError(Exception):
    """A git command that failed; the message is what it printed on standard error."""


def fetch_commit(
    url: str,
    commit: str,
    place: Path,
    time_limit: float = TIME_LIMIT,
    on_fetch: Callable[[], None] | None = None,
) -> Path:
    """The files of a commit, fetched unless they are there.

    Only this commit is fetched, without its history. What is at `place` is used if git finds it to be this commit with
    no file changed; otherwise it is fetched anew.

    Args:
        url: Address or absolute path of the repository.
        commit: 40 hexadecimal digits.
        place: Folder for the files. It appears when it is whole; the folder around it is made if need be.
        time_limit: Seconds after which a fetch is given up.
        on_fetch: Called before it is fetched, if it is.

    Returns:
        `place`.

    Raises:
        InputError: If there is no git, no network, no such repository or commit, or nothing can be written.
    """
    if has_commit(place, commit):
        return place
    cache = place.parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
        remove_unfinished(cache)
        with unfinished_folder(cache) as folder:
            repository = folder / "repository"
            if on_fetch is not None:
                on_fetch()
            _fetch(url, commit, repository, time_limit)
            if not has_commit(repository, commit):
                raise InputError(
                    f"{url} gave other files than those of commit {commit}: try again, or another --source"
                )
            if exists(place):
                os.replace(place, folder / "damaged")
            os.replace(repository, place)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write to the cache {shown(cache)}: {reason(error)}; give another --cache") from error
    return place


def has_commit(repository: Path, commit: str) -> bool:
    """Whether a folder holds the files of a commit, all of them and none changed.

    Args:
        repository: Folder, which need not exist.
        commit: 40 hexadecimal digits.

    Returns:
        Whether it does.

    Raises:
        InputError: If there is no git.
    """
    if not is_folder(repository / ".git"):
        return False
    inside = [f"--git-dir={repository / '.git'}", f"--work-tree={repository}"]
    try:
        head = run_git([*inside, "rev-parse", "--verify", "HEAD"], TIME_LIMIT).strip()
        return head == commit and not run_git([*inside, "status", "--porcelain"], TIME_LIMIT)
    except GitError:
        return False


def _fetch(url: str, commit: str, repository: Path, time_limit: float) -> None:
    inside = [f"--git-dir={repository / '.git'}", f"--work-tree={repository}"]
    try:
        run_git(["init", "--quiet", str(repository)], time_limit)
        run_git([*inside, "fetch", "--quiet", "--depth", "1", "--no-tags", "--", url, commit], time_limit)
        run_git([*inside, "checkout", "--quiet", "--detach", "FETCH_HEAD"], time_limit)
    except GitError as error:
        raise InputError(explain(str(error), url, commit)) from error
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"cannot fetch {shown(url)}: it took more than {time_limit:g} seconds; try again on a faster network, or "
            "clone it elsewhere and give that folder as --source"
        ) from error


def explain(said: str, url: str, commit: str) -> str:
    """Why a fetch failed and what to do, in one line.

    Args:
        said: What git printed.
        url: Address of the repository.
        commit: Commit that was asked for.

    Returns:
        The message.

    Example:
        >>> explain("fatal: Could not resolve host: github.com", "https://github.com/a/b", "0" * 40)
        'cannot fetch https://github.com/a/b: no network, or the host is not reachable; try again later, or clone it \
where there is a network and give that folder as --source (git: Could not resolve host: github.com)'
    """
    if _FULL.search(said):
        advice = "the disk is full; free some space, or give a --cache on another disk"
    elif _NO_COMMIT.search(said):
        advice = f"it does not have, or does not give out, commit {commit}; give a --source that has it"
    elif _NO_NETWORK.search(said):
        advice = (
            "no network, or the host is not reachable; try again later, or clone it where there is a network and give "
            "that folder as --source"
        )
    elif _NO_REPOSITORY.search(said):
        advice = "it is not a Git repository that you can read; give another --source"
    else:
        advice = "git failed; mend what it names, or give another --source"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith(("fatal:", "error:"))]
    last = re.sub("^(fatal|error): ", "", (fatal or lines or ["no message"])[0])
    return f"cannot fetch {shown(url)}: {advice} (git: {shown(last)})"


def run_git(arguments: list[str], time_limit: float) -> str:
    """Runs a git command that cannot ask anything.

    Args:
        arguments: Arguments of git.
        time_limit: Seconds after which it is killed, with all processes that it started.

    Returns:
        What it printed on standard output.

    Raises:
        InputError: If git cannot be started.
        GitError: If it failed.
        subprocess.TimeoutExpired: If it took too long.

    Example:
        >>> run_git(["--version"], 60.0).startswith("git version")
        True
    """
    settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
    environment = {name: value for name, value in os.environ.items() if name not in _OF_ANOTHER_REPOSITORY}
    environment |= {
        # Messages in English, which `explain` can tell apart.
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "",
        "GIT_LFS_SKIP_SMUDGE": "1",
    }
    try:
        # In a session of its own: it has no terminal to ask on, and can be killed with all that it starts.
        process = subprocess.Popen(
            ["git", *settings, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise InputError(
            f"cannot start git ({reason(error)}), which fetches the data: install it (https://git-scm.com) and make "
            "sure that it is on PATH"
        ) from error
    with process:
        try:
            out, err = process.communicate(timeout=time_limit)
        except BaseException:
            _kill(process)
            raise
    if process.returncode:
        raise GitError(err.decode(errors="replace"))
    return out.decode(errors="replace")


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
