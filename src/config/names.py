"""What heads are called: by their title and, where a network has several branches, by both.

`stage1` is what the network itself says; `stage1@object` its head of the branch `object`, and
`crt@object` the cRT head on the features of that branch.
"""

STAGE1 = "stage1"
SMOKE = "-smoke"  # ends the names of directories under runs/ of what was only tried
AT = "@"


def at(title: str, branch: str) -> str:
    """The name of a head at a branch, or of the only one."""
    return f"{title}{AT}{branch}" if branch else title


def title_of(name: str) -> str:
    return name.partition(AT)[0]


def branch_of(name: str) -> str:
    """Of a head's name; empty where the network has one head."""
    return name.partition(AT)[2]


def of_stage1(name: str) -> bool:
    """Whether a head is one of stage 1's: trained with the network, not re-balanced."""
    return title_of(name) == STAGE1


def matching(asked: str, names: list[str]) -> list[str]:
    """Those of `names` that `asked` means: the one it is, or else all branches of that title."""
    return [n for n in names if n == asked] or [n for n in names if title_of(n) == asked]
