"""The settings of machines. The providers say which of them they need."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr

from bridge.settings import FROM_JSON, CommandSettings, SecretPath, in_a_file

Seconds = Annotated[float, Field(gt=0, le=31_536_000)]
_HOST_AND_PORT = re.compile(r"[ -~]+:(?P<port>[0-9]{1,5})")
_PORTS = range(1, 65_536)


def _host_and_port(text: str) -> str:
    matched = _HOST_AND_PORT.fullmatch(text)
    if matched is None:
        raise ValueError("must be host:port")
    port = int(matched["port"])
    if port not in _PORTS:
        raise ValueError("must be host:port")
    return text


def _textfile(path: Path) -> Path:
    if path.suffix != ".prom":
        raise ValueError("must end with .prom: node_exporter reads no other files")
    return path


def _ordinary_user(text: str) -> str:
    if text == "root" or not re.fullmatch(r"[a-z_][a-z0-9_-]{0,30}", text):
        raise ValueError(
            "must be the name of an ordinary user: lower-case letters, digits, - and _"
        )
    return text


def _directory() -> Path:
    return Path(tempfile.gettempdir()) / "kestra-bridge-machines"


def _image_directory() -> Path:
    """The folder into which `python -m deploy.local.machine_image` puts its images."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(os.environ.get("KESTRA_BRIDGE_CACHE") or user / "kestra-bridge") / "machine-images"


class MachineSettings(CommandSettings):
    """Where machines come from and how they are reached."""

    machine_provider: str | None = Field(
        default=None,
        description="Where machines come from; there is no default. `qemu` for machines on this "
        "host, or a cloud: `ec2`, `openstack`, `gce`, `digitalocean`, `linode`, `vultr`. `gce` is "
        "experimental.",
    )
    machine_secret: Annotated[SecretStr, Field(min_length=16)] = Field(
        description="The secret from which the keys of all machines are derived: at least 16 "
        "characters, the same for all workers."
    )
    machine_secret_file: SecretPath | None = in_a_file("it")
    machine_user: Annotated[str, AfterValidator(_ordinary_user)] = Field(
        default="job",
        description="The ordinary user that runs the scripts. It is created on each machine.",
    )
    machine_image: str | None = Field(
        default=None,
        description="The image: its id or name at the provider. In a cloud it needs cloud-init. "
        "With `qemu`: `debian`.",
    )
    machine_size: str | None = Field(
        default=None,
        description="The size: its id or name at the provider. With `qemu`: `small`, "
        "`medium` or `large`. Several, separated by commas, are tried in turn where one is not to "
        "be had.",
    )
    machine_region: str | None = Field(
        default=None, description="The region. With `gce`, the zone."
    )
    machine_spot: Literal["off", "first", "only"] = Field(
        default="off",
        description="With `ec2` and `gce`: whether to order spot machines, which are cheaper and "
        "may be taken away. `first` orders one for a job's first attempt only, `only` for each.",
    )
    machine_access_key: str | None = Field(
        default=None,
        description="The account: access key id, user name or service account. Not needed with a "
        "token.",
    )
    machine_access_secret: SecretStr | None = Field(
        default=None,
        description="The account's secret key, password or key file, or the API token.",
    )
    machine_access_secret_file: SecretPath | None = in_a_file("it")
    machine_endpoint: str | None = Field(
        default=None, description="The API's address, if it is not the provider's own."
    )
    machine_project: str | None = Field(
        default=None, description="OpenStack's tenant or Google's project."
    )
    machine_network: str | None = Field(
        default=None,
        description="The network or subnet, if the provider needs one. Several, separated by "
        "commas, are tried in turn: on EC2 each subnet lies in one zone. With `qemu`: `isolated`, "
        "or `open` for machines that may reach the internet, and also everything that listens on "
        "this host's loopback.",
    )
    machine_firewall: str | None = Field(
        default=None,
        description="The security group, firewall group or network tag that lets SSH in.",
    )
    machine_address: Literal["public", "private"] = Field(
        default="public",
        description="The address at which a machine is reached. If it has only the other one, that "
        "is used.",
    )
    machine_reach: Annotated[
        tuple[Annotated[str, AfterValidator(_host_and_port)], ...], *FROM_JSON
    ] = Field(
        default=(),
        description="With `qemu`: a JSON list of `host:port` that machines may reach, as "
        "`host.internal:port`.",
    )
    machine_accelerator: Literal["auto", "kvm", "tcg"] = Field(
        default="auto",
        description="With `qemu`: `auto` is KVM if a kernel really boots under it, otherwise "
        "emulation.",
    )
    machine_directory: Path = Field(
        default_factory=_directory,
        description="With `qemu`: the folder of the machines' disks and state. Default: "
        "`kestra-bridge-machines` in the folder for temporary files.",
    )
    machine_image_directory: Path = Field(
        default_factory=_image_directory,
        description="With `qemu`: the folder of the images. Default: the one into which `python -m "
        "deploy.local.machine_image` puts them, in the user's cache.",
    )
    machine_metrics_file: Annotated[Path, AfterValidator(_textfile)] | None = Field(
        default=None,
        description="With `reap`: the file into which it writes metrics of the machines, in the "
        "folder of node_exporter's textfile collector. Its name must end with `.prom`.",
    )
    machine_boot_timeout: Seconds = Field(
        default=300, description="How long a machine may take until it can be reached, in seconds."
    )


def candidates(settings: MachineSettings) -> list[MachineSettings]:
    """The settings for each network and size that is named, the first ones first.

    All networks are tried with the first size before the next size is.
    """
    sizes = _listed(settings.machine_size)
    networks = _listed(settings.machine_network)
    return [
        settings.model_copy(update={"machine_size": size, "machine_network": network})
        for size in sizes
        for network in networks
    ]


def _listed(text: str | None) -> list[str | None]:
    """The items of a list that commas separate; the text itself if it is not set."""
    items: list[str | None] = [item.strip() for item in (text or "").split(",") if item.strip()]
    return items or [text]
