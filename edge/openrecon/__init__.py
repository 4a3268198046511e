"""The label that makes the appliance's MRD server a Siemens OpenRecon module: what it needs, and how it is set."""
