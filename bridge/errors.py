"""The bridge's own errors.

    BridgeError
    ├── SettingsError          the environment or the command line is wrong
    ├── InvalidMessage         the message can never become a job
    ├── KestraError
    │   ├── KestraRejected     Kestra refused this job; asking again gives the same answer
    │   ├── KestraDenied       Kestra refuses our credentials, tenant or rights
    │   ├── KestraIncompatible Kestra refuses a request for its form, whatever it is about
    │   ├── KestraUnavailable  nothing was done; asking again later can help
    │   └── KestraAmbiguous    a create may have succeeded: look before asking again
    ├── BrokerError
    │   ├── BrokerUnavailable  the connection is lost; connecting again can help
    │   ├── BrokerDenied       the broker refuses our credentials, virtual host or rights
    │   ├── TopologyMismatch   a queue or exchange exists with other arguments than the settings
    │   ├── PublishFailed      the broker returned or refused a message, or the channel was lost
    │   │   ├── QueueFull      the queue refuses it, mostly because it is full
    │   │   └── MessageRefused the broker closes connections over this very message
    │   ├── QueueMissing       a queue that should be there is not
    │   └── QueueInUse         another connection holds the queue exclusively
    ├── NoSuchJob              no dead letter belongs to the job
    └── MachineError
        ├── MachineRejected    the provider has no such image, size, region or network
        ├── MachineDenied      the provider refuses our credentials or rights
        └── MachineUnavailable the provider is out of reach or full, or the machine is silent

`bridge.kestra`, `bridge.rabbitmq` and `bridge.machines` translate the errors of their libraries, so
that no other room sees those.
"""

from __future__ import annotations


class BridgeError(Exception):
    """Base of all errors of the bridge. Its text is one line: what, where, what to do."""


class SettingsError(BridgeError):
    """The settings can't be used. The text names every faulty one."""


class InvalidMessage(BridgeError):
    """The message can never become a job, however often it is read."""


class KestraError(BridgeError):
    """Base of the errors of Kestra and of the way there."""


class KestraRejected(KestraError):
    """Kestra refused the content of a request: an unknown or disabled flow, inputs or labels."""


class KestraDenied(KestraError):
    """Kestra refuses the credentials, the tenant or the rights.

    Nothing was done. Only an operator can change that.
    """


class KestraIncompatible(KestraError):
    """Kestra or a gateway refuses the form of a request: its method, media types or parameters.

    Nothing was done. Another version of Kestra or of the bridge can help, or another gateway.
    """


REFUSALS = (KestraDenied, KestraIncompatible)
"""Errors that no request can avoid until an operator steps in."""


class KestraUnavailable(KestraError):
    """Kestra could not be reached or could not answer, and nothing was done.

    `retry_after` is the wait that it asks for, in seconds, or 0.
    """

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class KestraAmbiguous(KestraError):
    """A create had no answer or a server error, and its execution may exist.

    `execution_id` is set where the answer names the execution ("Execution disappeared after
    create"). `blames_request` says that Kestra answered 500: it is in trouble, or the content of
    the request is. `retry_after` is the wait that it asks for, in seconds, or 0.
    """

    def __init__(
        self,
        message: str,
        execution_id: str | None = None,
        *,
        blames_request: bool = False,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.execution_id = execution_id
        self.blames_request = blames_request
        self.retry_after = retry_after


class BrokerError(BridgeError):
    """Base of the errors of RabbitMQ and of the way there."""


class BrokerUnavailable(BrokerError):
    """RabbitMQ can't be reached, or the session with it has ended. Connecting again can help.

    `blames_message` says that RabbitMQ ended the session over a publish, this one or another.
    """

    def __init__(self, message: str, *, blames_message: bool = False) -> None:
        super().__init__(message)
        self.blames_message = blames_message


class BrokerDenied(BrokerError):
    """RabbitMQ refuses the credentials, the virtual host or the rights on a queue or exchange."""


class TopologyMismatch(BrokerError):
    """A queue or an exchange exists with other arguments than the settings."""


class PublishFailed(BrokerError):
    """A publish was not confirmed: it was unroutable or refused, or the channel was lost."""


class QueueFull(PublishFailed):
    """The queue refuses a message: it is full, or it takes none at the moment."""


class MessageRefused(PublishFailed):
    """RabbitMQ closes the connection or the channel over this message, whenever it is published."""


class QueueMissing(BrokerError):
    """A queue does not exist: the settings name another one, or no bridge has run yet."""


class QueueInUse(BrokerError):
    """Another connection holds the queue exclusively. Asking again later can help."""


class NoSuchJob(BridgeError):
    """No dead letter belongs to the job."""


class MachineError(BridgeError):
    """Base of the errors of machines and their providers."""


class MachineRejected(MachineError):
    """The provider refuses the image, size, region or network, and would refuse it again."""


class MachineDenied(MachineError):
    """The provider refuses the credentials or the rights. Only an operator can change that."""


class MachineUnavailable(MachineError):
    """No machine at the moment: the provider is out of reach or full, or the machine is silent."""


class MachineProviderBusy(MachineUnavailable):
    """The provider is out of reach, short of room, or limits requests. It did nothing, so that
    asking again may help.
    """


class MachineAnswerLost(MachineUnavailable):
    """The provider's answer never came or can't be read. It may have done what it was asked."""
