"""`python -m realtime_skyseg.field`: the field guard's process, started by `FieldGuard`."""

from realtime_skyseg.field.guard import main

main()
