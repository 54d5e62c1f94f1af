"""The stages of `gpu_window.py`, one module per group, and what runs them.

plan.py has the table of stages, driver.py starts each one as a process, context.py is what a stage gets and writes,
summary.py prints the results. Only the stages themselves import torch.
"""
