"""The embedded shards: real Valkey servers beside the service, where no shards are configured.

    any process that needs the shards --(shared lock)--> data/shards/users.lock
                                                              | watched by
    one supervisor, in a session of its own ------------------'
        |--(lock)--> data/shards/redis_7070/supervisor.lock,  runs valkey-server on 127.0.0.1:7070
        '--(lock)--> data/shards/redis_7071/supervisor.lock,  runs valkey-server on 127.0.0.1:7071

gunicorn's master forks workers, so it may have no threads; the watching is done by a small process. In a session of its
own it does not get the terminal's Ctrl-C, and nor do the servers, which the workers still need for their last flush.

The workers inherit the master's shared lock, which the kernel releases when the last of them is gone, however it ended.
A command takes one of its own. The supervisor ends the servers when nobody has the shared lock any more; so
nobody ends them under another, and it does not matter who started the supervisor.

Whoever looks after the files finds that somebody removed them: the supervisor makes them anew, each server writes there
what it has in memory, and the workers take their lock again.

The kernel also releases the supervisor's locks when it ends, however it ends. The workers look once a second,
and start another, which takes over the servers that run and starts those that do not.
"""
