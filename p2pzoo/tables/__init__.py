"""Many runs beside one another: made here or on a cluster, compared with their intervals, shown as tables and pages."""
