"""What an answer is held against: its source (`grounding`, `quantities`), its graph (`graph_check`, `graph_reading`),
and what nobody should train on (`private_text`). pipeline/filters.py puts them into its list.
"""
