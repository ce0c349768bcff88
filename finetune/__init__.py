"""finetune: learn from what `pipeline` kept, and say whether it helped.

    records  ->  rows                  ->  QLoRA  ->  adapter  ->  verdict
    data         rows (tokens, labels,     training               measure (answer loss, ROUGE-L, stops …)
                 audit), estimate          methods, bases         verdict (against a control; one sentence)

Read it in this order: `run` (the command that does it all), `data`, `rows`, `methods`, `bases`, `training`,
`measure`, `verdict`. `merge` and `chat` are for afterwards. Imports from `pipeline` are few, and `pipeline` never
imports this.
"""
