"""The lecture: experiments.lecture runs all topics, experiments.lecture.NAME runs one."""
