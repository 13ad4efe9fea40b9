"""The medallion: SQL files in, silver, gold and platinum kept current, each step accounted for."""

from scout_central.medallion.runner import PlannedStep, Runner, RunResult, StepResult, plan

__all__ = ["PlannedStep", "RunResult", "Runner", "StepResult", "plan"]
