"""Which processes there are."""

from pathlib import Path


def is_alive(pid: int) -> bool:
    """Whether there is such a process; one that is dead but not yet reaped is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def of_session(session: int) -> dict[int, str]:
    """The processes of a session, an embedded Ray's among them, and their names as far as the kernel's go."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            named, _, rest = stat.read_text().rpartition(")")
        except OSError:  # it has ended
            continue
        state, _, _, of = rest.split()[:4]
        if int(of) == session and state != "Z":
            found[int(stat.parent.name)] = named.partition("(")[2]
    return found
