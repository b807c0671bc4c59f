"""The settings of machines. What each provider needs is in `bridge.machines.providers`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr

from bridge.settings import CommandSettings

Seconds = Annotated[float, Field(gt=0, le=31_536_000)]


class MachineSettings(CommandSettings):
    """Where machines come from and how they are reached."""

    machine_provider: str = Field(default="qemu", description="`qemu` for machines on this host, or a cloud's name.")
    machine_secret: Annotated[SecretStr, Field(min_length=16)] = Field(
        description="What the keys of all machines are derived from: at least 16 characters, the same for all workers."
    )
    machine_user: str = Field(default="job", description="The ordinary user that scripts run as.")
    machine_image: str | None = Field(default=None, description="The image: its id or name at the provider.")
    machine_size: str | None = Field(default=None, description="The size: its id or name at the provider.")
    machine_region: str | None = Field(default=None, description="The region or zone.")
    machine_access_key: str | None = Field(default=None, description="The account: access key, user, project or token.")
    machine_access_secret: SecretStr | None = Field(default=None, description="Its secret.")
    machine_endpoint: str | None = Field(
        default=None, description="The API's address, where it is not the provider's own."
    )
    machine_project: str | None = Field(default=None, description="OpenStack's tenant or Google's project.")
    machine_network: str | None = Field(default=None, description="The network or subnet, where one must be named.")
    machine_directory: Path = Field(
        default=Path(tempfile.gettempdir()) / "kestra-bridge-machines",
        description="With `qemu`: the folder of the machines' disks and state.",
    )
    machine_boot_timeout: Seconds = Field(
        default=300, description="How long a machine may take until it can be reached."
    )
