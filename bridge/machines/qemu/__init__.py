"""Machines on this host, run by QEMU, as a libcloud driver.

A machine is a folder with its state, keys and disk, and a QEMU process that names the folder in its
command line. Both are looked up anew each time. So any process can find and destroy what another
process has created, or has left half made. Whatever changes a folder holds the directory's lock.

A machine reaches nothing but the addresses in `reach`. QEMU's own network would let it reach every
service that listens on this host's loopback, such as the broker and Kestra. A machine finds those
addresses at `host.internal`, under the same port. An open network lifts that restriction, for jobs
that need the internet on a host with nothing to protect.
"""
