"""The bridge at work on one machine: a real RabbitMQ, Kestra's engine behind our façade, QEMU, and
jobs of every fate.

What became of each job is compared with what was expected, by what RabbitMQ, Kestra and the bridge
say independently.
"""
