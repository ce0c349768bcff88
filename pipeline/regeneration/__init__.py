"""What `pipeline.regenerate` is made of.

project       the project file: sources, shared settings, [curate], [gate], [budget], [train]
sources       one source made ready: its generator, its files with their hashes, what of it is revoked
kept          with --keep: what is copied from the version before
spending      what a tick may spend, of its own limits and of what the month leaves
assembly      from the sources' records to a version: curated, trained on, past the gate, published
gate          whether a new version may become the latest
training      finetune.run in a process of its own, and its verdict
versions      folders written aside, checked and renamed; LATEST; the manifest; differences
purge         replies taken out of the journal for good
revocation    a source taken out of the set and of the journal
"""
