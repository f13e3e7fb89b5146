"""The embedded shards: real Valkey servers beside the service, where no shards are configured.

    any process that needs the shards --(shared lock)--> data/shards/users.lock
                                                              | watched by
    one supervisor, in a session of its own ------------------'
        |--(lock)--> data/shards/redis_7070/supervisor.lock,  runs valkey-server on 127.0.0.1:7070
        '--(lock)--> data/shards/redis_7071/supervisor.lock,  runs valkey-server on 127.0.0.1:7071

gunicorn's master forks workers, so it may have no threads. A small process of its own watches the servers. It runs in a
session of its own, so that neither it nor the servers get the terminal's Ctrl-C: the workers still need the servers for
their last flush.

The workers inherit the master's shared lock. The kernel releases it when the last of them is gone, however it ended. A
command takes a shared lock of its own. The supervisor ends the servers when nobody has the shared lock any more. So no
process ends servers that another one needs, and it does not matter which process started the supervisor.

If somebody removes the files, the supervisor makes the directories again, each server writes its data into them, and
the workers take their lock again.

The kernel also releases the supervisor's locks when it ends, however it ends. The workers check them once a second.
They start another supervisor, which takes over the servers that run and starts those that do not.
"""
