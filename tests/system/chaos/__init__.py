"""Faults on purpose: real agents, broker, hub and database under seeded random schedules.

    plan       a seed → devices, load and faults with their times; nothing else decides
    central    database, broker, hub: they live over many schedules and are killed within them
    box        one device: its folder, its agent as a process, its clock, its disk
    link       the way between an agent and the broker: cut, dead, slow, repeating, reordering,
               forgetting
    feeder     gives a box records and remembers each that it was told OK
    faults     what each fault does to boxes and central
    account    what bronze holds and what was declared; the judgement over lost and doubled
    schedule   one plan from the first process to the judgement

``python -m tests.system.chaos --schedules 300 --seed 1`` (``make chaos N=300 SEED=1``). A schedule
that fails prints its seed; the same seed makes the same plan. The moments at which processes meet a
fault are real, so a rare defect may need more than one replay.
"""
