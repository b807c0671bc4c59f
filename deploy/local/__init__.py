"""A whole installation on one machine without a container engine: RabbitMQ, Kestra's engine, the
bridge.
"""
