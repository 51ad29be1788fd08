"""The verbs of the command line over a run: each reads and writes plain files, resumes, and says what is next."""
