"""Results of jobs for people: tables on a terminal, drawings."""
