"""Other projects' checkouts, run beside ours where an environment variable names one. None of their code is here."""
