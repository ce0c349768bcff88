"""instructloop: instruction-tuning data, made along one straight line.

    source     ->  generator                 ->  candidate  ->  filters            ->  run folder      ->  readers
    seeds/         prompts -> ask -> parse       Record         keep, or reject        records.jsonl
                              |                                 and say why            rejected.jsonl
                   journal.sqlite: every request and raw reply that was paid for

Read it in this order: `records` (what travels), `self_instruct` (a generator, and a command), `run` (the
one loop), `ask` (journal or model), `journal` (what is never lost). A new filter goes into `filters`.
"""
