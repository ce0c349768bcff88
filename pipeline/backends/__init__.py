"""Where replies come from: an endpoint or a model in this process, behind the one protocol of pipeline/llm.py.

`endpoint` speaks to a server through `capped`; `local_model` decodes by `continuous_batch`, with what `weights` loads
and `chat_template` renders. `pace` says how fast requests may follow each other.
"""
