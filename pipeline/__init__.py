"""instructloop: instruction-tuning data, made along one straight line.

    source     ->  generator                 ->  candidate  ->  filters            ->  run folder      ->  readers
    seeds/         prompts -> ask -> parse       Record         keep, or reject        records.jsonl
                              |                                 and say why            rejected.jsonl
                   journal.sqlite: every request and raw reply that was paid for

Read it in this order: `records` (what travels), `self_instruct` (a generator, and a command), `run` (the
one loop), `ask` (journal or model), `journal` (what is never lost), `filters` (what is kept).

What is new goes here:
    a filter           into `filters`, and a row of its own into tests/test_filters.py
    a file format      a reader in `reading`, and a row in `reading.extraction.READERS`
    a model backend    a class in `backends` that speaks `llm.Model`, and a way to it in `models`
    a generator        a module beside `self_instruct` with a class that is a `run.Generator`; its name in
                       `__main__.COMMANDS`, and in `regeneration.project.GENERATORS` for projects
"""
