"""Runs a script on a machine as if it ran here.

The run belongs to the machine, not to the connection and not to this process. If a worker dies or a
connection is cut, the next one to start the run under the same id follows the existing run: the
script runs once, and its output is read from the beginning.
"""
