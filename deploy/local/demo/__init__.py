"""The bridge at work on one machine: a real RabbitMQ, Kestra's engine behind our façade, QEMU, and
jobs that succeed, fail, hang or are killed.

The outcome of each job is compared with what was expected, as RabbitMQ, Kestra and the bridge
report it independently.
"""
