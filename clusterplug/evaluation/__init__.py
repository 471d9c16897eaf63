"""Metrics over the results of models."""

from clusterplug.evaluation.subclass_agreement import SubclassAgreement, subclass_agreement

__all__ = ['SubclassAgreement', 'subclass_agreement']
