"""How a graph's facts and questions are put into words: what Self-KG writes by itself, and what a model rewords.

`speaker` says facts and drafts questions with their answers; where nobody worded a relation, `english` and `chinese`
make phrases out of its label.
"""
