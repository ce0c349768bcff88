"""What an answer is held against: its source (`grounding`, `quantities`), its graph (`graph_check`, `graph_reading`);
how it reads (`wording`, `shape`, `written_language`); and what nobody should train on (`private_text`).
pipeline/filters.py puts them into its list.
"""
