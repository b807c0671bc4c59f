"""The image of local machines: a small Debian that is reachable by SSH some seconds after its
start, also in emulation.

It is made once from Debian's packages and kept in the cache, as a folder of three files: a kernel,
an initrd of our own (busybox and the few modules that it takes to see the disk), and the disk.
There is no service manager in it: a script sets the address, takes the keys and the user's name
from QEMU's fw_cfg, and starts sshd.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import os
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local.debian import lay_out, remove
from deploy.local.paths import cache_directory, locked
from deploy.local.processes import AS_ROOT, ProcessError, run_tool

Say = Callable[[str], None]

NAME = "debian"
"""What machines ask for when they name no image: a link to the newest recipe's folder."""

_FORMAT = "1"
"""Changes with how the files are made, where no other part of the recipe tells."""
_DISK_SIZE = "10G"
_PACKAGES = (
    "busybox-static",
    "ca-certificates",
    "git",
    "iproute2",
    "linux-image-cloud-amd64",
    "openssh-server",
    "procps",
    "python3",
    "python3-venv",
)
_ZSTD, _ELF = b"\x28\xb5\x2f\xfd", b"\x7fELF"
MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "qemu_fw_cfg")

_OPTIONS = (
    "--variant=minbase",
    "--components=main",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
)

_INITRD_INIT = """#!/bin/busybox sh
fail() { echo "machine: $*" >/dev/ttyS0; /bin/busybox poweroff -f; }
export PATH=/bin
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
case "$(/bin/busybox cat /proc/cmdline)" in *machine.probe*) fail "the kernel runs" ;; esac
/bin/busybox mount -t sysfs sys /sys
for module in $(/bin/busybox cat /modules/order); do
    /bin/busybox insmod "/modules/$module" || fail "can't load $module"
done
/bin/busybox mount -t ext4 -o noatime,noinit_itable /dev/vda /root || fail "can't mount the disk"
for place in dev proc sys; do /bin/busybox mount --move "/$place" "/root/$place"; done
exec /bin/busybox switch_root /root /sbin/machine-init
"""

# Runs as the first process: it reaps what loses its parent, and when sshd ends, so does the
# machine. All that it calls is in busybox itself, since to start a program that must be linked
# first takes long in emulation.
_MACHINE_INIT = r"""#!/bin/busybox sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
exec </dev/null >/dev/ttyS0 2>&1
given=/sys/firmware/qemu_fw_cfg/by_name/opt/machine
read -r user <$given/user/raw
read -r name <$given/name/raw
umask 022
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run
mkdir -p /dev/pts /dev/shm /run/sshd /run/keys
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /dev/shm
mount -t devpts -o mode=620,gid=5,ptmxmode=666 devpts /dev/pts
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
ln -sf pts/ptmx /dev/ptmx
# Who runs out of memory is killed before all others have lost theirs to it (in milliseconds).
echo 1000 >/sys/kernel/mm/lru_gen/min_ttl_ms
echo "$name" >/proc/sys/kernel/hostname
echo "$name" >/etc/hostname
echo "127.0.0.1 localhost $name" >/etc/hosts
cat $given/hosts/raw >>/etc/hosts
echo "nameserver 10.0.2.3" >/etc/resolv.conf
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
route add default gw 10.0.2.2
echo "$user:x:1000:1000::/home/$user:/bin/sh" >>/etc/passwd
echo "$user:x:1000:" >>/etc/group
echo "$user:*:20000:0:99999:7:::" >>/etc/shadow
cp -r /etc/skel "/home/$user"
chown -R 1000:1000 "/home/$user"
chmod 700 "/home/$user"
cat $given/authorized_keys/raw >/run/keys/authorized
umask 077
cat $given/host_key/raw >/run/keys/host
umask 022
echo "machine: starting sshd"
/usr/sbin/sshd -D -e -o "AllowUsers=$user"
echo "machine: sshd ended with status $?"
sync
poweroff -f
"""

_SSHD = """\
HostKey /run/keys/host
AuthorizedKeysFile /run/keys/authorized
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
X11Forwarding no
# Everything comes from the one address that QEMU's network has, and who waits for a banner hangs up
# on us.
PerSourcePenalties no
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What an image is made of: packages of Debian, and files of ours.

    `suite` is the release of Debian. `files` has the path, the text and the mode of each. One of
    them is `sbin/machine-init`, the first process. `modules` are those of the kernel that are
    loaded, and `options` further ones of mmdebstrap. `kind` is the folder of the cache that the
    image goes to.
    """

    name: str
    kind: str = "machine-images"
    suite: str = "trixie"
    packages: Sequence[str]
    files: Sequence[tuple[str, str, str]]
    modules: Sequence[str] = MODULES
    options: Sequence[str] = ()

    @property
    def all_options(self) -> tuple[str, ...]:
        """The options of mmdebstrap."""
        return (*_OPTIONS, f"--include={','.join(self.packages)}", *self.options)

    @property
    def digest(self) -> str:
        """A text that changes with the image."""
        files = [part for file in self.files for part in file]
        system = (_FORMAT, self.suite, _DISK_SIZE, _INITRD_INIT)
        parts = (*system, *self.all_options, *self.modules, *files)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


MACHINE = Recipe(
    name=NAME,
    packages=_PACKAGES,
    files=(("sbin/machine-init", _MACHINE_INIT, "755"), ("etc/ssh/sshd_config", _SSHD, "644")),
)


def image(say: Say = lambda _: None, recipe: Recipe = MACHINE) -> Path:
    """The folder with `kernel`, `initrd` and `disk.qcow2`, made on first use (about a minute).

    Raises:
        ProcessError: a tool is missing or failed; the message has the last of what it said.
    """
    place = cache_directory(recipe.kind) / f"{recipe.name}-{recipe.digest}"
    if not place.exists():
        with locked("machine-image"):
            if not place.exists():
                _make(recipe, place, say)
    _point(place.with_name(recipe.name), place)
    return place


def _point(link: Path, place: Path) -> None:
    """Let the link lead to that folder, at no moment to none."""
    if link.is_symlink() and link.readlink() == Path(place.name):
        return
    fresh = link.with_name(f"{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(place.name)
    fresh.replace(link)


def _make(recipe: Recipe, place: Path, say: Say) -> None:
    began = time.monotonic()
    partial, tree, log = (
        place.with_name(f"{place.name}.{part}") for part in ("partial", "tree", "log")
    )
    log.unlink(missing_ok=True)
    remove(partial, log=log)
    partial.mkdir()
    try:
        say(f"laying out Debian {recipe.suite} for machines, once")
        _lay_out(recipe, tree, log)
        say("making the kernel, the initrd and the disk")
        _write_initrd(recipe.modules, tree, partial)
        _write_disk(tree, partial, log)
        partial.rename(place)
    finally:
        remove(tree, partial, log=log)
    size = sum(file.stat().st_size for file in place.iterdir()) / 1e6
    say(f"image made in {time.monotonic() - began:.0f} s, {size:.0f} MB: {place}")


def _lay_out(recipe: Recipe, tree: Path, log: Path) -> None:
    # We make our own initrd, so Debian's tools for one are told to make none.
    lay_out(recipe.suite, tree, recipe.all_options, log=log, environment={"INITRD": "No"})
    # Any user may read the tree, as our own steps after this one do.
    for name, text, mode in recipe.files:
        source = tree.with_suffix(".file")
        source.write_text(text)
        run_tool("install", "-m", mode, str(source), str(tree / name), log=log, within=AS_ROOT)
        source.unlink()


def _write_initrd(names: Sequence[str], tree: Path, to: Path) -> None:
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    (to / "kernel").write_bytes(_unpacked(kernel.read_bytes()))
    modules = tree / "usr/lib/modules" / kernel.name.removeprefix("vmlinuz-")
    loaded = {_module(path).name: path for path in _in_order(names, modules)}
    files = [
        ("init", _INITRD_INIT.encode(), 0o755),
        ("bin/busybox", (tree / "bin/busybox").read_bytes(), 0o755),
        ("modules/order", "\n".join(loaded).encode(), 0o644),
        *((f"modules/{name}", _content(path), 0o644) for name, path in loaded.items()),
    ]
    folders = ("bin", "dev", "modules", "proc", "root", "sys")
    (to / "initrd").write_bytes(_cpio(folders, files))


def _unpacked(kernel: bytes) -> bytes:
    """The kernel without its own decompression, which takes a second in emulation; where it's
    packed otherwise, as is.

    The header of a bzImage says where the packed part is (Documentation/arch/x86/boot.rst).
    """
    sectors = kernel[0x1F1] or 4
    offset, length = struct.unpack_from("<II", kernel, 0x248)
    start = (sectors + 1) * 512 + offset
    packed = kernel[start : start + length]
    if not packed.startswith(_ZSTD):
        return kernel
    # Behind the packed data stands its size, four bytes that are none of it.
    done = subprocess.run(
        ["zstd", "-dcq"], input=packed[:-4], capture_output=True, timeout=60, check=False
    )
    return done.stdout if done.returncode == 0 and done.stdout.startswith(_ELF) else kernel


def _in_order(names: Sequence[str], modules: Path) -> list[Path]:
    """The files of these modules, each after those that it depends on."""
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, others = line.split(":")
        needs[_module(modules / path).stem] = (
            modules / path,
            [modules / other for other in others.split()],
        )
    files: dict[Path, None] = {}
    for name in names:
        if name in needs:  # else it is built in
            file, depends_on = needs[name]
            files.update(dict.fromkeys([*reversed(depends_on), file]))
    return list(files)


def _module(path: Path) -> Path:
    return path.with_suffix("") if path.suffix == ".xz" else path


def _content(module: Path) -> bytes:
    data = module.read_bytes()
    return lzma.decompress(data) if module.suffix == ".xz" else data


def _cpio(folders: Sequence[str], files: Sequence[tuple[str, bytes, int]]) -> bytes:
    """An archive in the form that a kernel unpacks as its first root (newc)."""

    def entries() -> Iterator[bytes]:
        for number, folder in enumerate(folders, 1):
            yield entry(number, folder, b"", stat.S_IFDIR | 0o755)
        for number, (name, data, mode) in enumerate(files, len(folders) + 1):
            yield entry(number, name, data, stat.S_IFREG | mode)
        yield entry(0, "TRAILER!!!", b"", 0)

    def entry(number: int, name: str, data: bytes, mode: int) -> bytes:
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        return padded(head) + padded(data)

    def padded(data: bytes) -> bytes:
        return data + b"\0" * (-len(data) % 4)

    return b"".join(entries())


def _write_disk(tree: Path, to: Path, log: Path) -> None:
    raw = to / "disk.raw"
    # The kernel and its modules are outside of the disk; nobody in a machine may load any other.
    remove(tree / "boot", tree / "usr/lib/modules", log=log)
    ext4 = ("-q", "-t", "ext4", "-d", str(tree), "-O", "^has_journal", str(raw), _DISK_SIZE)
    run_tool("mke2fs", *ext4, log=log, within=AS_ROOT)
    run_tool(
        "qemu-img",
        "convert",
        "-q",
        "-f",
        "raw",
        "-O",
        "qcow2",
        str(raw),
        str(to / "disk.qcow2"),
        log=log,
    )
    remove(raw, log=log)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the image of local machines, unless it is there, and print its folder."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.local.machine_image", description=main.__doc__
    )
    parser.parse_args(arguments)
    try:
        print(image(_to_stderr))
    except ProcessError as error:
        _to_stderr(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _to_stderr("interrupted, nothing half made is left")
        return 130
    return 0


def _to_stderr(text: str) -> None:
    print(f"machine image: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
