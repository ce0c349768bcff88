"""When a project is regenerated, and that every tick is started once: what `pipeline.schedule` is made of.

timing    the [schedule] table; when its ticks come, time zones and daylight saving included; which of them to run
ticks     what became of every tick, in SQLite, unique by (schedule, tick)
process   the clock, and the run in a process of its own
hooks     a command or a webhook on success, failure and empty
units     the same schedule for cron, systemd, Kubernetes and GitHub
"""
