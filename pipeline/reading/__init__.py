"""From paths to chunks: what Self-QA reads.

`documents` goes from paths to text with structure (`blocks`), file by file; `extraction` runs the readers (`markup`,
`pdf`, `tables`, `graphs`) in a child process; `chunks` cuts, and `corpus` knows all chunks together. `api_calls` reads
API descriptions.
"""
