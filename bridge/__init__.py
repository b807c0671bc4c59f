"""kestra-bridge: run the jobs of a RabbitMQ priority queue as Kestra executions, one execution a
message.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("kestra-bridge")
except PackageNotFoundError:  # run from a checkout that isn't installed
    __version__ = "0+unknown"
