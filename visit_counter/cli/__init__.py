"""The commands: thin wrappers around functions that tests call.

They work beside a running service and see the same counts. A command ends only what it has started itself. Its exit
status is 0 only if all went well, and `--json` prints the same data for programs.
"""
