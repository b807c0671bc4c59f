"""Everything that can go wrong, as the bridge's own errors.

    BridgeError
    ├── SettingsError          the environment or the command line is wrong
    ├── InvalidMessage         a message that can never become a job
    ├── KestraError
    │   ├── KestraRejected     Kestra refused this job; asking again gives the same answer
    │   ├── KestraDenied       Kestra refuses our credentials, tenant or rights
    │   ├── KestraIncompatible Kestra refuses a request for its form, whatever it is about
    │   ├── KestraUnavailable  nothing was done; asking again later can help
    │   └── KestraAmbiguous    a create may or may not have been done: look before asking again
    ├── BrokerError
    │   ├── BrokerUnavailable  no connection, or it was lost; connecting again can help
    │   ├── BrokerDenied       the broker refuses our credentials, virtual host or rights
    │   ├── TopologyMismatch   a queue or exchange exists with other arguments than the settings
    │   ├── PublishFailed      the broker returned or refused a message, or the channel was lost
    │   │   ├── QueueFull      the queue refuses it, which is mostly for lack of room
    │   │   └── MessageRefused the broker closes connections over this very message
    │   ├── QueueMissing       a queue that should be there is not
    │   └── QueueInUse         somebody else has a queue for themselves at the moment
    ├── NoSuchJob              no dead letter is of the job that was asked for
    └── MachineError
        ├── MachineRejected    the provider has no such image, size, region or network
        ├── MachineDenied      the provider refuses our credentials or rights
        └── MachineUnavailable the provider is out of reach or full, or the machine is silent

Libraries' errors are translated once, in `bridge.kestra.transport`, `bridge.rabbitmq` and
`bridge.machines`, and never seen elsewhere.
"""

from __future__ import annotations


class BridgeError(Exception):
    """Base of all errors of the bridge. Its text is one line for a person: what, where, what to
    do.
    """


class SettingsError(BridgeError):
    """The settings can't be used; the text names every faulty one."""


class InvalidMessage(BridgeError):
    """A message that can never become a job, whoever reads it and however often."""


class KestraError(BridgeError):
    """Base of what can go wrong between the bridge and Kestra."""


class KestraRejected(KestraError):
    """Kestra refused what was asked for its content: unknown or disabled flow, wrong inputs or
    labels.
    """


class KestraDenied(KestraError):
    """Kestra refuses the credentials, the tenant or the rights. Nothing was done, and only an
    operator can mend it.
    """


class KestraIncompatible(KestraError):
    """Kestra, or what stands before it, refuses the form of a request: its method, its media types,
    its parameters.

    Nothing was done. Only another version of Kestra or of the bridge can help, or a change of what
    stands between.
    """


REFUSALS = (KestraDenied, KestraIncompatible)
"""What only an operator ends, whatever is asked and however often."""


class KestraUnavailable(KestraError):
    """Kestra could not be reached or could not answer, and nothing was done.

    `retry_after` is how many seconds it asked to be left alone; 0 where it did not ask.
    """

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class KestraAmbiguous(KestraError):
    """A create whose answer never came or was an error of the server's: the execution may exist.

    `execution_id` is known in the one case where the answer names it ("Execution disappeared after
    create"). `blames_request` says that Kestra itself failed over it (500): its own trouble, or the
    request's content. `retry_after` is how many seconds it asked to be left alone.
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
    """Base of what can go wrong between the bridge and RabbitMQ."""


class BrokerUnavailable(BrokerError):
    """RabbitMQ can't be reached, or the session with it has ended. Connecting again can help.

    `blames_message` says that RabbitMQ ended it over something that was published: it, or another
    one beside it.
    """

    def __init__(self, message: str, *, blames_message: bool = False) -> None:
        super().__init__(message)
        self.blames_message = blames_message


class BrokerDenied(BrokerError):
    """RabbitMQ refuses the credentials, the virtual host or the rights on a queue or exchange."""


class TopologyMismatch(BrokerError):
    """A queue or an exchange exists with other arguments than the settings."""


class PublishFailed(BrokerError):
    """A publish was not confirmed: returned as unroutable, refused by the queue, or the channel was
    lost.
    """


class QueueFull(PublishFailed):
    """The queue refuses a message: it is full and set to refuse, or it can't take any just now."""


class MessageRefused(PublishFailed):
    """RabbitMQ closes the connection or the channel over this message, whenever it is published."""


class QueueMissing(BrokerError):
    """A queue that should be there is not: the settings name another one, or no bridge has run
    yet.
    """


class QueueInUse(BrokerError):
    """Somebody else has a queue for themselves at the moment. Asking again later can help."""


class NoSuchJob(BridgeError):
    """No dead letter is of the job that was asked for."""


class MachineError(BridgeError):
    """Base of what can go wrong between us and whoever provides machines."""


class MachineRejected(MachineError):
    """The provider refuses what was asked for: image, size, region, network. Asking again gives the
    same answer.
    """


class MachineDenied(MachineError):
    """The provider refuses the credentials or the rights. Only an operator can mend it."""


class MachineUnavailable(MachineError):
    """No machine just now: the provider can't be reached or has no room, or the machine never
    answered.
    """
