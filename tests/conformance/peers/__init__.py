"""The peers' own installed code, run as an oracle: thin wrappers, nothing reimplemented."""
