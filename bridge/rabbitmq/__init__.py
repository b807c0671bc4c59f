"""RabbitMQ: connections, topology, publishing and the management API."""
