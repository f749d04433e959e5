"""Planner: budgets, FLOPs, memory, layouts, hours, from a recipe and before any GPU is booked.  `plan_run(recipe)`."""

from megatron_growth.planner.parallel import ParallelLayout
from megatron_growth.planner.planning import plan_run
from megatron_growth.planner.run_plan import Parameters, RunPlan, StagePlan

__all__ = ["ParallelLayout", "Parameters", "RunPlan", "StagePlan", "plan_run"]
