"""What `pipeline.curate` is made of.

`parents` and `rows` read what goes in, `spool` holds it on disk, `steps` is the list of steps; `near_duplicates`,
`semantic` and `decontaminate` compare records, by `shingles` and `embeddings`; `selection` chooses N of them.
"""
