"""Knowledge graphs as they are asked about: `load` reads them, `graph` holds them, `questions` says what to ask.

It imports nothing of `pipeline`, so it can be used, and tested, by itself. Start with `graph`.
"""
