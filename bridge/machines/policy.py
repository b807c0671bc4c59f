"""How long things may take, in seconds, where no setting says so. Tests pass other values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SshPolicy:
    """The waits of an SSH session."""

    banner_pause: float = 0.25
    """The shortest time from one connection to the next. Short, as a machine may never answer a
    connection that was begun before the machine was on its network."""
    denied_grace: float = 30.0
    """A machine that still boots refuses its ordinary users for a while: before the account exists,
    and by /run/nologin. The slower the machine, the longer it does so: this is the minimum."""
    host_key_grace: float = 60.0
    """A machine that still boots may show a host key of its image's, until it has got its own. This
    is the minimum as well."""
    login_timeout: float = 120.0
    """The same as sshd's own (sshd_config's LoginGraceTime)."""
    keepalive: float = 5.0
    """The interval at which a silent machine is asked whether it is there."""
    keepalives_missed: int = 3
    """The machine is lost when this many questions had no answer."""
    close_timeout: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecyclePolicy:
    """The waits of a machine's life."""

    provider_patience: float = 90.0
    """How long a provider that doesn't answer is asked again for its list."""
    busy_pause: float = 1.0
    """The first pause before a provider is asked again that has no room or doesn't answer. Each
    further one is twice as long."""
    listed_timeout: float = 60.0
    """A machine that was created may take a moment to be listed."""
    lost_answer_timeout: float = 120.0
    """How long to look for what a create may have made whose answer never came."""
    unlisted_wait: float = 30.0
    """How long a destroy looks for a machine that a list doesn't show. A create may just have been
    killed."""
    gone_timeout: float = 120.0
    look_again: float = 3.0
    """The interval at which the provider is asked about a machine that doesn't answer yet."""
    banner_pause: float = 0.25


IMPATIENT = LifecyclePolicy(provider_patience=5.0)
"""For commands that only show something to a person."""
SSH_POLICY = SshPolicy()
LIFECYCLE_POLICY = LifecyclePolicy()
