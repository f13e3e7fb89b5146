"""One Redis or Valkey server as a shard: connections, pipelines, and the script that applies a batch.

A reply that cannot be right counts as a failure of the server. Nothing is retried here: only the caller knows whether
repeating is safe. Every wait has a limit, the look-up of a name too.
"""
