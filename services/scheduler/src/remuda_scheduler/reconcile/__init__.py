"""ReconcileInstance: the record of one instance against every copy that hosts show."""
