"""The rights at the broker that the README names."""

from __future__ import annotations

import re

from deploy.local.paths import REPOSITORY


def rights_in_the_readme() -> dict[str, dict[str, str]]:
    """Who needs which rights at the broker: `run`, `submit` and so on, with patterns for configure,
    write and read."""
    (block,) = re.findall(
        r"^who +configure.*?```",
        (REPOSITORY / "deploy" / "README.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    rows = [re.split(r" {2,}", line) for line in block.splitlines()[:-1]]
    return {who: dict(zip(rows[0][1:], rights, strict=True)) for who, *rights in rows[1:]}
