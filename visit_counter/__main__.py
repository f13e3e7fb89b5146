"""`python -m visit_counter`: the same as the command `visit-counter`."""

from visit_counter.cli.main import main

if __name__ == "__main__":
    main(prog_name="visit-counter")
